//! The header of each packet (virtio 1.2 §5.10.6).

/// The context ID of the host.
pub(super) const HOST: u64 = 2;
/// Stream sockets.
pub(super) const STREAM: u16 = 1;

/// What a packet does.
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RESET: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const DATA: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: the sender will not receive, will not send.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// How many bytes the sender buffers, and how many it has passed on so far.
    pub(super) buffer: u32,
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) const LEN: usize = 44;

    pub(super) fn read(bytes: &[u8; Self::LEN]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            source: long(0),
            destination: long(8),
            source_port: word(16),
            destination_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buffer: word(36),
            forwarded: word(40),
        }
    }

    pub(super) fn write(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.source.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination.to_le_bytes());
        for (to, word) in
            bytes[16..28].chunks_exact_mut(4).zip([self.source_port, self.destination_port, self.len])
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        for (to, word) in bytes[32..].chunks_exact_mut(4).zip([self.flags, self.buffer, self.forwarded]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The connection that a packet from the guest belongs to.
    pub(super) fn ports(&self) -> Ports {
        Ports { host: self.destination_port, guest: self.source_port }
    }
}
