//! The table of flows against what it promises.

use std::time::{Duration, Instant};

use super::{Class, Table};

#[test]
fn the_oldest_weak_flow_goes_first_then_the_oldest_strong() {
    let mut table = Table::new(8);
    let strong = table.insert(1, "strong", Class::Strong);
    let first = table.insert(2, "first", Class::Weak);
    let second = table.insert(3, "second", Class::Weak);
    table.touch(first, Class::Weak);
    assert_eq!(table.oldest(), Some(second));
    table.remove(second).unwrap();
    table.touch(first, Class::Strong);
    assert_eq!(table.oldest(), Some(strong));
    table.touch(strong, Class::Strong);
    assert_eq!(table.oldest(), Some(first));
    table.remove(first);
    table.remove(strong);
    assert_eq!(table.oldest(), None);
    assert_eq!(table.len(), 0);
}

#[test]
fn a_flow_is_queued_once_and_slots_are_used_again() {
    let mut table = Table::new(2);
    let one = table.insert(1, (), Class::Weak);
    table.queue(one);
    table.queue(one);
    assert_eq!(table.queued(), 1);
    table.remove(one);
    let two = table.insert(2, (), Class::Weak);
    assert_eq!(one, two, "a slot is used again");
    table.queue(two);
    assert_eq!(table.next_queued(), Some(two));
    assert_eq!(table.next_queued(), None);
    table.queue(77);
    assert_eq!(table.queued(), 0);
}

#[test]
fn deadlines_move_forward_only_and_go_with_their_flow() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut table = Table::new(4);
    let one = table.insert(1, (), Class::Weak);
    let two = table.insert(2, (), Class::Weak);
    table.schedule(one, at(5));
    table.schedule(one, at(9));
    table.schedule(two, at(3));
    table.schedule(two, at(2));
    assert_eq!(table.next_deadline(), Some(at(2)));
    assert_eq!(table.due(at(1)), None);
    assert_eq!(table.due(at(4)), Some(two));
    assert_eq!(table.due(at(4)), None);
    table.remove(one);
    assert_eq!(table.next_deadline(), None);
}

#[test]
fn a_random_walk_keeps_key_index_and_age_together() {
    let mut table = Table::new(16);
    let mut seed = 7_u64;
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let key = (seed >> 33) % 40;
        match (table.find(&key), seed >> 60) {
            (Some(index), 0..8) => {
                table.touch(index, if seed & 1 == 0 { Class::Weak } else { Class::Strong });
            }
            (Some(index), _) => assert_eq!(table.remove(index), Some((key, key))),
            (None, _) => {
                if table.is_full() {
                    let oldest = table.oldest().unwrap();
                    table.remove(oldest).unwrap();
                }
                let index = table.insert(key, key, Class::Weak);
                assert_eq!(table.get(index), Some(&mut key.clone()));
            }
        }
        assert!(table.len() <= 16);
    }
    while let Some(oldest) = table.oldest() {
        table.remove(oldest).unwrap();
    }
    assert_eq!(table.len(), 0);
}
