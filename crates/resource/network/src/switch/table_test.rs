//! Learning and forgetting.

use std::time::{Duration, Instant};

use super::{ADDRESSES, Place, Table};

fn address(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 0, a, b, c, d]
}

#[test]
fn an_address_is_where_it_was_seen_last() {
    let (mut table, now) = (Table::default(), Instant::now());
    table.learn(address(1), Place::Peer(3), now);
    assert_eq!(table.find(address(1), now), Some(Place::Peer(3)));
    table.learn(address(1), Place::Peer(4), now);
    assert_eq!(table.find(address(1), now), Some(Place::Peer(4)));
    table.forget(4);
    assert_eq!(table.find(address(1), now), None);
}

#[test]
fn an_address_is_forgotten_after_five_minutes() {
    let (mut table, now) = (Table::default(), Instant::now());
    table.learn(address(1), Place::Peer(3), now);
    assert_eq!(table.find(address(1), now + Duration::from_secs(299)), Some(Place::Peer(3)));
    assert_eq!(table.find(address(1), now + Duration::from_mins(5)), None);
}

#[test]
fn no_peer_takes_the_guests_own_address() {
    let (mut table, now) = (Table::default(), Instant::now());
    table.learn(address(1), Place::Own, now);
    table.learn(address(1), Place::Peer(1), now);
    assert_eq!(table.find(address(1), now), Some(Place::Own));
}

#[test]
fn a_flood_of_addresses_is_bounded_and_leaves_the_guests_own_a_place() {
    let (mut table, now) = (Table::default(), Instant::now());
    for number in 0..100_000 {
        table.learn(address(number), Place::Peer(1), now);
    }
    assert_eq!(table.0.len(), ADDRESSES);
    table.learn(address(200_000), Place::Own, now);
    assert_eq!(table.find(address(200_000), now), Some(Place::Own));
    assert_eq!(table.0.len(), ADDRESSES);
}

#[test]
fn groups_are_not_learnt() {
    let (mut table, now) = (Table::default(), Instant::now());
    table.learn([0xff; 6], Place::Peer(1), now);
    table.learn([1, 0, 0x5e, 0, 0, 1], Place::Own, now);
    assert!(table.0.is_empty());
}
