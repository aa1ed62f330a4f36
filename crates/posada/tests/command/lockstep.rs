//! Debian's kernel on interpreter and translator at once, which must agree on every block.

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
