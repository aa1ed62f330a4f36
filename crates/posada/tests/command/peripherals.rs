//! Disks, discs and network cards without virtio, as Linux's own drivers use them.
//!
//! Debian's cloud kernel has no drivers for them, so these tests fetch the kernel for all machines. The rest of the guest
//! is the image's busybox.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use posada_image::session::Session;
use posada_image::{Images, Silent};

use crate::support::{cache, run, told};

/// Modules in the order in which they are loaded; those that a kernel has built in are passed over.
const MODULES: [&str; 17] = [
    "crct10dif_common",
    "crct10dif_generic",
    "crc-t10dif",
    "crc64",
    "crc64_rocksoft_generic",
    "crc64-rocksoft",
    "t10-pi",
    "scsi_common",
    "scsi_mod",
    "libata",
    "libahci",
    "ahci",
    "sd_mod",
    "cdrom",
    "sr_mod",
    "isofs",
    "e1000",
];

fn output_of(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", told(&output));
    String::from_utf8(output.stdout).expect("it writes text")
}

/// A guest with the kernel for all machines: the kernel, and an archive with the modules.
struct Guest {
    folder: tempfile::TempDir,
    kernel: PathBuf,
    modules: Vec<PathBuf>,
}

impl Guest {
    fn fetch() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let depends = output_of(Command::new("apt-cache").args(["depends", "linux-image-amd64"]));
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .expect("it depends on a kernel");
        output_of(Command::new("apt-get").args(["download", package]).current_dir(folder.path()));
        let files = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let deb = files(folder.path()).pop().expect("it was fetched");
        let root = folder.path().join("root");
        output_of(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root));
        let kernel = files(&root.join("boot"))
            .into_iter()
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz"))
            .expect("a kernel");
        let found = output_of(Command::new("find").arg(root.join("lib/modules")).args(["-name", "*.ko"]));
        let found: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
        let named = |name: &str| found.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
        let modules = MODULES.iter().filter_map(|name| named(name).cloned()).collect();
        Self { folder, kernel, modules }
    }

    /// Runs a script in it as the first process, with what it says on the console.
    fn script(&self, options: &[&str], script: &str) -> String {
        let image = Images::at(cache().join("posada")).get("debian", &mut Silent).unwrap();
        let (base, added) = (self.folder.path().join("base"), self.folder.path().join("added"));
        let mut initrd = Vec::new();
        image.initrd(&Session::shell()).unwrap().as_slice().read_to_end(&mut initrd).unwrap();
        fs::write(&base, initrd).unwrap();
        let mut archive = Vec::new();
        let start = "#!/bin/busybox sh\n/bin/busybox mkdir -p /proc /sys /dev /mnt /tmp\n\
             export PATH=/applets; /bin/busybox mkdir /applets; /bin/busybox --install -s /applets\n\
             mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev\n\
             for module in /modules/*; do insmod $module; done\n";
        let script = format!("{start}{script}\npoweroff -f\n");
        add(&mut archive, "first", 0o100_755, script.as_bytes());
        add(&mut archive, "modules", 0o040_755, &[]);
        for (index, module) in self.modules.iter().enumerate() {
            add(&mut archive, &format!("modules/{index:02}.ko"), 0o100_644, &fs::read(module).unwrap());
        }
        add(&mut archive, "TRAILER!!!", 0, &[]);
        fs::write(&added, archive).unwrap();
        let paths = [&self.kernel, &base, &added].map(|path| path.to_str().unwrap());
        let machine = ["run", "--kernel", paths[0], "--initrd", paths[1], "--initrd", paths[2]];
        let words = ["--append", "console=ttyS0 quiet rdinit=/first"];
        let output = run([&machine[..], &words, options].concat(), b"");
        assert!(output.status.success(), "{}", told(&output));
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    }
}

/// Adds a file to an archive as the kernel reads it (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let fields = [1, mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    for field in fields {
        write!(archive, "{field:08x}").unwrap();
    }
    for part in [name.as_bytes(), contents] {
        archive.extend(part);
        if part.as_ptr() == name.as_ptr() {
            archive.push(0);
        }
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

#[test]
#[ignore = "fetches a kernel of 70 MB through apt-get"]
fn linux_drives_the_sata_disk_the_cd_rom_and_the_e1000() {
    let guest = Guest::fetch();
    let folder = tempfile::tempdir().unwrap();
    let (disk, disc) = (folder.path().join("disk.img"), folder.path().join("disc.iso"));
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    // No file system is needed to see that the drive reads.
    fs::write(&disc, [b"from the disc!\n\n".repeat(128), vec![0; 62 << 10]].concat()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let sata = format!("{},bus=ahci", disk.display());
    let said = guest.script(
        &["--disk", &sata, "--cdrom", disc.to_str().unwrap(), "--net", "user,model=e1000"],
        &format!(
            "for n in 1 2 3 4 5 6 7 8 9; do [ -b /dev/sda ] && [ -b /dev/sr0 ] || sleep 1; done
            echo queue $(cat /sys/block/sda/device/queue_depth) of $(cat /sys/block/sda/size)
            head -c 8000000 /dev/urandom > /tmp/a
            dd if=/tmp/a of=/dev/sda bs=64k seek=1 conv=fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches
            tail -c +65537 /dev/sda | head -c 8000000 | cmp - /tmp/a && echo disk good
            head -n 1 /dev/sr0
            ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; sleep 2
            nc 10.0.2.2 {port} < /tmp/a > /tmp/b; cmp /tmp/a /tmp/b && echo network good
            printf 'from the guest' | dd of=/dev/sda conv=fsync 2>/dev/null"
        ),
    );
    for expected in ["queue 32 of 131072\n", "disk good\n", "from the disc!\n", "network good\n"] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    server.join().unwrap();
    assert!(fs::read(&disk).unwrap().starts_with(b"from the guest"));
}
