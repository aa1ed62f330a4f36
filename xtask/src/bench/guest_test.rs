use std::process::Command;

use super::super::console::{Event, Lines};
use super::*;

const WORKLOADS: &[Workload] = &[
    Workload { name: "echo", what: "words", script: "echo 17" },
    Workload { name: "pipe", what: "more words", script: "printf 'b\\na\\n' | sort | head -n 1" },
];

#[test]
fn the_guests_script_marks_each_workload_and_tells_its_result() {
    let script = script(WORKLOADS.iter().map(|workload| (workload.name, workload.script)))
        .replace("/tmp/bench", ".")
        .replace("sleep 3600", "true");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let mut events = Vec::new();
    Lines::default().take(&output.stdout, &mut |event| events.push(event));
    let begin = |workload: &str| Event::Begin(workload.into());
    let end = |workload: &str, result: &str| Event::End { workload: workload.into(), result: result.into() };
    let expected =
        [Event::Shell, begin("echo"), end("echo", "17"), begin("pipe"), end("pipe", "a"), Event::Done];
    assert_eq!(events, expected);
}
