//! One request: the buffers of a descriptor chain, read and written front to back.

use posada_memory::{Gpa, GuestRam};

/// Bytes that the driver has not provided, or that lie where there is no RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's buffers are too short, or not in memory")]
pub struct BadBuffer;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    gpa: u64,
    len: u32,
}

/// Pieces of guest memory, used up from the front.
#[derive(Clone, Debug, Default)]
struct Pieces {
    list: Vec<Piece>,
    /// The piece that is next, and how much of it is used up.
    next: usize,
    used: u32,
    left: u64,
}

impl Pieces {
    fn push(&mut self, piece: Piece) {
        self.left += u64::from(piece.len);
        self.list.push(piece);
    }

    /// Takes up to `max` bytes that lie together.
    fn take(&mut self, max: usize) -> Option<(Gpa, usize)> {
        loop {
            let piece = self.list.get(self.next)?;
            let len = (piece.len - self.used).min(u32::try_from(max).unwrap_or(u32::MAX));
            if piece.len == self.used {
                (self.next, self.used) = (self.next + 1, 0);
                continue;
            }
            let gpa = Gpa(piece.gpa.wrapping_add(self.used.into()));
            self.used += len;
            self.left -= u64::from(len);
            return Some((gpa, len as usize));
        }
    }
}

/// A descriptor chain that a driver has made available: what the device reads, then what it writes (virtio 1.2
/// §2.7.4.2).
#[derive(Clone, Debug)]
pub struct Chain {
    ram: GuestRam,
    head: u16,
    readable: Pieces,
    writable: Pieces,
    written: u32,
}

impl Chain {
    pub(crate) fn new(ram: GuestRam, head: u16) -> Self {
        let (readable, writable) = (Pieces::default(), Pieces::default());
        Self { ram, head, readable, writable, written: 0 }
    }

    /// Adds a buffer; whether it may stand there, which a readable one may not after a writable one.
    pub(crate) fn push(&mut self, gpa: u64, len: u32, writable: bool) -> bool {
        let ordered = writable || self.writable.list.is_empty();
        let side = if writable { &mut self.writable } else { &mut self.readable };
        side.push(Piece { gpa, len });
        ordered
    }

    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// How many bytes have been written: what the driver is told.
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    /// How many bytes are left to be read.
    pub fn readable(&self) -> u64 {
        self.readable.left
    }

    /// How many bytes are left to be written.
    pub fn writable(&self) -> u64 {
        self.writable.left
    }

    /// Reads exactly `data.len()` bytes.
    pub fn read(&mut self, mut data: &mut [u8]) -> Result<(), BadBuffer> {
        while !data.is_empty() {
            let (gpa, len) = self.readable.take(data.len()).ok_or(BadBuffer)?;
            let (now, rest) = data.split_at_mut(len);
            self.ram.read(gpa, now).map_err(|_| BadBuffer)?;
            data = rest;
        }
        Ok(())
    }

    /// Reads an array.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], BadBuffer> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads all that is left, unless it is more than `max` bytes.
    pub fn read_all(&mut self, max: usize) -> Result<Vec<u8>, BadBuffer> {
        let len = usize::try_from(self.readable()).ok().filter(|len| *len <= max).ok_or(BadBuffer)?;
        let mut data = vec![0; len];
        self.read(&mut data)?;
        Ok(data)
    }

    /// Writes all of `data`.
    pub fn write(&mut self, mut data: &[u8]) -> Result<(), BadBuffer> {
        while !data.is_empty() {
            let (gpa, len) = self.writable.take(data.len()).ok_or(BadBuffer)?;
            let (now, rest) = data.split_at(len);
            self.ram.write(gpa, now).map_err(|_| BadBuffer)?;
            self.written = self.written.saturating_add(len as u32);
            data = rest;
        }
        Ok(())
    }

    /// Passes over `count` bytes that would be written next, and leaves them as they are.
    pub fn skip_writable(&mut self, mut count: u64) -> Result<(), BadBuffer> {
        while count != 0 {
            let max = usize::try_from(count).unwrap_or(usize::MAX);
            let (_, len) = self.writable.take(max).ok_or(BadBuffer)?;
            self.written = self.written.saturating_add(len as u32);
            count -= len as u64;
        }
        Ok(())
    }

    /// Gives the memory of all buffers to be written back to the host, as far as it is whole pages of RAM; how many
    /// bytes. It reads as zeroes then.
    pub fn release(&mut self) -> Result<u64, BadBuffer> {
        let mut returned = 0;
        while self.writable.left != 0 {
            let (gpa, len) = self.writable.take(usize::MAX).ok_or(BadBuffer)?;
            if self.ram.release(gpa, len).is_ok() {
                returned += len as u64;
            }
        }
        Ok(returned)
    }

    /// Counts what was written to a part that was [split](Self::split_writable) off.
    ///
    /// The driver takes the count for that of bytes written from the first on; a device that has written the last byte
    /// has, to the driver, written all (virtio 1.2 §2.7.8.2 asks for no more than a lower bound of what is valid).
    pub fn append_written(&mut self, part: &Self) {
        self.written = self.written.saturating_add(part.written);
    }

    /// Parts the last `count` writable bytes from the rest: a status that comes after data of any length.
    pub fn split_writable(&mut self, count: u64) -> Result<Self, BadBuffer> {
        let mut tail = self.clone();
        let first = self.writable.left.checked_sub(count).ok_or(BadBuffer)?;
        tail.readable = Pieces::default();
        tail.written = 0;
        tail.skip_writable(first)?;
        tail.written = 0;
        self.writable.left = first;
        self.writable.truncate();
        Ok(tail)
    }
}

impl Pieces {
    /// Forgets what is beyond `left`.
    fn truncate(&mut self) {
        let mut left = self.left + u64::from(self.used);
        let mut kept = self.next;
        for piece in self.list.iter_mut().skip(self.next) {
            if left == 0 {
                break;
            }
            piece.len = u64::from(piece.len).min(left) as u32;
            left -= u64::from(piece.len);
            kept += 1;
        }
        self.list.truncate(kept);
    }
}
