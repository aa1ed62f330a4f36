//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use posada_network::nat::Publish;
use posada_pc::Engine;

use crate::devices::{DiskSpec, NetSpec, ShareSpec};
use crate::{disk, status, trace};

/// Hosts any guest, with or without hardware virtualization.
#[derive(Parser)]
#[command(name = "posada", version, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Runs a guest
    #[command(after_help = format!("{EXAMPLES}\n\n{}", status::TABLE))]
    Run(Box<Run>),
    /// Lists guests that run under a name
    #[command(after_help = "Examples:\n  posada ps\n  posada ps --all --json")]
    Ps(Ps),
    /// Runs a command in a guest that runs: its output and its exit status are ours
    #[command(
        after_help = "Examples:\n  posada exec web -- systemctl status\n  tar c . | posada exec web -- tar x -C /srv"
    )]
    Exec(Exec),
    /// Joins a guest's console; Ctrl-A d leaves it again
    #[command(after_help = "Example:\n  posada console web")]
    Console(OfOne),
    /// Shows what a guest has said on its console, or a detached command has written
    #[command(after_help = "Examples:\n  posada logs web\n  posada logs --follow web")]
    Logs(Logs),
    /// Asks guests to end, and ends those that do not
    #[command(after_help = "Example:\n  posada stop --timeout 60 web")]
    Stop(Stop),
    /// Ends guests at once
    #[command(after_help = "Example:\n  posada kill web")]
    Kill(OfSome),
    /// Has guests stand still, and their clocks and devices with them
    #[command(after_help = "Example:\n  posada pause web")]
    Pause(OfSome),
    /// Lets guests go on that stand still
    #[command(after_help = "Example:\n  posada resume web")]
    Resume(OfSome),
    /// Shows what a guest has used, and what its engine has done
    #[command(after_help = "Example:\n  posada stats web")]
    Stats(Stats),
    /// Asks a guest to do without a part of its memory, which the host gets back until it is asked for less
    #[command(
        after_help = "The guest complies if and when it can: posada stats tells how far it has.\n\nExamples:\n  posada balloon web 256M\n  posada balloon web 0"
    )]
    Balloon(Balloon),
    /// Prints all that is known of a guest, as JSON
    #[command(after_help = "Example:\n  posada inspect web")]
    Inspect(OfOne),
    /// Removes guests, with their disks and logs
    #[command(after_help = "Example:\n  posada rm web")]
    Rm(Rm),
    /// Lists and removes images that were fetched
    Image(Image),
    /// Makes, describes, converts and checks disk images
    Disk(disk::Disk),
}

const EXAMPLES: &str = "\
Examples:
  posada run debian                        a shell in a virtual machine with Debian's own kernel
  posada run debian -- uname -r            one command; its output and its exit status are ours
  posada run debian:bookworm               a whole Debian with systemd, on a disk; changes are thrown away
  posada run --name web debian:bookworm    ... which are kept, for the next run with this name
  posada run -d --name web debian          ... in the background: see posada ps, console, exec, stop
  posada run --config web.toml             flags from a file, such as: publish = ['8080:80']
  posada run --kernel vmlinuz --initrd initrd.gz --append console=ttyS0 --memory 1G

Keys, where standard input is a terminal: Ctrl-A x ends the guest, Ctrl-A h lists the others.";

/// What to run, and on what machine.
#[derive(Args)]
pub(crate) struct Run {
    /// An image by name, made when it is first used: debian (a kernel and a shell in memory), or debian:SUITE (a whole
    /// system on a disk), such as debian:bookworm
    #[arg(value_name = "IMAGE", required_unless_present_any = ["kernel", "config"], conflicts_with = "kernel")]
    pub image: Option<String>,

    /// A kernel file: bzImage, ELF with a PVH note, or multiboot
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// An initial RAM disk for the kernel; several are joined
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Vec<PathBuf>,

    /// Words for the kernel's command line, after those of the image
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// What the guest is called, here and by other commands; the disk of an image that has one is kept under this name,
    /// for the next run with it
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Leave the guest running in the background, and print its name
    #[arg(long, short)]
    pub detach: bool,

    /// A TOML file with more flags: `memory = "1G"`, `no-reboot = true`, `disk = ["a.qcow2", "b.img,ro"]`, `image =
    /// "debian"`, `command = ["uname", "-r"]`; those given here count instead. Paths in it are relative to its folder
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// This process is the supervisor of a detached guest of this name, whose starter waits on standard output
    #[arg(long, value_name = "NAME", hide = true, requires = "detach")]
    pub supervisor: Option<String>,

    /// Guest memory: a number with K, M, G or T; without a letter, MiB [default: 512M, for debian:SUITE 1G]
    #[arg(long, short, value_name = "SIZE")]
    pub memory: Option<Memory>,

    /// Memory that the guest is asked to do without from the start, as posada balloon asks later: a number with K, M or G;
    /// without a letter, MiB
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub balloon: Memory,

    /// How many processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,

    /// Processor model: x86-64-v1 or x86-64-v2; with the engine "translate" also x86-64-v3 or host
    #[arg(long, value_name = "MODEL", default_value = "x86-64-v2")]
    pub cpu: String,

    /// Who carries out the guest's instructions: translate (on the host's processor, rewritten), interpret (one
    /// by one), or lockstep (both, compared after each block; slow, and without disks and network)
    #[arg(long, value_name = "ENGINE", default_value_t, value_parser = Engine::from_str)]
    pub engine: Engine,

    /// Translated code that each processor keeps, 2M to 1G: a number with K, M or G; without a letter, MiB
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub code_cache: Memory,
    /// A disk: an image file, and after commas ro (read-only), snapshot (changes are thrown away), bus=ahci (a
    /// SATA disk, for guests without virtio), format=FORMAT (raw, qcow2, ...); may be given several times
    #[arg(long, value_name = "FILE[,...]", value_parser = DiskSpec::from_str)]
    pub disk: Vec<DiskSpec>,

    /// A disc in a SATA CD-ROM drive: an ISO 9660 image or any other file of blocks of 2048 bytes; may be given
    /// several times
    #[arg(long, value_name = "FILE")]
    pub cdrom: Vec<PathBuf>,

    /// The network: user (by way of this process, without privileges), switch:NAME (other guests that name it),
    /// tap:NAME (an interface of the host) or none; after commas model=e1000 (an Intel card, for guests
    /// without virtio), mac=ADDRESS, and what the guest may send and receive a second: up=RATE, down=RATE, such as
    /// 100mbit, 5000pps or 1gbit:20kpps
    #[arg(long, value_name = "NETWORK[,...]", default_value = "user", value_parser = NetSpec::from_str)]
    pub net: NetSpec,

    /// A port of the host that leads to one of the guest, such as 8080:80, 127.0.0.1:5353:53/udp or `[::1]:8080:80`; after
    /// /tcp6 or /udp6, to the guest's IPv6 address; may be given several times
    #[arg(long, value_name = "[ADDRESS:]PORT:PORT[/udp|/tcp6|/udp6]", value_parser = Publish::from_str)]
    pub publish: Vec<Publish>,

    /// A folder of the host for the guest, read-only with ",ro"; may be given several times. In the guest: mount -t
    /// virtiofs TAG /mnt
    #[arg(long, value_name = "FOLDER:TAG[,ro]", value_parser = ShareSpec::from_str)]
    pub share: Vec<ShareSpec>,

    /// Sockets between guest and host: a program of the host connects to the Unix socket PATH and writes "CONNECT port";
    /// one of the guest connects to port P of context 2 and reaches the Unix socket PATH_P
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<PathBuf>,

    /// End the run when the guest resets the machine
    #[arg(long)]
    pub no_reboot: bool,

    /// Reset the machine on a triple fault, as a PC does, instead of ending the run
    #[arg(long)]
    pub reset_on_triple_fault: bool,

    /// A write of V to I/O port 0xf4 ends the run with exit status (V << 1) | 1
    #[arg(long)]
    pub debug_exit: bool,

    /// Show what the guest does, on standard error: cpu, io, irq
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub trace: Vec<trace::Topic>,

    /// Say at the end what the engine did, and where its time went; Ctrl-A t says it while the guest runs
    #[arg(long)]
    pub stats: bool,

    /// Show the guest's console while a command runs, on standard error
    #[arg(long, short, requires = "command")]
    pub verbose: bool,

    /// A command to run in the guest instead of a shell
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "kernel")]
    pub command: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct Ps {
    /// Those that have ended or have not run yet, too
    #[arg(long, short)]
    pub all: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub(crate) struct Exec {
    /// Which guest
    pub name: String,
    /// How long to wait, in seconds, for a guest that is still starting
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct OfOne {
    /// Which guest
    pub name: String,
}

#[derive(Args)]
pub(crate) struct OfSome {
    /// Which guests
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Logs {
    /// Which guest
    pub name: String,
    /// Go on as the guest does
    #[arg(long, short)]
    pub follow: bool,
}

#[derive(Args)]
pub(crate) struct Stop {
    /// Which guests
    #[arg(required = true)]
    pub names: Vec<String>,
    /// How long a guest may take, in seconds
    #[arg(long, short, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
}

#[derive(Args)]
pub(crate) struct Stats {
    /// Which guest
    pub name: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub(crate) struct Balloon {
    /// Which guest
    pub name: String,
    /// How much: a number with K, M or G; without a letter, MiB. 0 gives all back
    pub size: Memory,
}

#[derive(Args)]
pub(crate) struct Rm {
    /// Which guests
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Even those that run, which are ended first
    #[arg(long, short)]
    pub force: bool,
}

#[derive(Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub action: ImageAction,
}

#[derive(Subcommand)]
pub(crate) enum ImageAction {
    /// Lists the images that were fetched
    #[command(after_help = "Example:\n  posada image ls")]
    Ls,
    /// Removes images, by name, version or folder
    #[command(after_help = "Examples:\n  posada image rm debian\n  posada image rm --all")]
    Rm {
        /// Which
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Even those that named guests stand on, who lose all that they have not changed
        #[arg(long)]
        force: bool,
    },
    /// Fetches the newest version of an image
    #[command(after_help = "Example:\n  posada image update debian")]
    Update {
        /// Which
        name: String,
    },
}

/// A size of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory(pub u64);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift =
            match text[digits.len()..].to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
                "K" => 10,
                "" | "M" => 20,
                "G" => 30,
                "T" => 40,
                _ => return Err("give a number with K, M, G or T, such as 512M".to_owned()),
            };
        let number: u64 =
            digits.parse().map_err(|_| "give a number with K, M, G or T, such as 512M".to_owned())?;
        number
            .checked_shl(shift)
            .filter(|bytes| bytes >> shift == number)
            .map(Self)
            .ok_or_else(|| "that is more memory than any machine has".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_letters_or_are_mebibytes() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("64", 64 << 20),
            ("1G", 1 << 30),
            ("2g", 2 << 30),
            ("128MiB", 128 << 20),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Memory(bytes)), "{text}");
        }
        for text in ["", "M", "-1", "1X", "99999999999999999999", "17179869184G", "1.5G"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_command_needs_an_image() {
        assert!(Arguments::try_parse_from(["posada", "run", "--kernel", "k", "--", "ls"]).is_err());
        assert!(Arguments::try_parse_from(["posada", "run", "debian", "--kernel", "k"]).is_err());
        assert!(Arguments::try_parse_from(["posada", "run"]).is_err());
        assert!(Arguments::try_parse_from(["posada", "run", "debian", "--", "ls", "--all"]).is_ok());
    }
}
