//! What local APICs and I/O APICs send each other: interrupt messages.
//!
//! Facts: Intel SDM volume 3, sections "Issuing Interprocessor Interrupts" and "Message Signalled Interrupts".

use serde::{Deserialize, Serialize};

/// What an interrupt message does at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    Fixed,
    /// The vector, at the one destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up: the vector is the page number of the first instruction.
    StartUp,
    /// The vector is to be had from the 8259A.
    ExtInt,
}

impl DeliveryMode {
    /// The mode of the three-bit field (bits 8 to 10) of an ICR, LVT or redirection entry; 3 is reserved.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// Whether an interrupt is complete with its message or holds until its source is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TriggerMode {
    /// Over when delivered.
    Edge,
    /// Held until the end of interrupt, which the I/O APIC is told.
    Level,
}

/// Which local APICs a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// The one with this APIC ID.
    Physical(u32),
    /// Those whose logical destination register matches this message destination address.
    Logical(u32),
    /// All, the sender included.
    All,
    /// All but the one with this APIC ID: the sender's "all excluding self".
    AllBut(u32),
}

impl Destination {
    /// The destination of an eight-bit field, as in an xAPIC's ICR, an I/O APIC or an MSI address.
    pub fn from_byte(destination: u8, logical: bool) -> Self {
        match (logical, destination) {
            (true, _) => Self::Logical(destination.into()),
            (false, 0xff) => Self::All,
            (false, id) => Self::Physical(id.into()),
        }
    }
}

/// An interrupt message, for the board to hand to every local APIC that
/// [`matches`](crate::lapic::Lapic::matches) its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// What it does there.
    pub mode: DeliveryMode,
    /// The vector; a page number for [`DeliveryMode::StartUp`], without meaning for the modes that have none.
    pub vector: u8,
    /// Edge or level.
    pub trigger: TriggerMode,
    /// The level of a level-triggered message. Only an INIT comes with `false` ("INIT level de-assert", which
    /// today's processors ignore).
    pub assert: bool,
}

impl Message {
    /// The message of a message-signalled interrupt: a write of `data` to `address` (0xfeex_xxxx). `None` if the
    /// delivery mode is the reserved one.
    ///
    /// ```
    /// use posada_devices::apic::{DeliveryMode, Destination, Message};
    ///
    /// let message = Message::from_msi(0xfee0_1000, 0x4041).unwrap();
    /// assert_eq!(message.destination, Destination::Physical(1));
    /// assert_eq!((message.mode, message.vector), (DeliveryMode::Fixed, 0x41));
    /// ```
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let level = data & 1 << 15 != 0;
        Some(Self {
            destination: Destination::from_byte((address >> 12) as u8, address & 4 != 0),
            mode: match DeliveryMode::from_bits((data >> 8) as u8)? {
                // With the redirection hint (bit 3) one processor among the destinations is enough.
                DeliveryMode::Fixed if address & 8 != 0 && address & 4 != 0 => DeliveryMode::LowestPriority,
                mode => mode,
            },
            vector: data as u8,
            trigger: if level { TriggerMode::Level } else { TriggerMode::Edge },
            assert: !level || data & 1 << 14 != 0,
        })
    }
}
