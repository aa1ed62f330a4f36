//! Which instructions may run on the host as they are.
//!
//! Only what is listed here does: instructions of named groups, without those that tell what must not be told, or
//! change what must not be changed. A guest's kernel is an ordinary program here, so this list, and the checks of
//! every memory access, are what keeps it in: an instruction that is not on it goes to the interpreter.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use crate::block::{ARITHMETIC, Mode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// May run on the host, its operands replaced.
    Copy,
    /// Does nothing.
    Nothing,
    Lea,
    Interpret,
}

pub(crate) fn classify(i: &Instruction, mode: Mode) -> Class {
    use Mnemonic as M;
    if i.is_privileged() || i.is_stack_instruction() || i.is_string_instruction() {
        return Class::Interpret;
    }
    match i.mnemonic() {
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetchwt1 => return Class::Nothing,
        M::Wait if mode.x87 => return Class::Nothing,
        M::Lea => return Class::Lea,
        M::Pause | M::Lfence | M::Mfence | M::Sfence => return Class::Copy,
        _ => {}
    }
    let general = match i.mnemonic() {
        M::Mov
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Add
        | M::Or
        | M::Adc
        | M::Sbb
        | M::And
        | M::Sub
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not
        | M::Mul
        | M::Imul
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shl
        | M::Shr
        | M::Sar
        | M::Shld
        | M::Shrd
        | M::Bt
        | M::Bts
        | M::Btr
        | M::Btc
        | M::Bsf
        | M::Bsr
        | M::Bswap
        | M::Xchg
        | M::Xadd
        | M::Cmpxchg
        | M::Cmpxchg8b
        | M::Cmpxchg16b
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Clc
        | M::Stc
        | M::Cmc
        | M::Lahf
        | M::Sahf
        | M::Popcnt
        | M::Lzcnt
        | M::Tzcnt
        | M::Andn
        | M::Bextr
        | M::Blsi
        | M::Blsmsk
        | M::Blsr
        | M::Bzhi
        | M::Mulx
        | M::Pdep
        | M::Pext
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx
        | M::Movbe
        | M::Adcx
        | M::Adox
        | M::Crc32
        | M::Movnti
        | M::Div
        | M::Idiv => true,
        _ => i.is_setcc_or_cmov(),
    };
    if general {
        return if has_only_plain_operands(i) { Class::Copy } else { Class::Interpret };
    }
    let there = mode.vectors
        && (mode.x87 || !uses_x87(i))
        && (mode.avx || i.encoding() == EncodingKind::Legacy)
        && (is_vector(i) || is_x87(i));
    if there && has_only_plain_operands(i) {
        return Class::Copy;
    }
    Class::Interpret
}

/// The same instruction in a form in which another register can take the place of `rax`, if there is one.
pub(crate) fn without_accumulator(i: &Instruction) -> Instruction {
    use Code as C;
    let extension = match i.code() {
        C::Cbw => Some((C::Movsx_r16_rm8, Register::AX, Register::AL)),
        C::Cwde => Some((C::Movsx_r32_rm16, Register::EAX, Register::AX)),
        C::Cdqe => Some((C::Movsxd_r64_rm32, Register::RAX, Register::EAX)),
        _ => None,
    };
    if let Some((code, to, from)) = extension
        && let Ok(plain) = Instruction::with2(code, to, from)
    {
        return plain;
    }
    let mut plain = *i;
    plain.set_code(match i.code() {
        C::Add_AL_imm8 => C::Add_rm8_imm8,
        C::Add_AX_imm16 => C::Add_rm16_imm16,
        C::Add_EAX_imm32 => C::Add_rm32_imm32,
        C::Add_RAX_imm32 => C::Add_rm64_imm32,
        C::Or_AL_imm8 => C::Or_rm8_imm8,
        C::Or_AX_imm16 => C::Or_rm16_imm16,
        C::Or_EAX_imm32 => C::Or_rm32_imm32,
        C::Or_RAX_imm32 => C::Or_rm64_imm32,
        C::Adc_AL_imm8 => C::Adc_rm8_imm8,
        C::Adc_AX_imm16 => C::Adc_rm16_imm16,
        C::Adc_EAX_imm32 => C::Adc_rm32_imm32,
        C::Adc_RAX_imm32 => C::Adc_rm64_imm32,
        C::Sbb_AL_imm8 => C::Sbb_rm8_imm8,
        C::Sbb_AX_imm16 => C::Sbb_rm16_imm16,
        C::Sbb_EAX_imm32 => C::Sbb_rm32_imm32,
        C::Sbb_RAX_imm32 => C::Sbb_rm64_imm32,
        C::And_AL_imm8 => C::And_rm8_imm8,
        C::And_AX_imm16 => C::And_rm16_imm16,
        C::And_EAX_imm32 => C::And_rm32_imm32,
        C::And_RAX_imm32 => C::And_rm64_imm32,
        C::Sub_AL_imm8 => C::Sub_rm8_imm8,
        C::Sub_AX_imm16 => C::Sub_rm16_imm16,
        C::Sub_EAX_imm32 => C::Sub_rm32_imm32,
        C::Sub_RAX_imm32 => C::Sub_rm64_imm32,
        C::Xor_AL_imm8 => C::Xor_rm8_imm8,
        C::Xor_AX_imm16 => C::Xor_rm16_imm16,
        C::Xor_EAX_imm32 => C::Xor_rm32_imm32,
        C::Xor_RAX_imm32 => C::Xor_rm64_imm32,
        C::Cmp_AL_imm8 => C::Cmp_rm8_imm8,
        C::Cmp_AX_imm16 => C::Cmp_rm16_imm16,
        C::Cmp_EAX_imm32 => C::Cmp_rm32_imm32,
        C::Cmp_RAX_imm32 => C::Cmp_rm64_imm32,
        C::Test_AL_imm8 => C::Test_rm8_imm8,
        C::Test_AX_imm16 => C::Test_rm16_imm16,
        C::Test_EAX_imm32 => C::Test_rm32_imm32,
        C::Test_RAX_imm32 => C::Test_rm64_imm32,
        C::Xchg_r16_AX => C::Xchg_rm16_r16,
        C::Xchg_r32_EAX => C::Xchg_rm32_r32,
        C::Xchg_r64_RAX => C::Xchg_rm64_r64,
        code => code,
    });
    plain
}

/// Whether an instruction works on `rax` without naming it as an operand that could be another, or on its second byte.
pub(crate) fn needs_rax(i: &Instruction) -> bool {
    use Mnemonic as M;
    let second_byte =
        (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n) == Register::AH);
    second_byte
        || match i.mnemonic() {
            M::Imul => i.op_count() == 1,
            M::Mul
            | M::Div
            | M::Idiv
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Lahf
            | M::Sahf
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Vpcmpestri
            | M::Vpcmpestrm => true,
            _ => false,
        }
}

/// Whether an instruction is surely left to the interpreter, so that there is no use in looking further.
pub(crate) fn ends_block(i: &Instruction) -> bool {
    use Mnemonic as M;
    i.is_privileged() && !matches!(i.mnemonic(), M::Cli | M::Sti | M::Swapgs)
        || matches!(i.mnemonic(), M::Stac | M::Clac)
}

/// What an instruction does first with the host's flags: uses or sets them (true), or lets the translator destroy
/// them (false). `None`: neither.
pub(crate) fn first_use(i: &Instruction) -> Option<bool> {
    use iced_x86::FlowControl as F;
    let memory = i.op_kinds().any(|kind| kind == OpKind::Memory);
    let accesses = memory && !matches!(classify(i, Mode::ALL), Class::Lea | Class::Nothing);
    if accesses || i.is_stack_instruction() || i.is_string_instruction() {
        return Some(false);
    }
    match i.flow_control() {
        F::Call | F::IndirectCall | F::IndirectBranch | F::Return => return Some(false),
        F::Next | F::UnconditionalBranch => {}
        _ => return Some(true),
    }
    match i.mnemonic() {
        Mnemonic::Rdtsc | Mnemonic::Sti => Some(false),
        _ => (i.rflags_read() | i.rflags_modified() != 0).then_some(true),
    }
}

trait Conditions {
    fn is_setcc_or_cmov(&self) -> bool;
}

impl Conditions for Instruction {
    fn is_setcc_or_cmov(&self) -> bool {
        self.condition_code() != iced_x86::ConditionCode::None
            && self.flow_control() == iced_x86::FlowControl::Next
            && self.cpuid_features().iter().all(|f| matches!(f, CpuidFeature::CMOV | CpuidFeature::INTEL386))
    }
}

/// Registers of the usual kinds, immediates, and at most one memory operand that the operand says all of.
fn has_only_plain_operands(i: &Instruction) -> bool {
    let registers = (0..i.op_count()).filter(|n| i.op_kind(*n) == OpKind::Register).all(|n| {
        let register = i.op_register(n);
        register.is_gpr() || register.is_xmm() || register.is_ymm() || register.is_st() || register.is_mm()
    });
    // A bit offset in a register reaches beyond the operand.
    let bits = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register;
    let implied = (0..i.op_count()).any(|n| {
        !matches!(
            i.op_kind(n),
            OpKind::Register
                | OpKind::Memory
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    });
    registers && !bits && !implied && !i.is_vsib()
}

/// Whether an instruction could run on the host if the vector registers were in the host's, in a supervisor's view.
pub(crate) fn wants_vectors(i: &Instruction) -> bool {
    let (without, with) = (Mode { vectors: false, ..Mode::ALL }, Mode { x87: false, ..Mode::ALL });
    classify(i, without) == Class::Interpret && classify(i, with) == Class::Copy
}

/// Whether the x87 unit's state must be the guest's for an instruction: also for those on MMX registers, which are
/// part of it.
pub(crate) fn uses_x87(i: &Instruction) -> bool {
    use CpuidFeature as F;
    let groups = [F::FPU, F::FPU287, F::FPU387, F::MMX];
    i.cpuid_features().iter().any(|feature| groups.contains(feature))
        // With a memory operand, too.
        || matches!(i.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd)
        || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
}

/// x87 and MMX instructions that may run on the host as long as no x87 exception is unmasked: all but those that
/// unmask some, or show the error pointers.
fn is_x87(i: &Instruction) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let group = i.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::FPU | F::FPU387 | F::MMX | F::CMOV | F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::INTEL286
        )
    });
    group
        && uses_x87(i)
        && !matches!(
            i.mnemonic(),
            M::Fldcw
                | M::Fldenv
                | M::Fnstenv
                | M::Fstenv
                | M::Fnsave
                | M::Fsave
                | M::Frstor
                | M::Maskmovq
                | M::Feni
                | M::Fneni
                | M::Fdisi
                | M::Fndisi
                | M::Fsetpm
                | M::Fnsetpm
                | M::Frstpm
        )
}

/// Whether an instruction that is copied may be refused by the host's processor: then the guest gets an exception.
pub(crate) fn may_raise(i: &Instruction, mode: Mode) -> bool {
    let mmx = |n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm();
    matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
        || mode.unmasked && (is_vector(i) || (0..i.op_count()).any(mmx))
}

fn is_vector(i: &Instruction) -> bool {
    use CpuidFeature as F;
    let group = i.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::AES
                | F::PCLMULQDQ
                | F::AVX
                | F::AVX2
                | F::FMA
                | F::F16C
        )
    });
    // These change the control register, or are about more memory than their operand says.
    group
        && !matches!(
            i.mnemonic(),
            Mnemonic::Ldmxcsr
                | Mnemonic::Vldmxcsr
                | Mnemonic::Maskmovdqu
                | Mnemonic::Vmaskmovdqu
                | Mnemonic::Vmaskmovps
                | Mnemonic::Vmaskmovpd
                | Mnemonic::Vpmaskmovd
                | Mnemonic::Vpmaskmovq
        )
}

/// The arithmetic flags that an instruction changes. Divisions leave them undefined: here as they were.
pub(crate) fn modified_flags(i: &Instruction) -> u32 {
    match i.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv => 0,
        _ => i.rflags_modified() & ARITHMETIC,
    }
}

/// Whether an instruction sets all arithmetic flags, and none by chance: what is undefined may stay as it was. Of `and`
/// and its like that is known.
pub(crate) fn sets_all_flags(i: &Instruction) -> bool {
    use Mnemonic as M;
    let logic = matches!(i.mnemonic(), M::And | M::Or | M::Xor | M::Test);
    modified_flags(i) == ARITHMETIC && !reads_flags(i) && (logic || i.rflags_undefined() & ARITHMETIC == 0)
}

/// Whether what an instruction does to the flags depends on what they are.
pub(crate) fn reads_flags(i: &Instruction) -> bool {
    i.rflags_read() & ARITHMETIC != 0 || may_keep_flags(i)
}

/// Whether the flags may stay as they are, although the decoder lists them as changed: shifts by nothing.
pub(crate) fn may_keep_flags(i: &Instruction) -> bool {
    use Mnemonic as M;
    let shift = matches!(
        i.mnemonic(),
        M::Shl | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    match i.mnemonic() {
        // The latter clear only some of what they do not set, depending on whom one asks.
        M::Bsf | M::Bsr | M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => true,
        _ if !shift => false,
        _ => {
            let count = i.op_count() - 1;
            i.op_kind(count) == OpKind::Register || i.immediate(count) & 0x1f == 0
        }
    }
}

/// Whether an instruction changes CF and OF, whatever its operands are, and neither looks at nor changes any other flag.
pub(crate) fn rotates_by_constant(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Rol | Mnemonic::Ror) && !may_keep_flags(i)
}

/// Whether an instruction looks at CF or keeps it, does neither with another flag, and changes all that it does not keep. Or changes
/// none.
pub(crate) fn needs_carry_alone(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(i.mnemonic(), M::Inc | M::Dec | M::Adc | M::Sbb | M::Setb | M::Setae | M::Cmovb | M::Cmovae)
}

/// Whether a memory operand must lie at a multiple of its size.
pub(crate) fn needs_alignment(i: &Instruction, size: u32) -> bool {
    use Mnemonic as M;
    if size < 16 {
        return false;
    }
    match i.mnemonic() {
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Pcmpestri
        | M::Pcmpestri64
        | M::Pcmpestrm64
        | M::Pcmpestrm
        | M::Pcmpistri
        | M::Pcmpistrm => false,
        M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovntdq
        | M::Vmovntdqa
        | M::Vmovntps
        | M::Vmovntpd
        | M::Cmpxchg16b => true,
        _ => i.encoding() == EncodingKind::Legacy,
    }
}

/// Whether an instruction does the same if a register that it only reads is in memory instead: with an offset in another
/// register, bits are looked for beyond it.
pub(crate) fn may_read_from_memory(i: &Instruction) -> bool {
    use Mnemonic as M;
    !matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
}

/// Whether an instruction does the same if the register that it writes, all of it, is in memory instead.
pub(crate) fn may_write_to_memory(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Mov
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
    )
}

/// The form of an instruction on two registers that may have the second in memory, if `code` is the other one.
pub(crate) fn with_second_in_memory(code: Code) -> Option<Code> {
    Some(match code {
        Code::Mov_rm32_r32 => Code::Mov_r32_rm32,
        Code::Mov_rm64_r64 => Code::Mov_r64_rm64,
        Code::Add_rm32_r32 => Code::Add_r32_rm32,
        Code::Add_rm64_r64 => Code::Add_r64_rm64,
        Code::Adc_rm32_r32 => Code::Adc_r32_rm32,
        Code::Adc_rm64_r64 => Code::Adc_r64_rm64,
        Code::Sub_rm32_r32 => Code::Sub_r32_rm32,
        Code::Sub_rm64_r64 => Code::Sub_r64_rm64,
        Code::Sbb_rm32_r32 => Code::Sbb_r32_rm32,
        Code::Sbb_rm64_r64 => Code::Sbb_r64_rm64,
        Code::And_rm32_r32 => Code::And_r32_rm32,
        Code::And_rm64_r64 => Code::And_r64_rm64,
        Code::Or_rm32_r32 => Code::Or_r32_rm32,
        Code::Or_rm64_r64 => Code::Or_r64_rm64,
        Code::Xor_rm32_r32 => Code::Xor_r32_rm32,
        Code::Xor_rm64_r64 => Code::Xor_r64_rm64,
        Code::Cmp_rm32_r32 => Code::Cmp_r32_rm32,
        Code::Cmp_rm64_r64 => Code::Cmp_r64_rm64,
        _ => return None,
    })
}
