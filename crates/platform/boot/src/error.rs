//! What can be wrong with a kernel, or with what it is to be given.

use std::io;

use posada_memory::Gpa;

/// Why a kernel cannot be started. Each message says what was being done, what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is of no kind that can be booted.
    #[error(
        "this is no kernel that can be booted: {found}; give a Linux bzImage, an ELF kernel with a PVH note, \
         or a multiboot image"
    )]
    NotAKernel {
        /// What the file looks like.
        found: String,
    },
    /// The file ends before what its own headers promise.
    #[error("the {format} is truncated: {what} ends at byte {needs}, and the file has only {has}")]
    Truncated {
        /// The kind of file.
        format: &'static str,
        /// What is incomplete.
        what: String,
        /// How long the file would have to be, in bytes.
        needs: u64,
        /// How long it is, in bytes.
        has: u64,
    },
    /// The file contradicts itself or its format.
    #[error("the {format} is corrupt: {problem}")]
    Corrupt {
        /// The kind of file.
        format: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The file asks for something that is not done here.
    #[error("the {format} cannot be booted: {problem}")]
    Unsupported {
        /// The kind of file.
        format: &'static str,
        /// What it asks for, and what to do.
        problem: String,
    },
    /// A part of the kernel must lie where there is no RAM.
    #[error("{what} must lie at {start} + {size:#x}, where the guest has no RAM; give it more memory")]
    OutsideRam {
        /// What was to be placed.
        what: String,
        /// Where.
        start: Gpa,
        /// Its size in bytes.
        size: u64,
    },
    /// Two parts must lie at the same place.
    #[error("{what} at {start} + {size:#x} overlaps {other}: the file is corrupt")]
    Overlap {
        /// What was to be placed.
        what: String,
        /// Where.
        start: Gpa,
        /// Its size in bytes.
        size: u64,
        /// What lies there already.
        other: String,
    },
    /// Something does not fit into what RAM is left.
    #[error(
        "{what} needs {size} bytes, and no free range of guest RAM {where_} is as large; give it more memory"
    )]
    NoRoom {
        /// What was to be placed.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// Which part of RAM was searched.
        where_: String,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {length} bytes, and this kernel takes at most {limit}; shorten it")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest that the kernel takes.
        limit: usize,
    },
    /// The command line has a byte that would end it.
    #[error("the kernel command line has a zero byte at position {position}; remove it")]
    CommandLineZero {
        /// Where, counted in bytes from 0.
        position: usize,
    },
    /// The host could not read a file.
    #[error("could not read {what}: {cause}")]
    Read {
        /// What was read.
        what: String,
        /// What the host said.
        cause: io::Error,
    },
    /// The memory map is not one.
    #[error("bad memory map: {problem}")]
    Map {
        /// What is wrong with it.
        problem: String,
    },
    /// The guest's tables do not fit where they must lie.
    #[error("the {what} needs {size:#x} bytes at {start}, and the firmware area ends at {end}")]
    Tables {
        /// Which table.
        what: &'static str,
        /// Where it was to lie.
        start: Gpa,
        /// Its size in bytes.
        size: usize,
        /// The end of the area.
        end: Gpa,
    },
}
