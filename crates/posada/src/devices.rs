//! What is plugged into the machine: from the command line's words to devices.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use posada_manage::Entry;
use posada_network::limit::{BadRate, Rates};
use posada_network::link::{self, Capacity, Link};
use posada_network::nat::{self, Nat};
use posada_network::switch::{self, Switch};
use posada_network::tap::Tap;
use posada_pc::PcBuilder;
use posada_peripherals::ahci::Drive;
use posada_storage::{Disk, Format};
use posada_virtio::entropy::Entropy;
use posada_virtio::share::Share;
use posada_virtio::vsock::Vsock;

use crate::arguments::Run;

/// The context ID of the guest, the first that is nobody else's; to the host it is not visible.
const GUEST_CONTEXT: u32 = 3;

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DiskBus {
    /// A virtio device of its own.
    #[default]
    Virtio,
    /// A port of the SATA controller.
    Ahci,
}

/// `FILE[,ro][,snapshot][,bus=BUS][,format=FORMAT]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    pub path: PathBuf,
    pub read_only: bool,
    pub snapshot: bool,
    pub bus: DiskBus,
    pub format: Option<Format>,
}

/// Parts a value at its commas; a comma that is doubled belongs to the word.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(letter);
        }
    }
    words
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = words(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty()).ok_or("name a file, such as disk.img")?;
        let mut spec = Self { path: path.into(), ..Self::default() };
        for word in words {
            match &*word {
                "ro" => spec.read_only = true,
                "snapshot" => spec.snapshot = true,
                "bus=virtio" => spec.bus = DiskBus::Virtio,
                "bus=ahci" => spec.bus = DiskBus::Ahci,
                _ if let Some(name) = word.strip_prefix("format=") => spec.format = Some(name.parse()?),
                _ => {
                    return Err(format!(
                        "{word:?} is none of ro, snapshot, bus=virtio, bus=ahci, format=FORMAT; a comma in a name is doubled"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

/// What the guest's network card is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NetModel {
    /// A virtio device.
    #[default]
    Virtio,
    /// An Intel 82540EM.
    E1000,
}

/// `user`, `none`, `switch:NAME` or `tap:NAME`, and `,model=MODEL`, `,mac=ADDRESS`, `,up=RATE` and `,down=RATE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetSpec {
    pub kind: NetKind,
    pub model: NetModel,
    pub address: Option<[u8; 6]>,
    pub rates: Rates,
}

/// What the guest's network card is joined to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetKind {
    /// There is no card.
    None,
    /// User-mode NAT.
    User,
    /// The other guests on the switch of this name.
    Switch(switch::Name),
    /// A tap interface of the host.
    Tap(String),
}

impl FromStr for NetSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = words(text).into_iter();
        let kind = match words.next().as_deref() {
            Some("user") => NetKind::User,
            Some("none") => NetKind::None,
            Some(word) if let Some(name) = word.strip_prefix("switch:") => {
                NetKind::Switch(name.parse().map_err(|error: switch::Error| error.to_string())?)
            }
            Some(word) if let Some(name) = word.strip_prefix("tap:") => NetKind::Tap(name.to_owned()),
            _ => return Err("the networks are user, none, switch:NAME and tap:NAME".to_owned()),
        };
        let mut spec = Self { kind, model: NetModel::default(), address: None, rates: Rates::default() };
        for word in words {
            match &*word {
                "model=virtio" => spec.model = NetModel::Virtio,
                "model=e1000" => spec.model = NetModel::E1000,
                _ if let Some(address) = word.strip_prefix("mac=") => {
                    spec.address = Some(ethernet_address(address)?);
                }
                _ if let Some(rate) = word.strip_prefix("up=") => {
                    spec.rates.from_guest = rate.parse().map_err(|error: BadRate| error.to_string())?;
                }
                _ if let Some(rate) = word.strip_prefix("down=") => {
                    spec.rates.to_guest = rate.parse().map_err(|error: BadRate| error.to_string())?;
                }
                _ => {
                    return Err(format!(
                        "{word:?} is none of model=virtio, model=e1000, mac=ADDRESS, up=RATE, down=RATE"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

/// An Ethernet address of one card, such as 52:54:00:12:34:56.
fn ethernet_address(text: &str) -> Result<[u8; 6], String> {
    let bad = || format!("{text:?} is no address of a card, such as 52:54:00:12:34:56");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| if byte.len() == 2 { u8::from_str_radix(byte, 16).ok() } else { None })
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    // Bit 0 of the first byte makes it a group's.
    bytes.try_into().ok().filter(|address: &[u8; 6]| address[0] & 1 == 0).ok_or_else(bad)
}

/// An address that no other card is likely to have: locally administered, as KVM's users know it, and random.
fn random_address() -> Result<[u8; 6]> {
    let mut address = [0x52, 0x54, 0, 0, 0, 0];
    getrandom::fill(&mut address[3..]).context("making up an Ethernet address")?;
    Ok(address)
}

/// `FOLDER:TAG[,ro]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShareSpec {
    pub path: PathBuf,
    pub tag: String,
    pub read_only: bool,
}

impl FromStr for ShareSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = words(text).into_iter();
        let place = words.next().unwrap_or_default();
        let (path, tag) = place
            .rsplit_once(':')
            .filter(|(path, tag)| !path.is_empty() && !tag.is_empty())
            .ok_or("name a folder and a tag, such as /home/me/project:project")?;
        let mut spec = Self { path: path.into(), tag: tag.into(), read_only: false };
        for word in words {
            match &*word {
                "ro" => spec.read_only = true,
                _ => return Err(format!("{word:?} is not ro; a comma in a name is doubled")),
            }
        }
        Ok(spec)
    }
}

/// What runs beside the machine for its devices, and ends when this is dropped.
#[derive(Default)]
pub(crate) struct Beside {
    others: Vec<Box<dyn Send>>,
    disks: Vec<Arc<dyn Disk>>,
}

impl Beside {
    /// Keeps a disk until the end, to [close](Self::close_disks) it.
    pub(crate) fn keep(&mut self, disk: &Arc<dyn Disk>) {
        self.disks.push(Arc::clone(disk));
    }

    /// Brings what the guest has written and not flushed to the files. Says what went wrong, and whether nothing did.
    pub(crate) fn close_disks(&self) -> bool {
        let close = |disk: &Arc<dyn Disk>| {
            posada_storage::close(&**disk)
                .inspect_err(|error| eprintln!("posada: what the guest wrote last may be lost: {error}"))
                .is_ok()
        };
        // All of them, whatever happens to one.
        self.disks.iter().filter(|disk| !close(disk)).count() == 0
    }
}

/// The card's end of the network that is asked for, and what runs at the other.
fn network(arguments: &Run) -> Result<Option<(Link, Box<dyn Send>)>> {
    let spec = &arguments.net;
    if spec.kind != NetKind::User && !arguments.publish.is_empty() {
        bail!("--publish is for --net user: other networks reach the guest by its own address");
    }
    if spec.kind == NetKind::None {
        return Ok(None);
    }
    let (card, end) = link::pair(Capacity::default()).context("making a network link")?;
    let network: Box<dyn Send> = match &spec.kind {
        NetKind::None | NetKind::User => {
            let config = nat::Config {
                publish: arguments.publish.clone(),
                rates: spec.rates,
                ..nat::Config::default()
            };
            Box::new(Nat::start(config, end)?)
        }
        NetKind::Switch(name) => Box::new(Switch::join(name, spec.rates, end)?),
        NetKind::Tap(name) => Box::new(Tap::start(name, spec.rates, end)?),
    };
    Ok(Some((card, network)))
}

/// A file that goes when the machine has ended.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The device may have been faster.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where the way to the guest's sockets is: where the user wants it, or in the folder of a guest with a name.
pub(crate) fn vsock_path(arguments: &Run, entry: Option<&Entry>) -> Result<Option<PathBuf>> {
    match &arguments.vsock {
        Some(path) => {
            let absolute = std::path::absolute(path);
            absolute.map(Some).with_context(|| format!("finding the folder of {}", path.display()))
        }
        None => Ok(entry.map(Entry::vsock)),
    }
}

/// Refuses what [`plug`] would plug in, for an engine that cannot repeat what devices write to memory by themselves;
/// `has_system`: the guest's own disk is there.
pub(crate) fn refuse(arguments: &Run, has_system: bool) -> Result<()> {
    let others = arguments.disk.len() + arguments.cdrom.len() + arguments.share.len();
    if has_system || others > 0 || arguments.vsock.is_some() || arguments.balloon.0 > 0 {
        bail!(
            "the engine \"lockstep\" cannot repeat what devices write to memory by themselves: run without disks, discs, \
             shared folders, sockets and balloon, or with the engine \"translate\""
        );
    }
    Ok(())
}

/// Plugs in what the command line asks for, and what others need who reach the guest by its name.
pub(crate) fn plug(
    mut builder: PcBuilder,
    arguments: &Run,
    entry: Option<&Entry>,
    beside: &mut Beside,
) -> Result<PcBuilder> {
    for (index, spec) in arguments.disk.iter().enumerate() {
        let options = posada_storage::Options {
            format: spec.format,
            read_only: spec.read_only,
            snapshot: spec.snapshot,
        };
        let disk = posada_storage::open(&spec.path, &options)
            .with_context(|| format!("opening the disk {}", spec.path.display()))?;
        if disk.size() == 0 {
            bail!(
                "the disk {} is empty: `truncate --size 20G` gives a raw one a size, `posada disk create` makes others",
                spec.path.display()
            );
        }
        beside.keep(&disk);
        let serial = format!("posada-{index}");
        builder = match spec.bus {
            DiskBus::Virtio => builder.disk(disk, serial),
            DiskBus::Ahci => builder.drive(Drive::Disk { disk, serial }),
        };
    }
    for (index, path) in arguments.cdrom.iter().enumerate() {
        let options = posada_storage::Options {
            format: Some(Format::Raw),
            read_only: true,
            ..posada_storage::Options::default()
        };
        let disc = posada_storage::open(path, &options)
            .with_context(|| format!("opening the disc {}", path.display()))?;
        if disc.size() == 0 {
            bail!("the disc {} is empty: there is nothing to put into the drive", path.display());
        }
        builder = builder.drive(Drive::CdRom { disc, serial: format!("posada-cd{index}") });
    }
    if let Some((card, network)) = network(arguments)? {
        let address = arguments.net.address.map_or_else(random_address, Ok)?;
        builder = match arguments.net.model {
            NetModel::Virtio => builder.network(card, address),
            NetModel::E1000 => builder.e1000(card, address),
        };
        beside.others.push(network);
    }
    builder = builder.device(Entropy).balloon(arguments.balloon.0);
    for spec in &arguments.share {
        let share = Share::new(&spec.path, &*spec.tag, spec.read_only)
            .with_context(|| format!("sharing the folder {}", spec.path.display()))?;
        builder = builder.device(share);
    }
    if let Some(path) = vsock_path(arguments, entry)? {
        let make = || {
            let (folder, name) =
                (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            let (short, kept) = posada_manage::short_path(folder, Path::new(name))?;
            Ok::<_, std::io::Error>((Vsock::new(GUEST_CONTEXT, short)?, kept))
        };
        let (vsock, kept) = make()
            .with_context(|| format!("making the socket {} (does another guest use it?)", path.display()))?;
        builder = builder.device(vsock);
        beside.others.push(Box::new((Removed(path), kept)));
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_names_and_words_after_commas() {
        let plain = DiskSpec { path: "a.img".into(), ..DiskSpec::default() };
        assert_eq!("a.img".parse(), Ok(plain.clone()));
        assert_eq!("a.img,ro".parse(), Ok(DiskSpec { read_only: true, ..plain.clone() }));
        assert_eq!("a,,b,ro".parse(), Ok(DiskSpec { path: "a,b".into(), read_only: true, ..plain }));
        let all = DiskSpec {
            snapshot: true,
            format: Some(Format::Qcow2),
            ..DiskSpec { path: "a".into(), ..DiskSpec::default() }
        };
        assert_eq!("a,snapshot,format=qcow2".parse(), Ok(all));
        let sata = DiskSpec { bus: DiskBus::Ahci, ..DiskSpec { path: "a".into(), ..DiskSpec::default() } };
        assert_eq!("a,bus=ahci".parse(), Ok(sata));
        let address = Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let rates = Rates::default();
        let net = NetSpec { kind: NetKind::User, model: NetModel::Virtio, address, rates };
        assert_eq!("user,mac=52:54:00:12:34:56".parse(), Ok(net.clone()));
        let intel = NetSpec { model: NetModel::E1000, ..net };
        assert_eq!("user,model=e1000,mac=52:54:00:12:34:56".parse(), Ok(intel));
        let slow = "user,up=1mbit,down=5kpps".parse::<NetSpec>().unwrap().rates;
        assert_eq!((slow.from_guest.bits, slow.to_guest.packets), (Some(1_000_000), Some(5000)));
        for text in [
            "",
            "tap",
            "user,",
            "user,mac=52:54:00:12:34",
            "user,mac=53:54:00:12:34:56",
            "user,mac=x",
            "user,up=fast",
        ] {
            assert!(text.parse::<NetSpec>().is_err(), "{text}");
        }
        let share = ShareSpec { path: "/a:b".into(), tag: "t".into(), read_only: true };
        assert_eq!("/a:b:t,ro".parse(), Ok(share));
        for text in ["", "/a", ":t", "/a:", "/a:t,rw"] {
            assert!(text.parse::<ShareSpec>().is_err(), "{text}");
        }
        for text in ["", ",ro", "a.img,", "a.img,rw"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }
}
