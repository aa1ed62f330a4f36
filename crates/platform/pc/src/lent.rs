//! What a machine's guest is lent, seen from outside: disks, networks and memory, and how much it has used of each.

use std::sync::Arc;

use posada_network::link::{self, Traffic};
use posada_storage::{Counts, Meter};
use posada_virtio::balloon::Control;

use crate::Error;

/// How much a guest has used one of its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// The serial number by which guests can tell it from others.
    pub serial: String,
    /// What the guest's devices have asked of it. They do long requests in pieces of at most 256 KiB, each of which counts.
    pub counts: Counts,
}

/// How much a guest has used one of its network cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardUse {
    /// The card's Ethernet address.
    pub address: [u8; 6],
    /// What the guest has sent.
    pub sent: Traffic,
    /// What it has received.
    pub received: Traffic,
}

/// How much of its memory a guest does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonUse {
    /// How much it is asked to do without, in bytes.
    pub target: u64,
    /// How much it says that it does without, in bytes.
    pub actual: u64,
}

/// All that is lent.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    pub(crate) disks: Vec<(String, Arc<Meter>)>,
    pub(crate) cards: Vec<([u8; 6], link::Meter)>,
    /// What takes back a part of its memory.
    pub(crate) balloon: Option<Control>,
    /// The guest's memory in bytes.
    pub(crate) memory: u64,
}

impl Lent {
    pub(crate) fn disks(&self) -> Vec<DiskUse> {
        let used = |(serial, meter): &(String, Arc<Meter>)| DiskUse {
            serial: serial.clone(),
            counts: meter.counts(),
        };
        self.disks.iter().map(used).collect()
    }

    pub(crate) fn cards(&self) -> Vec<CardUse> {
        let used = |(address, meter): &([u8; 6], link::Meter)| CardUse {
            address: *address,
            sent: meter.sent(),
            received: meter.received(),
        };
        self.cards.iter().map(used).collect()
    }

    pub(crate) fn balloon(&self) -> Option<BalloonUse> {
        let balloon = self.balloon.as_ref()?;
        Some(BalloonUse { target: balloon.target(), actual: balloon.actual() })
    }

    pub(crate) fn set_balloon(&self, bytes: u64) -> Result<(), Error> {
        let balloon = self.balloon.as_ref().ok_or(Error::NoBalloon)?;
        if bytes > self.memory {
            return Err(Error::Balloon { bytes, memory: self.memory });
        }
        balloon.set_target(bytes);
        Ok(())
    }
}
