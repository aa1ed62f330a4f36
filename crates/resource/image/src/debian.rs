//! The `debian` image: Debian's cloud kernel as it is, with busybox for a user land.
//!
//! The cloud kernel is the stock one configured for virtual machines. It has the serial port and the initramfs built
//! in and everything else in modules, of which the initramfs gets those that a virtual machine's devices and the file
//! systems on its disks need.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::{Apt, dependencies};
use crate::cache::{Made, Package, Staging, sha256};
use crate::deb;
use crate::error::{Error, Result};
use crate::initramfs::Initramfs;
use crate::machine::Machine;
use crate::modules::{Module, Modules};
use crate::progress::Progress;
use crate::recipe::{INITRD, KERNEL, Recipe};

/// Depends on the newest kernel.
const META: &str = "linux-image-cloud-amd64";
pub(crate) const BUSYBOX: &str = "busybox-static";

/// Names of packages that a kernel may be spread over.
const KERNEL_PARTS: [&str; 3] = ["linux-image-", "linux-modules-", "linux-binary-"];

/// Modules for the guest, by name. Those that a kernel has built in, or does not have, are passed over.
#[rustfmt::skip]
const MODULES: &[&str] = &[
    // Virtio: transports and devices.
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console", "virtio_rng",
    "virtio_balloon", "virtio_input", "virtio_mem", "virtio_pmem", "virtio_gpu", "virtio_crypto", "virtiofs",
    "9pnet_virtio", "9p", "vmw_vsock_virtio_transport", "vsock_loopback", "vsock_diag",
    // Other devices of virtual machines: disks, network cards, the firmware's configuration device, the panic device.
    "ahci", "ata_piix", "ata_generic", "nvme", "sd_mod", "sr_mod", "sg", "e1000", "e1000e", "8139cp", "pcnet32",
    "xhci_pci", "ehci_pci", "uhci_hcd", "usbhid", "usb_storage", "psmouse", "evdev", "bochs", "cirrus", "floppy",
    "qemu_fw_cfg", "pvpanic_pci", "pvpanic_mmio", "i6300esb", "button", "rtc_cmos", "efivarfs",
    // File systems, and what lies between them and a disk.
    "ext4", "xfs", "btrfs", "vfat", "exfat", "ntfs3", "isofs", "udf", "squashfs", "erofs", "overlay", "fuse",
    "autofs4", "binfmt_misc", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8", "loop", "nbd", "zram",
    "dm_mod", "dm_crypt",
    // Network.
    "af_packet", "ipv6", "tun", "tap", "veth", "bridge", "macvlan", "8021q", "dummy", "ip_tables", "iptable_nat",
    "iptable_filter", "ipt_MASQUERADE", "xt_MASQUERADE", "nf_tables", "nft_chain_nat", "nft_masq",
    // Virtual machines in the virtual machine, and looking at it from inside.
    "kvm_amd", "kvm_intel", "msr", "cpuid",
];

/// Modules above this many bytes are compressed; modprobe decompresses them in the guest.
const LARGE_MODULE: usize = 768 << 10;

/// The recipe.
pub(crate) struct Debian;

impl Recipe for Debian {
    fn name(&self) -> &'static str {
        "debian"
    }

    fn make(
        &self,
        have: &[Package],
        _machine: Option<&dyn Machine>,
        staging: &mut Staging,
        progress: &mut dyn Progress,
    ) -> Result<Option<Made>> {
        let state = staging.scratch().join("apt");
        fs::create_dir(&state).map_err(Error::io("create", &state))?;
        make_with(self.name(), Apt::new(&state)?, have, staging, progress)
    }
}

fn make_with(
    name: &str,
    mut apt: Apt,
    have: &[Package],
    staging: &mut Staging,
    progress: &mut dyn Progress,
) -> Result<Option<Made>> {
    apt.update(progress)?;
    let wanted = kernel_packages(&apt)?;
    let is_same = |(have, (name, version)): (&Package, &(String, String))| {
        have.name == *name && have.version == *version
    };
    if have.len() == wanted.len() && have.iter().zip(&wanted).all(is_same) {
        return Ok(None);
    }
    let names: Vec<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    let downloads = apt.downloads(&names)?;
    let folder = staging.scratch().join("packages");
    fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
    apt.download(&names.join(", "), &names, &downloads, &folder, progress)?;
    // The lists take more room than the packages do.
    apt.remove();

    progress.stage("Unpacking", None);
    let mut contents = Contents::default();
    let mut packages = Vec::new();
    for (name, version) in wanted {
        let prefix = format!("{name}_");
        let found = downloads.iter().find(|download| download.file.starts_with(&prefix));
        let path = folder.join(found.map_or(&*name, |download| &download.file));
        contents.add(&path)?;
        let sha256 = sha256(&path).map_err(Error::io("read", &path))?;
        packages.push(Package { name, version, sha256 });
    }
    let version = contents.write(staging, &folder, MODULES)?;
    Ok(Some(Made { name: name.to_owned(), version, packages }))
}

/// The kernel's packages and busybox, with their versions.
pub(crate) fn kernel_packages(apt: &Apt) -> Result<Vec<(String, String)>> {
    let version = |record: &crate::apt::Record| record.get("Version").cloned().unwrap_or_default();
    let mut waiting = vec![META.to_owned()];
    let mut seen: Vec<String> = Vec::new();
    let mut wanted = Vec::new();
    while let Some(name) = waiting.pop() {
        // A kernel is one package, or three; the limit is against lists that make no sense.
        if seen.contains(&name) || seen.len() > 8 {
            continue;
        }
        let record = apt.record(&name)?;
        let depends = dependencies(record.get("Depends").map_or("", String::as_str));
        waiting.extend(depends.into_iter().filter(|name| {
            KERNEL_PARTS.iter().any(|part| name.starts_with(part)) && !name.ends_with("-unsigned")
        }));
        if name != META {
            wanted.push((name.clone(), version(&record)));
        }
        seen.push(name);
    }
    if wanted.is_empty() {
        return Err(Error::NoPackage { package: format!("that {META} depends on"), said: String::new() });
    }
    wanted.push((BUSYBOX.to_owned(), version(&apt.record(BUSYBOX)?)));
    Ok(wanted)
}

/// What is wanted of the packages' files.
#[derive(Default)]
pub(crate) struct Contents {
    kernel: Option<Vec<u8>>,
    busybox: Option<Vec<u8>>,
    /// The kernel's release: the name of its module folder.
    release: Option<String>,
    modules: Modules,
    /// `modules.builtin`, the list of what needs no module.
    builtin: Vec<u8>,
}

impl Contents {
    /// Adds those of a package.
    pub(crate) fn add(&mut self, package: &Path) -> Result<()> {
        deb::visit(package, |entry| {
            if !entry.is_file {
                return Ok(());
            }
            let path = entry.path.to_string_lossy().into_owned();
            if path == "bin/busybox" {
                self.busybox = Some(entry.read()?);
            } else if path.starts_with("boot/vmlinuz-") {
                self.kernel = Some(entry.read()?);
            } else if let Some((release, file)) =
                path.strip_prefix("lib/modules/").and_then(|path| path.split_once('/'))
            {
                self.release.get_or_insert_with(|| release.to_owned());
                match file {
                    "modules.builtin" => self.builtin = entry.read()?,
                    "vmlinuz" => self.kernel = Some(entry.read()?),
                    _ if is_module(file) => {
                        let module = Module::read(file, entry.read()?).map_err(io::Error::other)?;
                        self.modules.insert(module);
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// Writes the image's kernel and its initramfs with these modules, and returns the kernel's release. `packages` is
    /// the folder that errors name.
    pub(crate) fn write(self, staging: &mut Staging, packages: &Path, modules: &[&str]) -> Result<String> {
        let missing = |what: &str| Error::Package {
            path: packages.to_owned(),
            problem: format!("together they have no {what}"),
        };
        let kernel =
            self.kernel.filter(|kernel| is_kernel(kernel)).ok_or_else(|| missing("bootable kernel"))?;
        let release = self.release.ok_or_else(|| missing("folder of modules"))?;
        let busybox = self.busybox.ok_or_else(|| missing("busybox"))?;
        let applets = applets(&busybox, staging.scratch());
        let all = self.modules.len();
        let mut modules = self.modules.select(modules);
        modules.compress(LARGE_MODULE).map_err(Error::io("compress the modules of", packages))?;
        tracing::info!(release, all, chosen = modules.len(), applets = applets.len(), "making the initramfs");

        staging.file(KERNEL, |out| out.write_all(&kernel))?;
        staging.file(INITRD, |out| {
            let mut archive = Initramfs::new(out);
            archive.file("bin/busybox", 0o755, &busybox)?;
            // Even a kernel that runs nothing else can run the first process.
            for path in applets {
                archive.link(&path, "/bin/busybox")?;
            }
            let folder = format!("lib/modules/{release}");
            for module in modules.iter() {
                archive.file(&format!("{folder}/{}", module.path), 0o644, &module.contents)?;
            }
            archive.file(&format!("{folder}/modules.dep"), 0o644, modules.dep().as_bytes())?;
            archive.file(&format!("{folder}/modules.alias"), 0o644, modules.alias().as_bytes())?;
            archive.file(&format!("{folder}/modules.builtin"), 0o644, &self.builtin)?;
            archive.finish().map(drop)
        })?;
        Ok(release)
    }
}

/// Whether a file is a Linux boot image: its setup header has this signature at 0x202 (`Documentation/arch/x86/
/// boot.rst`).
fn is_kernel(file: &[u8]) -> bool {
    file.get(0x202..0x206) == Some(b"HdrS")
}

fn is_module(file: &str) -> bool {
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|suffix| file.ends_with(suffix))
}

/// The paths that busybox wants to be called by. Asked of itself: it is a static program for this very processor.
///
/// None if it cannot be asked, as where the cache is on a file system without programs; the guest then asks.
fn applets(busybox: &[u8], scratch: &Path) -> Vec<String> {
    let program = scratch.join("busybox");
    let ask = || -> io::Result<Vec<u8>> {
        fs::write(&program, busybox)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new(&program);
        command.arg("--list-full").stdin(Stdio::null());
        let mut tries = 0;
        let output = loop {
            match command.output() {
                // Another thread that starts a program has, until it does, a copy of our descriptor for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 100 => {
                    tries += 1;
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                output => break output?,
            }
        };
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(io::Error::other(output.status.to_string()))
        }
    };
    match ask() {
        Ok(list) => parse_applets(&String::from_utf8_lossy(&list)),
        Err(error) => {
            tracing::warn!(%error, "busybox cannot be run here; the guest will make its links");
            Vec::new()
        }
    }
}

fn parse_applets(list: &str) -> Vec<String> {
    let paths = list.lines().map(|line| line.trim().trim_start_matches('/')).filter(|path| {
        let parts = PathBuf::from(path);
        let plain = parts.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        plain && !path.is_empty() && *path != "bin/busybox" && *path != "linuxrc"
    });
    let mut paths: Vec<String> = paths.map(str::to_owned).collect();
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
#[path = "debian_test.rs"]
mod tests;
