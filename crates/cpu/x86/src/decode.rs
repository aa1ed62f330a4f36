//! From bytes to [`Op`]s.
//!
//! `iced-x86` decodes; then each group of instructions in turn is asked whether an instruction is its own, and
//! answers with the operation that carries it out. What no group knows, or the CPU model does not announce, is
//! `#UD`.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction};

use crate::core::Core;
use crate::model::Model;
use crate::op::{Mode, Op, Step};
use crate::{integer, simd, system, x87};

/// The longest instruction, in bytes.
pub(crate) const LONGEST: usize = 15;

/// What decoding found.
pub(crate) enum Decoded {
    /// An instruction, what carries it out, and whether its block ends with it.
    Op(Instruction, Op, bool),
    /// The bytes end in the middle of the instruction.
    MoreBytes,
}

/// Decodes the first instruction in `bytes`.
pub(crate) fn decode(bytes: &[u8], mode: Mode, model: &Model) -> Decoded {
    let mut decoder = Decoder::with_ip(u32::from(mode.code_bits), bytes, 0, model.decoder_options());
    let mut instruction = decoder.decode();
    if instruction.code() == Code::Call_m1632 && mode.code_bits == 64 {
        // As an AMD processor's, the decoder does not tell whether the operand size is 64 bits.
        instruction = Decoder::with_ip(64, bytes, 0, model.decoder_options() & !DecoderOptions::AMD).decode();
    }
    if instruction.is_invalid() {
        // A decoder that ran out of bytes cannot say what the instruction is, unless no more bytes would help.
        if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes && bytes.len() < LONGEST {
            return Decoded::MoreBytes;
        }
        let too_long = bytes.len() == LONGEST && wants_more(&bytes[1..], mode, model);
        let mut op = Op::new(if too_long { general_protection } else { invalid }, &instruction);
        (op.len, op.next) = (1, 1);
        return Decoded::Op(instruction, op, true);
    }
    let op = lower(&instruction, bytes, mode, model).unwrap_or_else(|| Op::new(invalid, &instruction));
    let last = ends_block(&instruction);
    Decoded::Op(instruction, op, last)
}

/// Whether an instruction does not end with `bytes`. One that is as long as any may be begins with prefixes:
/// without the first of them the decoder can tell one too long from one that does not exist.
#[cold]
fn wants_more(bytes: &[u8], mode: Mode, model: &Model) -> bool {
    let mut decoder = Decoder::with_ip(u32::from(mode.code_bits), bytes, 0, model.decoder_options());
    decoder.decode().is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
}

fn lower(instruction: &Instruction, bytes: &[u8], mode: Mode, model: &Model) -> Option<Op> {
    if let Some(op) = integer::hint(instruction, model) {
        return Some(op);
    }
    if !instruction.cpuid_features().iter().all(|feature| model.announces(*feature)) {
        return None;
    }
    integer::lower(instruction, mode, model)
        .or_else(|| simd::lower(instruction))
        .or_else(|| x87::lower(instruction, bytes))
        .or_else(|| system::lower(instruction, mode))
}

/// Whether decoding stops after an instruction: it may go elsewhere, or change how the next one is to be
/// decoded or whether an interrupt comes before it.
fn ends_block(instruction: &Instruction) -> bool {
    use iced_x86::FlowControl;
    // A conditional branch that is not taken goes on with its block.
    let goes_on = matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
    !goes_on || system::ends_block(instruction)
}

/// `#UD`.
pub(crate) fn invalid(core: &mut Core, _: &Op) -> Step {
    Err(core.ud())
}

fn general_protection(core: &mut Core, _: &Op) -> Step {
    Err(core.gp(0))
}
