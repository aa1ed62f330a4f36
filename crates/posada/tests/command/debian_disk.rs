//! A whole Debian on a disk: built, booted, kept.
//!
//! The disk is built by the first test that needs it, in some minutes, and kept with the other images.

use crate::support::{Console, posada, run, told};

/// The smallest system, for it is built on the way.
const IMAGE: &str = "debian:bookworm-slim";

#[test]
#[ignore = "fetches 75 MB through apt-get and builds a disk from it"]
fn a_command_runs_in_a_whole_debian_and_its_changes_are_thrown_away() {
    let script = "cat /etc/os-release; ps -p 1 -o comm=; id -un; test -e /root/was-here || touch /root/was-here; \
                  echo trouble >&2; cat; exit 37";
    for _ in 0..2 {
        let output = run(["run", IMAGE, "--", "sh", "-c", script], b"from outside\n");
        assert_eq!(output.status.code(), Some(37), "{}", told(&output));
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("VERSION_CODENAME=bookworm\n"), "{}", told(&output));
        assert!(stdout.ends_with("systemd\nroot\nfrom outside\n"), "{}", told(&output));
        assert!(output.stderr.ends_with(b"trouble\n"), "{}", told(&output));
    }
    let output = run(["run", IMAGE, "--", "test", "-e", "/root/was-here"], b"");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
}

#[test]
#[ignore = "fetches 75 MB through apt-get and builds a disk from it"]
fn the_console_gives_a_login_without_a_password_and_its_end_is_the_guests() {
    let mut console = Console::open(&["run", IMAGE]);
    console.expect("root@debian:~#");
    console.send("echo $((6 * 7)) $(systemctl is-active dbus)\n");
    console.expect("42 active");
    // Standard input ends here, and with it the login.
    assert_eq!(console.end(), Some(0));
}

#[test]
#[ignore = "fetches 75 MB through apt-get and builds a disk from it"]
fn a_named_guest_keeps_its_disk_and_its_image_cannot_be_removed() {
    let state = tempfile::tempdir().unwrap();
    let named = |arguments: &[&str]| {
        posada().env("XDG_STATE_HOME", state.path()).args(arguments).output().expect("the command runs")
    };
    let script = "hostname; cat /root/kept 2>/dev/null; echo was here > /root/kept; cp /bin/bash /root/copy";
    let first = named(&["run", "--name", "web", IMAGE, "--", "sh", "-c", script]);
    assert_eq!((first.status.code(), &first.stdout[..]), (Some(0), &b"web\n"[..]), "{}", told(&first));
    let script = "cat /root/kept; cmp /bin/bash /root/copy && journalctl -b -u systemd-fsck-root --no-pager | grep -c clean";
    let second = named(&["run", "--name", "web", IMAGE, "--", "sh", "-c", script]);
    assert_eq!(
        (second.status.code(), &second.stdout[..]),
        (Some(0), &b"was here\n1\n"[..]),
        "{}",
        told(&second)
    );

    let refused = named(&["image", "rm", IMAGE]);
    assert_eq!(refused.status.code(), Some(125), "{}", told(&refused));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("in use by guests (`web`)"),
        "{}",
        told(&refused)
    );
    let other = named(&["run", "--name", "web", "debian:trixie"]);
    assert!(
        String::from_utf8_lossy(&other.stderr).contains("is one of debian:bookworm-slim"),
        "{}",
        told(&other)
    );
}

#[test]
#[ignore = "fetches 75 MB through apt-get and builds a disk from it"]
fn a_system_in_the_background_takes_commands_and_ends_in_good_order() {
    let state = tempfile::tempdir().unwrap();
    let named = |words: &str| {
        let mut command = posada();
        let output = command.env("XDG_STATE_HOME", state.path()).args(words.split(' ')).output();
        output.expect("the command runs")
    };
    let started = named(&format!("run -d --name back {IMAGE}"));
    assert_eq!(started.stdout, b"back\n", "{}", told(&started));
    let host = named("exec back -- hostname");
    assert_eq!((host.status.code(), &host.stdout[..]), (Some(0), &b"back\n"[..]), "{}", told(&host));
    let stopped = named("stop --timeout 120 back");
    assert_eq!(stopped.status.code(), Some(0), "{}", told(&stopped));
    let ended = named("ps --all");
    assert!(String::from_utf8_lossy(&ended.stdout).contains("ended (0)"), "{}", told(&ended));
    let removed = named("rm back");
    assert_eq!(removed.status.code(), Some(0), "{}", told(&removed));
    assert_eq!(std::fs::read_dir(state.path().join("posada/guests")).unwrap().count(), 0);
}
