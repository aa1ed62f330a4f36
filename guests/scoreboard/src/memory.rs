//! Rows whose time is memory's: arrays, sorting, pointers, copies.

use std::hint::black_box;

use crate::random::{Random, mix};
use crate::row::{Failure, Row};

type Prepared<B> = Result<B, Failure>;

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new("sieve", "number", 64, SIEVE as u64, || {
            let mut composite = vec![false; SIEVE];
            Ok(move || Ok(sieve(black_box(&mut composite))))
        }),
        Row::new("sort", "number", 64, NUMBERS as u64, sorting),
        Row::new("chase-1m", "hop", 64, 1 << 20, || chase(1 << 20, 1 << 20)),
        Row::new("chase-64m", "hop", 64, 1 << 15, || chase(64 << 20, 1 << 15)),
        Row::new("copy-small", "copy", 64, SMALL_COPIES as u64, small_copies),
        Row::new("copy-large", "MiB", 64, LARGE_COPIES * (LARGE >> 20) as u64, large_copies),
    ]
}

const SIEVE: usize = 1 << 22;

/// The sieve of Eratosthenes; returns how many primes there are.
fn sieve(composite: &mut [bool]) -> u64 {
    composite.fill(false);
    let mut primes = 0;
    for number in 2..composite.len() {
        if !composite[number] {
            primes += 1;
            let mut multiple = number * number;
            while multiple < composite.len() {
                composite[multiple] = true;
                multiple += number;
            }
        }
    }
    primes
}

const NUMBERS: usize = 100_000;

fn sorting() -> Prepared<impl FnMut() -> Result<u64, Failure>> {
    let mut random = Random::new(2);
    let numbers: Vec<u32> = (0..NUMBERS).map(|_| random.next() as u32).collect();
    let mut sorted = numbers.clone();
    Ok(move || {
        sorted.copy_from_slice(&numbers);
        quicksort(black_box(&mut sorted));
        Ok(sorted.iter().step_by(64).fold(0, |sum, number| mix(sum, u64::from(*number))))
    })
}

/// Hoare's, with the middle of three for a pivot and insertion for the rest.
fn quicksort(mut numbers: &mut [u32]) {
    while numbers.len() > 16 {
        let last = numbers.len() - 1;
        let (a, b, c) = (numbers[0], numbers[last / 2], numbers[last]);
        let pivot = a.max(b).min(a.min(b).max(c));
        let (mut left, mut right) = (0, last);
        loop {
            while numbers[left] < pivot {
                left += 1;
            }
            while numbers[right] > pivot {
                right -= 1;
            }
            if left >= right {
                break;
            }
            numbers.swap(left, right);
            left += 1;
            right -= 1;
        }
        let (low, high) = numbers.split_at_mut(left);
        // The shorter one first, and the longer one in this loop: the stack stays shallow.
        let (shorter, longer) = if low.len() < high.len() { (low, high) } else { (high, low) };
        quicksort(shorter);
        numbers = longer;
    }
    for end in 1..numbers.len() {
        let number = numbers[end];
        let mut place = end;
        while place > 0 && numbers[place - 1] > number {
            numbers[place] = numbers[place - 1];
            place -= 1;
        }
        numbers[place] = number;
    }
}

/// A line of a cache, with where to go next.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Node(u32);

/// Goes round one cycle through all lines of so much memory: every load waits for the one before.
fn chase(bytes: usize, hops: usize) -> Prepared<impl FnMut() -> Result<u64, Failure>> {
    let mut nodes: Vec<Node> = (0..bytes / size_of::<Node>()).map(|index| Node(index as u32)).collect();
    // Sattolo's shuffle makes a single cycle.
    let mut random = Random::new(3);
    for index in (1..nodes.len()).rev() {
        nodes.swap(index, random.below(index));
    }
    let walk = move |nodes: &[Node], from: u32| (0..hops).fold(from, |at, _| nodes[at as usize].0);
    // A batch goes on where the one before ended, for what that one saw may still be in a cache. Where each should end
    // is found out first.
    let batches = (nodes.len() / hops).max(1);
    let mut ends = Vec::new();
    for _ in 0..batches {
        ends.push(walk(&nodes, ends.last().copied().unwrap_or(0)));
    }
    let (mut at, mut turn) = (ends[batches - 1], 0);
    Ok(move || {
        at = walk(black_box(&nodes), at);
        let checksum = at ^ ends[turn] ^ ends[0];
        turn = (turn + 1) % batches;
        Ok(u64::from(checksum))
    })
}

const SMALL_COPIES: usize = 1 << 21;

/// Copies of 8 to 71 bytes within the first-level cache, through the C library's `memcpy`.
fn small_copies() -> Prepared<impl FnMut() -> Result<u64, Failure>> {
    let mut random = Random::new(4);
    let plan: Vec<(u16, u16, u8)> = (0..4096)
        .map(|_| (random.below(4000) as u16, random.below(4000) as u16, 8 + random.below(64) as u8))
        .collect();
    let source: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
    let mut target = vec![0; 4096];
    Ok(move || {
        for _ in 0..SMALL_COPIES / plan.len() {
            for (from, to, length) in black_box(&plan) {
                let (from, to, length) = (usize::from(*from), usize::from(*to), usize::from(*length));
                target[to..to + length].copy_from_slice(&source[from..from + length]);
            }
        }
        Ok(target.iter().fold(0, |sum, byte| mix(sum, u64::from(*byte))))
    })
}

const LARGE: usize = 8 << 20;

const LARGE_COPIES: u64 = 20;

/// Copies of 8 MiB.
fn large_copies() -> Prepared<impl FnMut() -> Result<u64, Failure>> {
    let mut random = Random::new(6);
    let source: Vec<u64> = (0..LARGE / 8).map(|_| random.next()).collect();
    let mut target = vec![0; LARGE / 8];
    Ok(move || {
        for _ in 0..LARGE_COPIES {
            black_box(&mut target).copy_from_slice(black_box(&source));
        }
        Ok(target.iter().step_by(4096).fold(0, |sum, word| mix(sum, *word)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_primes_as_is_known() {
        assert_eq!(sieve(&mut vec![false; 1_000_000]), 78_498);
    }

    #[test]
    fn whatever_is_sorted_is_in_order() {
        let mut random = Random::new(9);
        for length in [0, 1, 2, 17, 100, 1000] {
            for end in [2, 10, usize::MAX] {
                let mut numbers: Vec<u32> = (0..length).map(|_| random.below(end) as u32).collect();
                let mut expected = numbers.clone();
                expected.sort_unstable();
                quicksort(&mut numbers);
                assert_eq!(numbers, expected);
            }
        }
        let mut falling: Vec<u32> = (0..1000).rev().collect();
        quicksort(&mut falling);
        assert!(falling.is_sorted());
    }

    #[test]
    fn a_chase_comes_round_after_all_lines() {
        let mut whole = chase(1 << 12, 64).unwrap_or_else(|_| panic!("it is there"));
        let mut part = chase(1 << 12, 16).unwrap_or_else(|_| panic!("it is there"));
        assert_eq!(whole().unwrap_or(1), 0);
        let parts = [(); 9].map(|()| part().unwrap_or(0));
        assert!(parts[0] != 0 && parts == [parts[0]; 9], "{parts:?}");
    }
}
