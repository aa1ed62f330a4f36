//! Which addresses are where.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How many addresses are remembered. While it is full, frames for others go to all.
const ADDRESSES: usize = 1024;
/// How long an address is remembered after its last frame: IEEE 802.1D's ageing time.
const AGE: Duration = Duration::from_mins(5);

/// An Ethernet address.
pub(super) type Address = [u8; 6];

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// This member's guest.
    Own,
    /// A peer, by number.
    Peer(usize),
}

/// Which addresses are where.
#[derive(Debug, Default)]
pub(super) struct Table(HashMap<Address, (Place, Instant)>);

impl Table {
    /// Remembers that a frame of `address` came from `place`. What is one's own guest's no peer can take.
    pub(super) fn learn(&mut self, address: Address, place: Place, now: Instant) {
        if is_group(address) {
            return;
        }
        if let Some((known, seen)) = self.0.get_mut(&address) {
            let fresh = now.saturating_duration_since(*seen) < AGE;
            if place == Place::Own || *known != Place::Own || !fresh {
                (*known, *seen) = (place, now);
            }
            return;
        }
        if self.0.len() >= ADDRESSES {
            self.0.retain(|_, (_, seen)| now.saturating_duration_since(*seen) < AGE);
        }
        // A guest's own address has a place even when peers have claimed all.
        if self.0.len() < ADDRESSES || place == Place::Own && self.make_room() {
            self.0.insert(address, (place, now));
        }
    }

    fn make_room(&mut self) -> bool {
        let victim = self.0.iter().find(|(_, (place, _))| *place != Place::Own).map(|(address, _)| *address);
        victim.is_some_and(|victim| self.0.remove(&victim).is_some())
    }

    /// Where `address` is, if that is known. A group is nowhere.
    pub(super) fn find(&self, address: Address, now: Instant) -> Option<Place> {
        let (place, seen) = self.0.get(&address)?;
        (now.saturating_duration_since(*seen) < AGE).then_some(*place)
    }

    /// Forgets what was behind a peer.
    pub(super) fn forget(&mut self, peer: usize) {
        self.0.retain(|_, (place, _)| *place != Place::Peer(peer));
    }
}

/// Whether an address is of several receivers.
pub(super) fn is_group(address: Address) -> bool {
    address[0] & 1 != 0
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
