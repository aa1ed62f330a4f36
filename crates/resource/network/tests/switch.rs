//! Guests on a switch, each with a membership as a process of its own would have.

#[path = "common/peer.rs"]
mod peer;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use peer::{Guest, pattern};
use posada_network::limit::Rates;
use posada_network::link::{Capacity, Features, Link, Packet, pair};
use posada_network::switch::{Error, Name, Switch};
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpCidr;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Joins a switch, and gives the card's end of the link.
fn join(folder: &Path, switch: &str) -> (Switch, Link) {
    let (card, network) = pair(Capacity::default()).unwrap();
    card.accept(Features::ALL);
    (Switch::join_in(folder, &name(switch), Rates::default(), network).unwrap(), card)
}

fn guest(folder: &Path, switch: &str, number: u8) -> (Switch, Guest) {
    let (switch, card) = join(folder, switch);
    let address = IpCidr::new(Ipv4Addr::new(192, 168, 7, number).into(), 24);
    (switch, Guest::on(card, [2, 0, 0, 0, 0, number], &[address], 0))
}

/// A frame between numbered addresses; 0xff is everybody.
fn frame(from: u8, to: u8, payload: u8) -> Packet {
    let to = if to == 0xff { [0xff; 6] } else { [2, 0, 0, 0, 0, to] };
    let mut bytes = [&to[..], &[2, 0, 0, 0, 0, from], &[0x88, 0xb5]].concat();
    bytes.resize(60, payload);
    Packet::new(bytes)
}

/// The payload of the next frame, if one comes soon.
fn next(card: &Link) -> Option<u8> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(200) {
        if let Some(packet) = card.receive() {
            return packet.bytes.last().copied();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Sends until every one of `cards` has received: memberships know of each other a moment after joining.
fn settle(sender: &Link, from: u8, cards: &[&Link]) {
    for card in cards {
        let start = Instant::now();
        loop {
            sender.send(frame(from, 0xff, 1)).unwrap();
            if next(card).is_some() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "members do not find each other");
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    for card in cards {
        while card.receive().is_some() {}
    }
}

#[test]
fn guests_talk_over_the_switch() {
    let folder = tempfile::tempdir().unwrap();
    let (_one, mut server) = guest(folder.path(), "lan", 1);
    let (_two, mut client) = guest(folder.path(), "lan", 2);
    let listening = server.tcp_socket(65_535);
    server.tcp(listening).listen(80).unwrap();
    let handle = client.start_connecting(Ipv4Addr::new(192, 168, 7, 1), 80, 65_535);
    let data = pattern(1 << 20);
    let (mut sent, mut received) = (0, Vec::new());
    client.until("the transfer", |client| {
        server.poll();
        let socket = client.tcp(handle);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        let socket = server.tcp(listening);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        (received.len() == data.len()).then_some(())
    });
    assert!(received == data);
    assert_eq!(client.tcp(handle).state(), State::Established);
}

#[test]
fn a_learnt_address_gets_its_frames_alone_and_switches_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (_a, one) = join(folder.path(), "lan");
    let (_b, two) = join(folder.path(), "lan");
    let (_c, three) = join(folder.path(), "lan");
    let (_d, apart) = join(folder.path(), "other");
    settle(&one, 1, &[&two, &three]);
    settle(&two, 2, &[&one, &three]);
    one.send(frame(1, 2, 42)).unwrap();
    assert_eq!(next(&two), Some(42));
    assert_eq!(next(&three), None, "it is not for three");
    one.send(frame(1, 9, 43)).unwrap();
    assert_eq!((next(&two), next(&three)), (Some(43), Some(43)), "nobody knows nine");
    assert_eq!(next(&apart), None);
}

#[test]
fn the_switch_survives_each_of_its_members() {
    let folder = tempfile::tempdir().unwrap();
    let (first, one) = join(folder.path(), "lan");
    let (_b, two) = join(folder.path(), "lan");
    settle(&one, 1, &[&two]);
    drop((first, one));
    let (_c, three) = join(folder.path(), "lan");
    settle(&two, 2, &[&three]);
    three.send(frame(3, 2, 7)).unwrap();
    assert_eq!(next(&two), Some(7));
}

#[test]
fn what_a_dead_member_left_is_cleaned_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    // A process that joins and is killed.
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_joins_and_waits", "--ignored"])
        .env("POSADA_TEST_FOLDER", folder.path())
        .spawn()
        .unwrap();
    let switch = folder.path().join("lan");
    let members = || {
        let entries = fs::read_dir(&switch).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "member")).count()
    };
    let start = Instant::now();
    while members() == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the helper does not join");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (_a, one) = join(folder.path(), "lan");
    settle_with_helper(&one);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(members(), 2, "the dead cannot clean up");
    let (second, two) = join(folder.path(), "lan");
    assert_eq!(members(), 2, "the stale socket is gone, ours is there");
    settle(&one, 1, &[&two]);
    drop(second);
    assert_eq!(members(), 1);
}

/// The helper sends all the time: it is there when something comes.
fn settle_with_helper(card: &Link) {
    let start = Instant::now();
    while next(card).is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "the helper says nothing");
    }
}

#[test]
#[ignore = "a process for another test"]
fn helper_that_joins_and_waits() {
    let Some(folder) = std::env::var_os("POSADA_TEST_FOLDER") else { return };
    let (_switch, card) = join(Path::new(&folder), "lan");
    for _ in 0..3000 {
        let _ = card.send(frame(77, 0xff, 1));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_member_that_takes_nothing_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (_a, one) = join(folder.path(), "lan");
    let (_b, two) = join(folder.path(), "lan");
    let (_c, deaf) = join(folder.path(), "lan");
    settle(&one, 1, &[&two, &deaf]);
    settle(&two, 2, &[&one]);
    let (mut received, start) = (0, Instant::now());
    while received < 5000 {
        assert!(start.elapsed() < Duration::from_secs(15), "only {received} frames came");
        // To all: the deaf one's queues fill.
        let _ = one.send(frame(1, 0xff, 5));
        while two.receive().is_some() {
            received += 1;
        }
    }
    while next(&two).is_some() {}
    one.send(frame(1, 2, 42)).unwrap();
    assert_eq!(next(&two), Some(42));
    drop(deaf);
}

#[test]
fn a_stranger_who_says_nonsense_is_disconnected() {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket};
    let folder = tempfile::tempdir().unwrap();
    let (_a, one) = join(folder.path(), "lan");
    let (_b, two) = join(folder.path(), "lan");
    let path = fs::read_dir(folder.path().join("lan"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "member"))
        .unwrap();
    for nonsense in [&[9; 40][..], &[2; 100], &[1], &[1, 99, 0], &vec![2; 80_000]] {
        let stranger = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&stranger, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        send(&stranger, nonsense, SendFlags::NOSIGNAL).unwrap();
        // Its hello first, then the end.
        let mut buffer = [0; 100];
        while let Ok((1.., _)) = recv(&stranger, &mut buffer[..], rustix::net::RecvFlags::empty()) {}
    }
    settle(&one, 1, &[&two]);
}

#[test]
fn a_folder_that_others_can_enter_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("lan");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let (_card, network) = pair(Capacity::default()).unwrap();
    let error = Switch::join_in(folder.path(), &name("lan"), Rates::default(), network).unwrap_err();
    assert!(
        matches!(error, Error::Folder { .. }) && error.to_string().contains("others can enter it"),
        "{error}"
    );
}

#[test]
fn names_that_are_no_folder_names_are_refused() {
    for text in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(33)] {
        assert!(matches!(text.parse::<Name>(), Err(Error::Name { .. })), "{text:?}");
    }
    assert!("lab-1.example_net".parse::<Name>().is_ok());
}
