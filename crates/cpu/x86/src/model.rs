//! CPU models: what a virtual CPU announces, and so what it can do.

use iced_x86::CpuidFeature;

/// A named set of features, after the levels of the x86-64 psABI.
#[derive(Clone, Debug)]
pub struct Model {
    name: &'static str,
    /// 1 GiB pages.
    pub(crate) pages_1g: bool,
}

/// No model has this name.
#[derive(Debug, thiserror::Error)]
#[error("unknown CPU model {name:?}; the models are {}", Model::NAMES.join(", "))]
pub struct UnknownModel {
    /// What was asked for.
    pub name: String,
}

impl Model {
    /// The names that [`named`](Self::named) knows.
    pub const NAMES: [&'static str; 2] = ["x86-64-v1", "x86-64-v2"];

    /// The model of that name.
    pub fn named(name: &str) -> Result<Self, UnknownModel> {
        Self::NAMES
            .into_iter()
            .find(|known| *known == name)
            .map(|name| Self { name, pages_1g: true })
            .ok_or_else(|| UnknownModel { name: name.to_owned() })
    }

    /// The model's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether instructions that need a feature are carried out; otherwise they are `#UD`.
    pub(crate) fn announces_code(&self, feature: CpuidFeature) -> bool {
        use CpuidFeature as F;
        !matches!(feature, F::AVX | F::AVX2 | F::BMI1 | F::BMI2 | F::LZCNT | F::FMA | F::MOVBE | F::F16C)
    }
}
