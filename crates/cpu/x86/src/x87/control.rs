//! Control: initialisation, control and status words, environments, saved states (AMD APM volume 5, chapter 2).

use posada_vcpu::x86::{X87, cr0};

use super::float::flag;
use super::moves::{from_bytes, to_bytes};
use crate::core::Core;
use crate::op::{Op, Step};

/// `fninit`.
pub(super) fn initialise(core: &mut Core, _: &Op) -> Step {
    core.x87_available()?;
    // The registers themselves stay; they are only marked empty.
    core.x87 = X87 { registers: core.x87.registers, ..X87::default() };
    Ok(())
}

/// `fnclex`.
pub(super) fn clear_exceptions(core: &mut Core, _: &Op) -> Step {
    core.x87_available()?;
    core.x87.status &= !(flag::EXCEPTIONS | flag::SF | flag::ES | flag::B);
    Ok(())
}

/// `fwait`: only with both MP and TS set is the unit not available to it.
pub(super) fn wait(core: &mut Core, _: &Op) -> Step {
    if core.cr0 & cr0::MP != 0 && core.cr0 & cr0::TS != 0 {
        return Err(core.nm());
    }
    core.x87_pending()
}

/// `fnop`.
pub(super) fn nothing(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    Ok(())
}

/// The 8087's and 80287's own controls, which do nothing since, and do not wait.
pub(super) fn obsolete(core: &mut Core, _: &Op) -> Step {
    core.x87_available()
}

/// `fldcw`.
pub(super) fn load_control(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let word = core.read_op::<u16>(op)?;
    core.x87.control = word & 0x1f3f | 0x40;
    core.x87_update_summary();
    Ok(())
}

/// `fnstcw`.
pub(super) fn store_control(core: &mut Core, op: &Op) -> Step {
    core.x87_available()?;
    core.write_op(op, core.x87.control)
}

/// `fnstsw` to memory.
pub(super) fn store_status(core: &mut Core, op: &Op) -> Step {
    core.x87_available()?;
    core.write_op(op, core.x87.status)
}

/// `fnstsw ax`.
pub(super) fn store_status_ax(core: &mut Core, _: &Op) -> Step {
    core.x87_available()?;
    core.set_reg::<u16>(0, core.x87.status);
    Ok(())
}

/// `fincstp`, `fdecstp`: `aux` is added to the top of stack.
pub(super) fn rotate(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    core.x87_set_c1(false);
    core.x87_set_top(core.x87_top().wrapping_add(op.aux));
    Ok(())
}

/// `ffree st(dst)`; `aux` pops, for the undocumented `ffreep`.
pub(super) fn free(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    core.x87_set_c1(false);
    core.x87_free(op.dst);
    if op.aux != 0 {
        core.x87_pop();
    }
    Ok(())
}

/// The environment as it is laid out in memory, for 16- or 32-bit operands, in protected or in real mode.
fn environment(core: &Core, wide: bool) -> ([u8; 28], usize) {
    let x = &core.x87;
    let mut words: [u32; 7] =
        [u32::from(x.control), u32::from(x.status), u32::from(core.x87_tag_word()), 0, 0, 0, 0];
    if core.uses_descriptors() {
        words[3] = x.instruction as u32;
        words[4] = u32::from(x.instruction_selector) | u32::from(x.opcode) << 16;
        words[5] = x.data as u32;
        words[6] = u32::from(x.data_selector);
    } else {
        let linear = (u32::from(x.instruction_selector) << 4).wrapping_add(x.instruction as u32);
        let data = (u32::from(x.data_selector) << 4).wrapping_add(x.data as u32);
        words[3] = linear & 0xffff;
        words[5] = data & 0xffff;
        let (high, data_high) = (linear >> 16 << 12, data >> 16 << 12);
        words[4] = high & 0x0fff_f000 | u32::from(x.opcode);
        words[6] = data_high & 0x0fff_f000;
    }
    let mut bytes = [0; 28];
    if wide {
        for (n, word) in words.iter().enumerate() {
            // The upper halves of the three words read as ones.
            let upper = if n < 3 || n == 6 && core.uses_descriptors() { 0xffff_0000 } else { 0 };
            bytes[n * 4..n * 4 + 4].copy_from_slice(&(word | upper).to_le_bytes());
        }
        (bytes, 28)
    } else {
        for (n, word) in words.iter().enumerate() {
            bytes[n * 2..n * 2 + 2].copy_from_slice(&(*word as u16).to_le_bytes());
        }
        (bytes, 14)
    }
}

fn load_environment_from(core: &mut Core, bytes: &[u8], wide: bool) {
    let size = if wide { 4 } else { 2 };
    let word = |n: usize| u16::from_le_bytes([bytes[n * size], bytes[n * size + 1]]);
    let double = |n: usize| {
        if wide {
            u32::from(word(n)) | u32::from(u16::from_le_bytes([bytes[n * 4 + 2], bytes[n * 4 + 3]])) << 16
        } else {
            u32::from(word(n))
        }
    };
    let tags = word(2);
    let descriptors = core.uses_descriptors();
    let x = &mut core.x87;
    x.control = word(0) & 0x1f3f | 0x40;
    x.status = word(1);
    x.occupied = (0..8).map(|n| u8::from(tags >> (2 * n) & 3 != 3) << n).sum();
    x.instruction = u64::from(double(3));
    x.data = u64::from(double(5));
    if descriptors {
        x.instruction_selector = word(4);
        // The 16-bit form has no room for it.
        x.opcode = if wide { (double(4) >> 16) as u16 & 0x7ff } else { 0 };
        x.data_selector = word(6);
    } else {
        x.opcode = word(4) & 0x7ff;
        x.instruction |= u64::from(double(4) & 0x0fff_f000) << 4;
        x.data |= u64::from(double(6) & 0x0fff_f000) << 4;
        (x.instruction_selector, x.data_selector) = (0, 0);
    }
    core.x87_update_summary();
}

/// What an environment is aligned to: its words.
fn alignment(op: &Op) -> u64 {
    if op.aux != 0 { 4 } else { 2 }
}

/// `fnstenv`: `aux` is 0 for the 16-bit form.
pub(super) fn store_environment(core: &mut Core, op: &Op) -> Step {
    core.x87_available()?;
    let (bytes, len) = environment(core, op.aux != 0);
    let offset = op.address(core);
    core.write_bytes(op.segment, offset, alignment(op), &bytes[..len])?;
    core.x87.control |= flag::EXCEPTIONS;
    core.x87_update_summary();
    Ok(())
}

/// `fldenv`.
pub(super) fn load_environment(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let (mut bytes, len) = ([0; 28], if op.aux != 0 { 28 } else { 14 });
    let offset = op.address(core);
    core.read_bytes(op.segment, offset, alignment(op), &mut bytes[..len])?;
    load_environment_from(core, &bytes[..len], op.aux != 0);
    Ok(())
}

/// `fnsave`: the environment and the registers, and then `fninit`.
pub(super) fn save(core: &mut Core, op: &Op) -> Step {
    core.x87_available()?;
    let (environment, len) = environment(core, op.aux != 0);
    let mut bytes = [0; 108];
    bytes[..len].copy_from_slice(&environment[..len]);
    for i in 0..8 {
        let at = len + usize::from(i) * 10;
        bytes[at..at + 10].copy_from_slice(&to_bytes(core.st(i)));
    }
    let offset = op.address(core);
    core.write_bytes(op.segment, offset, alignment(op), &bytes[..len + 80])?;
    initialise(core, op)
}

/// `frstor`.
pub(super) fn restore(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let (mut bytes, len) = ([0; 108], if op.aux != 0 { 28 } else { 14 });
    let offset = op.address(core);
    core.read_bytes(op.segment, offset, alignment(op), &mut bytes[..len + 80])?;
    load_environment_from(core, &bytes[..len], op.aux != 0);
    let occupied = core.x87.occupied;
    for i in 0..8 {
        let at = len + usize::from(i) * 10;
        let mut register = [0; 10];
        register.copy_from_slice(&bytes[at..at + 10]);
        core.set_st(i, from_bytes(register));
    }
    core.x87.occupied = occupied;
    Ok(())
}
