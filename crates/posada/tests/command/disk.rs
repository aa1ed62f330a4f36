//! `posada disk`: what it says, and its exit statuses.

use std::path::PathBuf;

use crate::support::{run, told};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `posada disk` with words, of which those that begin with `@` are files here. Returns status and output.
    fn disk(&self, line: &str, status: i32) -> (String, String) {
        let words = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name).into_os_string(),
            None => word.into(),
        });
        let output = run(std::iter::once("disk".into()).chain(words), b"");
        assert_eq!(output.status.code(), Some(status), "{line}: {}", told(&output));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(!text(&output.stderr).contains("panicked"), "{}", told(&output));
        (text(&output.stdout), text(&output.stderr))
    }
}

#[test]
fn disks_are_made_described_converted_and_checked() {
    let folder = Folder::new();
    folder.disk("create @base.raw 3M --format raw", 0);
    std::fs::write(folder.path("base.raw"), vec![5; 3 << 20]).expect("it can be written");
    folder.disk("create @top.qcow2 --backing @base.raw", 0);
    let (told, _) = folder.disk("info @top.qcow2", 0);
    assert!(told.contains("3145728 bytes") && told.contains("base.raw (raw)"), "{told}");
    let (json, _) = folder.disk("info --json @top.qcow2", 0);
    assert!(json.contains("\"virtual-size\": 3145728") && json.contains("\"cluster-size\": 65536"), "{json}");
    // In a pipe there is no progress.
    let (out, err) = folder.disk("convert @top.qcow2 @copy.raw --format raw", 0);
    assert_eq!((&*out, &*err), ("", ""));
    assert!(std::fs::read(folder.path("copy.raw")).expect("it is there") == vec![5; 3 << 20]);
    folder.disk("convert @copy.raw @small.qcow2 --compress", 0);
    assert!(folder.path("small.qcow2").metadata().expect("it is there").len() < 1 << 20);
    assert!(folder.disk("check @small.qcow2", 0).0.contains("in order"));
}

#[test]
fn leaks_and_damage_have_statuses_of_their_own() {
    let folder = Folder::new();
    folder.disk("create @image.qcow2 1G", 0);
    let good = std::fs::read(folder.path("image.qcow2")).expect("it is there");
    // The third cluster is the first block of refcounts, with 16 bits each. One more cluster is counted ...
    let mut image = good.clone();
    image.resize(good.len() + 65536, 0);
    image[2 * 65536 + 9] = 1;
    std::fs::write(folder.path("image.qcow2"), &image).expect("it can be written");
    assert!(folder.disk("check @image.qcow2", 3).0.contains("--repair leaks"));
    folder.disk("check --repair leaks @image.qcow2", 0);
    folder.disk("check @image.qcow2", 0);
    // ... or one less.
    image[2 * 65536 + 7] = 0;
    std::fs::write(folder.path("image.qcow2"), &image).expect("it can be written");
    folder.disk("check @image.qcow2", 1);
    folder.disk("check --repair leaks @image.qcow2", 1);
    folder.disk("check --repair all @image.qcow2", 0);
    folder.disk("check @image.qcow2", 0);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let folder = Folder::new();
    std::fs::write(folder.path("precious"), "data").expect("it can be written");
    folder.disk("create @empty.raw 1M --format raw", 0);
    assert!(folder.disk("create @precious 1G", 125).1.contains("another name"));
    assert!(folder.disk("convert @empty.raw @precious", 125).1.contains("another name"));
    assert_eq!(std::fs::read(folder.path("precious")).expect("it is there"), b"data");
    folder.disk("convert @empty.raw @precious --force", 0);
    assert!(folder.disk("info @precious", 0).0.contains("qcow2"));
}

#[test]
fn what_makes_no_sense_is_said() {
    let folder = Folder::new();
    folder.disk("create @a.qcow2", 2);
    folder.disk("create @a.qcow2 20", 2);
    folder.disk("create @a.vdi 1G --format vdi", 125);
    folder.disk("create @a.qcow2 1G --cluster 3K", 125);
    folder.disk("create @a.raw 1G --format raw --backing @b", 125);
    folder.disk("info @missing", 125);
    folder.disk("create @a.raw 1M --format raw", 0);
    assert!(folder.disk("check @a.raw", 125).1.contains("raw"));
    assert!(!folder.path("a.qcow2").exists());
}
