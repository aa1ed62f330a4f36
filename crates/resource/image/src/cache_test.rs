use std::sync::mpsc;

use super::*;
use crate::progress::Silent;

struct Fixture {
    _folder: tempfile::TempDir,
    cache: Cache,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(&folder.path().join("posada"));
    Fixture { cache, _folder: folder }
}

fn made(version: &str) -> Made {
    let package = Package { name: "kernel".into(), version: version.into(), sha256: "00".into() };
    Made { name: "debian".into(), version: version.into(), packages: vec![package] }
}

impl Fixture {
    fn add(&self, version: &str, contents: &[u8]) -> PathBuf {
        let lock = self.cache.lock(&mut Silent).unwrap();
        let mut staging = self.cache.stage(&lock).unwrap();
        staging.file("vmlinuz", |out| out.write_all(contents)).unwrap();
        self.cache.commit(staging, made(version)).unwrap()
    }

    /// Names in the folder of images, the lock aside.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.cache.folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != LOCK).collect()
    }
}

#[test]
fn an_empty_cache_has_nothing_and_creates_nothing() {
    let fixture = fixture();
    assert!(fixture.cache.list().unwrap().is_empty());
    assert!(fixture.cache.find("debian").unwrap().is_none());
    assert!(!fixture.cache.folder.exists());
}

#[test]
fn a_committed_entry_is_found_with_its_files_and_digests() {
    let fixture = fixture();
    let folder = fixture.add("6.1", b"abc");
    let (found, manifest) = fixture.cache.find("debian").unwrap().unwrap();
    assert_eq!(found, folder);
    assert_eq!(fs::read(folder.join("vmlinuz")).unwrap(), b"abc");
    assert_eq!((manifest.version.as_str(), manifest.files[0].size), ("6.1", 3));
    assert_eq!(manifest.files[0].sha256, sha256(&folder.join("vmlinuz")).unwrap());
    assert!(fixture.cache.find("other").unwrap().is_none());
    let listed = &fixture.cache.list().unwrap()[0];
    assert_eq!((listed.name.as_str(), &listed.problem), ("debian", &None));
    assert!(listed.size > 3);
}

#[test]
fn a_disk_that_fills_up_leaves_nothing_behind() {
    let fixture = fixture();
    let lock = fixture.cache.lock(&mut Silent).unwrap();
    let mut staging = fixture.cache.stage(&lock).unwrap();
    fs::write(staging.scratch().join("package.deb"), "x").unwrap();
    staging.file("vmlinuz", |out| out.write_all(b"abc")).unwrap();
    let error = staging
        .file("initrd", |out| {
            out.write_all(&[0; 1000])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
    assert!(error.to_string().contains("XDG_CACHE_HOME"), "{error}");
    assert!(fixture.cache.find("debian").unwrap().is_none(), "an entry in the making is no entry");
    drop(staging);
    assert!(fixture.names().is_empty(), "{:?}", fixture.names());
}

#[test]
fn a_failure_keeps_the_entry_that_was_there() {
    let fixture = fixture();
    let folder = fixture.add("6.1", b"abc");
    let lock = fixture.cache.lock(&mut Silent).unwrap();
    let mut staging = fixture.cache.stage(&lock).unwrap();
    assert!(staging.file("vmlinuz", |_| Err(io::ErrorKind::StorageFull.into())).is_err());
    drop(staging);
    assert_eq!(fixture.cache.find("debian").unwrap().unwrap().0, folder);
}

#[test]
fn what_a_crash_left_behind_is_removed_by_the_next_maker() {
    let fixture = fixture();
    let kept = fixture.add("6.1", b"abc");
    let stale = fixture.cache.folder.join(format!("{MAKING}crashed"));
    fs::create_dir_all(stale.join("entry")).unwrap();
    fs::write(stale.join("entry/vmlinuz"), "half").unwrap();
    assert_eq!(fixture.cache.list().unwrap().len(), 1, "it is not listed either");
    drop(fixture.cache.lock(&mut Silent).unwrap());
    assert!(!stale.exists() && kept.exists());
}

#[test]
fn a_damaged_entry_is_not_used_but_listed_and_replaced_by_a_new_one() {
    let damages: [fn(&Path); 5] = [
        |folder| fs::write(folder.join("vmlinuz"), "ab").unwrap(),
        |folder| fs::remove_file(folder.join("vmlinuz")).unwrap(),
        |folder| fs::write(folder.join(MANIFEST), "{").unwrap(),
        |folder| fs::remove_file(folder.join(MANIFEST)).unwrap(),
        |folder| fs::write(folder.join(MANIFEST), vec![b' '; 2 << 20]).unwrap(),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let fixture = fixture();
        let folder = fixture.add("6.1", b"abc");
        damage(&folder);
        assert!(fixture.cache.find("debian").unwrap().is_none(), "damage {number}");
        let listed = fixture.cache.list().unwrap();
        assert_eq!(listed[0].name, "debian");
        assert!(listed[0].problem.is_some(), "damage {number}");
        assert_eq!(fixture.add("6.1", b"new"), folder);
        assert_eq!(fixture.cache.list().unwrap().len(), 1);
        assert_eq!(fs::read(folder.join("vmlinuz")).unwrap(), b"new");
    }
}

#[test]
fn a_manifest_that_names_files_outside_is_damaged() {
    let fixture = fixture();
    let folder = fixture.add("6.1", b"abc");
    let text = fs::read_to_string(folder.join(MANIFEST)).unwrap();
    fs::write(folder.join(MANIFEST), text.replace("\"vmlinuz\"", "\"../lock\"")).unwrap();
    assert!(fixture.cache.find("debian").unwrap().is_none());
}

#[test]
fn an_entry_of_another_format_is_shown_as_such_and_not_used() {
    let fixture = fixture();
    let folder = fixture.add("6.1", b"abc");
    let text = fs::read_to_string(folder.join(MANIFEST)).unwrap();
    let other = text.replace(&format!("\"format\": {FORMAT}"), "\"format\": 999");
    assert_ne!(text, other);
    fs::write(folder.join(MANIFEST), other).unwrap();
    assert!(fixture.cache.find("debian").unwrap().is_none());
    assert!(fixture.cache.list().unwrap()[0].problem.as_ref().unwrap().contains("another version"));
}

#[test]
fn the_newest_of_several_versions_is_used() {
    let fixture = fixture();
    fixture.add("6.1", b"old");
    let new = fixture.add("6.12", b"new");
    // Both may have been made within a second; say which was first.
    let old = fixture.cache.folders().unwrap().into_iter().find(|folder| *folder != new).unwrap();
    let text = fs::read_to_string(old.join(MANIFEST)).unwrap();
    let created = fixture.cache.find("debian").unwrap().unwrap().1.created;
    fs::write(old.join(MANIFEST), text.replace(&created.to_string(), &(created - 5).to_string())).unwrap();
    assert_eq!(fixture.cache.find("debian").unwrap().unwrap().0, new);
    assert_eq!(fixture.cache.list().unwrap().len(), 2);
}

#[test]
fn only_one_maker_works_at_a_time_and_the_other_is_told_that_it_waits() {
    struct Told(mpsc::Sender<String>);

    impl Progress for Told {
        fn stage(&mut self, what: &str, _: Option<u64>) {
            self.0.send(what.to_owned()).unwrap();
        }

        fn advance(&mut self, _: u64) {}

        fn done(&mut self) {}
    }

    let fixture = fixture();
    let lock = fixture.cache.lock(&mut Silent).unwrap();
    let (sender, receiver) = mpsc::channel();
    let cache = fixture.cache.clone();
    let (locked, is_locked) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let lock = cache.lock(&mut Told(sender)).unwrap();
        locked.send(()).unwrap();
        drop(lock);
    });
    assert!(receiver.recv().unwrap().contains("Waiting for another posada"));
    assert!(is_locked.try_recv().is_err(), "the lock is held here");
    drop(lock);
    is_locked.recv().unwrap();
    other.join().unwrap();
}

#[test]
fn removed_entries_are_gone_and_the_others_stay() {
    let fixture = fixture();
    fixture.add("6.1", b"old");
    fixture.add("6.12", b"new");
    let entries = fixture.cache.list().unwrap();
    let (gone, kept): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.version == "6.1");
    fixture.cache.remove(&gone, &mut Silent).unwrap();
    assert_eq!(fixture.cache.list().unwrap(), kept);
    fixture.cache.remove(&gone, &mut Silent).unwrap();
    assert_eq!(fixture.names().len(), 1, "nothing is left of it: {:?}", fixture.names());
}

#[test]
fn a_cache_that_cannot_be_written_says_what_to_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let cache = Cache::new(file.path());
    let error = cache.lock(&mut Silent).map(drop).unwrap_err().to_string();
    assert!(error.contains("could not create") && error.contains(&*file.path().to_string_lossy()), "{error}");
}

#[test]
fn folder_names_are_plain_and_not_too_long() {
    let package =
        |version: &str| Package { name: "p".into(), version: version.into(), sha256: String::new() };
    assert_eq!(folder_name("debian", &[package("1:2~3/../x")]), format!("debian-1_2~3_.._x-f{FORMAT}"));
    assert!(folder_name("debian", &[package(&"9".repeat(1000))]).len() < 255);
}
