//! Which engine carries out the guest's instructions. This is the one place that knows them all.

use std::fmt;
use std::str::FromStr;

use posada_vcpu::{Connections, Vcpu};
use posada_x86::{Interpreter, Model};

use crate::Error;

/// Who carries out the guest's instructions.
///
/// ```
/// use posada_pc::Engine;
///
/// assert_eq!("interpret".parse::<Engine>()?, Engine::Interpret);
/// assert!("magic".parse::<Engine>().unwrap_err().to_string().contains("interpret"));
/// # Ok::<(), posada_pc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The interpreter: every instruction is a call.
    #[default]
    Interpret,
}

impl Engine {
    /// The names by which engines are chosen.
    pub const NAMES: [&'static str; 1] = ["interpret"];

    pub(crate) fn make(self, connections: Connections, model: Model) -> Result<Box<dyn Vcpu>, Error> {
        let cpu = connections.index;
        match self {
            Self::Interpret => match Interpreter::new(connections, model) {
                Ok(vcpu) => Ok(Box::new(vcpu)),
                Err(cause) => Err(Error::Engine { cpu, cause }),
            },
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interpret => Self::NAMES[0],
        })
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "interpret" => Ok(Self::Interpret),
            _ => Err(Error::UnknownEngine { name: name.into() }),
        }
    }
}
