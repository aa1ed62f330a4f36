//! A ring against a plain queue.

use std::collections::VecDeque;

use super::{CEILING, FLOOR, Pool, Ring};

#[test]
fn a_ring_is_a_queue() {
    let (mut ring, mut queue, mut pool) = (Ring::default(), VecDeque::new(), Pool::new(1 << 20));
    let mut seed = 1_u32;
    for step in 0..50_000_u32 {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        let amount = (seed >> 16) as usize % 3000;
        match seed >> 30 {
            0 | 1 => {
                let bytes: Vec<u8> = (0..amount).map(|i| (i as u32 + step) as u8).collect();
                let room = ring.room();
                let done = ring.extend(&bytes);
                assert_eq!(done, room.min(amount));
                queue.extend(&bytes[..done]);
            }
            2 => {
                let amount = amount.min(queue.len());
                ring.consume(amount);
                queue.drain(..amount);
            }
            _ if step % 1000 == 0 => {
                ring.grow(&mut pool);
            }
            _ => {
                let offset = amount.min(queue.len());
                let length = (queue.len() - offset).min(1448);
                let wanted: Vec<u8> = queue.iter().skip(offset).take(length).copied().collect();
                assert_eq!(ring.slices(offset, length).concat(), wanted);
            }
        }
        if step == 0 {
            ring.grow(&mut pool);
        }
        assert_eq!(ring.len(), queue.len());
    }
}

#[test]
fn what_a_ring_takes_it_gives_back() {
    let mut pool = Pool::new(8 << 20);
    let mut ring = Ring::default();
    while ring.grow(&mut pool) {}
    assert_eq!(ring.room(), CEILING);
    assert_eq!(pool.left(), (8 << 20) - CEILING + FLOOR);
    ring.release(&mut pool);
    assert_eq!(pool.left(), 8 << 20);
}

#[test]
fn greedy_rings_leave_some_for_the_next() {
    let mut pool = Pool::new(4 << 20);
    let mut rings: Vec<Ring> = (0..1000).map(|_| Ring::default()).collect();
    for ring in &mut rings[..999] {
        while ring.grow(&mut pool) {}
    }
    assert!(rings[999].grow(&mut pool), "the floor is for everybody");
    assert_eq!(rings[999].room(), FLOOR);
}
