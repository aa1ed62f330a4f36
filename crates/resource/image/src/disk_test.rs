use std::ffi::OsString;
use std::io::{self, Write};

use super::*;
use crate::cache::Cache;
use crate::progress::Silent;

#[test]
fn a_name_is_a_suite_and_perhaps_a_variant() {
    let recipe = DebianDisk::named("debian:bookworm").unwrap();
    assert_eq!((recipe.suite.as_str(), recipe.is_slim), ("bookworm", false));
    let slim = DebianDisk::named("debian:bookworm-slim").unwrap();
    assert_eq!((slim.suite.as_str(), slim.is_slim, slim.name()), ("bookworm", true, "debian:bookworm-slim"));
    for name in ["debian", "debian:", "debian:-slim", "debian:a/b", "debian:Sid", "ubuntu:noble", ""] {
        assert!(DebianDisk::named(name).is_none(), "{name}");
    }
}

fn package(name: &str, version: &str) -> Package {
    Package { name: name.into(), version: version.into(), sha256: String::new() }
}

#[test]
fn the_version_is_the_releases_and_tells_package_sets_apart() {
    let source = |version: Option<&str>| Source {
        uri: String::new(),
        release: String::new(),
        components: [].into(),
        signed_by: None,
        lists: String::new(),
        version: version.map(str::to_owned),
    };
    let (one, other) = (package("a", "1"), package("a", "2"));
    let first = version(&[source(None), source(Some("12.15"))], "6.1", std::slice::from_ref(&one));
    assert!(first.starts_with("12.15-") && first.len() == 13, "{first}");
    assert_ne!(first, version(&[source(Some("12.15"))], "6.1", &[other]));
    assert!(version(&[], "6.1.0-9", &[one]).starts_with("6.1.0-9-"));
}

/// An apt whose `apt-get` and `apt-cache` are this shell script.
fn apt(folder: &Path, script: &str) -> Apt {
    let path = folder.join("script");
    let prologue = "while :; do case $1 in -c|-o) shift 2;; -q|-y|-s) shift;; *) break;; esac; done\n";
    fs::write(&path, format!("{prologue}{script}")).unwrap();
    let program: Vec<OsString> = vec!["/bin/sh".into(), path.into()];
    Apt::with([program.clone(), program.clone(), program], folder).unwrap()
}

#[test]
fn the_packages_of_a_disk_are_parted_into_what_comes_first_and_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let apt = apt(
        folder.path(),
        "record() { printf 'Package: %s\\nVersion: 1\\nDepends: %s\\n' \"$1\" \"$2\"; }
         case \"$*\" in
         *' linux-image-cloud-amd64') record x 'linux-image-6-cloud-amd64 (= 1)';;
         show*dhcpcd-base|show*isc-dhcp-client) case \"$*\" in *isc*) exit 100;; esac; record x '';;
         show*) record x '';;
         install*essential*) echo 'Inst libc6 (1 Debian:12 [amd64])'; echo 'Conf libc6 (1 Debian:12 [amd64])';;
         install*e2fsprogs' 'dpkg*) echo 'Inst e2fsprogs (1 Debian:12 [amd64])';;
         install*dhcpcd-base*) for p in libc6 systemd:amd64; do echo \"Inst $p (2:1-1 Debian:12 [amd64])\"; done;;
         *) exit 100;; esac",
    );
    let set = DebianDisk::named("debian:bookworm").unwrap().choose(&apt).unwrap();
    assert_eq!(set.first, ["libc6"]);
    assert_eq!(set.rest, ["systemd"]);
    assert_eq!(set.tools, ["e2fsprogs"]);
    assert_eq!(set.kernel, ["linux-image-6-cloud-amd64", BUSYBOX]);
    let all: Vec<_> = set.all.iter().map(|(name, version)| format!("{name}={version}")).collect();
    assert_eq!(all, ["libc6=2:1-1", "systemd=2:1-1", "busybox-static=1"]);
}

#[test]
fn packages_that_do_not_fit_together_are_told_with_apts_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let apt = apt(folder.path(), "echo 'E: Unable to correct problems' >&2; exit 100");
    let error = apt.solve(&["a"]).unwrap_err().to_string();
    assert!(error.contains("choose the packages") && error.contains("Unable to correct problems"), "{error}");
}

#[test]
fn only_the_lists_of_the_suites_own_sources_travel_along() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["deb_dists_bookworm_InRelease", "deb_dists_trixie_InRelease", "lock"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::create_dir(folder.path().join("deb_dists_bookworm_partial")).unwrap();
    let source = |lists: &str| Source {
        uri: String::new(),
        release: String::new(),
        components: [].into(),
        signed_by: None,
        lists: lists.to_owned(),
        version: None,
    };
    let found = lists(folder.path(), &[source("deb_dists_bookworm_"), source("")]).unwrap();
    assert_eq!(found, [folder.path().join("deb_dists_bookworm_InRelease")]);
}

/// A machine whose guest does no more than say this on its second port.
#[derive(Debug)]
struct Saying {
    report: &'static str,
    fails: bool,
}

impl Machine for Saying {
    fn run(
        &self,
        task: Task<'_>,
        mut console: Box<dyn Write + Send>,
        mut report: Box<dyn Write + Send>,
    ) -> io::Result<()> {
        assert!(task.initrd.starts_with(b"base") && task.initrd.ends_with(b"ours") && task.disk.is_file());
        console.write_all(b"dpkg: error: it is broken\r\n")?;
        report.write_all(self.report.as_bytes())?;
        if self.fails { Err(io::Error::other("triple fault")) } else { Ok(()) }
    }
}

/// What comes of a build in such a machine, and whether the disk is part of the image then.
fn built(report: &'static str, fails: bool) -> (Result<()>, bool) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let mut staging = cache.stage(&cache.lock(&mut Silent).unwrap()).unwrap();
    staging.file(KERNEL, |out| out.write_all(b"kernel")).unwrap();
    staging.file(INITRD, |out| out.write_all(b"base")).unwrap();
    let machine = Saying { report, fails };
    let archive = b"ours".to_vec();
    let result = build("debian:test", &machine, archive, BTreeMap::new(), &mut staging, &mut Silent);
    (result, staging.path(DISK).exists())
}

#[test]
fn a_disk_is_kept_only_if_its_guest_says_that_all_is_done() {
    assert!(matches!(built("posada: stage x\r\nposada: done\r\n", false), (Ok(()), true)));
    for (report, fails, word) in [
        ("posada: stage x\n", false, "without a word"),
        ("posada: done", false, "without a word"),
        ("posada: failed dpkg could not configure\nposada: done\n", false, "dpkg could not configure"),
        ("posada: done\n", true, "triple fault"),
    ] {
        let (result, is_kept) = built(report, fails);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("dpkg: error: it is broken") && !is_kept, "{error}");
    }
}
