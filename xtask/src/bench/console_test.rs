use super::*;

fn events(pieces: &[&str]) -> Vec<Event> {
    let (mut lines, mut events) = (Lines::default(), Vec::new());
    for piece in pieces {
        lines.take(piece.as_bytes(), &mut |event| events.push(event));
    }
    events
}

#[test]
fn kernels_first_line_is_an_event() {
    assert_eq!(events(&["[    0.000000] Linux version 6.1.0 (gcc)\r\n"]), [Event::Kernel]);
}

#[test]
fn marks_are_found_across_pieces() {
    assert_eq!(events(&["posada-be", "nch: shell\r", "\n"]), [Event::Shell]);
}

#[test]
fn a_mark_after_something_of_the_kernels_counts() {
    assert_eq!(events(&["[ 1.5] random: posada-bench: begin gzip\n"]), [Event::Begin("gzip".into())]);
}

#[test]
fn the_end_of_a_workload_carries_its_result() {
    let end = |result: &str| Event::End { workload: "sort".into(), result: result.into() };
    assert_eq!(events(&["posada-bench: end sort 12ab\n"]), [end("12ab")]);
    assert_eq!(events(&["posada-bench: end sort 1 2  3\r\n"]), [end("1 2 3")]);
    assert_eq!(events(&["posada-bench: end sort\n"]), [end("")]);
}

#[test]
fn an_unfinished_line_is_no_event() {
    assert_eq!(events(&["posada-bench: done"]), []);
}

#[test]
fn endless_lines_and_endless_output_take_little_memory() {
    let mut lines = Lines::default();
    lines.take(&b"x".repeat(1 << 20), &mut |_| {});
    lines.take(&b"\xc3\xa4\n".repeat(1 << 16), &mut |_| {});
    assert!(lines.line.capacity() <= 2 * TAIL && lines.tail.len() <= 2 * TAIL);
    assert!(lines.tail().ends_with("ä\n"));
}
