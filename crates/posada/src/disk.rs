//! `posada disk`: images that guests' disks lie in.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::BinaryBytes;
use posada_image::Progress;
use posada_storage::{Backing, Convert, Format, Info, NewImage, Repair, check, convert, create, info};

use crate::progress::Bars;
use crate::status;

/// An image was found damaged.
const DAMAGED: u8 = 1;
/// An image has lost space, and is in order otherwise.
const LEAKS: u8 = 3;

const CHECK_HELP: &str = "\
Examples:
  posada disk check disk.qcow2
  posada disk check disk.qcow2 --repair leaks

Exit status:
  0      the image is in order, or has been repaired
  1      it is damaged: some of what it holds may be wrong, and more may become so
  2      the command line is wrong
  3      it has leaks: space that is counted as used and belongs to nothing, which does no harm
  125    it could not be checked or repaired: the message says why";

#[derive(Args)]
pub(crate) struct Disk {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Makes an empty disk, or one that begins as another and keeps what changes
    #[command(
        after_help = "Examples:\n  posada disk create disk.qcow2 20G\n  posada disk create disk.raw 1G --format \
                            raw\n  posada disk create mine.qcow2 --backing base.qcow2"
    )]
    Create {
        /// The new file
        file: PathBuf,
        /// The disk's size: a number with K, M, G or T; without it, that of the backing file
        #[arg(required_unless_present = "backing")]
        size: Option<Size>,
        /// raw or qcow2
        #[arg(long, value_name = "FORMAT", default_value = "qcow2", value_parser = Format::from_str)]
        format: Format,
        /// What the disk reads as until it is written to; this file must not change any more
        #[arg(long, value_name = "FILE")]
        backing: Option<PathBuf>,
        /// The format of that file, where it should not be found out from its contents
        #[arg(long, value_name = "FORMAT", requires = "backing", value_parser = Format::from_str)]
        backing_format: Option<Format>,
        /// How much is allocated at once in a qcow2 image: 512 bytes to 2M
        #[arg(long, value_name = "SIZE", default_value = "64K")]
        cluster: Size,
    },
    /// Says what a file is
    #[command(after_help = "Examples:\n  posada disk info disk.qcow2\n  posada disk info disk.qcow2 --json")]
    Info {
        /// The image
        file: PathBuf,
        /// Its format, where it should not be found out from its contents: raw, qcow2, vmdk, vdi or vhd
        #[arg(long, value_name = "FORMAT", value_parser = Format::from_str)]
        format: Option<Format>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Copies a disk, with what it takes from backing files, to a new image
    #[command(
        after_help = "Examples:\n  posada disk convert appliance.vmdk disk.qcow2\n  posada disk convert disk.qcow2 \
                            small.qcow2 --compress\n  posada disk convert disk.qcow2 disk.raw --format raw"
    )]
    Convert {
        /// The image
        source: PathBuf,
        /// The new file
        destination: PathBuf,
        /// The new format: raw or qcow2
        #[arg(long, value_name = "FORMAT", default_value = "qcow2", value_parser = Format::from_str)]
        format: Format,
        /// The source's format, where it should not be found out from its contents: raw, qcow2, vmdk, vdi or vhd
        #[arg(long, value_name = "FORMAT", value_parser = Format::from_str)]
        from: Option<Format>,
        /// Compress; the new disk can be used as any other
        #[arg(long)]
        compress: bool,
        /// Replace the new file if there is one
        #[arg(long)]
        force: bool,
    },
    /// Checks a qcow2 image, which nobody may be using
    #[command(after_help = CHECK_HELP)]
    Check {
        /// The image
        file: PathBuf,
        /// What to repair: leaks, which is safe, or all that can be
        #[arg(long, value_name = "WHAT")]
        repair: Option<RepairWhat>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum RepairWhat {
    Leaks,
    All,
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const HELP: &str = "give a number with K, M, G or T, such as 20G";
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(HELP.to_owned()),
        };
        let number: u64 = digits.parse().map_err(|_| HELP.to_owned())?;
        let bytes = number.checked_shl(shift).filter(|bytes| bytes >> shift == number);
        bytes.map(Self).ok_or_else(|| "that is larger than any disk".to_owned())
    }
}

pub(crate) fn run(arguments: &Disk) -> Result<u8> {
    match &arguments.action {
        Action::Create { file, size, format, backing, backing_format, cluster } => {
            let image = NewImage {
                format: *format,
                size: size.map(|size| size.0),
                backing: backing.clone().map(|path| Backing { path, format: *backing_format }),
                cluster_size: u32::try_from(cluster.0).unwrap_or(u32::MAX),
            };
            let size = create(file, &image)?;
            eprintln!("{}: a disk of {}, {format}", file.display(), BinaryBytes(size));
            Ok(status::DONE)
        }
        Action::Info { file, format, json } => {
            let info = info(file, *format)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&info)?);
            } else {
                describe(&info);
            }
            Ok(status::DONE)
        }
        Action::Convert { source, destination, format, from, compress, force } => {
            let how = Convert { from: *from, to: *format, compress: *compress, replace: *force };
            convert_with_bar(source, destination, &how)?;
            Ok(status::DONE)
        }
        Action::Check { file, repair } => check_image(file, *repair),
    }
}

fn convert_with_bar(source: &Path, destination: &Path, how: &Convert) -> Result<()> {
    let mut bars = Bars::default();
    let mut before = None;
    convert(source, destination, how, &mut |done, total| {
        if before.is_none() {
            bars.stage("converting", Some(total));
        }
        bars.advance(done - before.unwrap_or(0));
        before = Some(done);
    })?;
    bars.done();
    Ok(())
}

fn describe(info: &Info) {
    println!("file:       {}", info.path.display());
    println!("format:     {}", info.format);
    println!("disk:       {} ({} bytes)", BinaryBytes(info.virtual_size), info.virtual_size);
    println!(
        "length:     {}, of which {} on the host's disk",
        BinaryBytes(info.file_size),
        BinaryBytes(info.allocated)
    );
    if let Some(qcow2) = &info.qcow2 {
        let (version, cluster) = (qcow2.version, BinaryBytes(qcow2.cluster_size));
        println!("qcow2:      version {version}, clusters of {cluster}, compression {}", qcow2.compression);
        if qcow2.dirty {
            println!("state:      its last writer has not finished; opening it for writing repairs it");
        }
        if qcow2.corrupt {
            println!("state:      marked as damaged");
        }
    }
    if let Some(backing) = &info.backing {
        let format = backing.format.as_deref().unwrap_or("format not recorded");
        println!("backing:    {} ({format})", backing.name.display());
    }
    for snapshot in info.qcow2.iter().flat_map(|qcow2| &qcow2.snapshots) {
        println!("snapshot:   {} {}", snapshot.id, snapshot.name);
    }
    for warning in &info.warnings {
        println!("warning:    {warning}");
    }
}

fn check_image(file: &Path, repair: Option<RepairWhat>) -> Result<u8> {
    let repair = match repair {
        None => Repair::Nothing,
        Some(RepairWhat::Leaks) => Repair::Leaks,
        Some(RepairWhat::All) => Repair::All,
    };
    let report = check(file, repair)?;
    for finding in &report.findings {
        println!("{finding}");
    }
    let (leaks, damage) = (report.leaks, report.damage);
    if leaks == 0 && damage == 0 {
        println!("{}: in order", file.display());
        return Ok(status::DONE);
    }
    let what = match (damage, leaks) {
        (0, leaks) => format!("{leaks} clusters are counted as used and belong to nothing"),
        (damage, 0) => format!("{damage} things are wrong"),
        (damage, leaks) => format!("{damage} things are wrong, and {leaks} clusters belong to nothing"),
    };
    let state = match (report.repaired, damage, repair) {
        (true, ..) => "; repaired",
        (false, 0, _) => "; `--repair leaks` gives them back",
        (false, _, Repair::Leaks) => {
            "; nothing was repaired, for what looks lost may be what the damage hides"
        }
        (false, ..) => "",
    };
    println!("{}: {what}{state}", file.display());
    Ok(match (report.repaired, damage) {
        (true, _) => status::DONE,
        (false, 0) => LEAKS,
        (false, _) => DAMAGED,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_sizes_have_a_letter() {
        for (text, bytes) in [("20G", 20 << 30), ("512b", 512), ("64KiB", 65536), ("2t", 2 << 40), ("0M", 0)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "20", "G", "-1G", "1.5G", "1X", "99999999999T", "18446744073709551616B"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
