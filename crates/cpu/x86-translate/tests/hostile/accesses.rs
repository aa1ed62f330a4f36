//! Accesses to memory that a translator may have other ways for than for most.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::pair::{CODE, DATA, PAGE, Pair};
use super::{LEVELS, assemble, same};

#[test]
fn unaligned_accesses_are_done_within_pages_and_across() {
    // What is stored at each distance from a page's end, and loaded again, with all forms of addresses.
    let accesses = |a: &mut CodeAssembler| {
        a.mov(rbx, DATA.linear + 0xff0)?;
        a.mov(rdx, 0x0123_4567_89ab_cdef_u64)?;
        a.xor(ecx, ecx)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(qword_ptr(rbx), rdx)?;
        a.lea(rsi, qword_ptr(rbx + 1))?;
        a.add(rax, qword_ptr(rsi + 2))?;
        a.add(dword_ptr(rbx + rcx * 2 - 3), edx)?;
        a.mov(r8, rbx)?;
        a.xor(word_ptr(r8 + rcx), dx)?;
        a.lock().xadd(qword_ptr(r8 + 5), rdx)?;
        a.movzx(edi, word_ptr(r8 + rcx + 1))?;
        a.add(rax, rdi)?;
        a.rol(rdx, 7)?;
        a.lea(rbx, qword_ptr(rbx + 1))?;
        a.inc(ecx)?;
        a.cmp(ecx, 0x18)?;
        a.jne(again)?;
        a.hlt()
    };
    for mut pair in [Pair::default(), Pair::with_far_ram()] {
        for level in LEVELS {
            pair.map(level, true);
            // What is behind the first page is elsewhere than behind it in RAM.
            let entries = [1, 2].map(|n| Pair::page_entry(DATA.linear + n * PAGE) as usize);
            let [one, two] = entries.map(|at| pair.image()[at..at + 8].to_vec());
            pair.put(entries[0] as u64, &two);
            pair.put(entries[1] as u64, &one);
            pair.put_code(CODE.linear, &assemble(CODE.linear, accesses));
            same(&mut pair, &Pair::state(level));
        }
    }
}

#[test]
fn what_needs_rax_leaves_the_accesses_around_it_where_they_are() {
    // All through one base register, and so by one look into the TLB; each works on memory and on `rax`, `ah` or `rdx`.
    type Instruction<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let around = |a: &mut CodeAssembler, it: Instruction<'_>| {
        a.mov(rbx, DATA.linear + 0x100)?;
        a.lea(rsi, qword_ptr(rbx))?;
        a.mov(rcx, 0x1234_5678_9abc_def0_u64)?;
        a.mov(qword_ptr(rsi + 8), rcx)?;
        a.mov(qword_ptr(rsi + 16), rbx)?;
        a.mov(rax, rcx)?;
        a.mov(edx, 5)?;
        it(a)?;
        a.add(rcx, qword_ptr(rsi + 8))?;
        a.mov(qword_ptr(rsi + 24), rax)?;
        a.adc(rdx, qword_ptr(rsi + 16))?;
        a.hlt()
    };
    let all: [Instruction<'_>; 10] = [
        &|a| a.div(qword_ptr(rsi + 8)),
        &|a| a.idiv(dword_ptr(rsi + 12)),
        &|a| a.mul(qword_ptr(rsi + 16)),
        &|a| a.imul(dword_ptr(rsi + 16)),
        &|a| a.lock().cmpxchg(qword_ptr(rsi + 8), rdx),
        &|a| a.cmpxchg(dword_ptr(rsi + 8), r8d),
        &|a| a.cmpxchg8b(qword_ptr(rsi + 16)),
        &|a| a.add(ah, byte_ptr(rsi + 9)),
        &|a| a.mov(byte_ptr(rsi + 17), ah),
        &|a| {
            a.mov(rax, rsi)?;
            a.xor(byte_ptr(rax + 18), ah)
        },
    ];
    for it in all {
        for mut pair in [Pair::default(), Pair::with_far_ram()] {
            for level in LEVELS {
                pair.map(level, true);
                pair.put_code(CODE.linear, &assemble(CODE.linear, |a| around(a, it)));
                same(&mut pair, &Pair::state(level));
            }
        }
    }
}
