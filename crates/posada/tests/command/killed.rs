//! Monitors that are killed, and those that end in good order: what is on the disk afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Console, posada, run, script, told};

/// A folder with disk images.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("the path is text").to_owned()
    }

    /// Runs `posada disk` with words, of which those that begin with `@` are files here; one of these statuses is right.
    fn disk(&self, line: &str, statuses: &[i32]) {
        let words = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name).into_os_string(),
            None => word.into(),
        });
        let output = run(std::iter::once("disk".into()).chain(words), b"");
        let status = output.status.code().expect("no signal ends it");
        assert!(statuses.contains(&status), "{line}: {}", told(&output));
    }

    /// The disk's contents.
    fn bytes(&self, name: &str) -> Vec<u8> {
        self.disk(&format!("convert @{name} @contents.raw --format raw --force"), &[0]);
        std::fs::read(self.path("contents.raw")).expect("it is there")
    }
}

/// Runs a tool of the host that is to succeed.
fn tool(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().expect("the tool is installed");
    assert!(output.status.success(), "{program}: {}", told(&output));
}

/// Looks whether all is there that was acknowledged, the last time as number $1; then writes more until it is killed. Of
/// number I there is a line in a journal, a file, and a block of the second disk, each flushed before "done I" is said.
const WRITER: &str = r#"
set -e
a=$1
contents() { yes "$1" | head -c $(($1 * 7919 % 150000 + 1)); }
mount -t ext4 -o discard /dev/vda /mnt
cd /mnt
seq $a > /tmp/numbers
touch journal
head -n $a journal | cmp - /tmp/numbers || { echo "the journal of $a:"; tail -n 3 journal; exit 1; }
dd if=/dev/vdb bs=4096 skip=1 count=$a iflag=direct 2>/dev/null | tr -d '\0' | cmp - /tmp/numbers
i=$((a > 15 ? a - 14 : 1))
while [ $i -le $a ]; do
    contents $i | cmp - file$((i % 16)) || { echo "file $i of $a"; exit 1; }
    i=$((i + 1))
done
cp /tmp/numbers journal
sync
echo checked
[ "$2" = write ] || { cd /; umount /mnt; exit 0; }
while :; do
    a=$((a + 1))
    contents $a | dd of=file$((a % 16)) bs=64k conv=fsync 2>/dev/null
    echo $a | dd of=journal oflag=append conv=notrunc,fsync 2>/dev/null
    echo $a | dd of=/dev/vdb bs=4096 seek=$a oflag=direct conv=sync,fsync,notrunc 2>/dev/null
    sync /mnt
    echo done $a
done
"#;

/// Kills monitors of writing guests this often, looking after each what is there.
fn kill_writers(rounds: u32) {
    let folder = Folder::new();
    let file = std::fs::File::create(folder.path("fresh.raw")).expect("it can be made");
    file.set_len(48 << 20).expect("it can be sparse");
    tool("/usr/sbin/mkfs.ext4", &["-q", "-F"], &folder.path("fresh.raw"));
    folder.disk("convert @fresh.raw @files.qcow2", &[0]);
    folder.disk("create @blocks.qcow2 256M", &[0]);
    let (files, blocks) = (folder.text("files.qcow2"), folder.text("blocks.qcow2"));
    let writer = |done: u64, what: &str| {
        let number = done.to_string();
        Console::open(&[
            "run", "debian", "--disk", &files, "--disk", &blocks, "--", "sh", "-c", WRITER, "sh", &number,
            what,
        ])
    };
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").subsec_nanos();
    eprintln!("moments from {seed}");
    let mut random = u64::from(seed);
    let mut done = 0;
    for round in 0..rounds {
        let mut guest = writer(done, "write");
        guest.expect("checked");
        guest.expect("done");
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        guest.read_for(Duration::from_millis(100 + (random >> 33) % 1500));
        let seen = guest.kill();
        let whole = &seen[..seen.rfind('\n').map_or(0, |at| at + 1)];
        let last = whole.lines().filter_map(|line| line.strip_prefix("done ")).next_back();
        done = last.expect("it was waited for").parse().expect("it is a number");
        eprintln!("round {round}: {done} acknowledged");
        for image in ["files.qcow2", "blocks.qcow2"] {
            // In order, or with leaks.
            folder.disk(&format!("check @{image}"), &[0, 3]);
        }
    }
    let mut guest = writer(done, "look");
    guest.expect("checked");
    assert_eq!(guest.end(), Some(0));
    // The guest has replayed the journal by mounting, and finished by unmounting.
    folder.bytes("files.qcow2");
    tool("/usr/sbin/e2fsck", &["-f", "-n"], &folder.path("contents.raw"));
}

#[test]
fn what_was_flushed_survives_killed_monitors() {
    kill_writers(2);
}

#[test]
#[ignore = "takes minutes"]
fn what_was_flushed_survives_many_killed_monitors() {
    kill_writers(40);
}

/// Writes to the disk without any flush, says so, and waits.
const UNFLUSHED: &str = "
    yes 'from the guest' | head -c 3000000 > /tmp/a
    dd if=/tmp/a of=/dev/vda bs=64k conv=sync oflag=direct 2>/dev/null
    echo written";

fn assert_written(folder: &Folder, when: &str) {
    folder.disk("check @disk.qcow2", &[0]);
    let text = b"from the guest\n".repeat(200_000);
    assert!(folder.bytes("disk.qcow2").starts_with(&text[..3_000_000]), "{when}");
}

#[test]
fn a_monitor_that_is_told_to_end_leaves_its_disks_in_order() {
    let folder = Folder::new();
    let disk = folder.text("disk.qcow2");
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        folder.disk("create @disk.qcow2 16M", &[0]);
        let wait = format!("{UNFLUSHED}; sleep 1000");
        let mut guest = Console::open(&["run", "debian", "--disk", &disk, "--", "sh", "-c", &wait]);
        guest.expect("written");
        guest.signal(signal);
        assert_eq!(guest.end(), Some(128 + number), "{signal}");
        assert_written(&folder, signal);
        std::fs::remove_file(folder.path("disk.qcow2")).expect("nobody holds it");
    }
    folder.disk("create @disk.qcow2 16M", &[0]);
    // The guest powers off without a flush of its own.
    let off = format!("{UNFLUSHED}; poweroff -n -f; sleep 1000");
    let output = run(["run", "debian", "--disk", &disk, "--", "sh", "-c", &off], b"");
    assert_eq!(output.status.code(), Some(123), "{}", told(&output));
    assert_written(&folder, "power-off");
}

#[test]
fn a_cache_that_writes_through_needs_no_flush() {
    let folder = Folder::new();
    folder.disk("create @disk.qcow2 16M", &[0]);
    let disk = folder.text("disk.qcow2");
    let through = format!(
        "cache=/sys/block/vda/cache_type; cat $cache; echo 'write through' > $cache; cat $cache
        {UNFLUSHED}; sleep 1000"
    );
    let mut guest = Console::open(&["run", "debian", "--disk", &disk, "--", "sh", "-c", &through]);
    guest.expect("write back\nwrite through\n");
    guest.expect("written");
    guest.kill();
    folder.disk("check @disk.qcow2", &[0, 3]);
    let text = b"from the guest\n".repeat(200_000);
    assert!(folder.bytes("disk.qcow2").starts_with(&text[..3_000_000]));
}

#[test]
fn one_monitor_writes_or_several_read() {
    let folder = Folder::new();
    folder.disk("create @disk.qcow2 16M", &[0]);
    let disk = folder.text("disk.qcow2");
    let read_only = format!("{disk},ro");
    let say = ["--", "sh", "-c", "echo here; sleep 1000"];
    let refused = |disk: &str, words: &[&str]| {
        let output =
            posada().args(["run", "debian", "--disk", disk, "--", "true"]).output().expect("it starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{}", told(&output));
        for word in words {
            assert!(message.contains(word), "no {word:?} in {message}");
        }
    };
    let mut writer = Console::open(&[&["run", "debian", "--disk", &disk], &say[..]].concat());
    writer.expect("here");
    refused(&disk, &["disk.qcow2", "already in use", "end what uses it"]);
    refused(&read_only, &["disk.qcow2", "already in use"]);
    // Its lock ends with it, however it does.
    writer.kill();
    let mut reader = Console::open(&[&["run", "debian", "--disk", &read_only], &say[..]].concat());
    reader.expect("here");
    let began = Instant::now();
    assert_eq!(script(&["--disk", &read_only], "cat /sys/block/vda/ro"), "1\n");
    refused(&disk, &["disk.qcow2", "already in use"]);
    assert!(began.elapsed() < Duration::from_mins(5));
}
