//! What a person is told when something is wrong: one clear message, an exit status from the table, no panic.

use std::path::{Path, PathBuf};

use crate::support::{posada, run, told};

const CANNOT_RUN: i32 = 125;
const TRIPLE_FAULT: i32 = 121;
const USAGE: i32 = 2;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("the file can be written");
        path
    }
}

/// A multiboot kernel of `code`, loaded and entered at 1 MiB, 32 bytes on.
fn multiboot(code: &[u8]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let flags = 1 << 16;
    let sum = 0u32.wrapping_sub(magic + flags);
    let words = [magic, flags, sum, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(code.iter().copied()).collect()
}

/// Runs a kernel and expects this status and each of these words in one message without a panic.
fn expect(arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(arguments, b"");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", told(&output));
    assert!(!message.contains("panicked"), "{message}");
    assert!(output.stdout.is_empty(), "{}", told(&output));
    for word in words {
        assert!(message.contains(word), "{arguments:?}: no {word:?} in:\n{message}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

#[test]
fn a_file_that_is_no_kernel_is_named() {
    let folder = Folder::new();
    for (name, bytes) in
        [("empty", &b""[..]), ("text", b"#!/bin/sh\necho hello\n"), ("zeros", &vec![0; 70_000])]
    {
        let path = folder.file(name, bytes);
        expect(&["run", "--kernel", text(&path)], CANNOT_RUN, &["kernel"]);
    }
    expect(
        &["run", "--kernel", "/nonexistent/vmlinuz"],
        CANNOT_RUN,
        &["/nonexistent/vmlinuz", "No such file"],
    );
}

#[test]
fn an_initrd_larger_than_memory_is_refused() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &multiboot(&[0xf4]));
    let initrd = folder.file("initrd", &vec![0; 40 << 20]);
    let arguments = ["run", "--kernel", text(&kernel), "--initrd", text(&initrd), "--memory", "32M"];
    expect(&arguments, CANNOT_RUN, &["memory"]);
}

#[test]
fn disks_and_discs_without_a_byte_are_refused() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &multiboot(&[0xf4]));
    let (kernel, empty) = (text(&kernel), folder.file("empty.img", b""));
    for words in ["", ",ro", ",snapshot", ",bus=ahci,format=raw"] {
        let disk = format!("{}{words}", text(&empty));
        expect(
            &["run", "--kernel", kernel, "--disk", &disk],
            CANNOT_RUN,
            &["empty.img is empty", "truncate"],
        );
    }
    expect(&["run", "--kernel", kernel, "--cdrom", text(&empty)], CANNOT_RUN, &["empty.img is empty"]);
}

#[test]
fn impossible_machines_are_refused() {
    let folder = Folder::new();
    let kernel = folder.file("kernel", &multiboot(&[0xf4]));
    let kernel = text(&kernel);
    for size in ["0", "1K", "900T"] {
        expect(&["run", "--kernel", kernel, "--memory", size], CANNOT_RUN, &["memory"]);
    }
    expect(&["run", "--kernel", kernel, "--cpus", "0"], CANNOT_RUN, &["processors"]);
    expect(&["run", "--kernel", kernel, "--cpu", "i386"], CANNOT_RUN, &["i386", "x86-64-v2"]);
    let interpret = ["run", "--kernel", kernel, "--engine", "interpret", "--cpu", "x86-64-v3"];
    expect(&interpret, CANNOT_RUN, &["x86-64-v3"]);
    expect(&["run", "--kernel", kernel, "--cpu", "x86-64-v4"], CANNOT_RUN, &["x86-64-v4"]);
    expect(&["run", "--kernel", kernel, "--engine", "magic"], USAGE, &["magic", "interpret"]);
    expect(&["run", "--kernel", kernel, "--memory", "lots"], USAGE, &["lots"]);
    expect(&["run", "plan9"], CANNOT_RUN, &["plan9", "debian"]);
}

#[test]
fn without_apt_and_with_an_empty_cache_there_is_no_image() {
    let folder = Folder::new();
    let output = posada()
        .args(["run", "debian", "--", "true"])
        .env("XDG_CACHE_HOME", folder.0.path())
        .env("PATH", "/nonexistent")
        .output()
        .expect("the command starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(CANNOT_RUN), "{}", told(&output));
    assert!(message.contains("apt-get") && message.contains("--kernel"), "{message}");
}

#[test]
fn a_triple_fault_shows_the_registers() {
    let folder = Folder::new();
    // mov eax, 0x12345678; an interrupt table of no size; ud2
    let kernel =
        folder.file("kernel", &multiboot(b"\xb8\x78\x56\x34\x12\x0f\x01\x1d\x00\x00\x01\x00\x0f\x0b"));
    let words = ["triple fault", "12345678", "rip", "cr0"];
    expect(&["run", "--kernel", text(&kernel)], TRIPLE_FAULT, &words);
}

#[test]
fn a_guest_sets_the_exit_status_through_the_test_port() {
    let folder = Folder::new();
    // mov al, 21; out 0xf4, al; hlt
    let kernel = folder.file("kernel", &multiboot(&[0xb0, 21, 0xe6, 0xf4, 0xf4]));
    expect(&["run", "--debug-exit", "--kernel", text(&kernel)], 43, &[]);
}

#[test]
fn a_signal_ends_a_guest_that_loops() {
    let folder = Folder::new();
    // jmp $
    let kernel = folder.file("kernel", &multiboot(&[0xeb, 0xfe]));
    let mut child = posada()
        .args(["run", "--kernel", text(&kernel)])
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("the command starts");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill").args(["-TERM", &id]).status().expect("kill starts");
    assert!(kill.success());
    assert_eq!(child.wait().expect("it ends").code(), Some(128 + 15));
}
