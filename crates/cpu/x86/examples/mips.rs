//! How many million guest instructions a second the interpreter carries out, in loops of several kinds, in
//! 64-bit mode with paging on.
//!
//! `cargo run --release -p posada-x86 --example mips [KIND] [SECONDS]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
#[allow(clippy::wildcard_imports)]
use iced_x86::code_asm::*;
use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::State;
use posada_vcpu::{Attention, Bus, Clock, Connections, Exit, NoInterrupts, Vcpu};
use posada_x86::{Interpreter, Model};

const TABLES: u64 = 0x1000;
const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x20_0000;
const DATA: u64 = 0x40_0000;
const RAM: u64 = 64 << 20;

struct NoBus;
impl Bus for NoBus {}

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The loops. Each runs for ever.
const KINDS: [(&str, Assemble); 8] = [
    ("alu", alu),
    ("memory", memory),
    ("branches", branches),
    ("calls", calls),
    ("sieve", sieve),
    ("sort", sort),
    ("hash", hash),
    ("strings", strings),
];

/// Arithmetic between registers.
fn alu(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rcx, 0x1234_5678_u64)?;
    a.set_label(&mut again)?;
    a.add(rax, rcx)?;
    a.xor(rdx, rax)?;
    a.shl(rdx, 3)?;
    a.sub(rbx, rdx)?;
    a.lea(rsi, qword_ptr(rbx + rax * 4 + 17))?;
    a.and(esi, 0xffff)?;
    a.imul_2(rdi, rsi)?;
    a.or(rdi, 1)?;
    a.mov(r8, rdi)?;
    a.inc(rcx)?;
    a.jmp(again)
}

/// Loads and stores with all kinds of addresses.
fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rbx, DATA)?;
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(rbx + 8))?;
    a.add(rax, qword_ptr(rbx + rcx * 8))?;
    a.mov(qword_ptr(rbx + rcx * 8 + 0x1000), rax)?;
    a.mov(edx, dword_ptr(rbx + rcx * 4))?;
    a.add(dword_ptr(rbx + 16), edx)?;
    a.movzx(esi, byte_ptr(rbx + rcx))?;
    a.mov(byte_ptr(rbx + rcx + 0x8000), sil)?;
    a.cmp(qword_ptr(rbx), 0)?;
    a.inc(ecx)?;
    a.and(ecx, 0xfff)?;
    a.jmp(again)
}

/// Branches that depend on a random number.
fn branches(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let (mut one, mut two, mut three) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rax, 88_172_645_463_325_252_u64)?;
    a.set_label(&mut again)?;
    a.mov(rdx, rax)?;
    a.shl(rdx, 13)?;
    a.xor(rax, rdx)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 7)?;
    a.xor(rax, rdx)?;
    a.test(al, 1)?;
    a.je(one)?;
    a.inc(rbx)?;
    a.set_label(&mut one)?;
    a.test(al, 2)?;
    a.jne(two)?;
    a.inc(rcx)?;
    a.set_label(&mut two)?;
    a.cmp(al, 100)?;
    a.jb(three)?;
    a.inc(rsi)?;
    a.set_label(&mut three)?;
    a.jmp(again)
}

/// Recursive Fibonacci numbers.
fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut fib, mut small) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(edi, 20)?;
    a.call(fib)?;
    a.jmp(again)?;
    a.set_label(&mut fib)?;
    a.push(rbx)?;
    a.push(rbp)?;
    a.mov(ebx, edi)?;
    a.mov(eax, edi)?;
    a.cmp(edi, 1)?;
    a.jbe(small)?;
    a.lea(edi, dword_ptr(rbx - 1))?;
    a.call(fib)?;
    a.mov(ebp, eax)?;
    a.lea(edi, dword_ptr(rbx - 2))?;
    a.call(fib)?;
    a.add(eax, ebp)?;
    a.set_label(&mut small)?;
    a.pop(rbp)?;
    a.pop(rbx)?;
    a.ret()
}

/// The sieve of Eratosthenes over a megabyte.
fn sieve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const SIZE: i32 = 1 << 20;
    let mut labels = [(); 6].map(|()| a.create_label());
    let [again, clear, next, strike, prime, done] = &mut labels;
    a.mov(rdi, DATA)?;
    a.set_label(again)?;
    a.xor(eax, eax)?;
    a.set_label(clear)?;
    a.mov(byte_ptr(rdi + rax), 1)?;
    a.add(rax, 1)?;
    a.cmp(rax, SIZE)?;
    a.jne(*clear)?;
    a.mov(ecx, 2)?;
    a.set_label(next)?;
    a.cmp(byte_ptr(rdi + rcx), 0)?;
    a.je(*done)?;
    a.lea(rdx, qword_ptr(rcx + rcx))?;
    a.jmp(*prime)?;
    a.set_label(strike)?;
    a.mov(byte_ptr(rdi + rdx), 0)?;
    a.add(rdx, rcx)?;
    a.set_label(prime)?;
    a.cmp(rdx, SIZE)?;
    a.jb(*strike)?;
    a.set_label(done)?;
    a.inc(rcx)?;
    a.cmp(rcx, 1024)?;
    a.jb(*next)?;
    a.jmp(*again)
}

/// Insertion sort of numbers in reverse order.
fn sort(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const COUNT: i32 = 1000;
    let mut labels = [(); 6].map(|()| a.create_label());
    let [again, fill, outer, inner, place, end] = &mut labels;
    a.mov(rdi, DATA)?;
    a.set_label(again)?;
    a.xor(ecx, ecx)?;
    a.set_label(fill)?;
    a.mov(eax, COUNT)?;
    a.sub(eax, ecx)?;
    a.mov(dword_ptr(rdi + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, COUNT)?;
    a.jl(*fill)?;
    a.mov(ecx, 1)?;
    a.set_label(outer)?;
    a.mov(eax, dword_ptr(rdi + rcx * 4))?;
    a.mov(rdx, rcx)?;
    a.set_label(inner)?;
    a.mov(esi, dword_ptr(rdi + rdx * 4 - 4))?;
    a.cmp(esi, eax)?;
    a.jle(*place)?;
    a.mov(dword_ptr(rdi + rdx * 4), esi)?;
    a.sub(rdx, 1)?;
    a.jne(*inner)?;
    a.set_label(place)?;
    a.mov(dword_ptr(rdi + rdx * 4), eax)?;
    a.inc(rcx)?;
    a.cmp(ecx, COUNT)?;
    a.jl(*outer)?;
    a.set_label(end)?;
    a.jmp(*again)
}

/// FNV-1a over text, in the shape that compilers give it.
fn hash(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut byte) = (a.create_label(), a.create_label());
    a.mov(r8, 0x0100_0000_01b3_u64)?;
    a.set_label(&mut again)?;
    a.mov(rdi, DATA)?;
    a.lea(rsi, qword_ptr(rdi + 0x4000))?;
    a.mov(rax, 0xcbf2_9ce4_8422_2325_u64)?;
    a.set_label(&mut byte)?;
    a.movzx(edx, byte_ptr(rdi))?;
    a.add(rdi, 1)?;
    a.xor(rax, rdx)?;
    a.imul_2(rax, r8)?;
    a.cmp(rdi, rsi)?;
    a.jne(byte)?;
    a.jmp(again)
}

/// Clears and copies pages.
fn strings(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rdi, DATA)?;
    a.mov(ecx, 512)?;
    a.xor(eax, eax)?;
    a.rep().stosq()?;
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + 0x10_0003)?;
    a.mov(ecx, 4096)?;
    a.rep().movsb()?;
    a.mov(rdi, DATA)?;
    a.mov(ecx, 100)?;
    a.repne().scasb()?;
    a.jmp(again)
}

fn interpreter(assemble: Assemble) -> Result<(Interpreter, Arc<Attention>), Box<dyn std::error::Error>> {
    let ram = GuestRam::new(&[(Gpa(0), RAM)])?;
    let mut assembler = CodeAssembler::new(64)?;
    assemble(&mut assembler)?;
    ram.write(Gpa(CODE), &assembler.assemble(CODE)?)?;
    ram.write(Gpa(TABLES), &((TABLES + 0x1000) | 7).to_le_bytes())?;
    ram.write(Gpa(TABLES + 0x1000), &((TABLES + 0x2000) | 7).to_le_bytes())?;
    for n in 0..512 {
        ram.write(Gpa(TABLES + 0x2000 + n * 8), &(n << 21 | 0x87).to_le_bytes())?;
    }
    let attention = Arc::new(Attention::default());
    let connections = Connections {
        index: 0,
        count: 1,
        ram,
        bus: Arc::new(NoBus),
        interrupts: Arc::new(NoInterrupts),
        attention: Arc::clone(&attention),
        clock: Arc::new(Clock::new()),
    };
    let mut interpreter = Interpreter::new(connections, Model::named("x86-64-v2")?)?;
    let mut state = State::long_mode(CODE, TABLES);
    state.gpr[4] = STACK;
    interpreter.set_state(&state)?;
    Ok((interpreter, attention))
}

/// Seconds of processor time that this thread has used, where the host tells: others share the machine.
fn processor_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(|nanoseconds: f64| nanoseconds / 1e9)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let wanted = arguments.next().unwrap_or_else(|| "all".to_owned());
    let seconds: f64 = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let mut logs = 0.0;
    let mut count = 0;
    for (name, assemble) in KINDS.iter().filter(|(name, _)| wanted == "all" || *name == wanted) {
        let (mut interpreter, attention) = interpreter(*assemble)?;
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs_f64(seconds));
            attention.kick();
        });
        let (start, wall) = (processor_time(), Instant::now());
        let exit = interpreter.run()?;
        let elapsed = match (start, processor_time()) {
            (Some(start), Some(end)) => end - start,
            _ => wall.elapsed().as_secs_f64(),
        };
        kicker.join().expect("the thread only sleeps");
        assert_eq!(exit, Exit::Kicked, "{name} ended by itself");
        let mips = interpreter.instructions().unwrap_or(0) as f64 / elapsed / 1e6;
        println!("{name:10} {mips:8.1} million instructions a second");
        logs += mips.ln();
        count += 1;
    }
    if count > 1 {
        println!("{:10} {:8.1}", "mean", (logs / f64::from(count)).exp());
    }
    Ok(())
}
