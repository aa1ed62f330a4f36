//! Several processors on one memory, a thread each: what one does, the others see.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use posada_memory::GuestRam;

use super::Engine;
use super::board::{Access, Script};
use super::machine::{DATA, FREE, Machine, kind, selector};
use super::tables::pte;
use crate::x86::{Running, State, gpr, rflags};
use crate::{Attention, Event, Exit};

/// Where each processor's code begins, [`ROOM`] bytes apart, and its stack ends.
const CODES: u64 = 0x2_0000;
const ROOM: u64 = 0x1_0000;
/// A handler of interrupts.
const HANDLER: u64 = 0x8_0000;
const VECTOR: u8 = 0x40;
/// Writing to this port and those behind it raises the interrupt on the first processor, and so on.
const IPI: u16 = 0x90;
/// Writing to this port sends processor 1 the start-up message with the value.
const START: u16 = 0xa0;
/// A page of code that all processors call.
const SHARED: u64 = 0x9_0000;
/// `mov eax, 1; ret`.
const FUNCTION: [u8; 6] = [0xb8, 1, 0, 0, 0, 0xc3];
/// Far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes one processor's code.
type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn code_of(cpu: usize) -> u64 {
    CODES + cpu as u64 * ROOM
}

/// Counts a processor as ended when dropped, even if its engine panics.
struct Ending<'a>(&'a AtomicUsize);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Runs as many processors as `change` makes states for, up to the `hlt` at the end of each one's code: one that is
/// reached with interrupts off.
fn run(machine: &Machine<'_>, cpus: usize, change: impl Fn(usize, &mut State)) -> Vec<State> {
    let reached: Vec<(Arc<Script>, Arc<Attention>)> = (0..cpus).map(|_| Default::default()).collect();
    let others = reached.clone();
    machine.bus.react(move |access| match access {
        Access::PortWrite(START, _, page) => {
            others[1].0.send(Event::StartUp(page as u8));
            others[1].1.interrupt();
        }
        Access::PortWrite(port, ..) => {
            let (script, attention) = &others[usize::from(port - IPI)];
            script.raise(VECTOR);
            attention.interrupt();
        }
        _ => {}
    });
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = reached
            .iter()
            .enumerate()
            .map(|(cpu, (script, attention))| {
                let mut vcpu = machine.processor(cpu as u32, cpus as u32, script, attention);
                let mut state = machine.state.clone();
                state.rip = code_of(cpu);
                state.gpr[gpr::RSP] = code_of(cpu) + ROOM;
                change(cpu, &mut state);
                vcpu.set_state(&state).expect("the engine takes the state");
                let ended = &ended;
                scope.spawn(move || {
                    let _ending = Ending(ended);
                    loop {
                        match vcpu.run().expect("the engine runs") {
                            Exit::Halted => {
                                let state = vcpu.state();
                                let waits = state.activity.running == Running::WaitForStartUp;
                                if !waits && state.rflags & rflags::IF == 0 {
                                    break Ok(state);
                                }
                                attention.wait(None);
                            }
                            exit => break Err(Box::new((exit, vcpu.state()))),
                        }
                    }
                })
            })
            .collect();
        let began = Instant::now();
        while ended.load(Ordering::Acquire) < cpus {
            std::thread::sleep(Duration::from_millis(1));
            if began.elapsed() > PATIENCE {
                for (_, attention) in &reached {
                    attention.kick();
                }
            }
        }
        let ends = threads.into_iter().map(|thread| thread.join().expect("no engine panics"));
        ends.enumerate()
            .map(|(cpu, end)| {
                end.unwrap_or_else(|other| {
                    let (exit, state) = *other;
                    panic!("processor {cpu}: {exit:?} at {:#x}, registers {:x?}", state.rip, state.gpr)
                })
            })
            .collect()
    })
}

/// Runs processors, each with its own code, in 64-bit mode, and returns their memory.
fn run_codes(mut machine: Machine<'_>, codes: &[Code]) -> GuestRam {
    for (cpu, code) in codes.iter().enumerate() {
        machine = machine.code_at(code_of(cpu), 64, code);
    }
    run(&machine, codes.len(), |_, _| ());
    machine.ram
}

/// The quadword at `place`.
fn at(ram: &GuestRam, place: u64) -> u64 {
    ram.load(place as usize)
}

/// Loops until the quadword at `at` is `value`, below 2^31.
fn wait_for(a: &mut CodeAssembler, at: u64, value: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(qword_ptr(at), value)?;
    a.jne(again)
}

/// Counts `counter` down, and goes to `again` until it is zero.
fn repeat(a: &mut CodeAssembler, counter: AsmRegister64, again: CodeLabel) -> Result<(), IcedError> {
    a.dec(counter)?;
    a.jnz(again)
}


pub(super) fn locked_instructions_of_several_processors_add_up(engine: &Engine) {
    const TIMES: u64 = 3000;
    fn add(a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.mov(r12, TIMES)?;
        a.mov(rbx, FREE)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.mov(ecx, 1)?;
        a.lock().xadd(qword_ptr(DATA + 64 - 3), rcx)?;
        // Two pages that are neighbours in RAM.
        a.lock().add(qword_ptr(DATA + 0x1000 - 5), 1)?;
        // Two that are not.
        a.lock().add(qword_ptr(rbx + 0x1000 - 3), 0x0101)?;
        let (mut retry, mut retry_apart) = (a.create_label(), a.create_label());
        a.mov(rax, qword_ptr(DATA + 128))?;
        a.set_label(&mut retry)?;
        a.lea(rcx, qword_ptr(rax + 1))?;
        a.lock().cmpxchg(qword_ptr(DATA + 128), rcx)?;
        a.jne(retry)?;
        a.mov(rax, qword_ptr(rbx + 0x2000 - 4))?;
        a.set_label(&mut retry_apart)?;
        a.lea(rcx, qword_ptr(rax + 1))?;
        a.lock().cmpxchg(qword_ptr(rbx + 0x2000 - 4), rcx)?;
        a.jne(retry_apart)?;
        repeat(a, r12, again)
    }
    let mut machine = Machine::long(engine);
    for (n, physical) in [0x20_0000, 0x30_0000, 0x28_0000].into_iter().enumerate() {
        machine.map(FREE + n as u64 * 0x1000, physical, pte::ALL);
    }
    let ram = run_codes(machine, &[add, add, add]);
    let apart = |first: u64, room: u64, second: u64| {
        let low = at(&ram, first + 0x1000 - 8) >> (64 - room * 8);
        low | at(&ram, second) << (room * 8)
    };
    assert_eq!(at(&ram, DATA), 3 * TIMES);
    assert_eq!(at(&ram, DATA + 64 - 3), 3 * TIMES);
    assert_eq!(at(&ram, DATA + 128), 3 * TIMES);
    assert_eq!(at(&ram, DATA + 0x1000 - 5), 3 * TIMES);
    assert_eq!(apart(0x20_0000, 3, 0x30_0000), 3 * TIMES * 0x0101);
    assert_eq!(apart(0x30_0000, 4, 0x28_0000), 3 * TIMES);
}

pub(super) fn a_lock_taken_by_exchange_keeps_others_out(engine: &Engine) {
    const TIMES: u64 = 2000;
    fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.mov(r12, TIMES)?;
        let (mut take, mut taken) = (a.create_label(), a.create_label());
        a.set_label(&mut take)?;
        a.mov(eax, 1)?;
        a.xchg(dword_ptr(DATA), eax)?;
        a.test(eax, eax)?;
        a.jz(taken)?;
        a.pause()?;
        a.jmp(take)?;
        a.set_label(&mut taken)?;
        a.mov(rax, qword_ptr(DATA + 64))?;
        a.inc(rax)?;
        a.mov(qword_ptr(DATA + 64), rax)?;
        a.mov(dword_ptr(DATA), 0)?;
        repeat(a, r12, take)
    }
    let ram = run_codes(Machine::long(engine), &[count, count]);
    assert_eq!(at(&ram, DATA + 64), 2 * TIMES);
}

/// Each processor sets its own flag and looks at the other's: one at least must see it. The rounds begin together.
pub(super) fn fences_order_stores_before_loads(engine: &Engine) {
    const ROUNDS: i32 = 2000;
    /// Flags by round, and what was seen; arrivals.
    const FLAGS: u64 = 0x40_0000;
    const SEEN: u64 = 0x48_0000;
    fn side(a: &mut CodeAssembler, own: u64, other: u64) -> Result<(), IcedError> {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.xor(esi, esi)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.lea(rdx, qword_ptr(rsi + rsi * 1 + 2))?;
        a.set_label(&mut wait)?;
        a.cmp(qword_ptr(DATA), rdx)?;
        a.jb(wait)?;
        a.mov(dword_ptr(rsi * 8 + (FLAGS + own)), 1)?;
        a.mfence()?;
        a.mov(eax, dword_ptr(rsi * 8 + (FLAGS + other)))?;
        a.mov(dword_ptr(rsi * 8 + (SEEN + own)), eax)?;
        a.inc(rsi)?;
        a.cmp(rsi, ROUNDS)?;
        a.jne(again)
    }
    let ram = run_codes(Machine::long(engine), &[|a| side(a, 0, 4), |a| side(a, 4, 0)]);
    for round in 0..ROUNDS as u64 {
        assert_ne!(at(&ram, SEEN + round * 8), 0, "round {round}: neither saw the other");
    }
}

/// The machine with a handler that counts interrupts at `DATA + 64 * processor`, and does what is given.
fn with_handler(engine: &Engine, more: Code) -> Machine<'_> {
    let machine = Machine::long(engine).code_at(HANDLER, 64, |a| {
        more(a)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.iretq()
    });
    machine.gate(VECTOR, selector::CODE64, HANDLER, kind::INTERRUPT_GATE, 0, true);
    machine
}

pub(super) fn interrupts_go_back_and_forth(engine: &Engine) {
    const TIMES: u64 = 200;
    // The first sends one and spins until it has been taken.
    fn send(a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.xor(esi, esi)?;
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(rsi)?;
        a.out(i32::from(IPI) + 1, al)?;
        a.set_label(&mut wait)?;
        a.cmp(qword_ptr(DATA), rsi)?;
        a.jne(wait)?;
        a.cmp(rsi, TIMES as i32)?;
        a.jne(again)
    }
    // The second spins in its first half, and sleeps in its second.
    fn take(a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut spin, mut sleep, mut done) = (a.create_label(), a.create_label(), a.create_label());
        a.sti()?;
        a.set_label(&mut spin)?;
        a.cmp(qword_ptr(DATA), TIMES as i32 / 2)?;
        a.jb(spin)?;
        a.set_label(&mut sleep)?;
        a.cli()?;
        a.cmp(qword_ptr(DATA), TIMES as i32)?;
        a.je(done)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(sleep)?;
        a.set_label(&mut done)?;
        a.nop()
    }
    let ram = run_codes(with_handler(engine, |_| Ok(())), &[send, take]);
    assert_eq!(at(&ram, DATA), TIMES);
}

pub(super) fn a_start_up_message_starts_a_processor(engine: &Engine) {
    const PAGE: u64 = 0x50;
    let machine = Machine::long(engine)
        .code_at(code_of(0), 64, |a| {
            a.mov(eax, PAGE as u32)?;
            a.out(i32::from(START), al)?;
            wait_for(a, DATA, 0x1234)
        })
        .code_at(PAGE << 12, 16, |a| {
            a.mov(bx, (DATA >> 4) as i32)?;
            a.mov(ds, bx)?;
            a.mov(word_ptr(0), 0x1234)
        });
    let states = run(&machine, 2, |cpu, state| {
        if cpu == 1 {
            *state = State::reset();
            state.activity.running = Running::WaitForStartUp;
        }
    });
    let segment = states[1].segments.cs;
    assert_eq!((u64::from(segment.selector), segment.base), (PAGE << 8, PAGE << 12));
}

/// A TLB shootdown: the second processor counts in a page, which the first replaces by another, telling it so.
pub(super) fn a_page_taken_away_is_not_written_to_any_more(engine: &Engine) {
    const BEFORE: u64 = 0x20_0000;
    const AFTER: u64 = 0x30_0000;
    const DONE: u64 = DATA + 128;
    let mut machine = with_handler(engine, |a| {
        a.push(rax)?;
        a.mov(rax, FREE)?;
        a.invlpg(byte_ptr(rax))?;
        a.pop(rax)
    });
    machine.map(FREE, BEFORE, pte::ALL);
    let entry = machine.entry(FREE, 0);
    let new = AFTER | pte::ALL | pte::A | pte::D;
    machine = machine.code_at(code_of(0), 64, |a| {
        let (mut moving, mut later) = (a.create_label(), a.create_label());
        a.set_label(&mut moving)?;
        a.cmp(qword_ptr(BEFORE), 1000)?;
        a.jb(moving)?;
        a.mov(rax, new)?;
        a.mov(qword_ptr(entry), rax)?;
        a.out(i32::from(IPI) + 1, al)?;
        wait_for(a, DATA, 1)?;
        a.mov(r8, qword_ptr(BEFORE))?;
        a.set_label(&mut later)?;
        a.cmp(qword_ptr(AFTER), 100_000)?;
        a.jb(later)?;
        a.mov(r9, qword_ptr(BEFORE))?;
        a.mov(qword_ptr(DONE), 1)
    });
    machine = machine.code_at(code_of(1), 64, |a| {
        let mut again = a.create_label();
        a.mov(rbx, FREE)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rbx))?;
        a.cmp(qword_ptr(DONE), 1)?;
        a.jne(again)?;
        a.cli()
    });
    let states = run(&machine, 2, |_, _| ());
    assert_eq!(states[0].gpr[8], states[0].gpr[9], "it was written to after the shootdown");
}

/// The other processor runs the function in a loop, and says what it returns; each change must reach it.
fn changes_are_seen(engine: &Engine, serialize: bool, first: i32) {
    const SEEN: u64 = DATA;
    const GO: u64 = DATA + 64;
    const CHANGES: i32 = 100;
    let machine = Machine::long(engine)
        .bytes_at(SHARED, &FUNCTION)
        .code_at(code_of(0), 64, |a| {
            let (mut again, mut wait) = (a.create_label(), a.create_label());
            a.xor(esi, esi)?;
            a.set_label(&mut again)?;
            a.inc(esi)?;
            a.mov(dword_ptr(SHARED + 1), esi)?;
            // The first changes come before anybody runs it.
            a.cmp(esi, first)?;
            a.jb(again)?;
            a.mov(dword_ptr(GO), 1)?;
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(SEEN), esi)?;
            a.jne(wait)?;
            a.cmp(esi, first + CHANGES)?;
            a.jne(again)
        })
        .code_at(code_of(1), 64, |a| {
            let mut again = a.create_label();
            wait_for(a, GO, 1)?;
            a.mov(rbp, SHARED)?;
            a.set_label(&mut again)?;
            if serialize {
                a.xor(eax, eax)?;
                a.cpuid()?;
            }
            a.call(rbp)?;
            a.mov(dword_ptr(SEEN), eax)?;
            a.cmp(eax, first + CHANGES)?;
            a.jne(again)
        });
    let states = run(&machine, 2, |_, _| ());
    assert_eq!(states[1].gpr[gpr::RAX], (first + CHANGES) as u64);
}

pub(super) fn code_that_another_processor_changes_is_seen_in_a_loop(engine: &Engine) {
    changes_are_seen(engine, false, 1);
}

pub(super) fn code_that_another_processor_changes_is_seen_after_a_serializing_instruction(engine: &Engine) {
    changes_are_seen(engine, true, 1);
}

/// Nothing in the loop but the change ends it.
pub(super) fn a_loop_within_a_page_that_another_processor_changes_is_left(engine: &Engine) {
    const CHANGES: i32 = 50;
    let machine = Machine::long(engine)
        .code_at(SHARED, 64, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(eax, 1)?;
            a.mov(dword_ptr(DATA), eax)?;
            a.cmp(eax, CHANGES)?;
            a.jne(again)
        })
        .code_at(code_of(0), 64, |a| {
            let (mut again, mut wait) = (a.create_label(), a.create_label());
            a.xor(esi, esi)?;
            a.set_label(&mut again)?;
            a.inc(esi)?;
            a.mov(dword_ptr(SHARED + 1), esi)?;
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(DATA), esi)?;
            a.jne(wait)?;
            a.cmp(esi, CHANGES)?;
            a.jne(again)
        });
    let states = run(&machine, 2, |cpu, state| {
        if cpu == 1 {
            state.rip = SHARED;
        }
    });
    assert_eq!(states[1].gpr[gpr::RAX], CHANGES as u64);
}

/// The one who writes has written to the page many times before it became code.
pub(super) fn a_page_that_another_processor_writes_to_becomes_code(engine: &Engine) {
    for _ in 0..4 {
        changes_are_seen(engine, false, 1000);
    }
}

/// Processors take turns: each changes the function that all run, and waits until its turn comes again. All have
/// functions and data in the same page, so that each wants to watch what the others write to.
pub(super) fn every_processor_may_change_what_all_run(engine: &Engine) {
    const CPUS: usize = 3;
    const TURNS: i32 = 300;
    let mut machine = Machine::long(engine).bytes_at(SHARED, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for cpu in 0..CPUS {
        machine = machine.code_at(code_of(cpu), 64, |a| {
            let (mut again, mut other, mut done) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(rbp, SHARED)?;
            a.mov(ecx, CPUS as u32)?;
            a.set_label(&mut again)?;
            a.inc(qword_ptr(SHARED + 0x800 + cpu as u64 * 8))?;
            a.call(rbp)?;
            a.cmp(eax, TURNS)?;
            a.jae(done)?;
            a.mov(esi, eax)?;
            a.xor(edx, edx)?;
            a.div(ecx)?;
            a.cmp(edx, cpu as i32)?;
            a.jne(other)?;
            a.inc(esi)?;
            a.mov(dword_ptr(SHARED + 1), esi)?;
            a.set_label(&mut other)?;
            a.jmp(again)?;
            a.set_label(&mut done)?;
            a.nop()
        });
    }
    let states = run(&machine, CPUS, |_, _| ());
    assert!(states.iter().all(|state| state.gpr[gpr::RAX] == TURNS as u64));
}

