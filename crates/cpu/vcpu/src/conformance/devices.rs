//! What reaches the bus: ports and memory where there is no RAM.

use iced_x86::code_asm::*;

use super::Engine;
use super::board::Access;
use super::machine::{DATA, FREE, MMIO, Machine};
use super::tables::pte;
use crate::x86::{cr4, gpr, rflags};

pub(super) fn ports_are_read_and_written_in_three_sizes(engine: &Engine) {
    let machine = Machine::long(engine).reg(gpr::RAX, 0x1122_3344_5566_7788).reg(gpr::RDX, 0x1234).code(|a| {
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.out(0x80, al)?;
        a.in_(al, dx)?;
        a.mov(rbx, rax)?;
        a.in_(ax, dx)?;
        a.mov(rcx, rax)?;
        a.in_(eax, 0x70)
    });
    machine.bus.answer(&[0xaa, 0xbbbb, 0xcccc_cccc]);
    let end = machine.run();
    end.expect_end();
    let expected = [
        Access::PortWrite(0x1234, 1, 0x88),
        Access::PortWrite(0x1234, 2, 0x7788),
        Access::PortWrite(0x1234, 4, 0x5566_7788),
        Access::PortWrite(0x80, 1, 0x88),
        Access::PortRead(0x1234, 1),
        Access::PortRead(0x1234, 2),
        Access::PortRead(0x70, 4),
    ];
    assert_eq!(end.bus.log(), expected);
    let seen = [gpr::RBX, gpr::RCX, gpr::RAX].map(|number| end.reg(number));
    assert_eq!(seen, [0x1122_3344_5566_77aa, 0x1122_3344_5566_bbbb, 0xcccc_cccc]);
}

pub(super) fn string_instructions_move_between_ports_and_memory(engine: &Engine) {
    let machine = Machine::long(engine)
        .reg(gpr::RDX, 0x1f0)
        .reg(gpr::RDI, DATA)
        .reg(gpr::RSI, DATA)
        .reg(gpr::RCX, 3)
        .code(|a| {
            a.rep().insw()?;
            a.mov(ecx, 3)?;
            a.rep().outsw()
        });
    machine.bus.answer(&[0x1111, 0x2222, 0x3333]);
    let end = machine.run();
    end.expect_end();
    let reads = [Access::PortRead(0x1f0, 2); 3];
    let writes = [0x1111, 0x2222, 0x3333].map(|value| Access::PortWrite(0x1f0, 2, value));
    assert_eq!(end.bus.log(), [reads, writes].concat());
    assert_eq!(end.load::<u64>(DATA), 0x3333_2222_1111);
    assert_eq!((end.reg(gpr::RDI), end.reg(gpr::RSI), end.reg(gpr::RCX)), (DATA + 6, DATA + 6, 0));
}

pub(super) fn a_string_input_that_cannot_be_stored_does_not_read_the_port(engine: &Engine) {
    let end = Machine::long(engine).reg(gpr::RDI, FREE).code(|a| a.insb()).run();
    end.expect_page_fault(2, FREE);
    assert_eq!(end.bus.log(), []);
}

pub(super) fn device_memory_is_read_and_written_in_four_sizes(engine: &Engine) {
    let machine = Machine::long(engine).reg(gpr::RBX, MMIO).reg(gpr::RAX, 0x1122_3344_5566_7788).code(|a| {
        a.mov(byte_ptr(rbx + 1), al)?;
        a.mov(word_ptr(rbx + 2), ax)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.movzx(ecx, byte_ptr(rbx))?;
        a.movsx(rdx, word_ptr(rbx))?;
        a.mov(esi, dword_ptr(rbx))?;
        a.mov(rdi, qword_ptr(rbx))
    });
    machine.bus.answer(&[0xaa, 0xbbbb, 0xcccc_cccc, 0xdddd_dddd_dddd_dddd]);
    let end = machine.run();
    end.expect_end();
    let expected = [
        Access::MmioWrite(MMIO + 1, 1, 0x88),
        Access::MmioWrite(MMIO + 2, 2, 0x7788),
        Access::MmioWrite(MMIO + 4, 4, 0x5566_7788),
        Access::MmioWrite(MMIO + 8, 8, 0x1122_3344_5566_7788),
        Access::MmioRead(MMIO, 1),
        Access::MmioRead(MMIO, 2),
        Access::MmioRead(MMIO, 4),
        Access::MmioRead(MMIO, 8),
    ];
    assert_eq!(end.bus.log(), expected);
    let seen = [gpr::RCX, gpr::RDX, gpr::RSI, gpr::RDI].map(|number| end.reg(number));
    assert_eq!(seen, [0xaa, 0xffff_ffff_ffff_bbbb, 0xcccc_cccc, 0xdddd_dddd_dddd_dddd]);
}

pub(super) fn instructions_that_read_and_write_do_each_once(engine: &Engine) {
    let machine = Machine::long(engine).reg(gpr::RBX, MMIO).code(|a| a.add(dword_ptr(rbx), 1));
    machine.bus.answer(&[41]);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.bus.log(), [Access::MmioRead(MMIO, 4), Access::MmioWrite(MMIO, 4, 42)]);
    // `cmp` and `test` only read.
    let machine = Machine::long(engine).reg(gpr::RBX, MMIO).code(|a| a.cmp(dword_ptr(rbx), 41));
    machine.bus.answer(&[41]);
    let end = machine.run();
    assert!(end.has(rflags::ZF));
    assert_eq!(end.bus.log(), [Access::MmioRead(MMIO, 4)]);
}

pub(super) fn string_instructions_reach_devices(engine: &Engine) {
    let machine = Machine::long(engine)
        .reg(gpr::RSI, MMIO)
        .reg(gpr::RDI, DATA)
        .reg(gpr::RCX, 2)
        .code(|a| a.rep().movsd());
    machine.bus.answer(&[0x1111_1111, 0x2222_2222]);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.bus.log(), [Access::MmioRead(MMIO, 4), Access::MmioRead(MMIO + 4, 4)]);
    assert_eq!(end.load::<u64>(DATA), 0x2222_2222_1111_1111);
}

pub(super) fn ram_and_devices_can_be_neighbours(engine: &Engine) {
    // Four bytes across a page of RAM and one of a device.
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW);
    machine.map(FREE + 0x1000, MMIO, pte::P | pte::RW);
    let machine = machine.reg(gpr::RBX, FREE + 0xffe).code(|a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(rbx), 0x5566_7788)
    });
    machine.put(DATA + 0xffe, 0x2211_u16);
    machine.bus.answer(&[0x33, 0x44]);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.load::<u16>(DATA + 0xffe), 0x7788);
    assert_eq!(end.reg(gpr::RAX) & 0xffff, 0x2211);
    let written: Vec<Access> =
        end.bus.log().into_iter().filter(|access| matches!(access, Access::MmioWrite(..))).collect();
    let bytes = [Access::MmioWrite(MMIO, 1, 0x66), Access::MmioWrite(MMIO + 1, 1, 0x55)];
    assert!(written == bytes || written == [Access::MmioWrite(MMIO, 2, 0x5566)], "{written:x?}");
}

pub(super) fn sixteen_byte_accesses_reach_devices(engine: &Engine) {
    let machine = Machine::long(engine)
        .with(|state| {
            state.cr4 |= cr4::OSFXSR;
            state.ymm[0] = [0x1111, 0x2222, 0, 0];
        })
        .reg(gpr::RBX, MMIO)
        .code(|a| {
            a.movaps(xmmword_ptr(rbx), xmm0)?;
            a.movups(xmm1, xmmword_ptr(rbx + 0x20))
        });
    machine.bus.answer(&[3, 4]);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.state.ymm[1][..2], [3, 4]);
    assert_eq!(end.bus.log()[..2], [Access::MmioWrite(MMIO, 8, 0x1111), Access::MmioWrite(MMIO + 8, 8, 0x2222)]);
}

pub(super) fn stacks_may_lie_in_device_memory(engine: &Engine) {
    let machine = Machine::long(engine).reg(gpr::RSP, MMIO + 0x100).code(|a| {
        a.push(7)?;
        a.pop(rax)
    });
    machine.bus.answer(&[9]);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), 9);
    assert_eq!(end.bus.log(), [Access::MmioWrite(MMIO + 0xf8, 8, 7), Access::MmioRead(MMIO + 0xf8, 8)]);
}

pub(super) fn code_may_lie_in_device_memory(engine: &Engine) {
    // Reads of all ones: `0xff 0xff` is no instruction.
    let end = Machine::long(engine).reg(gpr::RBX, MMIO).code(|a| a.jmp(rbx)).run();
    end.expect_fault(6, None, MMIO);
}

pub(super) fn addresses_without_ram_read_as_ones_without_paging_too(engine: &Engine) {
    let end = Machine::protected(engine).reg(gpr::RBX, 0xf000_0000).code(|a| a.mov(eax, dword_ptr(ebx))).run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.bus.log()), (0xffff_ffff, vec![Access::MmioRead(0xf000_0000, 4)]));
}
