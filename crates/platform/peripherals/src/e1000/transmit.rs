//! Frames from the driver (SDM §3.3, and §3.5 for segmentation).

use posada_memory::{Gpa, GuestRam};
use posada_network::link::{MAX_FRAME, Offload, Packet, PartialChecksum, SegmentKind, Segmentation};
use posada_network::wire::{add, sum};

use crate::{u16_at, u32_at, u64_at};

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_LEN: usize = 16;
/// The shortest frame: destination, source, type; and what it is filled up to.
const MIN_FRAME: usize = 14;
const FILLED: usize = 60;

/// Bits of the command byte.
mod command {
    pub(super) const END_OF_PACKET: u8 = 1 << 0;
    /// Of legacy descriptors: insert a checksum. Of others: cut into segments.
    pub(super) const CHECKSUM_OR_SEGMENTS: u8 = 1 << 2;
    pub(super) const REPORT_STATUS: u8 = 1 << 3;
    pub(super) const REPORT_SENT: u8 = 1 << 4;
    pub(super) const EXTENDED: u8 = 1 << 5;
    pub(super) const TAG: u8 = 1 << 6;
}

/// Packet options of data descriptors.
mod option {
    pub(super) const IP_CHECKSUM: u8 = 1 << 0;
    pub(super) const TRANSPORT_CHECKSUM: u8 = 1 << 1;
}

/// Types of extended descriptors.
const CONTEXT: u32 = 0;
const DATA: u32 = 1;

/// The status to write back into a descriptor, if the driver asks for it: done.
pub(super) fn done(descriptor: &[u8; DESCRIPTOR_LEN]) -> Option<u8> {
    const DONE: u8 = 1;
    (descriptor[11] & (command::REPORT_STATUS | command::REPORT_SENT) != 0).then_some(DONE)
}

/// Where a checksum begins, goes, and ends: the last byte, or 0 for the end of the frame.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    start: usize,
    offset: usize,
    end: usize,
}

impl Place {
    fn read(bytes: &[u8]) -> Self {
        Self { start: bytes[0].into(), offset: bytes[1].into(), end: u16_at(bytes, 2).into() }
    }

    fn range(self, len: usize) -> std::ops::Range<usize> {
        let end = if self.end == 0 { len } else { (self.end + 1).min(len) };
        self.start..end
    }

    /// Puts the checksum into a frame; one whose place is not in the frame goes nowhere.
    fn fill(self, frame: &mut [u8]) {
        let Some(total) = frame.get(self.range(frame.len())).map(sum) else { return };
        if let Some(place) = frame.get_mut(self.offset..self.offset + 2) {
            let checksum = if total == 0xffff { 0xffff } else { !total };
            place.copy_from_slice(&checksum.to_ne_bytes());
        }
    }
}

/// What a context descriptor says (SDM §3.3.6).
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    ip: Place,
    transport: Place,
    is_tcp: bool,
    is_v4: bool,
    header_len: u8,
    segment: u16,
}

impl Context {
    fn read(descriptor: &[u8; DESCRIPTOR_LEN]) -> Self {
        let command = descriptor[11];
        Self {
            ip: Place::read(&descriptor[0..4]),
            transport: Place::read(&descriptor[4..8]),
            is_tcp: command & 1 != 0,
            is_v4: command & 2 != 0,
            header_len: descriptor[13],
            segment: u16_at(descriptor, 14),
        }
    }
}

/// The frame of which a part has come, and what the driver has said of those to come.
#[derive(Debug, Default)]
pub(super) struct Transmitter {
    frame: Vec<u8>,
    /// The frame is too long, or was not in memory.
    is_bad: bool,
    /// Options, and whether to cut it: of its first descriptor.
    options: Option<(u8, bool)>,
    /// For frames that are cut, and for the others.
    cut: Context,
    whole: Context,
}

impl Transmitter {
    /// Takes a descriptor; a frame if it is complete now. One that makes no sense is dropped, like those that a wire
    /// damages.
    pub(super) fn take(&mut self, ram: &GuestRam, descriptor: &[u8; DESCRIPTOR_LEN]) -> Option<Packet> {
        let (command, lengths) = (descriptor[11], u32_at(descriptor, 8));
        let kind = lengths >> 20 & 0xf;
        let is_extended = command & command::EXTENDED != 0;
        if is_extended && kind == CONTEXT {
            let context = Context::read(descriptor);
            let cuts = command & command::CHECKSUM_OR_SEGMENTS != 0;
            *(if cuts { &mut self.cut } else { &mut self.whole }) = context;
            return None;
        }
        if is_extended && kind != DATA {
            return None;
        }
        let len = if is_extended { lengths & 0xf_ffff } else { lengths & 0xffff };
        self.append(ram, u64_at(descriptor, 0), len as usize);
        if is_extended {
            let cuts = command & command::CHECKSUM_OR_SEGMENTS != 0;
            self.options.get_or_insert((descriptor[13], cuts));
        }
        if command & command::END_OF_PACKET == 0 {
            return None;
        }
        let mut packet = self.complete()?;
        if !is_extended && command & command::CHECKSUM_OR_SEGMENTS != 0 {
            let (offset, start) = (descriptor[10].into(), descriptor[13].into());
            Place { start, offset, end: 0 }.fill(&mut packet.bytes);
        }
        if command & command::TAG != 0 {
            insert_tag(&mut packet, u16_at(descriptor, 14));
        }
        Some(packet)
    }

    fn append(&mut self, ram: &GuestRam, place: u64, len: usize) {
        let before = self.frame.len();
        if self.is_bad || len > MAX_FRAME - before {
            self.is_bad = true;
            return;
        }
        self.frame.resize(before + len, 0);
        self.is_bad = ram.read(Gpa(place), &mut self.frame[before..]).is_err();
    }

    /// The frame that has come whole.
    fn complete(&mut self) -> Option<Packet> {
        let mut bytes = std::mem::take(&mut self.frame);
        let options = self.options.take();
        if std::mem::take(&mut self.is_bad) || bytes.len() < MIN_FRAME {
            return None;
        }
        let Some((options, cuts)) = options else {
            bytes.resize(bytes.len().max(FILLED), 0);
            return Some(Packet::new(bytes));
        };
        if cuts {
            return segments(bytes, &self.cut);
        }
        let context = self.whole;
        if options & option::IP_CHECKSUM != 0 {
            context.ip.fill(&mut bytes);
        }
        let mut offload = Offload::default();
        if options & option::TRANSPORT_CHECKSUM != 0 {
            let Place { start, offset, end } = context.transport;
            // What the link can say is a checksum up to the end of the frame.
            if end == 0 && offset >= start && offset + 2 <= bytes.len() {
                offload.checksum = Some(partial(start, offset));
            } else {
                context.transport.fill(&mut bytes);
            }
        }
        bytes.resize(bytes.len().max(FILLED), 0);
        Some(Packet { bytes, offload })
    }
}

fn partial(start: usize, offset: usize) -> PartialChecksum {
    PartialChecksum { start: start as u16, offset: (offset - start) as u16 }
}

/// A frame to be cut. The driver leaves lengths to the card: those in the IP header, and the one in the sum over the
/// pseudo-header (SDM §3.5.7).
fn segments(mut bytes: Vec<u8>, context: &Context) -> Option<Packet> {
    let (ip, Place { start, offset, .. }) = (context.ip.start, context.transport);
    // Cutting UDP is not what any driver asks this card for.
    if !context.is_tcp || offset < start || start < ip {
        return None;
    }
    let in_ip = bytes.len().checked_sub(ip)?;
    let in_transport = bytes.len().checked_sub(start)?;
    let (at, len) = if context.is_v4 { (ip + 2, in_ip) } else { (ip + 4, in_ip.checked_sub(40)?) };
    bytes.get_mut(at..at + 2)?.copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
    if context.is_v4 {
        // The driver has left zero there, or should have.
        bytes.get_mut(context.ip.offset..context.ip.offset + 2)?.fill(0);
        context.ip.fill(&mut bytes);
    }
    let place = bytes.get_mut(offset..offset + 2)?;
    let pseudo = u16::from_ne_bytes([place[0], place[1]]);
    let pseudo = add(pseudo, sum(&(in_transport as u32).to_be_bytes()));
    place.copy_from_slice(&pseudo.to_ne_bytes());
    let kind = if context.is_v4 { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
    let segmentation = Segmentation { kind, size: context.segment, header_len: context.header_len.into() };
    // What fits into one segment is a frame like others.
    let is_one = bytes.len() <= usize::from(context.header_len) + usize::from(context.segment);
    let offload = Offload {
        checksum: Some(partial(start, offset)),
        segmentation: (!is_one).then_some(segmentation),
        checked: false,
    };
    Some(Packet { bytes, offload })
}

/// Inserts an 802.1Q tag after the addresses.
fn insert_tag(packet: &mut Packet, tag: u16) {
    let [high, low] = tag.to_be_bytes();
    packet.bytes.splice(12..12, [0x81, 0x00, high, low]);
    if let Some(checksum) = &mut packet.offload.checksum {
        checksum.start = checksum.start.saturating_add(4);
    }
    if let Some(segmentation) = &mut packet.offload.segmentation {
        segmentation.header_len = segmentation.header_len.saturating_add(4);
    }
}
