//! PCI devices that real machines have, for guests without virtio.
//!
//! | room | what it holds |
//! |---|---|
//! | [`ahci`] | the SATA controller of an ICH9 (AHCI 1.3.1), with ATA disks and ATAPI CD-ROM drives |
//! | [`e1000`] | the Intel 82540EM network card |
//!
//! Registers are under one lock, which nobody holds for longer than a register takes. What takes long (the host's files
//! and networks, and copying the guest's data) is done by threads of the devices' own ([`posada_worker`]), woken when a
//! processor writes to a register that says there is work.
//!
//! The driver is hostile. What is in its memory is copied out once and then looked at; places that are not in memory,
//! lengths and lists that contradict each other end in the error bits that the device has for it.
#![forbid(unsafe_code)]

pub mod ahci;
pub mod e1000;

mod interrupt;

/// A little-endian number at an offset of `bytes`, 0 where they end before.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod testing;
