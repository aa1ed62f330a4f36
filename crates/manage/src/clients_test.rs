use std::io::Read;

use super::*;

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

#[test]
fn who_was_silent_for_longest_makes_room() {
    let clients = Clients::default();
    let (mut connected, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..=CLIENTS {
        let (ours, other) = pair();
        connected.push(clients.enter(ours));
        theirs.push(other);
    }
    let mut told = Vec::new();
    theirs[0].read_to_end(&mut told).unwrap();
    assert_eq!(told, no_room());
    assert_eq!(connected[0].begin(), Err(Refusal::PutOut));
    // Those who have said something are not put out, however long it takes.
    assert_eq!(connected[1].begin(), Ok(()));
    for _ in 0..CLIENTS {
        connected.push(clients.enter(pair().0));
    }
    assert_eq!(connected[2].begin(), Err(Refusal::PutOut));
    theirs[1].set_nonblocking(true).unwrap();
    assert!(theirs[1].read(&mut [0]).is_err(), "it is neither told something nor put out");
}

#[test]
fn only_so_much_is_done_at_once() {
    let clients = Clients::default();
    let mut busy = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = clients.enter(pair().0);
        client.begin().unwrap();
        busy.push(client);
    }
    assert_eq!(clients.enter(pair().0).begin(), Err(Refusal::Busy));
    busy.pop();
    assert_eq!(clients.enter(pair().0).begin(), Ok(()));
    drop(busy);
    let inner = clients.lock();
    assert_eq!((inner.busy, inner.threads, inner.silent.len()), (0, 0, 0));
}
