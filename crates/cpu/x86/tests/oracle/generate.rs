//! Makes cases: an instruction form with random operands, and the state that it begins with.

use fastrand::Rng;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic,
    OpCodeOperandKind, OpKind, Register,
};
use posada_vcpu::x86::rflags;

use super::values::{self, Lanes, chance, pick};
use super::{CODE, Case, PAGE, Registers, native};
use super::{compare, operands};

/// What a CPU model of level `x86-64-v2` announces, as the decoder groups instructions.
pub const ANNOUNCED: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::INTEL8086,
        F::INTEL186,
        F::INTEL286,
        F::INTEL386,
        F::INTEL486,
        F::X64,
        F::AES,
        F::CLFLUSHOPT,
        F::CLFSH,
        F::CLWB,
        F::CMOV,
        F::CMPXCHG16B,
        F::CPUID,
        F::CX8,
        F::FPU,
        F::FPU287,
        F::FPU387,
        F::FSGSBASE,
        F::FXSR,
        F::INVPCID,
        F::MMX,
        F::MSR,
        F::MULTIBYTENOP,
        F::PAUSE,
        F::PCLMULQDQ,
        F::POPCNT,
        F::PREFETCHW,
        F::PREFETCHWT1,
        F::RDPID,
        F::RDPMC,
        F::RDRAND,
        F::RDSEED,
        F::RDTSCP,
        F::SEP,
        F::SMAP,
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::SSSE3,
        F::SYSCALL,
        F::TSC,
        F::WBNOINVD,
        F::XSAVE,
        F::XSAVEC,
        F::XSAVEOPT,
    ]
};

/// What `x86-64-v3` and `host` announce besides, with VEX prefixes or without.
pub const WIDER: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::AVX,
        F::AVX2,
        F::BMI1,
        F::BMI2,
        F::F16C,
        F::FMA,
        F::LZCNT,
        F::MOVBE,
        F::AES,
        F::PCLMULQDQ,
        F::ADX,
        F::SHA,
        F::GFNI,
        F::VAES,
        F::VPCLMULQDQ,
    ]
};

/// Cases are for the model `host`: of what [`WIDER`] lists only.
pub static WIDE: AtomicBool = AtomicBool::new(false);

pub fn is_wide() -> bool {
    WIDE.load(Relaxed)
}

/// Whether a form belongs to what is announced.
pub fn is_announced(code: Code) -> bool {
    let encoding = code.op_code().encoding();
    if is_wide() {
        return matches!(encoding, EncodingKind::Legacy | EncodingKind::VEX)
            && code.cpuid_features().iter().all(|feature| WIDER.contains(feature));
    }
    encoding == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|feature| ANNOUNCED.contains(feature))
}

/// Why an instruction that is announced cannot be compared with the host.
pub fn exclusion(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Syscall | M::Sysenter => "enters the host's kernel",
        M::Sgdt | M::Sidt | M::Sldt | M::Smsw | M::Str => "the host's kernel emulates it (UMIP)",
        M::Cpuid => "tells of the host's processor",
        M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid => "never the same twice",
        M::Rdpmc => "the host's kernel decides who may",
        M::Xgetbv => "tells which state the host's kernel has enabled",
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 => {
            "stores state that the model does not have"
        }
        M::Xrstor | M::Xrstor64 => "checks state that the model does not have",
        M::Int1 => "the host's hypervisor may not step over it",
        _ => return None,
    })
}

/// Makes the same cases for the same seed.
pub struct Generator {
    seed: u64,
    /// The forms of 64-bit mode and of 32-bit mode.
    forms: [Vec<Code>; 2],
}

impl Generator {
    /// Cases of the forms that `wanted` lets through.
    pub fn new(seed: u64, wanted: impl Fn(Code) -> bool) -> Self {
        let all = || {
            Code::values().filter(|code| {
                let op_code = code.op_code();
                op_code.is_instruction() && is_announced(*code) && exclusion(*code).is_none() && wanted(*code)
            })
        };
        let forms = [
            all().filter(|code| code.op_code().mode64()).collect(),
            all().filter(|code| code.op_code().mode32()).collect(),
        ];
        Self { seed, forms }
    }

    /// A form with random operands, whether announced or not. `None`: they happened not to fit.
    pub fn instruction(code: Code, bits: u32, rng: &mut Rng) -> Option<Vec<u8>> {
        Encoding { bits, at: CODE.start, rng }.encode(code)
    }

    /// Case number `index`. `None`: its operands happened not to fit its form.
    pub fn case(&self, index: u64) -> Option<Case> {
        let mut rng = Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index);
        let wide = !index.is_multiple_of(3);
        let (bits, forms) = if wide { (64, &self.forms[0]) } else { (32, &self.forms[1]) };
        let code = *forms
            .get((index / 3 * if wide { 2 } else { 1 } + index % 3 / 2) as usize % forms.len().max(1))?;
        Self::case_of(code, bits, &mut rng)
    }

    fn case_of(code: Code, bits: u32, rng: &mut Rng) -> Option<Case> {
        let mut prelude = Vec::new();
        if chance(rng, 25) {
            prelude = flag_setters(rng, bits);
        }
        let exact = compare::is_approximate(code.mnemonic()).is_none();
        let x87 = code.cpuid_features().contains(&CpuidFeature::FPU) && exact && chance(rng, 25);
        if x87 {
            prelude = X87_PRELUDE[usize::from(bits == 64)].to_vec();
        }
        let start = place(rng);
        let at = start + prelude.len() as u64;
        let mut bytes = Encoding { bits, at, rng }.encode(code)?;
        if chance(rng, 8) {
            mutate(rng, &mut bytes, bits);
        }
        let mut case = Self::case_with(prelude, &bytes, bits, start, rng)?;
        if x87 {
            case.code.extend(X87_EPILOGUE[usize::from(bits == 64)]);
        }
        // What the second page cannot hold is not there natively either.
        case.code.truncate((CODE.end() - start) as usize);
        Some(case)
    }

    /// The instruction that `bytes` begin with, after others that are sure to end, in a random state. `None`: it is
    /// not one that can be compared.
    pub fn case_with(prelude: Vec<u8>, bytes: &[u8], bits: u32, start: u64, rng: &mut Rng) -> Option<Case> {
        let instruction = decode(bits, start + prelude.len() as u64, bytes);
        if !is_fit(&instruction, bits, start) {
            return None;
        }
        let lanes = lanes(&instruction);
        let mut before = registers(rng, bits, start, lanes);
        let mut memory = values::memory(rng);
        operands::place(rng, &instruction, bits, &mut before, &mut memory, lanes);
        if bits == 32 {
            for register in &mut before.gpr {
                *register &= 0xffff_ffff;
            }
            before.gpr[8..].fill(0);
        }
        let mut code = prelude;
        code.extend(&bytes[..instruction.len()]);
        Some(Case { bits, code, instruction, before, memory })
    }
}

/// `fcom dword [CONSTANTS]`, for 32-bit and 64-bit code: gives the x87 unit's pointers a value.
const X87_PRELUDE: [&[u8]; 2] =
    [&[0xd8, 0x15, 0x10, 0x20, 0x00, 0x20], &[0xd8, 0x14, 0x25, 0x10, 0x20, 0x00, 0x20]];
/// `fnstenv [STACK]`, likewise: shows the pointers, and the whole tag word.
const X87_EPILOGUE: [&[u8]; 2] =
    [&[0xd9, 0x35, 0x20, 0x00, 0x00, 0x30], &[0xd9, 0x34, 0x25, 0x20, 0x00, 0x00, 0x30]];

/// The options with which the interpreter decodes for this model.
pub fn decode(bits: u32, at: u64, bytes: &[u8]) -> Instruction {
    let narrow = DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD;
    let options = DecoderOptions::AMD | if is_wide() { 0 } else { narrow };
    Decoder::with_ip(bits, bytes, at, options).decode()
}

/// Whether an instruction, perhaps a mutated one, may run natively and is bound to end.
fn is_fit(i: &Instruction, bits: u32, start: u64) -> bool {
    if i.is_invalid() {
        // Whatever the host may have put there: only what is announced can be compared.
        return false;
    }
    if !is_announced(i.code()) || exclusion(i.code()).is_some() {
        return false;
    }
    let op_code = i.op_code();
    if !(if bits == 64 { op_code.mode64() } else { op_code.mode32() }) {
        return false;
    }
    // The host takes these for `lzcnt` and `tzcnt`.
    if matches!(i.mnemonic(), Mnemonic::Bsr | Mnemonic::Bsf) && i.has_rep_prefix() {
        return false;
    }
    if i.code() == Code::Int_imm8 && i.immediate8() == 0x80 {
        return false;
    }
    // A branch back to where the case begins might not end.
    let near = matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    !near || i.near_branch_target().wrapping_sub(start) >= i.next_ip() - start
}

/// Where code begins: anywhere in its two pages, sometimes across them, seldom up against the end.
fn place(rng: &mut Rng) -> u64 {
    let room = 64;
    match rng.u8(..40) {
        0 => CODE.start + PAGE - rng.u64(1..16),
        1 => CODE.end() - rng.u64(1..16),
        _ => CODE.start + rng.u64(room..CODE.size - room),
    }
}

/// A few instructions that set flags and change nothing else: what an engine keeps of the flags of an addition
/// is not what it keeps of flags that were loaded.
fn flag_setters(rng: &mut Rng, bits: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.u8(1..4) {
        let wide = bits == 64 && rng.bool();
        let size = rng.u8(..3);
        if size == 0 {
            bytes.push(0x66);
        }
        if wide {
            bytes.push(0x48);
        }
        // `cmp`, `test`, `cmp`, `test`; the even ones of bytes.
        let opcode = pick(rng, &[0x38, 0x84, 0x39, 0x85]);
        bytes.extend([opcode, 0xc0 | rng.u8(..64)]);
    }
    bytes
}

/// What vector operands of an instruction hold.
fn lanes(i: &Instruction) -> Lanes {
    let name = format!("{:?}", i.mnemonic()).to_lowercase();
    let name = if is_wide() { name.trim_start_matches('v') } else { &name };
    let integer = name.starts_with('p') || name.starts_with("mov") || name.starts_with("aes");
    match () {
        () if name.starts_with("cvtss") || name.starts_with("cvtps") || name.starts_with("cvttss") => {
            Lanes::Float32
        }
        () if name.starts_with("cvtsd") || name.starts_with("cvtpd") || name.starts_with("cvttsd") => {
            Lanes::Float64
        }
        () if name.starts_with("cvttps") => Lanes::Float32,
        () if name.starts_with("cvttpd") => Lanes::Float64,
        () if integer => Lanes::Integer,
        () if name.ends_with("ps") || name.ends_with("ss") => Lanes::Float32,
        () if name.ends_with("pd") || name.ends_with("sd") => Lanes::Float64,
        () => Lanes::Integer,
    }
}

fn registers(rng: &mut Rng, bits: u32, rip: u64, lanes: Lanes) -> Registers {
    let mut flags = rng.u64(..) & rflags::ARITHMETIC;
    for (flag, percent) in
        [(rflags::DF, 15), (rflags::AC, 3), (rflags::TF, 2), (rflags::NT, 3), (rflags::RF, 1)]
    {
        if chance(rng, percent) {
            flags |= flag;
        }
    }
    let lanes = if chance(rng, 15) { Lanes::Integer } else { lanes };
    let base = |rng: &mut Rng| if bits == 64 && chance(rng, 50) { u64::from(rng.u16(..0x800)) } else { 0 };
    Registers {
        gpr: std::array::from_fn(|_| values::integer(rng)),
        rip,
        rflags: native::settable_flags(flags),
        selectors: native::selectors(bits),
        fs_base: base(rng),
        gs_base: base(rng),
        x87: values::x87(rng),
        xmm: std::array::from_fn(|_| values::vector(rng, lanes)),
        upper: std::array::from_fn(|_| if is_wide() { values::vector(rng, lanes) } else { [0; 2] }),
        mxcsr: values::mxcsr(rng),
    }
}

/// Prefixes that mean nothing, or something else, or are wrong; a byte changed.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, bits: u32) {
    const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    match rng.u8(..4) {
        0 | 1 => {
            for _ in 0..rng.u8(1..4) {
                bytes.insert(0, pick(rng, &PREFIXES));
            }
        }
        2 if bits == 64 => bytes.insert(0, 0x40 | rng.u8(..16)),
        _ => {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
    }
}

/// One instruction in the making.
struct Encoding<'a> {
    bits: u32,
    at: u64,
    rng: &'a mut Rng,
}

impl Encoding<'_> {
    fn encode(&mut self, code: Code) -> Option<Vec<u8>> {
        let op_code = code.op_code();
        let mut i = Instruction::default();
        i.set_code(code);
        for (n, kind) in op_code.op_kinds().iter().enumerate() {
            self.operand(&mut i, n as u32, *kind)?;
        }
        self.prefixes(&mut i, code);
        let mut encoder = Encoder::new(self.bits);
        encoder.encode(&i, self.at).ok()?;
        Some(encoder.take_buffer())
    }

    fn prefixes(&mut self, i: &mut Instruction, code: Code) {
        let op_code = code.op_code();
        if op_code.can_use_lock_prefix() && i.op0_kind() == OpKind::Memory && chance(self.rng, 35) {
            i.set_has_lock_prefix(true);
        }
        if op_code.can_use_rep_prefix() && chance(self.rng, 40) {
            i.set_has_rep_prefix(true);
        } else if op_code.can_use_repne_prefix() && chance(self.rng, 35) {
            i.set_has_repne_prefix(true);
        }
        let memory = (0..i.op_count()).any(|n| {
            matches!(
                i.op_kind(n),
                OpKind::Memory | OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI
            )
        });
        if memory && chance(self.rng, 10) {
            use Register::{CS, DS, ES, FS, GS, SS};
            i.set_segment_prefix(pick(self.rng, &[FS, GS, FS, GS, CS, DS, ES, SS]));
        }
    }

    fn gpr(&mut self, size: u32) -> Register {
        use Register as R;
        let rng = &mut *self.rng;
        let number = rng.usize(..if self.bits == 64 { 16 } else { 8 });
        match size {
            8 if self.bits == 64 => {
                let low = [
                    R::AL,
                    R::CL,
                    R::DL,
                    R::BL,
                    R::SPL,
                    R::BPL,
                    R::SIL,
                    R::DIL,
                    R::R8L,
                    R::R9L,
                    R::R10L,
                    R::R11L,
                    R::R12L,
                    R::R13L,
                    R::R14L,
                    R::R15L,
                    R::AH,
                    R::CH,
                    R::DH,
                    R::BH,
                ];
                pick(rng, &low)
            }
            8 => pick(rng, &[R::AL, R::CL, R::DL, R::BL, R::AH, R::CH, R::DH, R::BH]),
            16 => R::AX + number as u32,
            32 => R::EAX + number as u32,
            _ => R::RAX + number as u32,
        }
    }

    fn vector(&mut self, first: Register) -> Register {
        let wide = first.is_vector_register() && self.bits == 64;
        let count = if wide { 16 } else { 8 };
        first + self.rng.u32(..count)
    }

    fn register(i: &mut Instruction, n: u32, register: Register) {
        i.set_op_kind(n, OpKind::Register);
        i.set_op_register(n, register);
    }

    fn operand(&mut self, i: &mut Instruction, n: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let is_memory = chance(self.rng, 60);
        let fixed = |i: &mut Instruction, register| {
            Self::register(i, n, register);
            Some(())
        };
        match kind {
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
                if is_memory =>
            {
                return self.memory(i, n);
            }
            K::mem | K::mem_mib => return self.memory(i, n),
            K::mem_vsib32x | K::mem_vsib64x => {
                self.vector_memory(i, n, Register::XMM0);
                return Some(());
            }
            K::mem_vsib32y | K::mem_vsib64y => {
                self.vector_memory(i, n, Register::YMM0);
                return Some(());
            }
            K::mem_vsib32z | K::mem_vsib64z => {
                self.vector_memory(i, n, Register::ZMM0);
                return Some(());
            }
            _ => {}
        }
        let register = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => self.gpr(8),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => self.gpr(16),
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                self.gpr(32)
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                self.gpr(64)
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => self.vector(Register::MM0),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
                self.vector(Register::XMM0)
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
                self.vector(Register::YMM0)
            }
            K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => self.vector(Register::ZMM0),
            K::xmmp3_vvvv => Register::XMM4,
            K::zmmp3_vvvv => Register::ZMM4,
            K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv | K::kp1_reg => Register::K2,
            K::sti_opcode => self.vector(Register::ST0),
            K::seg_reg => Register::ES + self.rng.u32(..6),
            K::cr_reg => pick(self.rng, &[Register::CR0, Register::CR2, Register::CR3, Register::CR4]),
            K::dr_reg => Register::DR0 + self.rng.u32(..8),
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            _ => return self.other_operand(i, n, kind),
        };
        fixed(i, register)
    }

    fn other_operand(&mut self, i: &mut Instruction, n: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let value = values::integer(self.rng);
        let small = |value: u64| value as i8 as i64;
        // Address sizes of implicit operands: 64 or 32 bits, or 32 or 16.
        let wide = chance(self.rng, 90);
        let by_size = |sixteen, thirty_two, sixty_four| match (self.bits, wide) {
            (64, true) => sixty_four,
            (32, false) => sixteen,
            _ => thirty_two,
        };
        match kind {
            K::imm8 => {
                i.set_op_kind(
                    n,
                    if n > 0 && matches!(i.op_kind(n - 1), OpKind::Immediate16 | OpKind::Immediate8) {
                        OpKind::Immediate8_2nd
                    } else {
                        OpKind::Immediate8
                    },
                );
                if i.op_kind(n) == OpKind::Immediate8_2nd {
                    i.set_immediate8_2nd(value as u8);
                } else {
                    i.set_immediate8(value as u8);
                }
            }
            K::imm8_const_1 => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(1);
            }
            K::imm8sex16 => {
                i.set_op_kind(n, OpKind::Immediate8to16);
                i.set_immediate8to16(small(value) as i16);
            }
            K::imm8sex32 => {
                i.set_op_kind(n, OpKind::Immediate8to32);
                i.set_immediate8to32(small(value) as i32);
            }
            K::imm8sex64 => {
                i.set_op_kind(n, OpKind::Immediate8to64);
                i.set_immediate8to64(small(value));
            }
            K::imm16 => {
                i.set_op_kind(n, OpKind::Immediate16);
                // How much `ret` and `enter` take.
                let small = if rand_small(i.code()) { value & 0x7f } else { value };
                i.set_immediate16(small as u16);
            }
            K::imm32 => {
                i.set_op_kind(n, OpKind::Immediate32);
                i.set_immediate32(value as u32);
            }
            K::imm32sex64 => {
                i.set_op_kind(n, OpKind::Immediate32to64);
                i.set_immediate32to64(i64::from(value as i32));
            }
            K::imm64 => {
                i.set_op_kind(n, OpKind::Immediate64);
                i.set_immediate64(value);
            }
            K::seg_rSI => {
                i.set_op_kind(n, by_size(OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI));
            }
            K::es_rDI => {
                i.set_op_kind(n, by_size(OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI));
            }
            K::seg_rDI => {
                i.set_op_kind(n, by_size(OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI));
            }
            K::seg_rBX_al => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(match (self.bits, wide) {
                    (64, true) => Register::RBX,
                    (32, false) => Register::BX,
                    _ => Register::EBX,
                });
                i.set_memory_index(Register::AL);
            }
            K::br16_1 | K::br16_2 | K::br32_1 | K::br32_4 | K::br64_1 | K::br64_4 => self.branch(i, n, kind),
            K::farbr2_2 | K::farbr4_2 => {
                let far32 = kind == K::farbr4_2;
                i.set_op_kind(n, if far32 { OpKind::FarBranch32 } else { OpKind::FarBranch16 });
                i.set_far_branch_selector(operands::code_selector(self.rng));
                let target = operands::code_target(self.rng);
                if far32 {
                    i.set_far_branch32(target as u32);
                } else {
                    i.set_far_branch16(target as u16);
                }
            }
            K::mem_offs => {
                let size =
                    if self.bits == 64 { pick(self.rng, &[8, 8, 4]) } else { pick(self.rng, &[4, 4, 4, 2]) };
                let target = operands::target(self.rng, 8);
                let target = if size == 8 { target } else { target & (u64::MAX >> (64 - size * 8)) };
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_displ_size(size);
                i.set_memory_displacement64(target);
            }
            _ => return None,
        }
        Some(())
    }

    fn branch(&mut self, i: &mut Instruction, n: u32, kind: OpCodeOperandKind) {
        use OpCodeOperandKind as K;
        let near = matches!(kind, K::br16_1 | K::br32_1 | K::br64_1);
        let target = if near {
            self.at.wrapping_add(self.rng.u64(..200)).wrapping_sub(80)
        } else {
            operands::code_target(self.rng)
        };
        match kind {
            K::br16_1 | K::br16_2 => {
                i.set_op_kind(n, OpKind::NearBranch16);
                i.set_near_branch16(target as u16);
            }
            K::br32_1 | K::br32_4 => {
                i.set_op_kind(n, OpKind::NearBranch32);
                i.set_near_branch32(target as u32);
            }
            _ => {
                i.set_op_kind(n, OpKind::NearBranch64);
                i.set_near_branch64(target);
            }
        }
    }

    /// A memory operand whose index is a vector.
    fn vector_memory(&mut self, i: &mut Instruction, n: u32, first: Register) {
        i.set_op_kind(n, OpKind::Memory);
        let base = self.gpr(self.bits);
        i.set_memory_base(base);
        let index = self.vector(first);
        i.set_memory_index(index);
    }

    /// A memory operand of any form. Where it leads is settled by the registers' values, except where there are
    /// none.
    fn memory(&mut self, i: &mut Instruction, n: u32) -> Option<()> {
        i.set_op_kind(n, OpKind::Memory);
        let wide = chance(self.rng, 92);
        let bits = if wide { self.bits } else { self.bits / 2 };
        let absolute = operands::target(self.rng, 8);
        if bits == 16 {
            let bases = [
                (Register::BX, Register::SI),
                (Register::BX, Register::DI),
                (Register::BP, Register::SI),
                (Register::BP, Register::DI),
                (Register::SI, Register::None),
                (Register::DI, Register::None),
                (Register::BX, Register::None),
            ];
            let (base, index) = pick(self.rng, &bases);
            i.set_memory_base(base);
            i.set_memory_index(index);
            return Some(());
        }
        let size = if bits == 64 { 64 } else { 32 };
        match self.rng.u8(..10) {
            // Relative to the instruction pointer.
            0 if self.bits == 64 => {
                i.set_memory_base(if size == 64 { Register::RIP } else { Register::EIP });
                i.set_memory_displ_size(size / 8);
                i.set_memory_displacement64(if size == 64 { absolute } else { absolute & 0xffff_ffff });
                return Some(());
            }
            1 => {
                i.set_memory_displ_size(size / 8);
                i.set_memory_displacement64(absolute as i32 as i64 as u64 & (u64::MAX >> (64 - size)));
                return Some(());
            }
            2 => {
                let index = self.gpr(size);
                if matches!(index, Register::RSP | Register::ESP) {
                    return None;
                }
                i.set_memory_index(index);
                i.set_memory_displ_size(size / 8);
            }
            3..6 => {
                let base = self.gpr(size);
                let index = self.gpr(size);
                if matches!(index, Register::RSP | Register::ESP) {
                    return None;
                }
                i.set_memory_base(base);
                i.set_memory_index(index);
            }
            _ => {
                let base = self.gpr(size);
                i.set_memory_base(base);
            }
        }
        i.set_memory_index_scale(if i.memory_index() == Register::None { 1 } else { 1 << self.rng.u32(..4) });
        let displacement: i64 = match self.rng.u8(..3) {
            0 => 0,
            1 => i64::from(self.rng.i8(..)),
            _ => i64::from(self.rng.i32(-0x10_0000..0x10_0000)),
        };
        if displacement != 0 || i.memory_displ_size() != 0 {
            let small = i8::try_from(displacement).is_ok() && i.memory_displ_size() == 0;
            i.set_memory_displ_size(if small { 1 } else { size / 8 });
            i.set_memory_displacement64(displacement as u64 & (u64::MAX >> (64 - size)));
        }
        Some(())
    }
}

/// Instructions whose 16-bit immediate is a number of bytes on the stack.
fn rand_small(code: Code) -> bool {
    matches!(code.mnemonic(), Mnemonic::Ret | Mnemonic::Retf | Mnemonic::Enter)
}
