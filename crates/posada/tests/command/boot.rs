//! Debian's own kernel, booted and used through the command.

use std::time::{Duration, Instant};

use crate::support::{Console, run, told};

/// The prompt of the guest's shell.
const PROMPT: &str = "# ";

#[test]
fn a_commands_output_is_all_that_reaches_standard_output() {
    let output = run(["run", "debian", "--", "uname", "-r"], b"");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let release = String::from_utf8(output.stdout).expect("a release is text");
    assert!(release.ends_with("-cloud-amd64\n") && release.lines().count() == 1, "{release:?}");
}

#[test]
fn a_command_gets_its_arguments_and_input_and_returns_its_status_and_both_outputs() {
    let script = "printf '%s|' \"$0\" \"$@\"; wc -c; echo trouble >&2; exit 37";
    let input: Vec<u8> = (0..100_000u32).map(|n| (n * 7) as u8).collect();
    let output =
        run(["run", "debian", "--", "sh", "-c", script, "zero", "two words", "a\n'b\"$c", ""], &input);
    assert_eq!(output.status.code(), Some(37), "{}", told(&output));
    assert_eq!(output.stdout, b"zero|two words|a\n'b\"$c||100000\n", "{}", told(&output));
    assert_eq!(output.stderr, b"trouble\n", "{}", told(&output));
}

#[test]
fn small_and_large_memories_are_what_the_guest_finds() {
    for (size, least, most) in [("128M", 64, 128), ("2G", 1800, 2048)] {
        let script = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
        let output = run(["run", "debian", "--memory", size, "--", "sh", "-c", script], b"");
        let found: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
        assert!((least..=most).contains(&found), "{size}: {found} MiB\n{}", told(&output));
    }
}

#[test]
fn a_guest_brings_up_as_many_processors_as_it_has() {
    let output = run(["run", "debian", "--cpus", "4", "--", "nproc"], b"");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"4\n"[..]), "{}", told(&output));
}

/// A 32-bit program of one page: writes "32 bits" and a newline, and exits with status 42.
fn program_of_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const CODE: u32 = 0x54;
    let text = b"32 bits\n";
    let text_at = BASE + CODE + 34;
    let mut code = vec![0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9]; // mov eax, 4; mov ebx, 1; mov ecx, text
    code.extend(text_at.to_le_bytes());
    code.extend([0xba, 8, 0, 0, 0, 0xcd, 0x80]); // mov edx, 8; int 0x80
    code.extend([0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80]); // mov eax, 1; mov ebx, 42; int 0x80
    code.extend(text);
    let size = CODE + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0".to_vec();
    // Version, entry, program headers, section headers, flags.
    for word in [1, BASE + CODE, 0x34, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    // Sizes of the header and of one program header, how many; no section headers.
    for half in [0x34u16, 0x20, 1, 0x28, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD: offset, addresses, sizes, readable and executable, alignment.
    for word in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn a_32_bit_program_runs_in_the_64_bit_guest() {
    let script = "cat > /program && chmod +x /program && exec /program";
    let output = run(["run", "debian", "--", "sh", "-c", script], &program_of_32_bits());
    assert_eq!(output.status.code(), Some(42), "{}", told(&output));
    assert_eq!(output.stdout, b"32 bits\n");
}

#[test]
fn a_shell_reboots_and_powers_off() {
    let mut console = Console::open(&["run", "debian"]);
    console.expect(PROMPT);
    console.send("echo first=$((20 + 3))\n");
    console.expect("first=23");
    console.send("reboot -f\n");
    console.expect("Linux version");
    console.expect(PROMPT);
    console.send("poweroff -f\n");
    assert_eq!(console.end(), Some(0));
}

#[test]
fn a_guest_that_sleeps_two_seconds_sleeps_two_seconds() {
    let script = "cat /proc/uptime; sleep 2; cat /proc/uptime";
    let output = run(["run", "debian", "--", "sh", "-c", script], b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<f64> = text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    let [before, after] = times[..] else { panic!("{}", told(&output)) };
    assert!((1.99..6.0).contains(&(after - before)), "slept {} s", after - before);
}

#[test]
fn an_idle_guest_uses_next_to_no_processor_and_keeps_the_hosts_time() {
    let mut console = Console::open(&["run", "debian"]);
    console.expect(PROMPT);
    // Let the kernel finish what it does after the first prompt.
    console.send("sleep 3; cat /proc/uptime; echo go\n");
    console.expect("\ngo");
    let (used, began) = (processor_time(console.id()), Instant::now());
    console.send("sleep 10; echo gone\n");
    console.expect("\ngone");
    let (used, took) = (processor_time(console.id()).saturating_sub(used), began.elapsed());
    assert!(took >= Duration::from_millis(9_900), "ten seconds in the guest took {took:?}");
    assert!(used.as_secs_f64() < took.as_secs_f64() * 0.1, "{used:?} of processor time in {took:?}");
    console.send("poweroff -f\n");
    assert_eq!(console.end(), Some(0));
}

/// User and system time of a process.
fn processor_time(id: u32) -> Duration {
    // proc(5): fields 14 and 15, after the name in parentheses, in clock ticks of 10 ms.
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("the process lives");
    let fields = stat.rsplit_once(')').expect("the name is in parentheses").1;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap_or(0)).sum();
    Duration::from_millis(ticks * 10)
}
