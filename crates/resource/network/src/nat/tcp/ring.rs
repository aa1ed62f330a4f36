//! Buffers of connections: rings that grow while the pool has room.

use std::io::{IoSlice, IoSliceMut};

/// The first size of a ring, in bytes. Every flow gets that much, whatever the pool has left.
pub(super) const FLOOR: usize = 2 << 10;

/// The largest size of a ring, in bytes.
pub(super) const CEILING: usize = 1 << 20;

/// What all rings together may take beyond their floors.
///
/// A ring may grow to as much as is left: so one that nobody empties never takes the last, and the next finds some
/// (the dynamic threshold of Choudhury and Hahne, 1998).
#[derive(Debug)]
pub(in crate::nat) struct Pool {
    left: usize,
}

impl Pool {
    pub(in crate::nat) fn new(bytes: usize) -> Self {
        Self { left: bytes }
    }

    /// Takes `bytes`, if that leaves most of it to others.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let some = bytes <= self.left / 4;
        if some {
            self.left -= bytes;
        }
        some
    }

    /// Gives back what was taken.
    pub(super) fn give(&mut self, bytes: usize) {
        self.left += bytes;
    }

    /// How much is left.
    pub(in crate::nat) fn left(&self) -> usize {
        self.left
    }
}

/// A queue of bytes in one piece of memory.
#[derive(Debug, Default)]
pub(in crate::nat) struct Ring {
    memory: Box<[u8]>,
    start: usize,
    length: usize,
}

impl Ring {
    pub(in crate::nat) fn len(&self) -> usize {
        self.length
    }

    pub(in crate::nat) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many bytes it has room for, without growing.
    pub(in crate::nat) fn room(&self) -> usize {
        self.memory.len() - self.length
    }

    /// Whether it holds memory that it does not use.
    pub(in crate::nat) fn is_idle(&self) -> bool {
        self.length == 0 && !self.memory.is_empty()
    }

    /// Quadruples the room up to the ceiling, if `pool` allows it.
    pub(in crate::nat) fn grow(&mut self, pool: &mut Pool) -> bool {
        let size = (self.memory.len() * 4).clamp(FLOOR, CEILING);
        let more = size - self.memory.len().max(FLOOR);
        if size == self.memory.len() || size > FLOOR && more > pool.left / 2 {
            return false;
        }
        pool.left -= more;
        let mut memory = vec![0; size].into_boxed_slice();
        let [first, second] = self.slices(0, self.length);
        memory[..first.len()].copy_from_slice(first);
        memory[first.len()..self.length].copy_from_slice(second);
        (self.memory, self.start) = (memory, 0);
        true
    }

    /// Gives the memory back; what was in it is gone.
    pub(in crate::nat) fn release(&mut self, pool: &mut Pool) {
        pool.left += self.memory.len().saturating_sub(FLOOR);
        *self = Self::default();
    }

    /// `length` bytes from `offset` on, which it must hold.
    pub(in crate::nat) fn slices(&self, offset: usize, length: usize) -> [&[u8]; 2] {
        debug_assert!(offset + length <= self.length);
        let size = self.memory.len().max(1);
        let from = (self.start + offset) % size;
        let first = length.min(self.memory.len() - from.min(self.memory.len()));
        [
            self.memory.get(from..from + first).unwrap_or_default(),
            self.memory.get(..length - first).unwrap_or_default(),
        ]
    }

    /// All that it holds, for a gathering write.
    pub(in crate::nat) fn io_slices(&self) -> [IoSlice<'_>; 2] {
        self.slices(0, self.length).map(IoSlice::new)
    }

    /// All the room that it has, for a scattering read; [`advance`](Self::advance) follows.
    pub(in crate::nat) fn io_room(&mut self) -> [IoSliceMut<'_>; 2] {
        let size = self.memory.len();
        let (end, room) = (self.start + self.length, size - self.length);
        if end >= size {
            let from = end - size;
            let (_, tail) = self.memory.split_at_mut(from.min(size));
            return [IoSliceMut::new(&mut tail[..room]), IoSliceMut::new(&mut [])];
        }
        let (head, tail) = self.memory.split_at_mut(end);
        [IoSliceMut::new(tail), IoSliceMut::new(&mut head[..self.start])]
    }

    /// Counts `bytes`, which were written into the room, as held.
    pub(in crate::nat) fn advance(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.room());
        self.length += bytes;
    }

    /// Copies in as much of `bytes` as there is room for, and says how much that was.
    pub(in crate::nat) fn extend(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for room in &mut self.io_room() {
            let now = room.len().min(bytes.len() - done);
            room[..now].copy_from_slice(&bytes[done..done + now]);
            done += now;
        }
        self.advance(done);
        done
    }

    /// Forgets the first `bytes`.
    pub(in crate::nat) fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.length);
        self.length -= bytes;
        // Empty, it starts anew, so that what comes next is in one piece.
        self.start = if self.length == 0 { 0 } else { (self.start + bytes) % self.memory.len() };
    }
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
