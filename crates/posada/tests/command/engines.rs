//! Debian's kernel on engines that are asked for something special.

use crate::support::{Console, run, told};

#[test]
fn both_engines_agree_on_the_start_of_debians_kernel() {
    let words = "earlyprintk=ttyS0,115200 loglevel=7";
    let mut console = Console::open(&["run", "debian", "--engine", "lockstep", "--append", words]);
    // Unpacked, which is a hundred million instructions, and at work.
    console.expect("Linux version");
    console.expect("ACPI: Early table checksum");
}

#[test]
fn lockstep_takes_one_processor() {
    let output = run(["run", "debian", "--engine", "lockstep", "--cpus", "2", "--", "true"], b"");
    let told = told(&output);
    assert!(told.contains("runs one processor, not 2"), "{told}");
}

#[test]
fn lockstep_takes_no_devices_that_write_to_memory() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.raw");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let disk = disk.to_str().unwrap();
    let output = run(["run", "debian", "--engine", "lockstep", "--disk", disk, "--", "true"], b"");
    let told = told(&output);
    assert!(told.contains("cannot repeat what devices write to memory"), "{told}");
}

#[test]
fn a_small_code_cache_is_emptied_again_and_again_and_the_guest_goes_on() {
    let output = run(["run", "debian", "--code-cache", "8M", "--stats", "--", "echo", "there"], b"");
    let told = told(&output);
    assert_eq!(output.stdout, b"there\n", "{told}");
    let emptied = told.lines().find_map(|line| line.trim().strip_prefix("cache full, and emptied"));
    assert!(emptied.is_some_and(|count| count.trim() != "0"), "{told}");
    for part in ["Where the time went", "translated code", "Instructions left to the interpreter"] {
        assert!(told.contains(part), "{part} is not in\n{told}");
    }
}
