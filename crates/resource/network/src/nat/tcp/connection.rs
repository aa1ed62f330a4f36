//! The TCP connection toward the guest (RFC 9293), as a state machine without sockets.
//!
//! The link is a queue in memory that pushes back when it is full, so there is no congestion control; but a card may
//! drop what it has no buffers for, so what was sent is kept until it is acknowledged, and sent again: at three duplicate
//! acknowledgements, and when a timer runs out (RFC 6298's doubling, from a fixed first time). Segments from the guest
//! that come after a gap are kept, as far as memory goes.

use std::time::{Duration, Instant};

use super::gaps::Gaps;
use super::ring::{Pool, Ring};

/// The window that the guest is offered, in bytes.
pub(super) const WINDOW: usize = 512 << 10;
/// Our window scale (RFC 7323): up to 8 MiB.
const SCALE: u8 = 7;
/// The first retransmission timeout: a guest whose processor is emulated may take a while.
const FIRST_TIMEOUT: Duration = Duration::from_millis(300);
const LAST_TIMEOUT: Duration = Duration::from_secs(8);
/// How often the same bytes are sent again before the guest is taken for dead: some 90 seconds.
const MAX_TRIES: u32 = 15;
/// How long nothing may come from the guest before it is asked for a sign of life (RFC 9293 § 3.8.4), and how often then.
const KEEPALIVE: Duration = Duration::from_hours(2);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(75);
/// How many probes in a row may go unanswered.
const MAX_PROBES: u32 = 9;

/// Takes bytes from the guest in order, and says how many. What a connection keeps itself it takes from the pool.
pub(super) type Deliver<'a> = dyn FnMut(&mut Pool, &[u8]) -> usize + 'a;

/// What a segment from the guest says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segment<'a> {
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) window: u16,
    /// Of a SYN only.
    pub(super) window_scale: Option<u8>,
    pub(super) mss: Option<u16>,
    pub(super) payload: &'a [u8],
}

impl Segment<'_> {
    /// What it takes of the sequence space.
    fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.syn) + u32::from(self.fin)
    }

    /// The sequence number after it.
    pub(super) fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length())
    }
}

/// What a segment to the guest is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) push: bool,
    pub(super) window: u16,
    pub(super) window_scale: Option<u8>,
    /// Where its data is in the outbound ring, and how much.
    pub(super) offset: usize,
    pub(super) length: usize,
}

/// What becomes of a connection after a segment or a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Continue,
    /// The guest reset it.
    Reset,
    /// The segment belongs to no connection: to be answered with a reset of this sequence number.
    Reject(u32),
    /// The guest has not answered for too long.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest's SYN waits until the host is connected.
    Connecting,
    /// Our SYN and acknowledgement are out.
    SynReceived,
    /// Our SYN is out.
    SynSent,
    Open,
}

/// One connection. The bytes for the guest are in its ring; bytes from the guest are delivered as they come.
#[derive(Debug)]
pub(super) struct Connection {
    phase: Phase,
    /// From the host, not yet acknowledged by the guest; it starts at `unacknowledged`.
    pub(super) outbound: Ring,
    unacknowledged: u32,
    next: u32,
    /// After the last that was ever sent.
    most: u32,
    /// What the guest takes beyond `unacknowledged`, in bytes, and the segment that said so.
    window: u32,
    window_seq: u32,
    window_ack: u32,
    guest_scale: u8,
    our_scale: u8,
    max_segment: u16,
    /// The host will send no more.
    ended: bool,
    /// The guest has acknowledged that.
    end_acknowledged: bool,

    /// What is expected from the guest next, and up to where it may send.
    expected: u32,
    offered: u32,
    guest_ended: bool,
    gaps: Gaps,

    syn_due: bool,
    ack_due: bool,
    /// Segments that came after a gap, each to be acknowledged by itself: three make the guest send again.
    gaps_due: u8,
    probe_due: bool,
    resend: bool,
    duplicates: u32,
    /// Until this is acknowledged, losses are those of one event (RFC 6582's `recover`).
    recover: Option<u32>,

    timeout: Duration,
    resend_at: Option<Instant>,
    tries: u32,
    probe_at: Instant,
    probes: u32,
    heard: Instant,
}

/// Whether sequence number `one` comes before `other`.
fn before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Connection {
    fn new(phase: Phase, iss: u32, now: Instant) -> Self {
        Self {
            phase,
            outbound: Ring::default(),
            unacknowledged: iss,
            next: iss,
            most: iss,
            window: 0,
            window_seq: 0,
            window_ack: iss,
            guest_scale: 0,
            our_scale: 0,
            max_segment: 536,
            ended: false,
            end_acknowledged: false,
            expected: 0,
            offered: 0,
            guest_ended: false,
            gaps: Gaps::default(),
            syn_due: false,
            ack_due: false,
            gaps_due: 0,
            probe_due: false,
            resend: false,
            duplicates: 0,
            recover: None,
            timeout: FIRST_TIMEOUT,
            resend_at: None,
            tries: 0,
            probe_at: now + KEEPALIVE,
            probes: 0,
            heard: now,
        }
    }

    /// A connection that the guest's `syn` opens. It says nothing until [`connected`](Self::connected).
    pub(super) fn from_guest(syn: &Segment<'_>, iss: u32, now: Instant) -> Self {
        let mut connection = Self::new(Phase::Connecting, iss, now);
        connection.take_syn(syn);
        connection
    }

    /// A connection that is opened to the guest.
    pub(super) fn to_guest(iss: u32, now: Instant) -> Self {
        Self { syn_due: true, our_scale: SCALE, ..Self::new(Phase::SynSent, iss, now) }
    }

    fn take_syn(&mut self, syn: &Segment<'_>) {
        self.expected = syn.seq.wrapping_add(1);
        self.offered = self.expected;
        self.window = u32::from(syn.window);
        self.window_seq = syn.seq;
        (self.guest_scale, self.our_scale) = syn.window_scale.map_or((0, 0), |scale| (scale.min(14), SCALE));
        // RFC 9293 § 3.7.1 for the default; a guest that wants tiny segments gets small ones.
        self.max_segment = syn.mss.unwrap_or(536).max(88);
    }

    /// The sequence number of the guest's SYN.
    pub(super) fn guest_start(&self) -> u32 {
        self.expected.wrapping_sub(1)
    }

    /// The host is connected: the guest may know.
    pub(super) fn connected(&mut self) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::SynReceived;
            self.syn_due = true;
        }
    }

    /// The host will send no more than what is in the ring.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether the guest will send no more, and all that it sent was delivered.
    pub(super) fn guest_ended(&self) -> bool {
        self.guest_ended
    }

    /// Whether both sides have ended and know it.
    pub(super) fn is_over(&self) -> bool {
        self.guest_ended && self.end_acknowledged
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the host's bytes may be put into the ring.
    pub(super) fn takes_data(&self) -> bool {
        !self.ended && matches!(self.phase, Phase::Open | Phase::SynReceived)
    }

    /// The numbers that a reset is to carry now: its own, and what it acknowledges.
    pub(super) fn reset_numbers(&self) -> (u32, Option<u32>) {
        match self.phase {
            Phase::Connecting => (0, Some(self.expected)),
            Phase::SynSent => (self.next, None),
            Phase::SynReceived | Phase::Open => (self.next, Some(self.expected)),
        }
    }

    pub(super) fn max_segment(&self) -> u16 {
        self.max_segment
    }

    /// Takes a segment. `deliver` gets bytes in order and says how many it took.
    pub(super) fn receive(
        &mut self,
        segment: &Segment<'_>,
        now: Instant,
        pool: &mut Pool,
        deliver: &mut Deliver<'_>,
    ) -> Outcome {
        match self.phase {
            Phase::Connecting => self.receive_connecting(segment),
            Phase::SynSent => self.receive_syn_sent(segment, now),
            Phase::SynReceived | Phase::Open => self.receive_open(segment, now, pool, deliver),
        }
    }

    fn receive_connecting(&mut self, segment: &Segment<'_>) -> Outcome {
        let ours = segment.seq == self.expected || segment.seq == self.guest_start();
        if segment.rst && ours { Outcome::Reset } else { Outcome::Continue }
    }

    fn receive_syn_sent(&mut self, segment: &Segment<'_>, now: Instant) -> Outcome {
        let acknowledged =
            segment.ack.is_some_and(|ack| ack == self.most && self.most != self.unacknowledged);
        match segment.ack {
            Some(ack) if !acknowledged => {
                return if segment.rst { Outcome::Continue } else { Outcome::Reject(ack) };
            }
            _ if segment.rst => return if acknowledged { Outcome::Reset } else { Outcome::Continue },
            _ if !segment.syn || !acknowledged => return Outcome::Continue,
            _ => {}
        }
        self.take_syn(segment);
        self.unacknowledged = self.most;
        self.window_ack = self.most;
        self.phase = Phase::Open;
        self.syn_due = false;
        self.ack_due = true;
        self.progress(now);
        Outcome::Continue
    }

    fn receive_open(
        &mut self,
        segment: &Segment<'_>,
        now: Instant,
        pool: &mut Pool,
        deliver: &mut Deliver<'_>,
    ) -> Outcome {
        if segment.rst {
            return self.receive_reset(segment);
        }
        if segment.syn {
            // Ours was lost, or this is no segment of this connection: either way, say where we are (RFC 5961 § 4.2).
            self.syn_due |= self.phase == Phase::SynReceived && segment.seq == self.guest_start();
            self.ack_due = true;
            return Outcome::Continue;
        }
        let Some(ack) = segment.ack else { return Outcome::Continue };
        if before(self.most, ack) || before(ack, self.unacknowledged.wrapping_sub(WINDOW as u32)) {
            if self.phase == Phase::SynReceived {
                return Outcome::Reject(ack);
            }
            self.ack_due = true;
            return Outcome::Continue;
        }
        let end = segment.end();
        // A sign that ours did not arrive, or a probe: answered, and its acknowledgement counts.
        self.ack_due |= segment.seq != self.expected;
        if before(end, self.expected.wrapping_sub(1)) || before(self.offered, segment.seq) {
            return Outcome::Continue;
        }
        if self.phase == Phase::SynReceived {
            if ack == self.unacknowledged {
                return Outcome::Continue;
            }
            self.phase = Phase::Open;
            self.syn_due = false;
            // The SYN; it is not in the ring.
            self.unacknowledged = self.unacknowledged.wrapping_add(1);
            self.window_seq = segment.seq;
            self.window = u32::from(segment.window) << self.guest_scale;
            self.progress(now);
        }
        self.heard = now;
        self.probes = 0;
        if self.window == 0 {
            // It lives, and takes nothing: that may last.
            self.tries = 0;
        }
        self.probe_at = self.probe_at.max(now + self.probe_interval());
        self.take_ack(segment, ack, now);
        self.take_payload(segment, pool, deliver);
        Outcome::Continue
    }

    /// RFC 5961 § 3.2: only the expected number resets, one in the window is asked about.
    fn receive_reset(&mut self, segment: &Segment<'_>) -> Outcome {
        if segment.seq == self.expected {
            return Outcome::Reset;
        }
        self.ack_due |= !before(segment.seq, self.expected) && before(segment.seq, self.offered);
        Outcome::Continue
    }

    fn take_ack(&mut self, segment: &Segment<'_>, ack: u32, now: Instant) {
        let window = u32::from(segment.window) << self.guest_scale;
        let advanced = before(self.unacknowledged, ack);
        if advanced {
            let acknowledged = ack.wrapping_sub(self.unacknowledged) as usize;
            let data = acknowledged.min(self.outbound.len());
            self.end_acknowledged |= acknowledged > data;
            self.outbound.consume(data);
            self.unacknowledged = ack;
            if before(self.next, ack) {
                self.next = ack;
            }
            self.progress(now);
            match self.recover {
                Some(recover) if before(ack, recover) => self.resend = true,
                _ => self.recover = None,
            }
        }
        // Duplicates as RFC 5681 § 2 defines them.
        let duplicate = !advanced
            && ack == self.unacknowledged
            && segment.length() == 0
            && window == self.window
            && self.most != ack;
        self.duplicates = if duplicate { self.duplicates + 1 } else { 0 };
        if self.duplicates == 3 && self.recover.is_none() {
            self.resend = true;
            self.recover = Some(self.most);
        }
        let newer = before(self.window_seq, segment.seq)
            || self.window_seq == segment.seq && !before(ack, self.window_ack);
        if newer && !before(ack, self.unacknowledged) {
            (self.window, self.window_seq, self.window_ack) = (window, segment.seq, ack);
        }
    }

    fn take_payload(&mut self, segment: &Segment<'_>, pool: &mut Pool, deliver: &mut Deliver<'_>) {
        if segment.payload.is_empty() && !segment.fin {
            return;
        }
        self.ack_due = true;
        if self.guest_ended {
            return;
        }
        if before(self.expected, segment.seq) {
            self.gaps_due = (self.gaps_due + 1).min(3);
            let within = self.offered.wrapping_sub(segment.seq) as usize;
            self.gaps.keep(segment.seq, &segment.payload[..segment.payload.len().min(within)], pool);
            return;
        }
        let known = self.expected.wrapping_sub(segment.seq) as usize;
        let Some(new) = segment.payload.get(known..) else { return };
        let whole = self.deliver(new, pool, deliver);
        if segment.fin && whole {
            self.expected = self.expected.wrapping_add(1);
            self.guest_ended = true;
            self.gaps.release(pool);
        }
        while !self.gaps.is_empty()
            && let Some((known, piece)) = self.gaps.next(self.expected, pool)
            && self.deliver(&piece[known..], pool, deliver)
        {}
    }

    /// Delivers what comes next, and says whether all of it was taken.
    fn deliver(&mut self, new: &[u8], pool: &mut Pool, deliver: &mut Deliver<'_>) -> bool {
        let offered = self.offered.wrapping_sub(self.expected) as usize;
        let takeable = &new[..new.len().min(offered)];
        let taken = if takeable.is_empty() { 0 } else { deliver(pool, takeable).min(takeable.len()) };
        self.expected = self.expected.wrapping_add(taken as u32);
        taken == new.len()
    }

    /// Gives all memory back.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        self.outbound.release(pool);
        self.gaps.release(pool);
    }

    /// Something was acknowledged.
    fn progress(&mut self, now: Instant) {
        self.timeout = FIRST_TIMEOUT;
        self.tries = 0;
        self.resend_at = (self.most != self.unacknowledged).then(|| now + self.timeout);
    }

    /// What of the ring and of our end has been sent, counted from `unacknowledged`.
    fn sent(&self) -> usize {
        self.next.wrapping_sub(self.unacknowledged) as usize
    }

    fn probe_interval(&self) -> Duration {
        // The guest takes nothing, and something waits: ask more often.
        if self.window == 0 && !self.outbound.is_empty() { self.timeout } else { KEEPALIVE }
    }

    /// The next segment to send, with up to `most` bytes of data. `held` is how much of the guest's data has been
    /// delivered and waits for the host.
    pub(super) fn next(&mut self, now: Instant, most: usize, held: usize) -> Option<Outgoing> {
        if std::mem::take(&mut self.syn_due) {
            return Some(self.say_syn(now));
        }
        if self.phase != Phase::Open {
            return None;
        }
        self.offer(held);
        if std::mem::take(&mut self.resend) {
            let length = self.outbound.len().min(most).min(usize::from(self.max_segment));
            let fin = self.ended && length == self.outbound.len() && self.sent() > length;
            if length > 0 || fin {
                return Some(self.say(self.unacknowledged, 0, length, fin));
            }
        }
        if self.gaps_due > 0 {
            self.gaps_due -= 1;
            return Some(self.say(self.next, 0, 0, false));
        }
        if let Some(outgoing) = self.next_data(now, most) {
            return Some(outgoing);
        }
        if std::mem::take(&mut self.probe_due) {
            // A number that the guest has seen already: it answers with where it is (as Linux probes).
            self.ack_due = false;
            return Some(self.say(self.unacknowledged.wrapping_sub(1), 0, 0, false));
        }
        self.ack_due.then(|| self.say(self.next, 0, 0, false))
    }

    fn next_data(&mut self, now: Instant, most: usize) -> Option<Outgoing> {
        let (sent, held) = (self.sent(), self.outbound.len());
        let unsent = held.saturating_sub(sent);
        let usable = (self.window as usize).saturating_sub(sent);
        let mut length = unsent.min(usable).min(most);
        // Half a segment only if it is the last, or nothing else is under way (RFC 9293 § 3.8.6.2.1).
        if length < usize::from(self.max_segment).min(unsent) && length < most && sent > 0 {
            length = 0;
        }
        let fin = self.ended && !self.end_acknowledged && sent + length == held;
        if length == 0 && !fin {
            return None;
        }
        let outgoing = self.say(self.next, sent, length, fin);
        self.next = self.next.wrapping_add(length as u32 + u32::from(fin));
        if before(self.most, self.next) {
            self.most = self.next;
        }
        self.resend_at.get_or_insert(now + self.timeout);
        Some(outgoing)
    }

    fn say_syn(&mut self, now: Instant) -> Outgoing {
        let answers = self.phase == Phase::SynReceived;
        let outgoing = Outgoing {
            seq: self.unacknowledged,
            ack: answers.then_some(self.expected),
            syn: true,
            fin: false,
            push: false,
            window: u16::MAX,
            window_scale: (self.our_scale > 0).then_some(self.our_scale),
            offset: 0,
            length: 0,
        };
        self.next = self.unacknowledged.wrapping_add(1);
        self.most = self.next;
        if answers {
            self.offered = self.expected.wrapping_add(u32::from(u16::MAX));
        }
        self.ack_due = false;
        self.resend_at.get_or_insert(now + self.timeout);
        outgoing
    }

    fn say(&mut self, seq: u32, offset: usize, length: usize, fin: bool) -> Outgoing {
        self.ack_due = false;
        let window =
            (self.offered.wrapping_sub(self.expected) >> self.our_scale).min(u32::from(u16::MAX)) as u16;
        Outgoing {
            seq,
            ack: Some(self.expected),
            syn: false,
            fin,
            push: length > 0 && offset + length == self.outbound.len(),
            window,
            window_scale: None,
            offset,
            length,
        }
    }

    /// Moves the offered edge on, never back (RFC 9293 § 3.8.6.2.2).
    fn offer(&mut self, held: usize) {
        let most = (usize::from(u16::MAX) << self.our_scale).min(WINDOW);
        let edge = self.expected.wrapping_add(most.saturating_sub(held) as u32);
        if !before(self.offered, edge) {
            return;
        }
        // Said by itself when it is much; else with what goes anyway.
        let much = edge.wrapping_sub(self.offered) as usize >= most / 4;
        let shut = self.offered.wrapping_sub(self.expected) < u32::from(self.max_segment);
        if much && shut {
            self.ack_due = true;
        }
        if self.ack_due || self.outbound.len() > self.sent() {
            self.offered = edge;
        }
    }

    /// When [`on_timer`](Self::on_timer) wants to be called.
    pub(super) fn deadline(&self) -> Instant {
        self.resend_at.map_or(self.probe_at, |at| at.min(self.probe_at))
    }

    /// The time has come. `stalled` says that the guest takes nothing from the link, so that its silence means nothing.
    pub(super) fn on_timer(&mut self, now: Instant, stalled: bool) -> Outcome {
        if self.resend_at.is_some_and(|at| at <= now) {
            self.timeout = (self.timeout * 2).min(LAST_TIMEOUT);
            self.resend_at = Some(now + self.timeout);
            if !stalled {
                self.tries += 1;
                if self.tries > MAX_TRIES {
                    return Outcome::Dead;
                }
                self.rewind();
            }
        }
        if self.probe_at <= now {
            if self.window == 0 {
                self.timeout = (self.timeout * 2).min(LAST_TIMEOUT);
            }
            let quiet = now.saturating_duration_since(self.heard) >= KEEPALIVE;
            let again = if quiet { KEEPALIVE_AGAIN } else { self.probe_interval() };
            self.probe_at = now + again;
            if self.phase == Phase::Open && !stalled {
                self.probes += 1;
                self.probe_due = true;
                if self.probes > MAX_PROBES {
                    return Outcome::Dead;
                }
            }
        }
        Outcome::Continue
    }

    /// Starts again from what is not acknowledged.
    fn rewind(&mut self) {
        self.recover = None;
        self.duplicates = 0;
        match self.phase {
            Phase::Connecting => {}
            Phase::SynReceived | Phase::SynSent => self.syn_due = true,
            Phase::Open => {
                self.next = self.unacknowledged;
                self.probe_due |= self.window == 0;
            }
        }
    }

    /// To be called when all was said that could be: arms the timers for what is now under way.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.most == self.unacknowledged {
            self.resend_at = None;
        }
        if self.phase == Phase::Open && self.window == 0 && !self.outbound.is_empty() {
            self.probe_at = self.probe_at.min(now + self.timeout.max(FIRST_TIMEOUT));
        }
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
