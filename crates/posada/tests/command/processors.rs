//! Debian's kernel on several processors, on both engines.

use crate::support::{Console, run, told};

/// What a multiprocessor kernel does all the time: processes that come and go on all processors, pipes between
/// them, and programs moved from one processor to another.
const WORK: &str = "
    nproc
    n=0
    while [ $n -lt 40 ]; do (echo $n | cat | wc -l) & n=$((n+1)); done > /lines
    wait
    wc -l < /lines
    for cpu in $(seq 0 $(($(nproc) - 1))); do
        taskset -c $cpu sh -c 'n=0; while [ $n -lt 500 ]; do n=$((n+1)); done; echo $n' &
    done
    wait
    sleep 1000 &
    for n in 1 2 3; do taskset -p 1 $! > /dev/null; taskset -p 2 $! > /dev/null; done
    kill $!
    dmesg | grep -E 'BUG:|WARNING:|stall|soft lockup|Oops' || echo quiet
";

fn work_on(engine: &str, cpus: usize) {
    let count = cpus.to_string();
    let output = run(["run", "debian", "--engine", engine, "--cpus", &count, "--", "sh", "-c", WORK], b"");
    let mut expected = format!("{cpus}\n40\n");
    expected.extend((0..cpus).map(|_| "500\n"));
    expected.push_str("quiet\n");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", told(&output));
}

#[test]
fn two_interpreted_processors_work() {
    work_on("interpret", 2);
}

#[test]
fn four_interpreted_processors_work() {
    work_on("interpret", 4);
}

#[test]
fn two_translated_processors_work() {
    work_on("translate", 2);
}

#[test]
fn four_translated_processors_work() {
    work_on("translate", 4);
}

#[test]
fn two_processors_reboot_and_power_off_on_either_engine() {
    for engine in ["interpret", "translate"] {
        let mut console = Console::open(&["run", "debian", "--engine", engine, "--cpus", "2"]);
        console.expect("# ");
        console.send("reboot -f\n");
        console.expect("Linux version");
        console.expect("# ");
        console.send("echo processors=$(nproc)\n");
        console.expect("processors=2");
        console.send("poweroff -f\n");
        assert_eq!(console.end(), Some(0));
    }
}
