//! Disks that fail: the guest sees I/O errors, the host's user is told, and the monitor lives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Console, posada, run, script, told};

/// The file of a folder as text.
fn text(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().expect("the path is text").to_owned()
}

/// `posada disk` in a folder, which is to succeed.
fn disk(folder: &Path, line: &str) {
    let output =
        posada().arg("disk").args(line.split_whitespace()).current_dir(folder).output().expect("it starts");
    assert!(output.status.success(), "{line}: {}", told(&output));
}

/// What a guest without the program does to say when it is to go on: it reads a line.
const WAIT: &str = "read line";

/// A mount namespace in which a small file system can be made, if that is allowed here.
fn with_mounts() -> Option<Command> {
    let user = rustix::process::geteuid();
    let how: &[&str] = if user.is_root() { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    let allowed = Command::new("unshare").args(how).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !allowed.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no file system can be mounted here ({allowed:?})");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(how);
    Some(command)
}

#[test]
fn a_full_host_disk_is_an_error_to_the_guest_until_there_is_space() {
    let Some(mut command) = with_mounts() else { return };
    let folder = tempfile::tempdir().unwrap();
    // The guest fills the disk, waits until the host has made space, and goes on.
    let guest = format!(
        "dd if=/dev/zero bs=64k count=600 2>/dev/null | tr '\\0' x > /tmp/a
        dd if=/tmp/a of=/dev/vda bs=64k oflag=direct 2>/tmp/told && exit 1
        grep -i error /tmp/told
        dd if=/dev/null of=/dev/vda conv=notrunc,fsync 2>/dev/null; echo flushed $?; {WAIT}
        dd if=/tmp/a of=/dev/vda bs=64k oflag=direct conv=fsync 2>/dev/null; echo wrote $?
        dd if=/dev/vda bs=64k count=600 iflag=direct 2>/dev/null | cmp - /tmp/a && echo same"
    );
    let host = "mount -t tmpfs -o size=64m none \"$0\" && cd \"$0\" && head -c 50m /dev/zero > ballast
        \"$1\" disk create disk.qcow2 64M || exit
        \"$1\" run debian --disk \"$0/disk.qcow2\" -- sh -c \"$2\" || exit
        \"$1\" disk check disk.qcow2 && qemu-img check -q disk.qcow2 && echo in good order";
    let cache = crate::support::cache();
    let complaints = folder.path().join("complaints");
    command
        .env("XDG_CACHE_HOME", cache)
        .args(["sh", "-c", host])
        .arg(folder.path().join("small"))
        .args([env!("CARGO_BIN_EXE_posada"), &guest])
        .stderr(File::create(&complaints).unwrap());
    fs::create_dir(folder.path().join("small")).unwrap();
    let mut console = Console::start(command);
    console.expect("Input/output error");
    // What was written before can be made permanent.
    console.expect("flushed 0\n");
    // The folder as that process sees it.
    let inside = format!("/proc/{}/root{}", console.id(), folder.path().join("small/ballast").display());
    fs::remove_file(inside).unwrap();
    console.send("go on\n");
    console.expect("wrote 0\n");
    console.expect("same\n");
    console.expect("in good order");
    assert_eq!(console.end(), Some(0));
    let told = fs::read_to_string(complaints).unwrap();
    for word in ["disk.qcow2", "No space left", "free some space", "could not write"] {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
    assert!(told.lines().count() < 5, "{told}");
}

/// A guest on `top.qcow2` that reads the first block, waits, reads another, and writes and reads one of its own.
fn guest_on_changing_base(folder: &Path) -> Console {
    let guest = format!(
        "dd if=/dev/vda bs=64k count=1 iflag=direct 2>/dev/null | head -c 4; echo; {WAIT}
        dd if=/dev/vda of=/tmp/x bs=64k skip=32 count=16 iflag=direct 2>/dev/null; echo read $?
        seq 20000 | head -c 65536 > /tmp/a
        dd if=/tmp/a of=/dev/vda bs=64k oflag=direct conv=fsync 2>/dev/null; echo wrote $?
        dd if=/dev/vda bs=64k count=1 iflag=direct 2>/dev/null | cmp - /tmp/a && echo same"
    );
    let mut command = posada();
    command
        .args(["run", "debian", "--disk", &text(folder, "top.qcow2"), "--", "sh", "-c", &guest])
        .stderr(File::create(folder.join("complaints")).unwrap());
    let mut console = Console::start(command);
    console.expect("base\n");
    console
}

#[test]
fn a_backing_file_that_goes_away_or_changes_crashes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("base.raw"), b"base".repeat(1 << 20)).unwrap();
    disk(folder, "create top.qcow2 --backing base.raw");

    let mut console = guest_on_changing_base(folder);
    File::options().write(true).open(folder.join("base.raw")).unwrap().set_len(100_000).unwrap();
    console.send("go on\n");
    console.expect("read 1\nwrote 0\nsame\n");
    assert_eq!(console.end(), Some(0));
    let told = fs::read_to_string(folder.join("complaints")).unwrap();
    assert!(told.contains("base.raw has shrunk") && told.lines().count() < 5, "{told}");

    // One whose tables turn to nonsense: what is read is nonsense or an error.
    fs::write(folder.join("base.raw"), b"base".repeat(1 << 20)).unwrap();
    disk(folder, "convert base.raw base.qcow2");
    fs::remove_file(folder.join("top.qcow2")).unwrap();
    disk(folder, "create top.qcow2 --backing base.qcow2");
    let mut console = guest_on_changing_base(folder);
    let length = folder.join("base.qcow2").metadata().unwrap().len() as usize;
    let base = File::options().write(true).open(folder.join("base.qcow2")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&base, &vec![0xa5; length], 0).unwrap();
    console.send("go on\n");
    console.expect("read ");
    console.expect("wrote 0\nsame\n");
    assert_eq!(console.end(), Some(0));

    // One that is not there at the start.
    fs::remove_file(folder.join("base.qcow2")).unwrap();
    expect(&text(folder, "top.qcow2"), 125, &["top.qcow2", "backing file", "base.qcow2", "No such file"]);
}

/// Runs a guest with such a `--disk`, which is to be refused in these words.
fn expect(disk: &str, status: i32, words: &[&str]) {
    let output = run(["run", "debian", "--disk", disk, "--", "true"], b"");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{disk}: {}", told(&output));
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "{disk}: no {word:?} in:\n{message}");
    }
}

#[test]
fn a_disk_that_cannot_be_is_refused_in_clear_words() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).unwrap();
        text(folder, name)
    };
    expect(&text(folder, "missing.img"), 125, &["missing.img", "No such file"]);
    expect(&text(folder, ""), 125, &["directory"]);
    expect(&format!("{},ro", text(folder, "")), 125, &["no file and no block device"]);
    expect("/dev/null", 125, &["/dev/null", "no file and no block device"]);
    let image = file("a.img", &[0; 4096]);
    expect(&format!("{image},format=tape"), 2, &["tape", "qcow2"]);
    expect(&format!("{image},rw"), 2, &["rw", "snapshot", "doubled"]);
    expect(&format!("{image},format=qcow2"), 125, &["a.img", "qcow2"]);
    expect("", 2, &["name a file"]);
    expect(&file("head.qcow2", b"QFI\xfb\0\0\0\x03"), 125, &["head.qcow2", "damaged"]);
    disk(folder, "create good.qcow2 1G");
    let good = fs::read(folder.join("good.qcow2")).unwrap();
    // The L1 table's offset, the size of a cluster, and the size of the disk.
    for (at, value) in [(40, 0xff), (23, 0xff), (24, 0xff)] {
        let mut bad = good.clone();
        bad[at] = value;
        expect(&file("bad.qcow2", &bad), 125, &["bad.qcow2"]);
    }
    // A doubled comma belongs to the name.
    file("a,b.img", &[0; 4096]);
    expect(&text(folder, "a,b.img"), 2, &["b.img", "doubled"]);
}

#[test]
fn a_file_of_no_whole_sectors_is_a_disk_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("a,b.img");
    fs::write(&path, b"x".repeat(1300)).unwrap();
    let disk = text(folder.path(), "a,,b.img");
    let told = script(
        &["--disk", &disk],
        "cat /sys/block/vda/size; tail -c 300 /dev/vda | tr '\\0' 0 | cut -c 1-66
        seq 512 | head -c 512 | dd of=/dev/vda bs=512 seek=2 oflag=direct conv=notrunc,fsync 2>/dev/null",
    );
    assert_eq!(told, format!("3\n{}{}\n", "x".repeat(64), "00"));
    let bytes = fs::read(&path).unwrap();
    assert_eq!(
        (bytes.len(), &bytes[..1024], &bytes[1024..1028]),
        (1536, &b"x".repeat(1024)[..], &b"1\n2\n"[..])
    );
}
