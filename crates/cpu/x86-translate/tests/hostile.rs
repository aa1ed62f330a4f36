//! Guests that do what no sensible guest does: they must find what they would find on the interpreter, and nothing
//! of the monitor's.

#![allow(unreachable_pub)]

#[path = "hostile/accesses.rs"]
mod accesses;
mod pair;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use pair::{ALIAS, CODE, CONSTANTS, DATA, DEVICE, HANDLERS, KERNEL, Level, PAGE, Pair, STACK, Side, Verdict};
use posada_vcpu::x86::{State, gpr, rflags};
use posada_vcpu::{Attention, Exit, Interrupts};

const LEVELS: [Level; 3] = [Level::User, Level::Supervisor, Level::Guarded];

fn assemble(at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("there are 64 bits");
    write(&mut assembler).expect("the instructions exist");
    assembler.assemble(at).expect("they can be encoded")
}

/// A pair with this code at the start of [`CODE`], which it may write.
fn guest(level: Level, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Pair, State) {
    let mut pair = Pair::default();
    pair.map(level, true);
    pair.put_code(CODE.linear, &assemble(CODE.linear, write));
    (pair, Pair::state(level))
}

#[track_caller]
fn same(pair: &mut Pair, state: &State) -> State {
    pair.be_patient(20_000);
    // The second time, what was translated is there already.
    let mut last = None;
    for _ in 0..2 {
        match pair.run(state) {
            Verdict::Same(state) => last = Some(state),
            other => panic!("{other:?}"),
        }
    }
    *last.expect("it ran")
}

#[test]
fn any_bytes_are_the_same_code_on_both_engines() {
    let mut pair = Pair::default();
    let count: u64 = std::env::var("COUNT").ok().and_then(|n| n.parse().ok()).unwrap_or(6000);
    let mut endless = 0;
    for seed in 0..count {
        let mut rng = fastrand::Rng::with_seed(seed);
        let level = LEVELS[rng.usize(..3)];
        pair.map(level, true);
        pair.clear_code();
        let at = rng.u64(..CODE.pages * PAGE - 400);
        let mut bytes = vec![0; rng.usize(1..400)];
        rng.fill(&mut bytes);
        // What is seldom hit by chance is put there.
        for _ in 0..rng.u8(..12) {
            let some: [&[u8]; 10] = [
                &[0x75, 0x02],
                &[0xeb, 0xf0],
                &[0xe8, 0, 0, 0, 0],
                &[0xc3],
                &[0x48, 0x89, 0x07],
                &[0x48, 0x8b, 0x03],
                &[0x9c, 0x9d],
                &[0xf3, 0x48, 0xab],
                &[0x0f, 0x10, 0x06],
                &[0xff, 0xe0],
            ];
            let some = some[rng.usize(..10)];
            let place = rng.usize(..bytes.len());
            let len = some.len().min(bytes.len() - place);
            bytes[place..place + len].copy_from_slice(&some[..len]);
        }
        pair.put_code(CODE.linear + at, &bytes);
        let mut state = Pair::state(level);
        state.rip = CODE.linear + at;
        // A kernel that writes page tables and tells nobody may find this or that.
        let kernel = if level == Level::User { KERNEL } else { 1 << 63 };
        for register in &mut state.gpr {
            let areas =
                [CODE.linear, DATA.linear, CONSTANTS.linear, ALIAS.linear + at, STACK.linear, 0, kernel];
            *register = areas[rng.usize(..7)].wrapping_add(rng.u64(..0x100));
        }
        state.gpr[gpr::RSP] = STACK.linear + 0x800;
        state.rflags |= rng.u64(..) & rflags::ARITHMETIC;
        match pair.run(&state) {
            Verdict::Same(_) => {}
            Verdict::Endless => endless += 1,
            Verdict::Different(report) => {
                // Whoever looks at undefined flags may go anywhere; without them all is the same.
                pair.put_code(CODE.linear + at, &without_undefined(&bytes));
                if let Verdict::Different(again) = pair.run(&state) {
                    panic!(
                        "seed {seed}, {level:?} at {at:#x}: {bytes:02x?}\n{report}without undefined flags:\n{again}"
                    );
                }
            }
        }
    }
    println!("{endless} did not end");
    assert!(endless * 5 < count, "{endless} did not end");
}

/// The same bytes without the instructions that leave flags undefined, wherever they may begin.
fn without_undefined(bytes: &[u8]) -> Vec<u8> {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic as M};
    let mut rest = bytes.to_vec();
    for at in 0..bytes.len() {
        let i = Decoder::with_ip(64, &rest[at..], 0, DecoderOptions::AMD).decode();
        let defined = matches!(i.mnemonic(), M::And | M::Or | M::Xor | M::Test);
        if !i.is_invalid()
            && !defined
            && (i.rflags_undefined() != 0 || matches!(i.mnemonic(), M::Rcl | M::Rcr))
        {
            rest[at..at + i.len()].fill(0x90);
        }
    }
    rest
}

#[test]
fn code_that_changes_the_next_instruction() {
    for level in LEVELS {
        for branch in [false, true] {
            let (mut pair, state) = guest(level, |a| {
                // The immediate operand of the `mov` that follows.
                let mut next = a.create_label();
                a.lea(rbx, qword_ptr(next))?;
                a.add(rbx, (ALIAS.linear - CODE.linear) as i32)?;
                a.mov(ecx, 5)?;
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.lea(edx, dword_ptr(rcx + 0x77))?;
                a.mov(byte_ptr(rbx + 1), dl)?;
                if branch {
                    a.jmp(next)?;
                    a.nop()?;
                }
                a.set_label(&mut next)?;
                a.mov(eax, 0x11)?;
                a.add(rsi, rax)?;
                a.dec(ecx)?;
                a.jne(again)?;
                a.int3()
            });
            let end = same(&mut pair, &state);
            let sum: u64 = (1..=5).map(|n| n + 0x77).sum();
            assert_eq!(end.gpr[gpr::RSI], sum, "{level:?}, branch {branch}");
        }
    }
}

#[test]
fn a_loop_that_writes_itself_without_end() {
    // Each round changes a block, so each is translated anew; the code cache is used up many times.
    let (mut pair, state) = guest(Level::User, |a| {
        a.mov(rbx, ALIAS.linear + 0x40)?;
        a.mov(ecx, 20_000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(dword_ptr(rbx + 1))?;
        a.mov(rax, CODE.linear + 0x40)?;
        a.call(rax)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.int3()
    });
    // `add eax, imm32`; `ret`.
    pair.put_code(CODE.linear + 0x40, &[0x05, 0, 0, 0, 0, 0xc3]);
    let end = same(&mut pair, &state);
    assert_eq!(end.gpr[gpr::RAX], CODE.linear + 0x40 + 20_000);
}

#[test]
fn code_reached_in_the_middle_of_an_instruction() {
    for level in LEVELS {
        let (mut pair, state) = guest(level, |a| {
            let mut inside = a.create_label();
            let mut again = a.create_label();
            a.mov(ecx, 4)?;
            a.set_label(&mut again)?;
            a.lea(rdx, qword_ptr(inside))?;
            // The first time from its beginning, then from its third byte, which is an instruction of its own.
            a.cmp(ecx, 4)?;
            a.lea(rbx, qword_ptr(rdx + 2))?;
            a.cmove(rbx, rdx)?;
            a.jmp(rbx)?;
            a.set_label(&mut inside)?;
            // `mov rax, 0x00c0ff480000ffc0`...: inside are `inc eax` and `inc rax`.
            a.db(&[0x48, 0xb8, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0x90, 0x90, 0x90])?;
            a.add(rsi, rax)?;
            a.dec(ecx)?;
            a.jne(again)?;
            a.int3()
        });
        same(&mut pair, &state);
    }
}

#[test]
fn a_kernel_that_unmaps_the_page_it_runs_on() {
    for level in [Level::Supervisor, Level::Guarded] {
        for flush in [false, true] {
            let entry = KERNEL + Pair::page_entry(CODE.linear);
            let other = CODE.linear + PAGE;
            let (mut pair, state) = guest(level, |a| {
                a.mov(rbx, entry)?;
                a.mov(rdx, CODE.linear)?;
                a.mov(rax, other)?;
                a.mov(qword_ptr(rbx), 0)?;
                if flush {
                    a.invlpg(ptr(rdx))?;
                    // The next instruction is not there any more.
                    a.inc(esi)?;
                }
                a.jmp(rax)
            });
            pair.put_code(
                other,
                &assemble(other, |a| {
                    a.inc(edi)?;
                    a.invlpg(ptr(rdx))?;
                    a.jmp(rdx)
                }),
            );
            let end = same(&mut pair, &state);
            assert_eq!(end.cr2 & !(PAGE - 1), CODE.linear);
            assert_eq!(end.gpr[gpr::RDI], u64::from(!flush));
        }
    }
}

#[test]
fn a_kernel_that_maps_another_page_under_its_code() {
    // Two pages of code take turns at the same linear address.
    let target = CODE.linear + 2 * PAGE;
    let entry = KERNEL + Pair::page_entry(target);
    let (mut pair, state) = guest(Level::Supervisor, |a| {
        a.mov(rbx, entry)?;
        a.mov(rdx, target)?;
        a.mov(ecx, 50)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(rdx)?;
        a.xor(qword_ptr(rbx), (CODE.physical + 2 * PAGE) as i32 ^ (CODE.physical + 3 * PAGE) as i32)?;
        a.invlpg(ptr(rdx))?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.int3()
    });
    for (page, register) in [(2, esi), (3, edi)] {
        let at = CODE.linear + page * PAGE;
        pair.put_code(
            at,
            &assemble(at, |a| {
                let mut on = a.create_label();
                a.inc(register)?;
                a.jmp(on)?;
                a.nop()?;
                a.set_label(&mut on)?;
                a.ret()
            }),
        );
    }
    let end = same(&mut pair, &state);
    assert_eq!((end.gpr[gpr::RSI], end.gpr[gpr::RDI]), (25, 25));
}

#[test]
fn pages_of_a_program_that_take_turns_while_its_kernel_runs() {
    const CALL: u32 = 0x80;
    const SERVICE: u64 = 0x7000;
    let target = CODE.linear + 2 * PAGE;
    let (mut pair, state) = guest(Level::User, |a| {
        a.mov(rdx, target)?;
        a.mov(ecx, 60)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(target)?;
        a.call(rdx)?;
        a.int(CALL)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.int3()
    });
    let handler = HANDLERS + u64::from(CALL) * 16;
    pair.put(handler, &assemble(KERNEL + handler, |a| a.jmp(KERNEL + SERVICE)));
    // Every other time all addresses are forgotten, and nothing has changed.
    let service = assemble(KERNEL + SERVICE, |a| {
        let mut stay = a.create_label();
        a.mov(rbx, KERNEL + Pair::page_entry(target))?;
        a.test(cl, 1)?;
        a.je(stay)?;
        a.xor(qword_ptr(rbx), (CODE.physical + 2 * PAGE) as i32 ^ (CODE.physical + 3 * PAGE) as i32)?;
        a.set_label(&mut stay)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.iretq()
    });
    pair.put(SERVICE, &service);
    for (page, register) in [(2, esi), (3, edi)] {
        let at = CODE.linear + page * PAGE;
        pair.put_code(
            at,
            &assemble(at, |a| {
                a.inc(register)?;
                a.ret()
            }),
        );
    }
    let end = same(&mut pair, &state);
    assert_eq!((end.gpr[gpr::RSI], end.gpr[gpr::RDI]), (60, 60));
}

/// Addresses of which nothing good comes.
fn wild_addresses() -> Vec<u64> {
    let on_stack = 0;
    let bases = [
        0,
        PAGE,
        1 << 21,
        1 << 30,
        1 << 39,
        0x8000_0000,
        1 << 32,
        1 << 47,
        1 << 63,
        0xffff_8000_0000_0000,
        KERNEL + PAGE,
        CODE.linear,
        CODE.end(),
        DATA.linear,
        DATA.linear + PAGE,
        DATA.end(),
        CONSTANTS.end(),
        STACK.linear,
        STACK.end(),
        DEVICE,
        DEVICE + PAGE,
        ALIAS.end(),
        &raw const on_stack as u64,
        wild_addresses as *const () as usize as u64,
    ];
    let near = [0, 1, 3, 4, 7, 8, 15, 16, 31, 32, 64_u64];
    bases
        .iter()
        .flat_map(|base| near.iter().flat_map(move |n| [base.wrapping_add(*n), base.wrapping_sub(*n)]))
        .collect()
}

#[test]
fn wild_addresses_and_stack_pointers_fault_as_they_should() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let accesses: [Write; 22] = [
        |a| a.mov(rax, qword_ptr(rbx)),
        |a| a.mov(qword_ptr(rbx), rax),
        |a| a.add(byte_ptr(rbx), 1),
        |a| a.adc(dword_ptr(rbx), eax),
        |a| a.lock().xadd(word_ptr(rbx), ax),
        |a| a.movups(xmm1, xmmword_ptr(rbx)),
        |a| a.movaps(xmmword_ptr(rbx), xmm1),
        |a| a.cmpxchg16b(xmmword_ptr(rbx)),
        |a| a.mov(rax, qword_ptr(rbx).fs()),
        |a| a.mov(eax, dword_ptr(ebx)),
        |a| a.mov(dword_ptr(rbx + r10 * 8), eax),
        |a| a.push(qword_ptr(rbx)),
        |a| a.jmp(qword_ptr(rbx)),
        |a| a.call(qword_ptr(rbx)),
        |a| a.jmp(rbx),
        |a| a.call(rbx),
        |a| {
            a.mov(rsp, rbx)?;
            a.push(rax)?;
            a.push(r10)
        },
        |a| {
            a.mov(rsp, rbx)?;
            a.pop(rax)?;
            a.pop(r15)
        },
        |a| {
            a.mov(rsp, rbx)?;
            a.mov(rax, CODE.linear + PAGE)?;
            a.call(rax)
        },
        |a| {
            a.mov(rsp, rbx)?;
            a.ret()
        },
        |a| {
            a.mov(rbp, rbx)?;
            a.leave()
        },
        |a| {
            a.mov(rsp, rbx)?;
            a.pushfq()?;
            a.popfq()
        },
    ];
    let mut pair = Pair::default();
    for (n, write) in accesses.iter().enumerate() {
        // One level each, by turns: a run takes its time.
        let level = LEVELS[n % 3];
        pair.map(level, true);
        pair.clear_code();
        let code = assemble(CODE.linear, |a| {
            a.cmp(rcx, rdx)?;
            write(a)?;
            a.setc(cl)?;
            a.int3()
        });
        pair.put_code(CODE.linear, &code);
        for address in wild_addresses() {
            let mut state = Pair::state(level);
            state.gpr[gpr::RBX] = address;
            state.gpr[gpr::RDX] = n as u64;
            match pair.run(&state) {
                // A jump to itself, perhaps.
                Verdict::Same(_) | Verdict::Endless => {}
                other @ Verdict::Different(_) => panic!("access {n}, {level:?}, {address:#x}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_block_as_large_as_can_be() {
    // Accesses through many registers by turns, each with flags to keep.
    let registers = [rbx, rbp, rsi, rdi, r8, r9, r12, r13];
    let (mut pair, mut state) = guest(Level::User, |a| {
        for n in 0..200 {
            a.adc(qword_ptr(registers[n % 8] + (n % 100) as i32), r10)?;
            a.adc(r11, qword_ptr(registers[(n + 3) % 8] + r15 * 8))?;
        }
        a.int3()
    });
    for n in [3, 5, 6, 7, 8, 9, 12, 13] {
        state.gpr[n] = DATA.linear + 0x100 * n as u64;
    }
    same(&mut pair, &state);
    // Each in two pages.
    for n in [3, 5, 6, 7, 8, 9, 12, 13] {
        state.gpr[n] = DATA.linear + PAGE - 50;
    }
    same(&mut pair, &state);
}

#[test]
fn compatibility_mode_code_that_64_bit_code_writes() {
    // The interpreter alone runs such code, and must notice stores of translated code.
    let (mut pair, state) = guest(Level::User, |a| {
        let mut back = a.create_label();
        let mut again = a.create_label();
        a.mov(rbx, ALIAS.linear + PAGE + 1)?;
        a.mov(rbp, DATA.linear)?;
        a.lea(rax, qword_ptr(back))?;
        // A far pointer to 32-bit code, and one back.
        a.mov(dword_ptr(rbp), (CODE.linear + PAGE) as i32)?;
        a.mov(word_ptr(rbp + 4), 0x1b)?;
        a.mov(dword_ptr(rbp + 8), eax)?;
        a.mov(word_ptr(rbp + 12), 0x2b)?;
        a.mov(edi, 9)?;
        a.set_label(&mut again)?;
        a.mov(byte_ptr(rbx), dil)?;
        a.jmp(fword_ptr(rbp))?;
        a.set_label(&mut back)?;
        a.add(esi, eax)?;
        a.dec(edi)?;
        a.jne(again)?;
        a.int3()
    });
    // `mov eax, imm32`; `jmp far [ebp + 8]`.
    pair.put_code(CODE.linear + PAGE, &[0xb8, 0, 0, 0, 0, 0xff, 0x6d, 0x08]);
    let end = same(&mut pair, &state);
    assert_eq!(end.gpr[gpr::RSI], 45);
}

#[test]
fn a_program_that_unmasks_exceptions_between_pages_of_vector_code() {
    let far = CODE.linear + PAGE;
    let (mut pair, state) = guest(Level::User, |a| {
        a.mov(rbp, DATA.linear)?;
        a.mov(dword_ptr(rbp), 0x1f80)?;
        a.mov(dword_ptr(rbp + 4), 0)?;
        a.mov(rdx, far)?;
        a.mov(edi, 20)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(rdx)?;
        a.mov(eax, edi)?;
        a.and(eax, 1)?;
        a.ldmxcsr(dword_ptr(rbp + rax * 4))?;
        a.addps(xmm0, xmm1)?;
        a.dec(edi)?;
        a.jne(again)?;
        a.int3()
    });
    pair.put_code(
        far,
        &assemble(far, |a| {
            a.paddd(xmm2, xmm3)?;
            a.inc(esi)?;
            a.ret()
        }),
    );
    let end = same(&mut pair, &state);
    assert_eq!(end.gpr[gpr::RSI], 20);
}

#[test]
fn rings_1_and_2_are_not_the_kernel() {
    for ring in [1, 2] {
        type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
        let sensitive: [Write; 5] = [|a| a.cli(), |a| a.sti(), |a| a.swapgs(), |a| a.stac(), |a| a.clac()];
        for write in sensitive {
            let (mut pair, mut state) = guest(Level::Supervisor, |a| {
                a.inc(eax)?;
                write(a)?;
                a.int3()
            });
            let s = &mut state.segments;
            (s.cs.selector, s.cs.attributes) = (s.cs.selector | ring, s.cs.attributes | ring << 5);
            for segment in s.data_mut() {
                (segment.selector, segment.attributes) =
                    (segment.selector | ring, segment.attributes | ring << 5);
            }
            same(&mut pair, &state);
        }
    }
}

#[test]
fn prefixes_that_name_another_instruction_to_the_host() {
    let (mut pair, mut state) = guest(Level::User, |a| {
        // `rep bsf eax, ecx`, `rep bsr edx, ecx`, and with memory.
        a.db(&[0xf3, 0x0f, 0xbc, 0xc1, 0x0f, 0x94, 0xc3])?;
        a.db(&[0xf3, 0x0f, 0xbd, 0xd1, 0x0f, 0x94, 0xc7])?;
        a.db(&[0xf3, 0x41, 0x0f, 0xbc, 0x34, 0x24])?;
        a.db(&[0xf2, 0x41, 0x0f, 0xbd, 0x3c, 0x24])?;
        a.int3()
    });
    state.gpr[12] = DATA.linear;
    for value in [0, 1, 0x10, 0x8000_0000] {
        state.gpr[gpr::RCX] = value;
        same(&mut pair, &state);
    }
}

/// Interrupts whenever somebody asks.
#[derive(Default)]
struct Pulse {
    asked: AtomicU64,
    taken: AtomicU64,
}

impl Interrupts for Pulse {
    fn pending(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > self.taken.load(Ordering::SeqCst)
    }

    fn acknowledge(&self) -> Option<u8> {
        self.pending().then(|| {
            self.taken.fetch_add(1, Ordering::SeqCst);
            0x40
        })
    }
}

/// A translator alone, whose guest another thread interrupts all the time; the handler is `inc r14; iretq`. Its end,
/// and how often it was interrupted.
fn interrupted(
    level: Level,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (State, u64) {
    let pulse = Arc::new(Pulse::default());
    let mut pair = Pair::default();
    pair.map(level, true);
    pair.put_code(CODE.linear, &assemble(CODE.linear, write));
    pair.put(pair::HANDLERS + 0x40 * 16, &[0x49, 0xff, 0xc6, 0x48, 0xcf]);
    let mut side = Side::new(pair::translator, pulse.clone());
    let attention: Arc<Attention> = side.attention();
    let pulsing = Arc::clone(&pulse);
    let done = Arc::new(AtomicU64::new(0));
    let ended = Arc::clone(&done);
    let pulser = thread::spawn(move || {
        let begin = Instant::now();
        let mut rng = fastrand::Rng::with_seed(1);
        while ended.load(Ordering::SeqCst) == 0 {
            if begin.elapsed() > Duration::from_mins(1) {
                attention.kick();
            }
            pulsing.asked.fetch_add(1, Ordering::SeqCst);
            attention.interrupt();
            for _ in 0..rng.u32(..3000) {
                std::hint::spin_loop();
            }
        }
    });
    let exit = side.run(&Pair::state(level), pair.image());
    done.store(1, Ordering::SeqCst);
    pulser.join().expect("it does not panic");
    assert_eq!(exit, Exit::Halted, "it ends by itself");
    (side.state(), pulse.taken.load(Ordering::SeqCst))
}

/// The same, until there were so many interrupts in one run: on a busy host the thread that sends them may come late.
fn interrupted_often(
    least: u64,
    level: Level,
    code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (State, u64) {
    const TRIES: usize = 1000;
    (0..TRIES)
        .map(|_| interrupted(level, &code))
        .find(|(_, taken)| *taken >= least)
        .expect("the host runs both threads now and then")
}

/// A loop whose sums need every flag and register to be right each time.
fn checksum(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbp, DATA.linear)?;
    a.mov(dword_ptr(rbp), 400_000)?;
    a.mov(r10, 0x9e37_79b9_7f4a_7c15_u64)?;
    let mut again = a.create_label();
    let mut skip = a.create_label();
    a.set_label(&mut again)?;
    a.add(rax, r10)?;
    a.adc(qword_ptr(rbp + 8), rax)?;
    a.setc(cl)?;
    a.push(rcx)?;
    a.cmp(rax, rbx)?;
    a.lea(rbx, qword_ptr(rax + rbx * 2))?;
    a.mov(r11, qword_ptr(rbp + 8))?;
    a.jc(skip)?;
    a.xor(r11, rax)?;
    a.rol(r10, 7)?;
    a.set_label(&mut skip)?;
    a.pop(rdx)?;
    a.sbb(r8, rdx)?;
    a.add(r9, r11)?;
    a.dec(dword_ptr(rbp))?;
    a.jne(again)?;
    a.int3()
}

#[test]
fn interrupts_anywhere_in_a_loop_change_nothing() {
    let (end, taken) = interrupted_often(20, Level::User, checksum);
    let (mut calm, state) = guest(Level::User, checksum);
    let expected = same(&mut calm, &state);
    for n in [0, 1, 2, 3, 5, 8, 9, 10, 11] {
        assert_eq!(end.gpr[n], expected.gpr[n], "register {n}");
    }
    assert_eq!(end.gpr[14], taken, "each was seen once");
}

#[test]
fn nothing_comes_between_sti_and_what_follows() {
    // The handler counts in `r14`. One instruction goes before any interrupt: `hlt`, usually, which would sleep on.
    let (end, _) = interrupted_often(1, Level::Supervisor, |a| {
        a.mov(ecx, 3_000_000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cli()?;
        a.mov(r10, r14)?;
        a.sti()?;
        a.mov(r11, r14)?;
        a.cmp(r10, r11)?;
        a.setne(dl)?;
        a.movzx(edx, dl)?;
        a.add(esi, edx)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.int3()
    });
    assert_eq!(end.gpr[gpr::RSI], 0, "an interrupt came between");
}

#[test]
fn two_pages_of_conditional_jumps_look_at_the_attention() {
    let far = CODE.linear + PAGE;
    let mut pair = Pair::default();
    pair.map(Level::User, true);
    for (here, there) in [(CODE.linear, far), (far, CODE.linear)] {
        pair.put_code(
            here,
            &assemble(here, |a| {
                a.je(there)?;
                a.mov(rax, qword_ptr(rbx))?;
                a.mov(rcx, qword_ptr(rbx))?;
                a.int3()
            }),
        );
    }
    let mut state = Pair::state(Level::User);
    state.rflags |= rflags::ZF;
    let begin = Instant::now();
    assert!(matches!(pair.run(&state), Verdict::Endless), "it spins until it is kicked");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn jumps_to_what_a_register_or_the_stack_says_look_at_the_attention() {
    type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let jump: Code = |a| {
        a.mov(rax, CODE.linear + 10)?;
        a.jmp(rax)
    };
    let call: Code = |a| {
        a.mov(rax, CODE.linear + 10)?;
        a.add(rsp, 8)?;
        a.call(rax)
    };
    let ret: Code = |a| {
        a.mov(rax, CODE.linear + 10)?;
        a.push(rax)?;
        a.ret()
    };
    for code in [jump, call, ret] {
        let (mut pair, state) = guest(Level::User, code);
        let begin = Instant::now();
        assert!(matches!(pair.run(&state), Verdict::Endless), "it spins until it is kicked");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn interrupts_anywhere_between_calls_and_returns_change_nothing() {
    const FAR: u64 = CODE.linear + PAGE;
    let code = |a: &mut CodeAssembler| {
        a.mov(ecx, 200_000)?;
        a.mov(rbx, FAR)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(FAR)?;
        a.adc(rax, rcx)?;
        a.call(rbx)?;
        a.sbb(rdx, rax)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.int3()
    };
    let function = assemble(FAR, |a| {
        a.rol(rax, 3)?;
        a.add(rax, rdx)?;
        a.ret()
    });
    let with_function = |a: &mut CodeAssembler| {
        code(a)?;
        let len = assemble(CODE.linear, code).len();
        a.db(&vec![0x90; PAGE as usize - len])?;
        a.db(&function)
    };
    let (end, taken) = interrupted_often(20, Level::User, with_function);
    let (mut calm, state) = guest(Level::User, with_function);
    let expected = same(&mut calm, &state);
    for n in [0, 1, 2, 3] {
        assert_eq!(end.gpr[n], expected.gpr[n], "register {n}");
    }
    assert_eq!(end.gpr[14], taken, "each was seen once");
}

#[test]
fn strings_that_overlap_their_own_copies_are_moved_element_by_element() {
    for distance in 1..=8 {
        let (mut pair, state) = guest(Level::User, |a| {
            a.mov(rbx, DATA.linear)?;
            a.mov(rax, 0x0807_0605_0403_0201_u64)?;
            for n in 0..8 {
                a.mov(qword_ptr(rbx + n * 8), rax)?;
                a.rol(rax, 3)?;
            }
            a.mov(rsi, rbx)?;
            a.lea(rdi, qword_ptr(rbx + distance))?;
            a.movsw()?;
            a.movsd()?;
            a.movsq()?;
            a.mov(ecx, 5)?;
            a.rep().movsd()?;
            a.mov(ecx, 3)?;
            a.rep().movsq()?;
            a.int3()
        });
        same(&mut pair, &state);
    }
}

#[test]
fn flags_after_a_rotation_are_found_without_losing_the_address_of_an_access() {
    let (mut pair, state) = guest(Level::User, |a| {
        a.mov(rbx, DATA.linear)?;
        // Only what was stored to before is known for stores.
        a.mov(ebp, 3)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(rcx, qword_ptr(rbx + 8))?;
        a.rol(edx, 3)?;
        a.cmovs(rcx, qword_ptr(rbx + 16))?;
        a.mov(rsi, qword_ptr(rbx + 8))?;
        a.ror(edx, 7)?;
        a.setp(byte_ptr(rbx + 24))?;
        a.mov(rdi, qword_ptr(rbx + 8))?;
        a.rol(edx, 5)?;
        a.rcl(dword_ptr(rbx + 28), 1)?;
        a.mov(rdi, qword_ptr(rbx + 8))?;
        a.rol(edx, 1)?;
        a.adc(qword_ptr(rbx + 32), rdx)?;
        a.mov(rdi, qword_ptr(rbx + 8))?;
        a.rol(edx, 9)?;
        a.inc(dword_ptr(rbx + 40))?;
        a.pushfq()?;
        a.dec(ebp)?;
        a.jne(again)?;
        a.int3()
    });
    same(&mut pair, &state);
}

#[test]
fn flags_at_a_fault_are_those_of_what_has_changed_since() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let comparisons: [Write; 12] = [
        |a| a.cmp(qword_ptr(rbx), 5),
        |a| a.cmp(dword_ptr(rbx + 8), ecx),
        |a| a.cmp(cx, word_ptr(rbx + 16)),
        |a| a.cmp(byte_ptr(rbx + 24), -3),
        |a| a.test(qword_ptr(rbx), rcx),
        |a| a.test(byte_ptr(rbx + 8), 0x81),
        |a| a.cmp(r10, r11),
        |a| a.cmp(r10b, 0x80),
        |a| a.test(r11w, r10w),
        |a| a.cmp(rcx, rdx),
        |a| a.add(r10, r11),
        |a| a.sub(ecx, edx),
    ];
    for (n, compare) in comparisons.into_iter().enumerate() {
        for reads in [false, true] {
            let (mut pair, state) = guest(Level::User, |a| {
                a.mov(rbx, DATA.linear)?;
                let mut next = a.create_label();
                // The second time the data's page is known.
                a.mov(ebp, 2)?;
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                compare(a)?;
                a.jo(next)?;
                a.mov(rcx, qword_ptr(rbx + 32))?;
                a.mov(r10, rcx)?;
                a.mov(rdx, qword_ptr(rbx + 0x800))?;
                a.mov(r11, rdx)?;
                if reads {
                    a.adc(rsi, qword_ptr(rbx + 40))?;
                    a.setbe(al)?;
                }
                a.set_label(&mut next)?;
                a.dec(ebp)?;
                a.jne(again)?;
                compare(a)?;
                a.mov(rcx, qword_ptr(rbx + 32))?;
                a.mov(r10, rcx)?;
                a.mov(rdx, rcx)?;
                a.mov(r11, rcx)?;
                a.mov(rax, qword_ptr(0))?;
                a.int3()
            });
            let mut rng = fastrand::Rng::with_seed(n as u64);
            for round in 0..20 {
                let mut state = state.clone();
                for register in [gpr::RCX, gpr::RDX, 10, 11] {
                    state.gpr[register] = rng.u64(..) >> rng.u32(..64);
                }
                let data: Vec<u8> = (0..64).map(|_| rng.u8(..)).collect();
                pair.put(DATA.physical, &data);
                let verdict = pair.run(&state);
                assert!(matches!(verdict, Verdict::Same(_)), "comparison {n}, {reads}, {round}: {verdict:?}");
            }
        }
    }
}

#[test]
fn the_stack_pointer_at_a_fault_is_behind_all_pushes_and_pops() {
    for fault in 0..6 {
        let (mut pair, state) = guest(Level::User, |a| {
            let faults = |a: &mut CodeAssembler, n| {
                if fault == n { a.mov(rax, qword_ptr(0)) } else { Ok(()) }
            };
            a.mov(ebp, 2)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.push(rbp)?;
            a.push(r10)?;
            a.push(0x1234)?;
            faults(a, 0)?;
            a.push(qword_ptr(rsp + 8))?;
            a.mov(qword_ptr(rsp + 16), rsp)?;
            faults(a, 1)?;
            a.pop(rcx)?;
            a.pop(r11)?;
            a.lea(rsi, qword_ptr(rsp + 8))?;
            faults(a, 2)?;
            a.push(rcx)?;
            a.sub(rsp, 32)?;
            a.push(rsi)?;
            a.mov(rdi, qword_ptr(rsp + 40))?;
            a.pushfq()?;
            faults(a, 3)?;
            a.popfq()?;
            a.pop(rdx)?;
            a.add(rsp, 40)?;
            a.pop(rsp)?;
            faults(a, 4)?;
            a.add(rsp, 24)?;
            a.dec(ebp)?;
            a.jne(again)?;
            faults(a, 5)?;
            a.int3()
        });
        same(&mut pair, &state);
    }
}
