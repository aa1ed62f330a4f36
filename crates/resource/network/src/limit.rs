//! Rate limits: token buckets for bits and frames, each way.
//!
//! A [`Port`] is a link's end with limits; every network holds one. A bucket holds what its rate gives in a tenth of a
//! second. A frame passes as long as the bucket is not in debt, and a long one may bring it into debt: so the longest
//! frame passes at any rate, and the average holds.

use std::str::FromStr;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::link::{Link, Packet};

/// What one direction may carry. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bits of frames a second.
    pub bits: Option<u64>,
    /// Frames a second. A frame with segmentation offload counts as its segments.
    pub packets: Option<u64>,
}

/// What a link may carry each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// What the guest sends.
    pub from_guest: Rate,
    /// What the guest receives.
    pub to_guest: Rate,
}

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no rate: write bits a second, frames a second, or both, such as 100mbit, 5000pps or 1.5gbit:20kpps"
)]
pub struct BadRate {
    text: String,
}

impl FromStr for Rate {
    type Err = BadRate;

    /// `NUMBER[k|m|g]bit`, `NUMBER[k|m|g]pps`, or one of each with a colon between: powers of 1,000, as tc(8) has them.
    fn from_str(text: &str) -> Result<Self, BadRate> {
        let bad = || BadRate { text: text.to_owned() };
        let mut rate = Self::default();
        for part in text.split(':') {
            let part = part.trim().to_ascii_lowercase();
            let (place, number) = match (part.strip_suffix("bit"), part.strip_suffix("pps")) {
                (Some(number), _) => (&mut rate.bits, number),
                (None, Some(number)) => (&mut rate.packets, number),
                (None, None) => return Err(bad()),
            };
            if place.replace(quantity(number).ok_or_else(bad)?).is_some() {
                return Err(bad());
            }
        }
        Ok(rate)
    }
}

/// A number with a prefix, at least 1 and at most 10^15.
fn quantity(text: &str) -> Option<u64> {
    let (number, factor) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1e3),
        b'm' => (&text[..text.len() - 1], 1e6),
        b'g' => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let value = number.parse::<f64>().ok()? * factor;
    (1.0..=1e15).contains(&value).then_some(value as u64)
}

/// A token bucket that may go into debt.
#[derive(Debug)]
struct Bucket {
    /// Tokens a second.
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        let rate = rate as f64;
        Self { rate, tokens: rate / 10.0, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.rate / 10.0);
        self.filled = now;
    }

    /// How long until the debt is paid; zero if there is none.
    fn wait(&self) -> Duration {
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64((-self.tokens / self.rate).min(3600.0))
        }
    }
}

/// One direction's buckets.
#[derive(Debug, Default)]
struct Shaper {
    bits: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Shaper {
    fn new(rate: Rate, now: Instant) -> Self {
        let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::new(rate, now));
        Self { bits: bucket(rate.bits), packets: bucket(rate.packets) }
    }

    /// When the next frame may pass, if not now.
    fn blocked(&mut self, now: Instant) -> Option<Instant> {
        let mut wait = Duration::ZERO;
        for bucket in [&mut self.bits, &mut self.packets].into_iter().flatten() {
            bucket.fill(now);
            wait = wait.max(bucket.wait());
        }
        (!wait.is_zero()).then(|| now + wait.max(Duration::from_millis(1)))
    }

    fn charge(&mut self, packet: &Charge) {
        if let Some(bits) = &mut self.bits {
            bits.tokens -= packet.bytes as f64 * 8.0;
        }
        if let Some(packets) = &mut self.packets {
            packets.tokens -= packet.packets as f64;
        }
    }
}

/// What a frame costs.
struct Charge {
    bytes: usize,
    packets: usize,
}

impl Charge {
    fn of(packet: &Packet) -> Self {
        let bytes = packet.bytes.len();
        let packets = packet.offload.segmentation.map_or(1, |segmentation| {
            let headers = usize::from(segmentation.header_len).min(bytes);
            (bytes - headers).div_ceil(usize::from(segmentation.size.max(1))).max(1)
        });
        Self { bytes, packets }
    }
}

/// A network's end of a link, with limits. Used by one thread.
#[derive(Debug)]
pub struct Port {
    link: Link,
    from_guest: Shaper,
    to_guest: Shaper,
    limited: bool,
    /// When a direction that was blocked is open again.
    receive_at: Option<Instant>,
    send_at: Option<Instant>,
}

impl Port {
    /// A port on `link` with limits from now on.
    pub fn new(link: Link, rates: Rates) -> Self {
        let now = Instant::now();
        Self {
            link,
            from_guest: Shaper::new(rates.from_guest, now),
            to_guest: Shaper::new(rates.to_guest, now),
            limited: rates != Rates::default(),
            receive_at: None,
            send_at: None,
        }
    }

    /// The link, for what needs no limit.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Takes the next frame from the guest, if there is one and the limit lets it pass.
    pub fn receive(&mut self) -> Option<Packet> {
        if self.limited {
            self.receive_at = self.from_guest.blocked(Instant::now());
            if self.receive_at.is_some() {
                return None;
            }
        }
        let packet = self.link.receive()?;
        if self.limited {
            self.from_guest.charge(&Charge::of(&packet));
        }
        Some(packet)
    }

    /// Hands a frame to the guest.
    ///
    /// # Errors
    /// The frame: the guest's queue is full, the limit holds it back, or the link is closed.
    pub fn send(&mut self, packet: Packet) -> Result<(), Packet> {
        if !self.limited {
            return self.link.send(packet);
        }
        self.send_at = self.to_guest.blocked(Instant::now());
        if self.send_at.is_some() {
            return Err(packet);
        }
        let charge = Charge::of(&packet);
        self.link.send(packet)?;
        self.to_guest.charge(&charge);
        Ok(())
    }

    /// When to try again what a limit (not the link) held back: receiving first, then sending.
    pub fn retry_at(&self) -> (Option<Instant>, Option<Instant>) {
        (self.receive_at, self.send_at)
    }
}

#[cfg(test)]
#[path = "limit_test.rs"]
mod tests;
