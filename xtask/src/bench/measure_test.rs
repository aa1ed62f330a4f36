use super::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn timeline(events: &[(u64, u64, Event)]) -> anyhow::Result<Measurement> {
    let start = Instant::now();
    let mut timeline = Timeline::new(start);
    for (when, cpu, event) in events {
        timeline.add(start + seconds(*when), seconds(*cpu), event.clone());
    }
    timeline.finish(1, true)
}

fn end(result: &str) -> Event {
    Event::End { workload: "sort".into(), result: result.into() }
}

#[test]
fn a_boot_is_measured_from_start_and_from_the_kernels_first_line() {
    let measured = timeline(&[(2, 1, Event::Kernel), (3, 1, Event::Kernel), (9, 5, Event::Shell)]).unwrap();
    let boot = measured.boot.unwrap();
    assert_eq!((boot.start_to_shell, boot.kernel_to_shell), (seconds(9), seconds(7)));
    assert_eq!(boot.kernel_to_shell_cpu, seconds(4));
}

#[test]
fn a_workload_is_measured_between_its_marks() {
    let boot = [(0, 0, Event::Kernel), (1, 0, Event::Shell)];
    let work = [(4, 3, Event::Begin("sort".into())), (9, 7, end("5"))];
    let measured = timeline(&[&boot[..], &work[..]].concat()).unwrap();
    assert_eq!(measured.workloads["sort"], Work { wall: seconds(5), cpu: seconds(4), result: "5".into() });
}

#[test]
fn a_workload_without_a_result_has_failed() {
    let boot = [(0, 0, Event::Kernel), (1, 0, Event::Shell)];
    let work = [(4, 3, Event::Begin("sort".into())), (9, 7, end(""))];
    let error = timeline(&[&boot[..], &work[..]].concat()).unwrap_err();
    assert!(error.to_string().contains("workload sort failed"), "{error}");
}

#[test]
fn a_monitor_that_ends_early_is_an_error_with_what_its_guest_said_last() {
    let mut command = tethered("sh");
    command.args(["-c", "echo Linux version 0; echo Kernel panic; echo out of luck >&2"]);
    let launch = Launch { command, console: Console::Stdout, terminal: false, memory: Some(1 << 30) };
    let mut seen = Vec::new();
    let error = measure(launch, &mut |event| seen.push(event.clone())).unwrap_err().to_string();
    assert_eq!(seen, [Event::Kernel]);
    assert!(error.contains("Kernel panic"), "{error}");
}

#[test]
fn what_was_measured_before_a_failure_is_kept() {
    let mut command = tethered("sh");
    command.args(["-c", "echo posada-bench: begin sort; echo posada-bench: end sort 7 8; exit 1"]);
    let launch = Launch { command, console: Console::Stdout, terminal: false, memory: None };
    let (measured, failure) = measure_partly(launch, &mut |_| {}).unwrap();
    assert_eq!((measured.boot, &*measured.workloads["sort"].result), (None, "7 8"));
    assert!(failure.is_some());
}

#[test]
fn a_console_on_standard_error_is_heard_beside_a_terminal() {
    let mut command = tethered("sh");
    command.args(["-c", "test -t 0 && test -t 1 && echo 'posada-bench: shell' >&2"]);
    let launch = Launch { command, console: Console::Stderr, terminal: true, memory: Some(1 << 30) };
    let mut seen = Vec::new();
    measure(launch, &mut |event| seen.push(event.clone())).unwrap_err();
    assert_eq!(seen, [Event::Shell]);
}

#[test]
fn processor_time_of_this_process_can_be_read() {
    cpu_time(std::process::id()).unwrap();
}
