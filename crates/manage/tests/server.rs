//! The control socket, with a machine behind it that does nothing, and clients of all kinds.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use posada_boot::{Kernel, Source};
use posada_manage::protocol::{Answer, MAX_LINE, Request};
use posada_manage::{Client, Console, Entry, Machine, Running, Server};
use posada_pc::{Outcome, PcBuilder, Port};

/// A multiboot kernel that says `P` and halts for ever: `mov al, 'P'; mov dx, 0x3f8; out dx, al; hlt; jmp` back to the
/// halt.
fn kernel() -> Kernel {
    let magic = 0x1bad_b002u32;
    let header =
        [magic, 1 << 16, 0u32.wrapping_sub(magic + (1 << 16)), 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend([0xb0, b'P', 0x66, 0xba, 0xf8, 0x03, 0xee, 0xf4, 0xeb, 0xfd]);
    Kernel::new(Source::bytes(image))
}

/// Runs the machine under the name `web` while `work` looks at it from outside.
fn with_guest(work: impl FnOnce(&Running, &Entry)) {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::at(folder.path());
    let mut entry = running.take("web").unwrap();
    let console = Console::new(Some(&entry.log())).unwrap();
    let builder = PcBuilder::new(kernel()).memory(4 << 20).serial(Port::Com1, console.clone());
    let mut pc = builder.build().unwrap();
    let handle = pc.handle();
    let kill = {
        let handle = handle.clone();
        Arc::new(move || handle.stop())
    };
    let vsock = entry.vsock();
    entry.start("nothing".into(), serde_json::Value::Null, false, vsock).unwrap();
    let machine = Machine { handle: handle.clone(), console, stop: kill.clone(), kill };
    let server = Server::start(&entry, machine).unwrap();
    thread::scope(|scope| {
        let runs = scope.spawn(move || pc.run().unwrap());
        work(&running, &entry);
        handle.stop();
        assert_eq!(runs.join().unwrap(), Outcome::Stopped);
    });
    drop(server);
    drop(entry);
    assert_eq!(running.find("web").unwrap(), None);
}

#[test]
fn a_guest_is_asked_paused_and_ended() {
    with_guest(|running, _| {
        let found = running.running("web").unwrap();
        let client = Client::of(&found);
        // It may be a moment before it runs.
        while client.ask(Request::Pause).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
        let status = || match client.ask(Request::Status) {
            Ok(Answer::Status(status)) => status,
            other => panic!("{other:?}"),
        };
        let before = status();
        assert!(before.paused);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(status(), before);
        // One that stands still answers all the same.
        let Ok(Answer::Stats(stats)) = client.ask(Request::Stats) else { panic!() };
        assert!(stats.paused && stats.memory > 0 && stats.cpu_time > 0.0);
        client.ask(Request::Pause).unwrap();
        client.ask(Request::Resume).unwrap();
        thread::sleep(Duration::from_millis(20));
        let after = status();
        assert!(!after.paused && after.guest_time > before.guest_time, "{before:?} {after:?}");
        client.ask(Request::Pause).unwrap();
        client.ask(Request::Kill).unwrap();
    });
}

#[test]
fn a_console_is_shown_from_its_end_and_ends_with_the_guest() {
    let mut joined = None;
    with_guest(|running, _| {
        let found = running.running("web").unwrap();
        let mut stream = Client::of(&found).console().unwrap();
        let mut said = [0];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said, *b"P");
        // One that says no more still listens.
        stream.shutdown(Shutdown::Write).unwrap();
        let mut second = Client::of(&found).console().unwrap();
        second.read_exact(&mut said).unwrap();
        joined = Some(stream);
    });
    let mut rest = Vec::new();
    joined.unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn clients_of_bad_will_are_refused_and_others_served() {
    with_guest(|_, entry| {
        let path = entry.folder().join("control.sock");
        let say = |bytes: &[u8]| {
            let mut stream = UnixStream::connect(&path).unwrap();
            // The server may have had enough before all is said.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        for bytes in
            [&b"\n"[..], b"{}\n", b"\xff\x00\n", b"{\"request\":\"fly\"}\n", &[b'['; 10_000], b"[[\n"]
        {
            let answer = say(bytes);
            assert!(answer.is_empty() || answer.contains("refused"), "{answer}");
        }
        assert_eq!(say(&vec![b' '; MAX_LINE + 2]), "");
    });
}

#[test]
fn those_who_say_nothing_keep_nobody_out() {
    with_guest(|running, entry| {
        let path = entry.folder().join("control.sock");
        let found = running.running("web").unwrap();
        // One says half of what it wants, and two hundred nothing at all.
        let mut slow = UnixStream::connect(&path).unwrap();
        slow.write_all(b"{\"request\":").unwrap();
        let mut silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&path).unwrap()).collect();
        for _ in 0..20 {
            let answer = Client::of(&found).ask(Request::Status);
            assert!(matches!(answer, Ok(Answer::Status(_))), "{answer:?}");
        }
        // The first of them have been put out, with a word.
        for mut stream in [&slow, &silent[0], &silent[100]] {
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said);
            assert!(said.contains("at once"), "{said:?}");
        }
        // The last have not.
        let last = silent.last_mut().unwrap();
        last.write_all(b"{\"request\":\"status\"}\n").unwrap();
        let mut said = String::new();
        last.read_to_string(&mut said).unwrap();
        assert!(said.contains("guest_time"), "{said:?}");
    });
}
