//! CPU models: what a virtual CPU announces, and so what it can do.
//!
//! One table says of each feature which CPUID bit announces it, from which model on it is there, and which
//! instructions need it. CPUID ([`crate::cpuid`]), the decoder and the checks of control registers all ask this
//! table, so what a guest is told and what it gets cannot differ.

use iced_x86::{CpuidFeature, DecoderOptions};

/// A named set of features, after the levels of the x86-64 psABI (System V ABI, AMD64 supplement, section
/// 3.1.1). Features that only a kernel notices, such as SMEP, are the same in all models.
///
/// ```
/// use posada_x86::Model;
/// let model = Model::named("x86-64-v2")?;
/// assert_eq!(model.name(), "x86-64-v2");
/// assert!(Model::named("i286").is_err());
/// # Ok::<(), posada_x86::ModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    name: &'static str,
    level: Level,
    /// One bit for each [`Feature`] that it has.
    features: u128,
    /// One bit for each [`CpuidFeature`] whose instructions it has.
    code: [u64; 4],
}

/// There is no such model, or not on this engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No model has this name.
    #[error("unknown CPU model {name:?}; the models are {}", Model::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The model exists, but the interpreter lacks something that it announces.
    #[error(
        "CPU model {name:?} cannot be carried out by this engine yet: it has no {missing}; take one of {}",
        Model::NAMES.join(", ")
    )]
    Unsupported {
        /// What was asked for.
        name: &'static str,
        /// What the engine lacks.
        missing: &'static str,
    },
}

/// The levels of the psABI, in order: each has all that the one before it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    V1,
    V2,
    V3,
    /// Whatever the host's processor has of what an engine can do.
    Host,
}

/// A register that CPUID answers in, as an index into its four answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What is known of one feature.
struct Description {
    feature: Feature,
    /// The first model that has it.
    since: Level,
    /// CPUID leaf and subleaf, register and bit.
    leaf: (u32, u32),
    answer: Answer,
    bit: u32,
    /// The instructions that it brings, as the decoder groups them.
    code: &'static [CpuidFeature],
}

macro_rules! features {
    ($($name:ident: $level:ident, $leaf:literal.$subleaf:literal $answer:ident $bit:literal, [$($code:ident),*];)*) => {
        /// A feature that CPUID announces with a bit of its own (AMD APM volume 3, appendix E).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Feature { $($name),* }

        const FEATURES: &[Description] = &[$(Description {
            feature: Feature::$name,
            since: Level::$level,
            leaf: ($leaf, $subleaf),
            answer: Answer::$answer,
            bit: $bit,
            code: &[$(CpuidFeature::$code),*],
        }),*];
    };
}

features! {
    Fpu: V1, 1 .0 Edx 0, [FPU, FPU287, FPU387];
    De: V1, 1 .0 Edx 2, [];
    Pse: V1, 1 .0 Edx 3, [];
    Tsc: V1, 1 .0 Edx 4, [TSC];
    Msr: V1, 1 .0 Edx 5, [MSR];
    Pae: V1, 1 .0 Edx 6, [];
    Mce: V1, 1 .0 Edx 7, [];
    Cx8: V1, 1 .0 Edx 8, [CX8];
    Apic: V1, 1 .0 Edx 9, [];
    Sep: V1, 1 .0 Edx 11, [SEP];
    Mtrr: V1, 1 .0 Edx 12, [];
    Pge: V1, 1 .0 Edx 13, [];
    Mca: V1, 1 .0 Edx 14, [];
    Cmov: V1, 1 .0 Edx 15, [CMOV];
    Pat: V1, 1 .0 Edx 16, [];
    Pse36: V1, 1 .0 Edx 17, [];
    Clflush: V1, 1 .0 Edx 19, [CLFSH];
    Mmx: V1, 1 .0 Edx 23, [MMX];
    Fxsr: V1, 1 .0 Edx 24, [FXSR];
    Sse: V1, 1 .0 Edx 25, [SSE];
    Sse2: V1, 1 .0 Edx 26, [SSE2];

    Sse3: V2, 1 .0 Ecx 0, [SSE3];
    Pclmulqdq: V2, 1 .0 Ecx 1, [PCLMULQDQ];
    Ssse3: V2, 1 .0 Ecx 9, [SSSE3];
    Fma: V3, 1 .0 Ecx 12, [FMA];
    Cx16: V2, 1 .0 Ecx 13, [CMPXCHG16B];
    Pcid: V1, 1 .0 Ecx 17, [];
    Sse41: V2, 1 .0 Ecx 19, [SSE4_1];
    Sse42: V2, 1 .0 Ecx 20, [SSE4_2];
    Movbe: V3, 1 .0 Ecx 22, [MOVBE];
    X2apic: V1, 1 .0 Ecx 21, [];
    Popcnt: V2, 1 .0 Ecx 23, [POPCNT];
    TscDeadline: V1, 1 .0 Ecx 24, [];
    Aes: V2, 1 .0 Ecx 25, [AES];
    Xsave: V2, 1 .0 Ecx 26, [XSAVE];
    Avx: V3, 1 .0 Ecx 28, [AVX];
    F16c: V3, 1 .0 Ecx 29, [F16C];
    Rdrand: V1, 1 .0 Ecx 30, [RDRAND];
    Hypervisor: V1, 1 .0 Ecx 31, [];

    Arat: V1, 6 .0 Eax 2, [];

    Fsgsbase: V1, 7 .0 Ebx 0, [FSGSBASE];
    TscAdjust: V1, 7 .0 Ebx 1, [];
    Bmi1: V3, 7 .0 Ebx 3, [BMI1];
    Avx2: V3, 7 .0 Ebx 5, [AVX2];
    Smep: V1, 7 .0 Ebx 7, [];
    Bmi2: V3, 7 .0 Ebx 8, [BMI2];
    Erms: V1, 7 .0 Ebx 9, [];
    Invpcid: V1, 7 .0 Ebx 10, [INVPCID];
    Rdseed: V1, 7 .0 Ebx 18, [RDSEED];
    Adx: Host, 7 .0 Ebx 19, [ADX];
    Smap: V1, 7 .0 Ebx 20, [SMAP];
    Clflushopt: V1, 7 .0 Ebx 23, [CLFLUSHOPT];
    Clwb: V1, 7 .0 Ebx 24, [CLWB];
    Sha: Host, 7 .0 Ebx 29, [SHA];
    Umip: V1, 7 .0 Ecx 2, [];
    Gfni: Host, 7 .0 Ecx 8, [GFNI];
    Vaes: Host, 7 .0 Ecx 9, [VAES];
    Vpclmulqdq: Host, 7 .0 Ecx 10, [VPCLMULQDQ];
    Rdpid: V1, 7 .0 Ecx 22, [RDPID];
    Fsrm: V1, 7 .0 Edx 4, [];
    Fsrs: V1, 7 .1 Eax 11, [];

    Xsaveopt: V2, 0xd .1 Eax 0, [XSAVEOPT];
    Xsavec: V2, 0xd .1 Eax 1, [XSAVEC];
    Xgetbv1: V2, 0xd .1 Eax 2, [];

    LahfLm: V2, 0x8000_0001 .0 Ecx 0, [];
    Lzcnt: V3, 0x8000_0001 .0 Ecx 5, [LZCNT];
    AltMovCr8: V1, 0x8000_0001 .0 Ecx 4, [];
    Prefetchw: V1, 0x8000_0001 .0 Ecx 8, [PREFETCHW, PREFETCHWT1];
    Syscall: V1, 0x8000_0001 .0 Edx 11, [SYSCALL];
    Nx: V1, 0x8000_0001 .0 Edx 20, [];
    Pages1G: V1, 0x8000_0001 .0 Edx 26, [];
    Rdtscp: V1, 0x8000_0001 .0 Edx 27, [RDTSCP];
    Lm: V1, 0x8000_0001 .0 Edx 29, [X64];

    InvariantTsc: V1, 0x8000_0007 .0 Edx 8, [];

    // `xsave` and `fxsave` always save the x87 error pointers.
    XsaveErPtr: V1, 0x8000_0008 .0 Ebx 2, [];
    Wbnoinvd: V1, 0x8000_0008 .0 Ebx 9, [WBNOINVD];
    Ibpb: V1, 0x8000_0008 .0 Ebx 12, [];
    // Nothing of the guest is carried out speculatively, so what speculation leaks is not there to be leaked:
    // no speculative store bypass, no branch type confusion.
    SsbNo: V1, 0x8000_0008 .0 Ebx 26, [];
    BtcNo: V1, 0x8000_0008 .0 Ebx 29, [];
    // The branch prediction barrier covers returns.
    IbpbRet: V1, 0x8000_0008 .0 Ebx 30, [];

    LfenceSerializing: V1, 0x8000_0021 .0 Eax 2, [];
    // A null selector loaded into `fs` or `gs` clears the base.
    NullClearsBase: V1, 0x8000_0021 .0 Eax 6, [];
    AutoIbrs: V1, 0x8000_0021 .0 Eax 8, [];
    SrsoNo: V1, 0x8000_0021 .0 Eax 29, [];
    TsaSqNo: V1, 0x8000_0021 .0 Ecx 1, [];
    TsaL1No: V1, 0x8000_0021 .0 Ecx 2, [];
}

/// Instructions that no CPUID bit announces: every 64-bit processor has them.
const ALWAYS: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::CPUID,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::RDPMC,
];

impl Model {
    /// The names that [`named`](Self::named) makes a model of.
    pub const NAMES: [&'static str; 4] = ["x86-64-v1", "x86-64-v2", "x86-64-v3", "host"];

    /// The model of that name. Not every engine can carry out every model; it says so when it is made.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        match name {
            "x86-64-v1" => Ok(Self::at(Self::NAMES[0], Level::V1)),
            "x86-64-v2" => Ok(Self::at(Self::NAMES[1], Level::V2)),
            "x86-64-v3" => Ok(Self::at(Self::NAMES[2], Level::V3)),
            "x86-64-v4" => Err(ModelError::Unsupported { name: "x86-64-v4", missing: "AVX-512" }),
            "host" => Ok(Self::at(Self::NAMES[3], Level::Host)),
            _ => Err(ModelError::Unknown { name: name.to_owned() }),
        }
    }

    fn at(name: &'static str, level: Level) -> Self {
        let mut model = Self { name, level, features: 0, code: [0; 4] };
        let own = FEATURES.iter().filter(|description| {
            description.since <= level && (description.since < Level::Host || host_has(description.feature))
        });
        for description in own {
            model.features |= 1 << description.feature as u32;
            for feature in description.code {
                model.add_code(*feature);
            }
        }
        for feature in ALWAYS {
            model.add_code(*feature);
        }
        model
    }

    fn add_code(&mut self, feature: CpuidFeature) {
        let n = feature as usize;
        self.code[n / 64] |= 1 << (n % 64);
    }

    /// What of this model only a host's processor can carry out, if anything.
    pub fn needs_native(&self) -> Option<&'static str> {
        (self.level >= Level::V3).then_some("AVX")
    }

    /// What of this model the host's processor lacks that would have to carry it out, if anything.
    pub fn host_lacks(&self) -> Option<&'static str> {
        host_lacks_v3().filter(|_| self.level >= Level::V3)
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it has a feature.
    #[inline]
    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.features >> feature as u32 & 1 != 0
    }

    /// Whether instructions that need a feature are carried out; otherwise they are `#UD`.
    pub fn announces(&self, feature: CpuidFeature) -> bool {
        let n = feature as usize;
        self.code[n / 64] >> (n % 64) & 1 != 0
    }

    /// How the decoder is to read instructions: processors without `lzcnt` take it for `bsr`, and `tzcnt` for `bsf`.
    pub fn decoder_options(&self) -> u32 {
        let mut options = DecoderOptions::AMD;
        if !self.announces(CpuidFeature::LZCNT) {
            options |= DecoderOptions::NO_MPFX_0FBD;
        }
        if !self.announces(CpuidFeature::BMI1) {
            options |= DecoderOptions::NO_MPFX_0FBC;
        }
        options
    }

    /// The feature bits of one CPUID leaf: `eax`, `ebx`, `ecx`, `edx`.
    pub(crate) fn announced(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut answer = [0; 4];
        for d in FEATURES.iter().filter(|d| d.leaf == (leaf, subleaf) && self.has(d.feature)) {
            answer[d.answer as usize] |= 1 << d.bit;
        }
        answer
    }
}

/// Whether the host's processor has a feature of [`Level::Host`].
fn host_has(feature: Feature) -> bool {
    #[cfg(target_arch = "x86_64")]
    return match feature {
        Feature::Adx => std::arch::is_x86_feature_detected!("adx"),
        Feature::Sha => std::arch::is_x86_feature_detected!("sha"),
        Feature::Gfni => std::arch::is_x86_feature_detected!("gfni"),
        Feature::Vaes => std::arch::is_x86_feature_detected!("vaes"),
        Feature::Vpclmulqdq => std::arch::is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = feature;
        false
    }
}

/// What the host's processor lacks of [`Level::V3`].
fn host_lacks_v3() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let features = [
            ("AVX", has!("avx")),
            ("AVX2", has!("avx2")),
            ("FMA", has!("fma")),
            ("F16C", has!("f16c")),
            ("BMI1", has!("bmi1")),
            ("BMI2", has!("bmi2")),
            ("LZCNT", has!("lzcnt")),
            ("MOVBE", has!("movbe")),
        ];
        features.into_iter().find(|(_, there)| !there).map(|(name, _)| name)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Some("the instruction set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_cannot_be_carried_out_are_refused_by_name() {
        let name = "x86-64-v4";
        let error = Model::named(name).expect_err("nothing carries it out");
        assert!(matches!(error, ModelError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("x86-64-v2"), "{error}");
        let error = Model::named("pentium").expect_err("there is no such model");
        assert_eq!(
            error.to_string(),
            "unknown CPU model \"pentium\"; the models are x86-64-v1, x86-64-v2, x86-64-v3, host"
        );
    }

    #[test]
    fn no_two_features_share_a_bit() {
        for (n, a) in FEATURES.iter().enumerate() {
            assert_eq!(a.feature as usize, n);
            for b in &FEATURES[n + 1..] {
                assert!(
                    (a.leaf, a.answer, a.bit) != (b.leaf, b.answer, b.bit),
                    "{:?} {:?}",
                    a.feature,
                    b.feature
                );
            }
        }
        assert!(FEATURES.len() <= 128);
    }

    #[test]
    fn the_second_level_adds_what_the_psabi_demands_and_the_first_lacks_it() {
        use Feature as F;
        let (v1, v2) = (Model::at("", Level::V1), Model::at("", Level::V2));
        for feature in [F::Cx16, F::LahfLm, F::Popcnt, F::Sse3, F::Sse41, F::Sse42, F::Ssse3] {
            assert!(v2.has(feature) && !v1.has(feature), "{feature:?}");
        }
        for feature in [F::Cmov, F::Cx8, F::Fpu, F::Fxsr, F::Mmx, F::Syscall, F::Sse, F::Sse2] {
            assert!(v2.has(feature) && v1.has(feature), "{feature:?}");
        }
    }

    #[test]
    fn the_third_level_adds_what_the_psabi_demands_and_is_for_the_host_to_carry_out() {
        use Feature as F;
        let (v2, v3) = (Model::at("", Level::V2), Model::at("", Level::V3));
        for feature in [F::Avx, F::Avx2, F::Bmi1, F::Bmi2, F::F16c, F::Fma, F::Lzcnt, F::Movbe, F::Xsave] {
            assert!(v3.has(feature), "{feature:?}");
        }
        assert!(v3.announces(CpuidFeature::AVX2) && !v3.announces(CpuidFeature::AVX512F));
        assert_eq!((v2.needs_native(), v3.needs_native()), (None, Some("AVX")));
        let host = Model::named("host").expect("a listed model");
        assert!(host.has(F::Avx) && host.name() == "host");
    }

    #[test]
    fn instructions_follow_the_announced_bits() {
        use CpuidFeature as C;
        let (v1, v2) = (Model::at("", Level::V1), Model::at("", Level::V2));
        assert!(v1.announces(C::SSE2) && !v1.announces(C::SSE3) && v2.announces(C::SSE3));
        for feature in
            [C::AVX, C::AVX2, C::BMI1, C::BMI2, C::LZCNT, C::FMA, C::MOVBE, C::F16C, C::D3NOW, C::VMX]
        {
            assert!(!v2.announces(feature), "{feature:?}");
        }
    }
}
