use std::ffi::OsString;

use super::*;
use crate::cache::Cache;
use crate::progress::Silent;

/// A package with these files, compressed with xz as Debian's are.
fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(liblzma::write::XzEncoder::new(Vec::new(), 0));
    for (path, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, path, *contents).unwrap();
    }
    let data = tar.into_inner().unwrap().finish().unwrap();
    let mut archive = ar::Builder::new(Vec::new());
    for (name, contents) in [("debian-binary", &b"2.0\n"[..]), ("data.tar.xz", &data)] {
        archive.append(&ar::Header::new(name.into(), contents.len() as u64), contents).unwrap();
    }
    archive.into_inner().unwrap()
}

fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

const BUSYBOX_SCRIPT: &[u8] = b"#!/bin/sh\nprintf 'bin/ash\\nusr/bin/awk\\nbin/busybox\\n../etc/passwd\\n'\n";

/// A mirror in a folder: packages, and an apt that serves them.
struct Mirror {
    folder: tempfile::TempDir,
    script: String,
}

impl Mirror {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), script: String::new() }
    }

    fn add(&mut self, name: &str, depends: &str, files: &[(&str, &[u8])]) {
        use std::fmt::Write as _;

        let bytes = package(files);
        let file = format!("{name}_1_amd64.deb");
        fs::write(self.folder.path().join(&file), &bytes).unwrap();
        let _ = writeln!(
            self.script,
            "show:{name}) printf 'Package: {name}\\nVersion: 1\\nDepends: {depends}\\n';;
             uri:{name}) echo \"'mirror' {file} {}\";;
             get:{name}) cp \"$mirror/{file}\" .;;",
            bytes.len()
        );
    }

    fn apt(&self) -> Apt {
        let script = self.folder.path().join("script");
        let text = format!(
            "mirror='{}'\n\
             while :; do case $1 in -c|-o) shift 2;; -q) shift;; *) break;; esac; done\n\
             case $1 in update) exit 0;; show) do=show;; download) do=get;; esac; shift\n\
             for name; do case $name in --print-uris) do=uri; continue;; -*) continue;; esac\n\
             case $do:$name in\n{}*) echo \"E: no $name\" >&2; exit 100;; esac; done\n",
            self.folder.path().display(),
            self.script
        );
        fs::write(&script, text).unwrap();
        let program: Vec<OsString> = vec!["/bin/sh".into(), script.into()];
        let state = self.folder.path().join("state");
        fs::create_dir_all(&state).unwrap();
        Apt::with([program.clone(), program.clone(), program], &state).unwrap()
    }

    /// The names in the initramfs that is made of this mirror, and the kernel's release.
    fn make(&self) -> Result<(Vec<String>, String)> {
        let cache = Cache::new(self.folder.path());
        let lock = cache.lock(&mut Silent).unwrap();
        let mut staging = cache.stage(&lock).unwrap();
        let made =
            make_with("debian", self.apt(), &[], &mut staging, &mut Silent)?.expect("nothing is there yet");
        let version = made.version.clone();
        let folder = cache.commit(staging, made).unwrap();
        assert_eq!(fs::read(folder.join(KERNEL)).unwrap(), kernel());
        let archive = fs::read(folder.join(INITRD)).unwrap();
        let mut rest = &archive[..];
        let mut names = Vec::new();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return Ok((names, version));
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
    }
}

const FOLDER: &str = "lib/modules/6.1.0-1-cloud-amd64";

/// The mirror as bookworm has it: the kernel in one package.
fn bookworm() -> Mirror {
    let mut mirror = Mirror::new();
    let rng = crate::modules::tests::elf(b"depends=virtio\0");
    let virtio = crate::modules::tests::elf(b"depends=\0");
    mirror.add(META, "linux-image-6.1.0-1-cloud-amd64 (= 1)", &[]);
    mirror.add(
        "linux-image-6.1.0-1-cloud-amd64",
        "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool",
        &[
            ("boot/vmlinuz-6.1.0-1-cloud-amd64", &kernel()),
            (&format!("{FOLDER}/kernel/virtio-rng.ko"), &rng),
            (&format!("{FOLDER}/kernel/virtio.ko"), &virtio),
            (&format!("{FOLDER}/kernel/sound.ko"), &virtio),
            (&format!("{FOLDER}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n"),
        ],
    );
    mirror.add(BUSYBOX, "", &[("bin/busybox", BUSYBOX_SCRIPT)]);
    mirror
}

#[test]
fn an_image_has_busybox_its_links_and_the_modules_for_virtual_machines() {
    let (names, release) = bookworm().make().unwrap();
    assert_eq!(release, "6.1.0-1-cloud-amd64");
    let has = |name: &str| names.iter().any(|other| other == name);
    for name in ["bin/busybox", "bin/ash", "usr/bin/awk"] {
        assert!(has(name), "{name} is not in {names:?}");
    }
    for name in
        ["kernel/virtio-rng.ko", "kernel/virtio.ko", "modules.dep", "modules.alias", "modules.builtin"]
    {
        assert!(has(&format!("{FOLDER}/{name}")), "{name} is not in {names:?}");
    }
    assert!(!has(&format!("{FOLDER}/kernel/sound.ko")));
    assert!(!names.iter().any(|name| name.contains("..")));
}

#[test]
fn what_is_the_newest_already_is_not_fetched_again() {
    let mirror = bookworm();
    let cache = Cache::new(mirror.folder.path());
    let mut staging = cache.stage(&cache.lock(&mut Silent).unwrap()).unwrap();
    let package = |name: &str, version: &str| Package {
        name: name.into(),
        version: version.into(),
        sha256: String::new(),
    };
    let mut have = [package("linux-image-6.1.0-1-cloud-amd64", "1"), package(BUSYBOX, "1")];
    let mut make =
        |have: &[Package]| make_with("debian", mirror.apt(), have, &mut staging, &mut Silent).unwrap();
    assert!(make(&have).is_none());
    have[1].version = "0".into();
    assert!(make(&have).is_some());
}

#[test]
fn a_kernel_spread_over_packages_and_below_usr_is_put_together() {
    let mut mirror = Mirror::new();
    let virtio = crate::modules::tests::elf(b"depends=\0");
    mirror.add(META, "linux-image-6.17-cloud-amd64", &[]);
    mirror.add(
        "linux-image-6.17-cloud-amd64",
        "linux-binary-6.17-cloud-amd64, linux-modules-6.17-cloud-amd64",
        &[],
    );
    mirror.add("linux-binary-6.17-cloud-amd64", "", &[("usr/lib/modules/6.17/vmlinuz", &kernel())]);
    let path = "usr/lib/modules/6.17/kernel/virtio.ko";
    mirror.add("linux-modules-6.17-cloud-amd64", "", &[(path, &virtio)]);
    mirror.add(BUSYBOX, "", &[("usr/bin/busybox", BUSYBOX_SCRIPT)]);
    let (names, release) = mirror.make().unwrap();
    assert_eq!(release, "6.17");
    assert!(names.contains(&"bin/ash".to_owned()));
}

#[test]
fn a_mirror_without_the_kernel_or_busybox_is_told() {
    let mut mirror = Mirror::new();
    assert!(mirror.make().unwrap_err().to_string().contains(META));
    mirror.add(META, "nothing-of-use", &[]);
    assert!(mirror.make().unwrap_err().to_string().contains("depends on"));
    let mut mirror = bookworm();
    mirror.script = mirror.script.replace(&format!("show:{BUSYBOX}"), "show:none");
    assert!(mirror.make().unwrap_err().to_string().contains(BUSYBOX));
}

#[test]
fn packages_without_what_they_should_hold_are_refused() {
    let without = |file: &str, contents: &[u8], what: &str| {
        let mut mirror = Mirror::new();
        mirror.add(META, "linux-image-1", &[]);
        mirror.add("linux-image-1", "", &[(file, contents), ("lib/modules/1/modules.builtin", b"")]);
        mirror.add(BUSYBOX, "", &[("bin/sh", b"")]);
        let error = mirror.make().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    without("boot/vmlinuz-1", b"no boot image", "bootable kernel");
    without("boot/vmlinuz-1", &kernel(), "busybox");
    without("lib/modules/1/kernel/x.ko", b"no module", "no kernel module");
}

#[test]
fn a_busybox_that_cannot_be_run_here_leaves_the_links_to_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    assert!(applets(b"\x7fELF but not really", folder.path()).is_empty());
    assert!(applets(b"#!/bin/false\n", folder.path()).is_empty());
}
