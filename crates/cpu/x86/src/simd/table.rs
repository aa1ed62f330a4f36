//! The table macro in which the groups say what their instructions do.

/// Picks the operation for an instruction from rows of the form
///
/// ```text
/// Mnemonic => lowering(|a, b, imm| expression);     an operation on 128-bit pieces
/// Mnemonic => lowering(name_m128i);                the host's SSE2 instruction of the same meaning, by safe_arch's name
/// Mnemonic => lowering([u16; 8] |a, b| expression); an operation on each lane
/// ```
///
/// where the lowering names a function such as [`super::form::sse`], generic over the operation.
macro_rules! table {
    ($i:ident; $($mnemonic:ident => $lowering:ident $(::<$form:ty>)? ($($operation:tt)+);)*) => {
        match $i.mnemonic() {
            $(iced_x86::Mnemonic::$mnemonic => {
                struct Operation;
                impl $crate::simd::form::Binary for Operation {
                    $crate::simd::table::apply!($($operation)+);
                }
                $lowering::<$($form,)? Operation>($i)
            })*
            _ => None,
        }
    };
}

macro_rules! apply {
    ([$lane:ty; $count:literal] |$a:pat_param, $b:pat_param| $body:expr) => {
        #[inline(always)]
        fn apply(
            a: $crate::simd::form::Vector,
            b: $crate::simd::form::Vector,
            _: u8,
        ) -> $crate::simd::form::Vector {
            let (a, b): ([$lane; $count], [$lane; $count]) = (bytemuck::cast(a), bytemuck::cast(b));
            let operation = |$a: $lane, $b: $lane| -> $lane { $body };
            let result: [$lane; $count] = std::array::from_fn(|n| operation(a[n], b[n]));
            bytemuck::cast(result)
        }
    };
    (|$a:pat_param, $b:pat_param| $body:expr) => {
        #[inline(always)]
        fn apply(
            $a: $crate::simd::form::Vector,
            $b: $crate::simd::form::Vector,
            _: u8,
        ) -> $crate::simd::form::Vector {
            $body
        }
    };
    (|$a:pat_param, $b:pat_param, $imm:pat_param| $body:expr) => {
        #[inline(always)]
        fn apply(
            $a: $crate::simd::form::Vector,
            $b: $crate::simd::form::Vector,
            $imm: u8,
        ) -> $crate::simd::form::Vector {
            $body
        }
    };
    ($intrinsic:ident) => {
        #[inline(always)]
        fn apply(
            a: $crate::simd::form::Vector,
            b: $crate::simd::form::Vector,
            _: u8,
        ) -> $crate::simd::form::Vector {
            bytemuck::cast(safe_arch::$intrinsic(bytemuck::cast(a), bytemuck::cast(b)))
        }
    };
}

pub(super) use {apply, table};
