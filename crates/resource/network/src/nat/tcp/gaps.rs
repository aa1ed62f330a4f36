//! Data from the guest that came after a gap.

use super::ring::Pool;

/// How many pieces are kept. Beyond it, the guest sends them again.
const PIECES: usize = 64;

/// Pieces after a gap. They may overlap.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Their sequence numbers, and what they hold.
    pieces: Vec<(u32, Box<[u8]>)>,
}

impl Gaps {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Keeps a piece, if there is room for it.
    pub(super) fn keep(&mut self, seq: u32, bytes: &[u8], pool: &mut Pool) {
        let known = self.pieces.iter().any(|(at, piece)| *at == seq && piece.len() >= bytes.len());
        if bytes.is_empty() || known || self.pieces.len() >= PIECES || !pool.take(bytes.len()) {
            return;
        }
        self.pieces.push((seq, bytes.into()));
    }

    /// Takes a piece that holds the byte `expected`, and how many of its bytes come before that. Pieces that are all
    /// before it are dropped.
    pub(super) fn next(&mut self, expected: u32, pool: &mut Pool) -> Option<(usize, Box<[u8]>)> {
        self.pieces.retain(|(seq, piece)| {
            let old = expected.wrapping_sub(*seq) as i32 >= piece.len() as i32;
            if old {
                pool.give(piece.len());
            }
            !old
        });
        let place = self.pieces.iter().position(|(seq, _)| expected.wrapping_sub(*seq) as i32 >= 0)?;
        let (seq, piece) = self.pieces.swap_remove(place);
        pool.give(piece.len());
        Some((expected.wrapping_sub(seq) as usize, piece))
    }

    /// Drops all.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        self.pieces.drain(..).for_each(|(_, piece)| pool.give(piece.len()));
    }
}
