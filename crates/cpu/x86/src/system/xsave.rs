//! Saving and restoring x87, MMX and SSE state: `fxsave`, `xsave` and their kin (AMD APM volume 2, section 11.5;
//! volume 5; Intel SDM volume 1, chapter 13, where the compacted format is told in full).

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::{X87, X87Register, cr0, cr4, gpr};

use crate::access::LEAVE;
use crate::core::Core;
use crate::cpuid::xsave_components;
use crate::mmu::Access;
use crate::model::Feature;
use crate::op::{Op, Run, Step};
use crate::simd::MXCSR_MASK;

/// Components of XCR0.
const X87_STATE: u64 = 1 << 0;
const SSE_STATE: u64 = 1 << 1;
/// The upper halves of the YMM registers.
const AVX_STATE: u64 = 1 << 2;

/// Offsets in the area: the legacy part, which is all that `fxsave` knows, and the header after it.
const MXCSR: usize = 24;
const REGISTERS: usize = 32;
const XMM: usize = 160;
const HEADER: usize = 512;
/// Of the extended part only the upper halves of the YMM registers are there: at this offset in both formats.
const YMM: usize = HEADER + 64;
const AREA: usize = YMM + 256;

/// `mxcsr` after reset.
const MXCSR_INIT: u32 = 0x1f80;
/// Header: the area is in the compacted format.
const COMPACT: u64 = 1 << 63;
/// x87 status: an unmasked exception is pending; busy says the same.
const PENDING: u16 = 1 << 7 | 1 << 15;

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let (run, wide): (Run, bool) = match i.code() {
        Code::Fxsave_m512byte => (fxsave, false),
        Code::Fxsave64_m512byte => (fxsave, true),
        Code::Fxrstor_m512byte => (fxrstor, false),
        Code::Fxrstor64_m512byte => (fxrstor, true),
        Code::Xsave_mem => (xsave, false),
        Code::Xsave64_mem => (xsave, true),
        Code::Xsaveopt_mem => (xsaveopt, false),
        Code::Xsaveopt64_mem => (xsaveopt, true),
        Code::Xsavec_mem => (xsavec, false),
        Code::Xsavec64_mem => (xsavec, true),
        Code::Xrstor_mem => (xrstor, false),
        Code::Xrstor64_mem => (xrstor, true),
        Code::Xgetbv => (xgetbv, false),
        Code::Xsetbv => (xsetbv, false),
        _ => return None,
    };
    let mut op = Op::new(run, i);
    op.aux = u8::from(wide);
    Some(op)
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    area[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn u32_at(area: &[u8], at: usize) -> u32 {
    u64_at(area, at) as u32
}

fn u16_at(area: &[u8], at: usize) -> u16 {
    u64_at(area, at) as u16
}

/// Fills in `mxcsr` and which of its bits exist.
fn put_mxcsr(core: &Core, area: &mut [u8; AREA]) {
    area[MXCSR..MXCSR + 4].copy_from_slice(&core.mxcsr.to_le_bytes());
    area[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

fn put_x87(core: &Core, area: &mut [u8; AREA], wide: bool) {
    let x87 = &core.x87;
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &x87.control.to_le_bytes());
    put(2, &x87.status.to_le_bytes());
    put(4, &[x87.occupied, 0]);
    put(6, &x87.opcode.to_le_bytes());
    if wide {
        put(8, &x87.instruction.to_le_bytes());
        put(16, &x87.data.to_le_bytes());
    } else {
        put(8, &(x87.instruction as u32).to_le_bytes());
        put(12, &u32::from(x87.instruction_selector).to_le_bytes());
        put(16, &(x87.data as u32).to_le_bytes());
        put(20, &u32::from(x87.data_selector).to_le_bytes());
    }
    let top = usize::from(x87.status >> 11 & 7);
    for n in 0..8 {
        let register = x87.registers[(top + n) & 7];
        put(REGISTERS + n * 16, &register.significand.to_le_bytes());
        put(REGISTERS + n * 16 + 8, &u64::from(register.sign_exponent).to_le_bytes());
    }
}

fn take_x87(area: &[u8; AREA], wide: bool) -> X87 {
    let control = u16_at(area, 0) & 0x1f3f | 0x40;
    // Whether an exception is pending follows from flags and masks.
    let status = u16_at(area, 2) & !PENDING;
    let pending = status & !control & 0x3f != 0;
    let mut x87 = X87 {
        control,
        status: status | if pending { PENDING } else { 0 },
        occupied: area[4],
        opcode: u16_at(area, 6) & 0x7ff,
        ..X87::default()
    };
    if wide {
        (x87.instruction, x87.data) = (u64_at(area, 8), u64_at(area, 16));
    } else {
        (x87.instruction, x87.data) = (u64::from(u32_at(area, 8)), u64::from(u32_at(area, 16)));
        (x87.instruction_selector, x87.data_selector) = (u16_at(area, 12), u16_at(area, 20));
    }
    let top = usize::from(status >> 11 & 7);
    for n in 0..8 {
        let at = REGISTERS + n * 16;
        x87.registers[(top + n) & 7] =
            X87Register { significand: u64_at(area, at), sign_exponent: u16_at(area, at + 8) };
    }
    x87
}

/// How many XMM registers the mode has.
fn xmm_count(core: &Core) -> usize {
    if core.long64 { 16 } else { 8 }
}

fn put_xmm(core: &Core, area: &mut [u8; AREA]) {
    for (n, register) in core.ymm.iter().take(xmm_count(core)).enumerate() {
        let at = XMM + n * 16;
        area[at..at + 8].copy_from_slice(&register[0].to_le_bytes());
        area[at + 8..at + 16].copy_from_slice(&register[1].to_le_bytes());
    }
}

fn take_xmm(core: &mut Core, area: Option<&[u8; AREA]>) {
    for n in 0..xmm_count(core) {
        let at = XMM + n * 16;
        let value = area.map_or([0; 2], |area| [u64_at(area, at), u64_at(area, at + 8)]);
        core.ymm[n][..2].copy_from_slice(&value);
    }
}

fn put_upper(core: &Core, area: &mut [u8; AREA]) {
    for (n, register) in core.ymm.iter().take(xmm_count(core)).enumerate() {
        let at = YMM + n * 16;
        area[at..at + 8].copy_from_slice(&register[2].to_le_bytes());
        area[at + 8..at + 16].copy_from_slice(&register[3].to_le_bytes());
    }
}

fn take_upper(core: &mut Core, area: Option<&[u8; AREA]>) {
    for n in 0..xmm_count(core) {
        let at = YMM + n * 16;
        let value = area.map_or([0; 2], |area| [u64_at(area, at), u64_at(area, at + 8)]);
        core.ymm[n][2..].copy_from_slice(&value);
    }
}

/// How much of the area an instruction reaches that is about `components`.
fn reach(components: u64) -> usize {
    if components & AVX_STATE == 0 { YMM } else { AREA }
}

/// The offset of the legacy area, which must be on a 16-byte boundary.
fn legacy_address(core: &mut Core, op: &Op) -> Step<u64> {
    if core.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(core.nm());
    }
    // Where programs asked to be told of unaligned accesses, that is what this is.
    let linear = linear_address(core, op);
    core.check_alignment(op.segment, linear, 16)?;
    aligned_address(core, op, 16)
}

fn linear_address(core: &Core, op: &Op) -> u64 {
    core.views[usize::from(op.segment & 7)].base.wrapping_add(op.address(core)) & core.linear_mask
}

/// The linear address has to be a multiple of `alignment`; the offset is returned.
fn aligned_address(core: &mut Core, op: &Op, alignment: u64) -> Step<u64> {
    if linear_address(core, op).is_multiple_of(alignment) { Ok(op.address(core)) } else { Err(core.gp(0)) }
}

fn fxsave(core: &mut Core, op: &Op) -> Step {
    let offset = legacy_address(core, op)?;
    let mut area = [0; AREA];
    put_x87(core, &mut area, op.aux != 0);
    put_mxcsr(core, &mut area);
    put_xmm(core, &mut area);
    // What lies behind is left as it is, but must be there.
    let used = XMM + xmm_count(core) * 16;
    let linear = core.linear(op.segment, offset, HEADER as u64, true)?;
    core.probe(op.segment, linear, used as u64, Access::Write)?;
    core.place(op.segment, linear.wrapping_add(HEADER as u64 - 1) & core.linear_mask, Access::Write)?;
    core.write_bytes(op.segment, offset, 1, &area[..used])
}

fn fxrstor(core: &mut Core, op: &Op) -> Step {
    let offset = legacy_address(core, op)?;
    let mut area = [0; AREA];
    core.read_bytes(op.segment, offset, 1, &mut area[..HEADER])?;
    let mxcsr = u32_at(&area, MXCSR);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(core.gp(0));
    }
    core.mxcsr = mxcsr;
    core.x87 = take_x87(&area, op.aux != 0);
    take_xmm(core, Some(&area));
    Ok(())
}

impl Core {
    /// What every `xsave` and `xrstor` begins with: the address, and the components that are asked for.
    fn extended(&mut self, op: &Op) -> Step<(u64, u64)> {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(self.nm());
        }
        let offset = aligned_address(self, op, 64)?;
        Ok((offset, self.registers[gpr::RAX] & 0xffff_ffff & self.xcr0))
    }

    /// Components that are not in their initial state.
    fn in_use(&self) -> u64 {
        let sse = self.ymm.iter().any(|register| register[0] | register[1] != 0);
        let x87 = self.x87 != X87::default();
        let avx = self.ymm.iter().any(|register| register[2] | register[3] != 0);
        (if x87 { X87_STATE } else { 0 }) | if sse { SSE_STATE } else { 0 } | if avx { AVX_STATE } else { 0 }
    }

    /// Writes those of the area's parts that are in `components`, and 16 bytes of the header.
    fn save_components(
        &mut self,
        op: &Op,
        offset: u64,
        components: u64,
        mxcsr: bool,
        header: [u64; 2],
        header_words: usize,
    ) -> Step {
        let size = reach(components) as u64;
        let linear = self.linear(op.segment, offset, size, true)?;
        self.probe(op.segment, linear, size, Access::Write)?;
        let mut area = [0; AREA];
        if components & X87_STATE != 0 {
            put_x87(self, &mut area, op.aux != 0);
            self.write_bytes(op.segment, offset, 1, &area[..MXCSR])?;
            self.write_bytes(op.segment, offset.wrapping_add(REGISTERS as u64), 1, &area[REGISTERS..XMM])?;
        }
        if mxcsr {
            put_mxcsr(self, &mut area);
            self.write_bytes(op.segment, offset.wrapping_add(MXCSR as u64), 1, &area[MXCSR..REGISTERS])?;
        }
        if components & SSE_STATE != 0 {
            put_xmm(self, &mut area);
            let end = XMM + xmm_count(self) * 16;
            self.write_bytes(op.segment, offset.wrapping_add(XMM as u64), 1, &area[XMM..end])?;
        }
        if components & AVX_STATE != 0 {
            put_upper(self, &mut area);
            let end = YMM + xmm_count(self) * 16;
            self.write_bytes(op.segment, offset.wrapping_add(YMM as u64), 1, &area[YMM..end])?;
        }
        for (n, word) in header.into_iter().take(header_words).enumerate() {
            self.write(op.segment, offset.wrapping_add((HEADER + n * 8) as u64), word)?;
        }
        Ok(())
    }
}

fn xsave(core: &mut Core, op: &Op) -> Step {
    let (offset, asked) = core.extended(op)?;
    // Bits of components that were not asked for stay as they are.
    let size = reach(asked) as u64;
    let linear = core.linear(op.segment, offset, size, true)?;
    core.probe(op.segment, linear, size, Access::Write)?;
    let before = core.read::<u64>(op.segment, offset.wrapping_add(HEADER as u64))?;
    let header = before & !asked | core.in_use() & asked;
    core.save_components(op, offset, asked, asked & (SSE_STATE | AVX_STATE) != 0, [header, 0], 1)
}

/// Components in their initial state are only noted as such.
fn xsaveopt(core: &mut Core, op: &Op) -> Step {
    let (offset, asked) = core.extended(op)?;
    let size = reach(asked) as u64;
    let linear = core.linear(op.segment, offset, size, true)?;
    core.probe(op.segment, linear, size, Access::Write)?;
    let before = core.read::<u64>(op.segment, offset.wrapping_add(HEADER as u64))?;
    let used = core.in_use() & asked;
    let mxcsr = asked & (SSE_STATE | AVX_STATE) != 0;
    core.save_components(op, offset, used, mxcsr, [before & !asked | used, 0], 1)
}

/// The compacted format, which takes no notice of what the area holds. As long as there is but one component behind
/// the header there is nothing to compact.
fn xsavec(core: &mut Core, op: &Op) -> Step {
    let (offset, asked) = core.extended(op)?;
    let mut used = core.in_use() & asked;
    if core.mxcsr != MXCSR_INIT {
        // Here the control and status register counts as part of the SSE state.
        used |= SSE_STATE & asked;
    }
    core.save_components(op, offset, used, used & SSE_STATE != 0, [used, asked | COMPACT], 2)
}

fn xrstor(core: &mut Core, op: &Op) -> Step {
    let (offset, asked) = core.extended(op)?;
    let mut area = [0; AREA];
    core.read_bytes(op.segment, offset, 1, &mut area[..YMM])?;
    let (present, format) = (u64_at(&area, HEADER), u64_at(&area, HEADER + 8));
    let compact = format & COMPACT != 0;
    let clear = |from: usize| area[from..YMM].iter().all(|byte| *byte == 0);
    let good = if compact {
        let held = format & !COMPACT;
        core.model.has(Feature::Xsavec)
            && held & !core.xcr0 == 0
            && present & !held == 0
            && clear(HEADER + 16)
    } else {
        present & !core.xcr0 == 0 && format == 0 && area[HEADER + 16..HEADER + 24].iter().all(|b| *b == 0)
    };
    if !good {
        return Err(core.gp(0));
    }
    if asked & present & AVX_STATE != 0 {
        let from = offset.wrapping_add(YMM as u64);
        core.read_bytes(op.segment, from, 1, &mut area[YMM..YMM + xmm_count(core) * 16])?;
    }
    // In the standard format `mxcsr` is taken from the area whenever state that it is for is asked for.
    let mxcsr_asked = if compact { asked & SSE_STATE } else { asked & (SSE_STATE | AVX_STATE) } != 0;
    let from_area = mxcsr_asked && (!compact || present & SSE_STATE != 0);
    let mxcsr = if from_area { u32_at(&area, MXCSR) } else { MXCSR_INIT };
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(core.gp(0));
    }
    if asked & X87_STATE != 0 {
        core.x87 = if present & X87_STATE != 0 { take_x87(&area, op.aux != 0) } else { X87::default() };
    }
    if mxcsr_asked {
        core.mxcsr = mxcsr;
    }
    if asked & AVX_STATE != 0 {
        take_upper(core, (present & AVX_STATE != 0).then_some(&area));
    }
    if asked & SSE_STATE != 0 {
        take_xmm(core, (present & SSE_STATE != 0).then_some(&area));
    }
    Ok(())
}

fn xgetbv(core: &mut Core, _: &Op) -> Step {
    if core.cr4 & cr4::OSXSAVE == 0 {
        return Err(core.ud());
    }
    match core.reg::<u32>(gpr::RCX as u8) {
        0 => core.set_wide(core.xcr0),
        1 if core.model.has(Feature::Xgetbv1) => core.set_wide(core.xcr0 & core.in_use()),
        _ => return Err(core.gp(0)),
    }
    Ok(())
}

fn xsetbv(core: &mut Core, _: &Op) -> Step {
    if core.cr4 & cr4::OSXSAVE == 0 {
        return Err(core.ud());
    }
    core.need_ring_0()?;
    let value = u64::from(core.reg::<u32>(gpr::RDX as u8)) << 32 | u64::from(core.reg::<u32>(gpr::RAX as u8));
    let known = xsave_components(&core.model);
    if core.reg::<u32>(gpr::RCX as u8) != 0
        || value & X87_STATE == 0
        || value & !known != 0
        || value & AVX_STATE != 0 && value & SSE_STATE == 0
    {
        return Err(core.gp(0));
    }
    core.xcr0 = value;
    LEAVE
}

#[cfg(test)]
#[path = "xsave_test.rs"]
mod tests;
