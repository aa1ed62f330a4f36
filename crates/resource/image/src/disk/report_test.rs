use super::*;
use crate::progress::Silent;

#[derive(Default)]
struct Told {
    stages: Vec<(String, Option<u64>)>,
    advanced: u64,
}

impl Progress for Told {
    fn stage(&mut self, what: &str, total: Option<u64>) {
        self.stages.push((what.to_owned(), total));
    }

    fn advance(&mut self, amount: u64) {
        self.advanced += amount;
    }

    fn done(&mut self) {}
}

fn report() -> Report {
    Report::new([("libc6".to_owned(), 100), ("dpkg".to_owned(), 10)].into())
}

#[test]
fn each_package_counts_once_unpacked_and_once_installed() {
    let (mut report, mut told) = (report(), Told::default());
    for line in [
        "posada: stage Making the file system",
        "posada: install",
        "processing: install: libc6:amd64",
        "status: libc6:amd64: half-installed",
        "status: libc6:amd64: unpacked",
        "status: libc6:amd64: unpacked",
        "status: libc6:amd64: half-configured",
        "status: libc6:amd64: installed",
        "status: libc6:amd64: installed",
        "status: dpkg: unpacked",
        "status: stranger: installed",
    ] {
        report.line(line, &mut told);
    }
    assert_eq!(
        told.stages,
        [("Making the file system".into(), None), ("Installing 2 packages".into(), Some(220))]
    );
    assert_eq!(told.advanced, 210);
    assert_eq!(report.verdict(), Verdict::Open);
}

#[test]
fn only_the_last_word_is_success() {
    let mut done = report();
    done.line("posada: done", &mut Silent);
    assert_eq!(done.verdict(), Verdict::Done);
    let mut failed = report();
    failed.line("status: /build/x.deb : error : it is broken", &mut Silent);
    failed.line("status: libc6 : error : dependency problems", &mut Silent);
    failed.line("posada: failed dpkg could not install the packages", &mut Silent);
    failed.line("posada: done", &mut Silent);
    let Verdict::Failed(why) = failed.verdict() else { panic!("it failed") };
    assert_eq!(why, "dpkg could not install the packages: /build/x.deb: it is broken");
}

#[test]
fn whatever_the_guest_writes_is_taken() {
    let mut report = report();
    for line in
        ["", "posada: ", "posada: \u{fffd}", "status: ", "status: : ", "status: : error : ", "pmstatus:"]
    {
        report.line(line, &mut Silent);
    }
    assert_eq!(report.verdict(), Verdict::Open);
}

#[test]
fn lines_come_whole_and_are_not_longer_than_sensible() {
    let (sender, receiver) = std::sync::mpsc::sync_channel(8);
    let mut lines = Lines::new(sender);
    lines.write_all(b"posada: st").unwrap();
    lines.write_all(b"age x\r\n\xff\n").unwrap();
    lines.write_all(&[b'a'; 3 * MAX_LINE]).unwrap();
    lines.write_all(b"\nlost at the end").unwrap();
    drop(lines);
    let lines: Vec<String> = receiver.into_iter().collect();
    assert_eq!(lines[..2], ["posada: stage x", "\u{fffd}"]);
    assert_eq!((lines.len(), lines[2].len()), (3, MAX_LINE));
}

#[test]
fn of_the_console_the_last_lines_are_kept() {
    let mut tail = Tail::default();
    for number in 0..10_000 {
        writeln!(tail, "line {number}\r").unwrap();
    }
    let shown = tail.lines();
    assert!(shown.starts_with("\n  line 9988\n") && shown.ends_with("\n  line 9999"), "{shown}");
    assert_eq!(Tail::default().lines(), "");
}
