//! Caches and the TLB (AMD APM volume 2, section 5.5, and volume 3, `invlpg`, `invpcid`, `clflush` and others).
//!
//! RAM is always up to date here, so instructions that write caches back only check what they are allowed.

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::cr4;

use crate::access::LEAVE;
use crate::core::Core;
use crate::mmu::Access;
use crate::op::{Op, Run, Step, register_number};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.code() {
        Code::Invlpg_m => invlpg,
        Code::Invpcid_r32_m128 | Code::Invpcid_r64_m128 => {
            let mut op = Op::new(invpcid, i);
            op.src = register_number(i.op0_register());
            return Some(op);
        }
        Code::Invd | Code::Wbinvd | Code::Wbnoinvd => write_back_all,
        Code::Clflush_m8 | Code::Clflushopt_m8 | Code::Clwb_m8 => write_back_line,
        _ => return None,
    };
    Some(Op::new(run, i))
}

fn invlpg(core: &mut Core, op: &Op) -> Step {
    core.need_ring_0()?;
    let base = core.views[usize::from(op.segment & 7)].base;
    let linear = base.wrapping_add(op.address(core)) & core.linear_mask;
    core.mmu.flush_page(linear);
    LEAVE
}

fn invpcid(core: &mut Core, op: &Op) -> Step {
    core.need_ring_0()?;
    let kind = if core.long64 { core.reg::<u64>(op.src) } else { u64::from(core.reg::<u32>(op.src)) };
    let offset = op.address(core);
    let [pcid, linear] = core.read_128(op.segment, offset, false)?;
    if kind > 3 || kind < 2 && (pcid > 0xfff || pcid != 0 && core.cr4 & cr4::PCIDE == 0) {
        return Err(core.gp(0));
    }
    match kind {
        0 if !Core::is_canonical(linear) => return Err(core.gp(0)),
        0 => core.mmu.flush_page(linear),
        1 => core.mmu.flush_context(pcid as u16, pcid as u16 == core.pcid()),
        2 => core.mmu.flush_all(),
        _ => core.mmu.flush_contexts(core.pcid()),
    }
    LEAVE
}

fn write_back_all(core: &mut Core, _: &Op) -> Step {
    core.need_ring_0()?;
    LEAVE
}

/// Like a load of a byte, it needs a readable address, and sets no more than the accessed bit. Execute-only
/// segments will do.
fn write_back_line(core: &mut Core, op: &Op) -> Step {
    let offset = op.address(core);
    let linear = core.linear(op.segment, offset, 1, false)?;
    core.probe(op.segment, linear, 1, Access::Read)
}
