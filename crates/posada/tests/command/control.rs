//! Guests in the background: started, found, asked, ended.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{cache, posada, told};

/// A place for guests of its own, whose guests end with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("there is room for a folder"))
    }

    fn command(&self) -> Command {
        let mut command = posada();
        command.env("XDG_STATE_HOME", self.0.path());
        command
    }

    fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().expect("the command runs")
    }

    /// Runs it; it is to succeed, and this is what it says.
    fn say(&self, words: &str) -> String {
        let output = self.run(words.split(' '));
        assert_eq!(output.status.code(), Some(0), "{words}: {}", told(&output));
        String::from_utf8(output.stdout).expect("it says text")
    }

    /// Runs it; it is to fail, and this is what it complains about.
    fn fail(&self, words: &str) -> String {
        let output = self.run(words.split(' '));
        assert_eq!(output.status.code(), Some(125), "{words}: {}", told(&output));
        String::from_utf8(output.stderr).expect("it says text")
    }

    fn exec(&self, name: &str, script: &str, stdin: &[u8]) -> Output {
        let mut command = self.command();
        command.args(["exec", name, "--", "sh", "-c", script]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let (mut input, bytes) = (child.stdin.take().expect("it is piped"), stdin.to_vec());
        let feeder = std::thread::spawn(move || {
            // The command may end without reading it all.
            let _ = input.write_all(&bytes);
        });
        let output = child.wait_with_output().expect("it ends");
        feeder.join().expect("the feeder does not panic");
        output
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let running = self.run(["ps"]);
        for line in String::from_utf8_lossy(&running.stdout).lines().skip(1) {
            if let Some(name) = line.split(' ').next() {
                self.run(["rm", "--force", name]);
            }
        }
    }
}

#[test]
fn a_guest_in_the_background_is_found_asked_and_ended() {
    let place = Place::new();
    assert_eq!(place.say("run -d --name web debian"), "web\n");
    let listed = place.say("ps");
    let row: Vec<&str> = listed.lines().nth(1).expect("it is listed").split_whitespace().collect();
    assert_eq!((row[0], row[1], row[4]), ("web", "running", "debian"));

    // Streams, status, one after another and several at once.
    let input: Vec<u8> = (0..100_000u32).map(|n| (n * 7) as u8).collect();
    let output = place.exec("web", "cat; echo trouble >&2; touch /tmp/kept; exit 37", &input);
    assert_eq!(output.status.code(), Some(37));
    assert!(output.stdout == input && output.stderr == b"trouble\n", "{}", told(&output));
    std::thread::scope(|scope| {
        let at_once = ["1", "2", "3"].map(|n| {
            let place = &place;
            scope.spawn(move || place.exec("web", &format!("sleep 1; test -e /tmp/kept && echo {n}"), b""))
        });
        for (n, one) in (1..).zip(at_once) {
            let output = one.join().expect("it does not panic");
            assert_eq!(output.stdout, format!("{n}\n").as_bytes(), "{}", told(&output));
        }
    });
    let unknown = place.run(["exec", "web", "--", "no-such-command"]);
    assert_eq!(unknown.status.code(), Some(127), "{}", told(&unknown));

    // What cannot be is refused.
    assert!(place.fail("run --name web debian").contains("`web` runs already (process "));
    assert!(place.fail("rm web").contains("posada stop web"));
    assert!(place.fail("stop other").contains("no guest named `other` runs"));

    let inspected: String = place.say("inspect web");
    for part in ["\"state\": \"running\"", "\"cpus\": \"1\"", "\"detached\": true"] {
        assert!(inspected.contains(part), "{inspected}");
    }
    assert!(place.say("stats web").contains("processor time"));

    place.say("stop web");
    assert_eq!(place.say("ps").lines().count(), 1);
    assert!(place.say("ps --all").contains("ended (0)"));
    assert!(place.say("logs web").contains("root@debian"));
    place.say("rm web");
    assert!(!place.say("ps --all").contains("web"));
}

#[test]
fn a_paused_guest_stands_still_and_so_do_its_clocks() {
    let place = Place::new();
    let name = place.say("run -d debian");
    let name = name.trim_end();
    assert!(name.starts_with("debian-"), "{name}");
    let uptime = || -> f64 {
        let output = place.exec(name, "cut -d ' ' -f 1 /proc/uptime", b"");
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or_else(|_| panic!("{}", told(&output)))
    };
    let (before, began) = (uptime(), Instant::now());
    let waiting = {
        let mut command = place.command();
        command.args(["exec", name, "--", "sh", "-c", "sleep 0.5; echo woken"]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).spawn().expect("the command starts")
    };
    place.say(&format!("pause {name}"));
    assert!(place.say("ps").contains("paused"));
    let stood = Instant::now();
    let time = || place.say(&format!("stats {name} --json")).lines().nth(2).map(str::to_owned);
    let stands = time();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(time(), stands);
    let stood = stood.elapsed();
    place.say(&format!("resume {name}"));
    assert_eq!(waiting.wait_with_output().expect("it ends").stdout, b"woken\n");
    let (lived, passed) = (uptime() - before, began.elapsed());
    assert!(
        lived < passed.as_secs_f64() - stood.as_secs_f64() + 0.5,
        "{lived} s in {passed:?}, of which {stood:?} paused"
    );
    place.say(&format!("kill {name}"));
    assert!(place.say("ps --all").contains("ended (137)"));
}

#[test]
fn devices_of_a_paused_guest_do_nothing_and_go_on_where_they_were() {
    let place = Place::new();
    let disk = place.0.path().join("disk.img");
    std::fs::File::create(&disk).and_then(|file| file.set_len(16 << 20)).expect("there is room");
    place.say(&format!("run -d --name web --disk {} debian", disk.to_str().expect("it is text")));
    let work =
        "while :; do dd if=/dev/zero of=/dev/vda bs=4k count=256 oflag=direct 2>/dev/null; done >/dev/null &
        ping -i 0.1 10.0.2.2 >/dev/null &";
    assert_eq!(place.exec("web", work, b"").status.code(), Some(0));
    let counts = || -> [u64; 2] {
        let stats: serde_json::Value =
            serde_json::from_str(&place.say("stats web --json")).expect("it is JSON");
        ["/disks/0/writes", "/networks/0/received_packets"]
            .map(|at| stats.pointer(at).and_then(serde_json::Value::as_u64).expect("it is counted"))
    };
    let wait_for_more = |before: [u64; 2]| {
        let deadline = Instant::now() + Duration::from_mins(1);
        while counts().iter().zip(before).any(|(now, before)| *now <= before + 1) {
            assert!(Instant::now() < deadline, "{:?} after {before:?}", counts());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for_more([0; 2]);
    for _ in 0..3 {
        place.say("pause web");
        let stands = counts();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(counts(), stands);
        place.say("resume web");
        wait_for_more(stands);
    }
    place.say("pause web");
    let began = Instant::now();
    place.say("kill web");
    assert!(began.elapsed() < Duration::from_secs(15), "a paused guest ends as others do");
}

#[test]
fn what_a_guest_uses_of_disks_and_networks_is_told_while_it_runs() {
    let place = Place::new();
    let disk = place.0.path().join("disk.img");
    std::fs::File::create(&disk).and_then(|file| file.set_len(16 << 20)).expect("there is room");
    place.say(&format!("run -d --name web --disk {} debian", disk.to_str().expect("it is text")));
    let stats =
        || -> serde_json::Value { serde_json::from_str(&place.say("stats web --json")).expect("it is JSON") };
    let figure = |stats: &serde_json::Value, at: &str| {
        stats.pointer(at).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{at} in {stats}"))
    };
    let work = "dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null
        dd if=/dev/zero of=/dev/vda bs=64k count=32 oflag=direct conv=fsync 2>/dev/null
        grep eth0 /proc/net/dev | tr -s ' :' ' '; ping -c 3 -s 1000 10.0.2.2 >/dev/null
        grep eth0 /proc/net/dev | tr -s ' :' ' '";
    let (output, told_before) = (place.exec("web", "true", b""), stats());
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(told_before["disks"][0]["serial"], "posada-0");
    let output = place.exec("web", work, b"");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let told_after = stats();
    let grown = |at: &str| figure(&told_after, at) - figure(&told_before, at);
    assert_eq!((grown("/disks/0/reads"), grown("/disks/0/read_bytes")), (64, 4 << 20), "{told_after}");
    assert_eq!((grown("/disks/0/writes"), grown("/disks/0/written_bytes")), (32, 2 << 20), "{told_after}");
    assert!(grown("/disks/0/flushes") >= 1 && grown("/disks/0/errors") == 0, "{told_after}");

    // As the guest counts: three pings with all their headers, and what else goes over the wire meanwhile.
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let guests = |line: usize, column: usize| -> u64 {
        let words: Option<&str> =
            lines.lines().nth(line).and_then(|line| line.split_whitespace().nth(column));
        words.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{lines}"))
    };
    assert!(grown("/networks/0/sent_bytes") >= 3 * (1000 + 8 + 20 + 14), "{told_after}");
    assert!(figure(&told_after, "/networks/0/sent_packets") >= guests(1, 10), "{lines}{told_after}");
    assert!(figure(&told_after, "/networks/0/sent_bytes") >= guests(1, 9), "{lines}{told_after}");
    assert!(figure(&told_after, "/networks/0/received_packets") >= guests(1, 2), "{lines}{told_after}");
    assert!(figure(&told_after, "/networks/0/received_packets") >= 3, "{told_after}");
    let text = place.say("stats web");
    assert!(text.contains("disk posada-0   ") && text.contains("packets sent"), "{text}");
}

#[test]
fn a_balloon_takes_memory_from_a_guest_and_gives_it_back() {
    let place = Place::new();
    place.say("run -d --name web --memory 384M --balloon 32M debian");
    // In KiB. (`MemTotal` stays: Linux may take its pages back when it needs them.)
    let free = || -> i64 {
        let output = place.exec("web", "grep MemFree /proc/meminfo | tr -dc 0-9", b"");
        String::from_utf8_lossy(&output.stdout).parse().unwrap_or_else(|_| panic!("{}", told(&output)))
    };
    let wait_for = |text: &str| {
        let deadline = Instant::now() + Duration::from_mins(2);
        while !place.say("stats web").contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {}", place.say("stats web"));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("balloon         32.0 MiB of 32.0 MiB asked for");
    let before = free();
    place.say("balloon web 160M");
    wait_for("balloon         160.0 MiB of 160.0 MiB asked for");
    let taken = (before - free()) >> 10;
    assert!((112..144).contains(&taken), "{taken} MiB");
    place.say("balloon web 0");
    let deadline = Instant::now() + Duration::from_mins(1);
    while place.say("stats web").contains("balloon") {
        assert!(Instant::now() < deadline, "it is empty at last");
        std::thread::sleep(Duration::from_millis(50));
    }
    let given = (free() - before) >> 10;
    assert!((16..48).contains(&given), "{given} MiB");
    let refused = place.fail("balloon web 385M");
    assert!(refused.contains("385 MiB") && refused.contains("384 MiB"), "{refused}");
    assert!(place.fail("run --balloon 1G --memory 512M debian").contains("a balloon cannot take 1 GiB"));
}

#[test]
fn a_killed_supervisor_leaves_nothing_in_the_way() {
    let place = Place::new();
    let disk = place.0.path().join("disk.qcow2");
    let disk = disk.to_str().expect("it is text");
    place.say(&format!("disk create {disk} 64M"));
    for detached in ["-d ", "-d "] {
        let start = format!("run {detached}--name web --disk {disk} debian");
        place.say(&start);
        assert!(place.fail(&format!("run --disk {disk} debian -- true")).contains(disk));
        let listed = place.say("ps");
        let process =
            listed.lines().nth(1).and_then(|row| row.split_whitespace().nth(2)).expect("it is listed");
        let killed = Command::new("kill").args(["-9", process]).status().expect("kill runs");
        assert!(killed.success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while place.say("ps").contains("web") {
            assert!(Instant::now() < deadline, "it is gone at last");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(place.say("ps --all").contains("killed"));
    }
    place.say("rm web");
}

#[test]
fn a_detached_commands_output_and_status_are_kept() {
    let place = Place::new();
    let output = place.run(["run", "-d", "--name", "job", "debian", "--", "sh", "-c", "echo done; exit 5"]);
    assert_eq!(output.stdout, b"job\n", "{}", told(&output));
    assert_eq!(place.say("logs --follow job"), "done\n");
    let listed = place.say("ps --all");
    assert!(listed.contains("ended (5)"), "{listed}");
    // A name that has ended is free.
    let again = place.run(["run", "--name", "job", "debian", "--", "true"]);
    assert_eq!(again.status.code(), Some(0), "{}", told(&again));
    assert!(!place.say("ps --all").contains("job"));
    // A command is asked to end as a person would ask it.
    let words = [
        "run",
        "-d",
        "--name",
        "job",
        "debian",
        "--",
        "sh",
        "-c",
        "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done",
    ];
    place.run(words);
    let deadline = Instant::now() + Duration::from_mins(1);
    while !place.say("logs job").contains("up") {
        assert!(Instant::now() < deadline, "it starts at last");
        std::thread::sleep(Duration::from_millis(50));
    }
    place.say("stop job");
    assert!(place.say("logs job").contains("asked\n"));
    assert!(place.say("ps --all").contains("ended (3)"));
}

#[test]
fn a_console_is_joined_and_left() {
    let place = Place::new();
    place.say("run -d --name web debian");
    let mut command = place.command();
    let mut joined = command
        .args(["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = joined.stdin.take().expect("it is piped");
    let mut stdout = joined.stdout.take().expect("it is piped");
    let mut seen = String::new();
    let mut expect = |text: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            let count = stdout.read(&mut buffer).expect("it can be read");
            assert!(count != 0, "ended before {text:?}; seen:\n{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    expect("# ");
    stdin.write_all(b"echo $((6 * 7)) answers\n").expect("it is read");
    expect("42 answers");
    drop(stdin);
    // It ends when the guest does.
    place.say("kill web");
    assert_eq!(joined.wait().expect("it ends").code(), Some(0));
    assert!(place.say("logs web").contains("42 answers"));
}

#[test]
fn a_guest_is_described_in_a_file_and_one_that_cannot_start_says_so() {
    let place = Place::new();
    let file = place.0.path().join("guest.toml");
    let text = "image = 'debian'\nmemory = '192M'\nname = 'filed'\ncommand = ['sh', '-c', 'nproc; exit 4']\n";
    std::fs::write(&file, text).expect("it can be written");
    let file = file.to_str().expect("it is text");
    let output = place.run(["run", "--config", file, "--cpus", "2"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(4), &b"2\n"[..]), "{}", told(&output));

    std::fs::write(file, "colour = 'red'\n").expect("it can be written");
    let wrong = place.run(["run", "--config", file]);
    assert_eq!(wrong.status.code(), Some(2), "{}", told(&wrong));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("`colour` is no key"), "{}", told(&wrong));

    assert!(place.fail("run -d --kernel /nonexistent/kernel").contains("/nonexistent/kernel"));
    assert!(place.fail("run -d --name a_b debian").contains("a_b"));
    assert_eq!(place.say("ps --all").lines().count(), 1);
    assert!(cache().exists());
}
