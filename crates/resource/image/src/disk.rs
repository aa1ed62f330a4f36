//! The images `debian:SUITE`: a Debian system with systemd, on a disk.
//!
//! The disk is made by a guest, so that nobody needs to be root on the host, nor to mount anything there:
//!
//! 1. The host's apt, with state of our own and the host's sources of this suite alone, chooses the packages for a
//!    system that has none yet, and fetches them ([`crate::apt`], [`crate::suites`]).
//! 2. The kernel package gives the kernel and, with busybox, an initramfs that has the drivers for disks; both become
//!    part of the image.
//! 3. A guest boots that with an empty disk, the packages and `build.sh`, which makes a file system, unpacks and
//!    configures the packages as debootstrap(8) does, and powers off. What it reports is followed ([`report`]).
//! 4. Only if it reports that everything worked does the disk become part of the image.
//!
//! The disk is one ext4 file system without a partition table: the machine starts the kernel by itself, so there is no
//! boot loader to make room for, and a disk that has grown needs `resize2fs` alone.

pub(crate) mod files;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use posada_storage::{Format, NewImage};

use crate::apt::{Apt, Download};
use crate::cache::{Made, Package, Staging, packages_digest, sha256};
use crate::deb;
use crate::debian::{BUSYBOX, Contents, kernel_packages};
use crate::error::{Error, Result};
use crate::machine::{Machine, Task};
use crate::progress::Progress;
use crate::recipe::{DISK, INITRD, KERNEL, Recipe};
use crate::suites::{self, Source};

use files::Build;
use report::{Lines, Report, Tail, Verdict};

/// What the disk holds, in bytes; the image file grows as it is used.
const DISK_SIZE: u64 = 16 << 30;

/// The memory of the guest that builds: the packages lie in it, and dpkg works in it.
const MEMORY: u64 = 1 << 30;

/// What is unpacked before dpkg can run in the guest: packages that every system has and others may use without saying
/// so, and what they need.
const FIRST: [&str; 2] = ["?essential", "usr-is-merged"];

/// What the disk has: what debootstrap(8) installs, the chooser of desktops aside.
const STANDARD: [&str; 2] = ["?priority(required)", "?and(?priority(important),?not(?name(^tasksel)))"];

/// What the small variant has.
const SLIM: [&str; 7] = ["?priority(required)", "apt", "iproute2", "ifupdown", "kmod", "procps", "udev"];

/// What both have beside it: systemd as the first process, logins and services as users expect them, a guest's name as
/// one that can be looked up, certificates, the keys of Debian's mirrors; and what the build itself uses.
#[rustfmt::skip]
const ALWAYS: [&str; 8] = [
    "usr-is-merged", "systemd-sysv", "dbus", "libpam-systemd", "libnss-myhostname", "ca-certificates",
    "debian-archive-keyring", "e2fsprogs",
];

/// One of these asks for an address on the network.
const DHCP: [&str; 2] = ["isc-dhcp-client", "dhcpcd-base"];

/// Programs of the guest that builds, and files that they need.
const TOOLS: [&str; 6] =
    ["sbin/mke2fs", "sbin/tune2fs", "sbin/e2fsck", "bin/dpkg-deb", "bin/tar", "etc/mke2fs.conf"];

/// The packages that they come from.
const TOOL_PACKAGES: [&str; 3] = ["e2fsprogs", "dpkg", "tar"];

const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Drivers for whatever a disk may be behind; all others are on the disk.
#[rustfmt::skip]
const MODULES: [&str; 10] = [
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "virtio_rng", "sd_mod", "ahci", "ata_piix", "nvme",
    "ext4",
];

/// What of the host's apt configuration holds in the guest as well.
const SHARED_OPTIONS: [&str; 4] =
    ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];

/// The recipe for one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DebianDisk {
    name: String,
    suite: String,
    is_slim: bool,
}

impl DebianDisk {
    /// The recipe of a name such as `debian:bookworm` or `debian:bookworm-slim`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let suite = name.strip_prefix("debian:")?;
        let (suite, is_slim) = suite.strip_suffix("-slim").map_or((suite, false), |suite| (suite, true));
        suites::is_suite(suite).then(|| Self { name: name.to_owned(), suite: suite.to_owned(), is_slim })
    }
}

impl Recipe for DebianDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn make(
        &self,
        have: &[Package],
        machine: Option<&dyn Machine>,
        staging: &mut Staging,
        progress: &mut dyn Progress,
    ) -> Result<Option<Made>> {
        let machine = machine.ok_or_else(|| Error::NoMachine { name: self.name.clone() })?;
        let state = staging.scratch().join("apt");
        fs::create_dir(&state).map_err(Error::io("create", &state))?;
        let mut apt = Apt::new(&state)?;
        apt.update(progress)?;
        let (targets, said) = apt.index_targets()?;
        let sources = suites::choose(&self.suite, &targets, &said)?;
        apt.restrict(&suites::source_list(&sources, str::to_owned))?;
        progress.stage("Choosing packages", None);
        let set = self.choose(&apt)?;
        if is_same(have, &set.all) {
            return Ok(None);
        }
        let folder = staging.scratch().join("packages");
        fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
        let wanted: Vec<String> = set.all.iter().map(|(name, version)| format!("{name}={version}")).collect();
        let downloads = apt.downloads(&wanted)?;
        let what = format!("{} packages of Debian {}", wanted.len(), self.suite);
        apt.download(&what, &wanted, &downloads, &folder, progress)?;

        let files = Files { folder, downloads };
        let release = files.kernel(&set, staging, progress)?;
        let options = apt.configuration(&SHARED_OPTIONS)?;
        let archive = Build {
            first: &files.paths(&set.first)?,
            rest: &files.paths(&set.rest)?,
            tools: &files.tools(&set.tools)?,
            sources: &sources,
            apt: &options,
            lists: &lists(&apt.lists(), &sources)?,
        }
        .archive()?;
        let sizes = set.first.iter().chain(&set.rest).map(|name| Ok((name.clone(), files.find(name)?.size)));
        let sizes = sizes.collect::<Result<BTreeMap<String, u64>>>()?;
        let packages = files.records(&set.all)?;
        // From here on all is in memory; the host's disk has enough to do with the guest's.
        apt.remove();
        files.remove();
        build(&self.name, machine, archive, sizes, staging, progress)?;
        let version = version(&sources, &release, &packages);
        Ok(Some(Made { name: self.name.clone(), version, packages }))
    }
}

/// The packages of a disk.
struct Set {
    /// Those that are unpacked before dpkg runs.
    first: Vec<String>,
    /// All others that are installed.
    rest: Vec<String>,
    /// Those that the building guest's programs come from, with what they need.
    tools: Vec<String>,
    /// Those of the kernel.
    kernel: Vec<String>,
    /// All, with their versions, and busybox for the initramfs, which is not installed.
    all: Vec<(String, String)>,
}

impl DebianDisk {
    fn choose(&self, apt: &Apt) -> Result<Set> {
        let names =
            |solution: Vec<(String, String)>| solution.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let kernel = kernel_packages(apt)?;
        let first = names(apt.solve(&FIRST)?);
        let tools = names(apt.solve(&TOOL_PACKAGES)?);
        let mut wanted: Vec<&str> = if self.is_slim { SLIM.to_vec() } else { STANDARD.to_vec() };
        wanted.extend(ALWAYS);
        wanted.extend(kernel.iter().map(|(name, _)| name.as_str()).filter(|name| *name != BUSYBOX));
        wanted.extend(DHCP.into_iter().find(|name| apt.record(name).is_ok()));
        let mut all = apt.solve(&wanted)?;
        let rest = all.iter().map(|(name, _)| name.clone()).filter(|name| !first.contains(name)).collect();
        all.extend(kernel.iter().filter(|(name, _)| name == BUSYBOX).cloned());
        let kernel = names(kernel);
        Ok(Set { first, rest, tools, kernel, all })
    }
}

/// The image's version: that of the release, `12.15`, or of the kernel where a release has none yet; and a digest of
/// its packages, for there are many images of a release.
fn version(sources: &[Source], kernel: &str, packages: &[Package]) -> String {
    let release = sources.iter().find_map(|source| source.version.as_deref()).unwrap_or(kernel);
    format!("{release}-{}", &packages_digest(packages)[..7])
}

fn is_same(have: &[Package], wanted: &[(String, String)]) -> bool {
    let same = |(have, (name, version)): (&Package, &(String, String))| {
        have.name == *name && have.version == *version
    };
    have.len() == wanted.len() && have.iter().zip(wanted).all(same)
}

/// The fetched package files.
struct Files {
    folder: PathBuf,
    downloads: Vec<Download>,
}

impl Files {
    fn find(&self, package: &str) -> Result<&Download> {
        let prefix = format!("{package}_");
        let found = self.downloads.iter().find(|download| download.file.starts_with(&prefix));
        found.ok_or_else(|| Error::NoPackage { package: package.to_owned(), said: String::new() })
    }

    fn path(&self, package: &str) -> Result<PathBuf> {
        Ok(self.folder.join(&self.find(package)?.file))
    }

    fn paths(&self, packages: &[String]) -> Result<Vec<PathBuf>> {
        packages.iter().map(|package| self.path(package)).collect()
    }

    fn records(&self, packages: &[(String, String)]) -> Result<Vec<Package>> {
        let record = |(name, version): &(String, String)| {
            let path = self.path(name)?;
            let sha256 = sha256(&path).map_err(Error::io("read", &path))?;
            Ok(Package { name: name.clone(), version: version.clone(), sha256 })
        };
        packages.iter().map(record).collect()
    }

    /// Writes the image's kernel and initramfs, and returns the kernel's release.
    fn kernel(&self, set: &Set, staging: &mut Staging, progress: &mut dyn Progress) -> Result<String> {
        progress.stage("Unpacking the kernel", None);
        let mut contents = Contents::default();
        for package in &set.kernel {
            contents.add(&self.path(package)?)?;
        }
        contents.write(staging, &self.folder, &MODULES)
    }

    /// The programs of the building guest, with their loader and libraries, by file name.
    fn tools(&self, packages: &[String]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut tools: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        // Links among libraries: the name that programs ask for, and the file.
        let mut links = Vec::new();
        for package in packages {
            deb::visit(&self.path(package)?, |entry| {
                let name = entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let is_library = entry.path.parent() == Some(Path::new(LIBRARIES)) && name.contains(".so");
                if let Some(target) = entry.link.filter(|_| is_library) {
                    links.push((name, target.file_name().unwrap_or_default().to_string_lossy().into_owned()));
                } else if entry.is_file
                    && (is_library || TOOLS.iter().any(|tool| entry.path == Path::new(tool)))
                {
                    tools.insert(name, entry.read()?);
                }
                Ok(())
            })?;
        }
        for (name, target) in links {
            if let Some(contents) = tools.get(&target).cloned() {
                tools.entry(name).or_insert(contents);
            }
        }
        let names = TOOLS.iter().map(|tool| tool.rsplit('/').next().unwrap_or(tool)).chain([LOADER]);
        for name in names {
            if !tools.contains_key(name) {
                let problem = format!("together they have no {name}");
                return Err(Error::Package { path: self.folder.clone(), problem });
            }
        }
        if let Some(loader) = tools.remove(LOADER) {
            tools.insert("ld.so".to_owned(), loader);
        }
        Ok(tools.into_iter().collect())
    }

    fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, path = %self.folder.display(), "cannot remove the packages");
        }
    }
}

/// The package lists of these sources.
fn lists(folder: &Path, sources: &[Source]) -> Result<Vec<PathBuf>> {
    let mut lists = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && sources.iter().any(|s| !s.lists.is_empty() && name.starts_with(&s.lists))
        {
            lists.push(entry.path());
        }
    }
    lists.sort();
    Ok(lists)
}

/// Runs the guest that builds, and takes its disk into the image.
fn build(
    name: &str,
    machine: &dyn Machine,
    archive: Vec<u8>,
    sizes: BTreeMap<String, u64>,
    staging: &mut Staging,
    progress: &mut dyn Progress,
) -> Result<()> {
    progress.stage("Starting a machine", None);
    let disk = staging.scratch().join(DISK);
    posada_storage::create(&disk, &NewImage::new(Format::Qcow2, DISK_SIZE)).map_err(|error| Error::Disk {
        doing: "create",
        path: disk.clone(),
        problem: error.to_string(),
    })?;
    let kernel = staging.path(KERNEL);
    let base = staging.path(INITRD);
    let mut initrd = fs::read(&base).map_err(Error::io("read", &base))?;
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend_from_slice(&archive);
    drop(archive);

    let tail = Tail::default();
    let (sender, lines) = mpsc::sync_channel(64);
    let mut report = Report::new(sizes);
    let ended = thread::scope(|scope| {
        let (kernel, disk, console) = (&kernel, &disk, tail.clone());
        let guest = scope.spawn(move || {
            let append = "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests";
            let task = Task { kernel, initrd, append, memory: MEMORY, disk };
            machine.run(task, Box::new(console), Box::new(Lines::new(sender)))
        });
        for line in lines {
            report.line(&line, progress);
        }
        guest.join()
    });
    let failed = |problem: String| Error::Build { name: name.to_owned(), problem, said: tail.lines() };
    match (report.verdict(), ended) {
        (Verdict::Failed(problem), _) => Err(failed(problem)),
        (_, Ok(Err(error))) => Err(failed(error.to_string())),
        (_, Err(_)) => Err(failed("the machine that builds it panicked".to_owned())),
        (Verdict::Open, Ok(Ok(()))) => {
            Err(failed("its guest ended without a word on its success".to_owned()))
        }
        (Verdict::Done, Ok(Ok(()))) => {
            progress.stage("Keeping the image", None);
            staging.adopt(DISK, &disk)
        }
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
