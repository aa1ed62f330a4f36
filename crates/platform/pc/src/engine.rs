//! Which engine carries out the guest's instructions. This is the one place that knows them all.

use std::fmt;
use std::str::FromStr;

use posada_vcpu::{Connections, Vcpu};
use posada_x86::{Interpreter, Model};
use posada_x86_translate::{Lockstep, Translator};

use crate::Error;

/// The least code that a translating processor can keep, in bytes.
pub const MIN_CODE_CACHE: u64 = 2 << 20;
/// The most: jumps in it reach 2 GiB.
pub const MAX_CODE_CACHE: u64 = 1 << 30;
/// What it keeps unless told otherwise.
pub const DEFAULT_CODE_CACHE: u64 = posada_x86_translate::DEFAULT_CODE_CACHE as u64;

/// Who carries out the guest's instructions.
///
/// ```
/// use posada_pc::Engine;
///
/// assert_eq!("interpret".parse::<Engine>()?, Engine::Interpret);
/// assert!("magic".parse::<Engine>().unwrap_err().to_string().contains("interpret"));
/// # Ok::<(), posada_pc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The interpreter: every instruction is a call.
    Interpret,
    /// The translator: instructions run on the host's processor, rewritten.
    Translate,
    /// Both, each block on the one and then on the other, until they differ.
    Lockstep,
}

impl Engine {
    /// The names by which engines are chosen.
    pub const NAMES: [&'static str; 3] = ["interpret", "translate", "lockstep"];

    pub(crate) fn make(
        self,
        connections: Connections,
        model: Model,
        code_cache: usize,
    ) -> Result<Box<dyn Vcpu>, Error> {
        let cpu = connections.index;
        let made: Result<Box<dyn Vcpu>, _> = match self {
            Self::Interpret => Interpreter::new(connections, model).map(|vcpu| Box::new(vcpu) as _),
            Self::Translate => {
                Translator::new(connections, model, code_cache).map(|vcpu| Box::new(vcpu) as _)
            }
            Self::Lockstep => Lockstep::new(connections, model, code_cache).map(|vcpu| Box::new(vcpu) as _),
        };
        made.map_err(|cause| Error::Engine { cpu, cause })
    }
}

impl Default for Engine {
    /// The fastest that this host can have.
    fn default() -> Self {
        if Translator::is_supported() { Self::Translate } else { Self::Interpret }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interpret => Self::NAMES[0],
            Self::Translate => Self::NAMES[1],
            Self::Lockstep => Self::NAMES[2],
        })
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "interpret" => Ok(Self::Interpret),
            "translate" => Ok(Self::Translate),
            "lockstep" => Ok(Self::Lockstep),
            _ => Err(Error::UnknownEngine { name: name.into() }),
        }
    }
}
