//! Which formats there are, and how a file shows its own.

use std::fmt;
use std::str::FromStr;

/// How a disk lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write image, versions 2 and 3.
    Qcow2,
    /// VMware's virtual disk, one file: monolithicSparse or streamOptimized. Read only.
    Vmdk,
    /// VirtualBox's disk image, dynamic or fixed. Read only.
    Vdi,
    /// Connectix' and Microsoft's virtual hard disk, dynamic or fixed. Read only.
    Vhd,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vdi, Self::Vhd];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vhd",
        }
    }

    /// Finds the format by the file's first bytes, at most [`PROBE`] of which matter. What has no signature is raw.
    ///
    /// A fixed VHD has its signature only at its end, which a guest of a raw disk can write: it is raw here.
    pub fn probe(head: &[u8]) -> Self {
        if head.starts_with(b"QFI\xfb") {
            Self::Qcow2
        } else if head.starts_with(b"KDMV")
            || head.starts_with(b"COWD")
            || head.starts_with(b"# Disk Descriptor")
        {
            Self::Vmdk
        } else if head.starts_with(b"conectix") {
            Self::Vhd
        } else if head.get(0x40..0x44) == Some(&0xbeda_107f_u32.to_le_bytes()) {
            Self::Vdi
        } else {
            Self::Raw
        }
    }
}

/// How many bytes of a file [`Format::probe`] looks at.
pub const PROBE: usize = 512;

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        // QEMU's names for the last.
        known.or((name == "vpc").then_some(Self::Vhd)).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no disk format named `{name}`; there are {names}")
        })
    }
}
