//! Memory fences: `lfence`, `sfence`, `mfence`.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Instruction, Mnemonic};

use crate::core::Core;
use crate::op::{Op, Step};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        // Loads and stores are already made one at a time and in order.
        Mnemonic::Lfence | Mnemonic::Sfence => Some(Op::new(ordered, i)),
        Mnemonic::Mfence => Some(Op::new(mfence, i)),
        _ => None,
    }
}

fn ordered(_: &mut Core, _: &Op) -> Step {
    Ok(())
}

/// The host's own fence keeps a later load from passing an earlier store, as other virtual CPUs see it.
fn mfence(_: &mut Core, _: &Op) -> Step {
    fence(Ordering::SeqCst);
    Ok(())
}
