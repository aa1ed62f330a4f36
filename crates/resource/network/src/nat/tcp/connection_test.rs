//! One connection, segment by segment.

use std::time::{Duration, Instant};

use super::{Connection, Deliver, FIRST_TIMEOUT, KEEPALIVE, MAX_TRIES, Outcome, Outgoing, Segment, WINDOW};
use crate::nat::tcp::ring::Pool;

const ISS: u32 = u32::MAX - 5;
const GUEST: u32 = 1000;
const MOST: usize = 65_000;

/// A connection with what is around it.
struct Harness {
    connection: Connection,
    pool: Pool,
    now: Instant,
    got: Vec<u8>,
    /// The host takes that much more.
    takes: usize,
}

impl Harness {
    /// An open connection: the guest's next number is 1001, ours ISS + 1.
    fn open() -> Self {
        let mut harness = Self::connecting();
        harness.connection.connected();
        let said = harness.all();
        assert_eq!((said.len(), said[0].syn, said[0].seq, said[0].ack), (1, true, ISS, Some(GUEST + 1)));
        assert_eq!(harness.receive(Harness::acknowledging(0)), Outcome::Continue);
        assert!(harness.connection.is_open());
        harness
    }

    fn connecting() -> Self {
        let now = Instant::now();
        let syn = Segment {
            seq: GUEST,
            syn: true,
            window: 10_000,
            mss: Some(1000),
            window_scale: Some(0),
            ..Segment::default()
        };
        let connection = Connection::from_guest(&syn, ISS, now);
        Self { connection, pool: Pool::new(8 << 20), now, got: Vec::new(), takes: usize::MAX }
    }

    /// A segment without data that acknowledges so many bytes of ours.
    fn acknowledging(bytes: u32) -> Segment<'static> {
        Segment {
            seq: GUEST + 1,
            ack: Some(ISS.wrapping_add(1 + bytes)),
            window: 10_000,
            ..Segment::default()
        }
    }

    fn receive(&mut self, segment: Segment<'_>) -> Outcome {
        let (got, takes) = (&mut self.got, &mut self.takes);
        let deliver: &mut Deliver<'_> = &mut |_, bytes| {
            let taken = bytes.len().min(*takes);
            *takes -= taken;
            got.extend_from_slice(&bytes[..taken]);
            taken
        };
        self.connection.receive(&segment, self.now, &mut self.pool, deliver)
    }

    fn all(&mut self) -> Vec<Outgoing> {
        let said = std::iter::from_fn(|| self.connection.next(self.now, MOST, 0)).collect();
        self.connection.settle(self.now);
        said
    }

    fn host_sends(&mut self, length: usize) {
        while self.connection.outbound.room() < length {
            assert!(self.connection.outbound.grow(&mut self.pool));
        }
        self.connection.outbound.extend(&vec![7; length]);
    }

    fn wait(&mut self, time: Duration) -> Outcome {
        self.now += time;
        self.connection.on_timer(self.now, false)
    }
}

#[test]
fn nothing_is_said_until_the_host_is_connected() {
    let mut harness = Harness::connecting();
    assert!(harness.all().is_empty());
    assert_eq!(harness.connection.reset_numbers(), (0, Some(GUEST + 1)));
    harness.connection.connected();
    assert!(harness.all()[0].syn);
}

#[test]
fn numbers_wrap() {
    let mut harness = Harness::open();
    harness.host_sends(100);
    let said = harness.all();
    assert_eq!((said[0].seq, said[0].length), (ISS.wrapping_add(1), 100));
    harness.receive(Harness::acknowledging(100));
    assert!(harness.connection.outbound.is_empty());
}

#[test]
fn data_in_order_is_delivered_and_acknowledged_with_the_window() {
    let mut harness = Harness::open();
    harness.receive(Segment { payload: b"hello", ..Harness::acknowledging(0) });
    assert_eq!(harness.got, b"hello");
    let said = harness.all();
    assert_eq!((said.len(), said[0].ack), (1, Some(GUEST + 6)));
    assert_eq!(usize::from(said[0].window) << 7, WINDOW);
}

#[test]
fn what_comes_after_a_gap_is_kept_and_asked_for_thrice() {
    let mut harness = Harness::open();
    harness.all();
    for piece in 1..5 {
        harness.receive(Segment {
            seq: GUEST + 1 + piece * 5,
            payload: b"later",
            ..Harness::acknowledging(0)
        });
    }
    let said = harness.all();
    assert!(said.len() >= 3 && said.iter().all(|segment| segment.ack == Some(GUEST + 1)), "{said:?}");
    harness.receive(Segment { payload: b"first", ..Harness::acknowledging(0) });
    assert_eq!(harness.got, b"firstlaterlaterlaterlater");
    assert_eq!(harness.all().last().unwrap().ack, Some(GUEST + 26));
}

#[test]
fn what_the_host_does_not_take_is_not_acknowledged() {
    let mut harness = Harness::open();
    harness.takes = 3;
    harness.receive(Segment { payload: b"hello", fin: true, ..Harness::acknowledging(0) });
    assert_eq!(harness.all()[0].ack, Some(GUEST + 4));
    assert!(!harness.connection.guest_ended(), "its end comes after the rest");
    harness.takes = 10;
    harness.receive(Segment { payload: b"hello", fin: true, ..Harness::acknowledging(0) });
    assert_eq!(harness.got, b"hello");
    assert!(harness.connection.guest_ended());
}

#[test]
fn no_more_is_sent_than_the_guest_takes() {
    let mut harness = Harness::open();
    harness.host_sends(30_000);
    let sent: usize = harness.all().iter().map(|segment| segment.length).sum();
    assert_eq!(sent, 10_000);
    harness.receive(Harness::acknowledging(10_000));
    assert_eq!(harness.all().iter().map(|segment| segment.length).sum::<usize>(), 10_000);
}

#[test]
fn what_is_lost_is_sent_again_when_the_time_runs_out() {
    let mut harness = Harness::open();
    harness.host_sends(5000);
    assert_eq!(harness.all().len(), 1);
    assert_eq!(harness.connection.deadline(), harness.now + FIRST_TIMEOUT);
    assert_eq!(harness.wait(FIRST_TIMEOUT), Outcome::Continue);
    let again = harness.all();
    assert_eq!((again[0].seq, again[0].length), (ISS.wrapping_add(1), 5000));
    // Twice as long the second time.
    assert_eq!(harness.connection.deadline(), harness.now + FIRST_TIMEOUT * 2);
}

#[test]
fn three_duplicates_bring_the_first_segment_at_once() {
    let mut harness = Harness::open();
    harness.host_sends(5000);
    harness.all();
    for _ in 0..3 {
        harness.receive(Harness::acknowledging(0));
    }
    let again = harness.all();
    assert_eq!((again[0].seq, again[0].length), (ISS.wrapping_add(1), 1000));
    // And what a partial acknowledgement shows to be missing (RFC 6582).
    harness.receive(Harness::acknowledging(1000));
    assert_eq!(harness.all()[0].seq, ISS.wrapping_add(1001));
}

#[test]
fn a_guest_that_never_answers_is_dead_after_so_many_tries() {
    let mut harness = Harness::open();
    harness.host_sends(10);
    harness.all();
    for _ in 0..MAX_TRIES {
        assert_eq!(harness.wait(Duration::from_secs(8)), Outcome::Continue);
        harness.all();
    }
    assert_eq!(harness.wait(Duration::from_secs(8)), Outcome::Dead);
}

#[test]
fn a_guest_that_is_paused_is_not_dead() {
    let mut harness = Harness::open();
    harness.host_sends(10);
    harness.all();
    for _ in 0..1000 {
        harness.now += Duration::from_mins(1);
        assert_eq!(harness.connection.on_timer(harness.now, true), Outcome::Continue);
    }
}

#[test]
fn a_shut_window_is_probed_until_it_opens() {
    let mut harness = Harness::open();
    harness.host_sends(20_000);
    harness.all();
    harness.receive(Segment { window: 0, ..Harness::acknowledging(10_000) });
    assert!(harness.all().is_empty());
    for _ in 0..50 {
        harness.now = harness.connection.deadline();
        assert_eq!(harness.connection.on_timer(harness.now, false), Outcome::Continue);
        let probe = harness.all();
        assert_eq!((probe.len(), probe[0].length, probe[0].seq), (1, 0, ISS.wrapping_add(10_000)));
        harness.receive(Segment { window: 0, ..Harness::acknowledging(10_000) });
        harness.all();
    }
    harness.receive(Harness::acknowledging(10_000));
    assert_eq!(harness.all()[0].length, 10_000);
}

#[test]
fn a_quiet_guest_is_asked_for_a_sign_of_life_and_dead_without() {
    let mut harness = Harness::open();
    assert_eq!(harness.wait(KEEPALIVE), Outcome::Continue);
    assert_eq!(harness.all()[0].seq, ISS);
    harness.receive(Harness::acknowledging(0));
    assert_eq!(harness.wait(KEEPALIVE), Outcome::Continue);
    harness.all();
    let outcomes: Vec<_> = (0..9).map(|_| harness.wait(Duration::from_secs(75))).collect();
    assert_eq!(outcomes.iter().position(|outcome| *outcome == Outcome::Dead), Some(8));
}

#[test]
fn only_the_expected_number_resets() {
    let mut harness = Harness::open();
    harness.all();
    let reset = |seq| Segment { seq, rst: true, ..Segment::default() };
    assert_eq!(harness.receive(reset(GUEST + 100)), Outcome::Continue);
    assert_eq!(harness.all().len(), 1, "one in the window is asked about");
    assert_eq!(harness.receive(reset(GUEST.wrapping_sub(5))), Outcome::Continue);
    assert!(harness.all().is_empty(), "one outside is nothing");
    assert_eq!(harness.receive(reset(GUEST + 1)), Outcome::Reset);
}

#[test]
fn both_ends_end() {
    let mut harness = Harness::open();
    harness.host_sends(10);
    harness.connection.end();
    let said = harness.all();
    assert!(said[0].fin && said[0].length == 10);
    harness.receive(Harness::acknowledging(11));
    assert!(!harness.connection.is_over());
    harness.receive(Segment { fin: true, ..Harness::acknowledging(11) });
    assert!(harness.connection.is_over());
    assert_eq!(harness.all()[0].ack, Some(GUEST + 2));
}

#[test]
fn an_end_that_is_lost_is_said_again() {
    let mut harness = Harness::open();
    harness.connection.end();
    assert!(harness.all()[0].fin);
    assert!(harness.all().is_empty());
    harness.wait(FIRST_TIMEOUT);
    assert!(harness.all()[0].fin);
}

#[test]
fn a_guest_may_refuse_what_is_opened_to_it() {
    let now = Instant::now();
    let connection = Connection::to_guest(ISS, now);
    let mut harness = Harness { connection, pool: Pool::new(1 << 20), now, got: Vec::new(), takes: 0 };
    assert!(harness.all()[0].syn);
    let wrong = Segment { ack: Some(5), ..Segment::default() };
    assert_eq!(harness.receive(wrong), Outcome::Reject(5));
    assert_eq!(harness.receive(Segment { rst: true, ..wrong }), Outcome::Continue);
    let refusal = Segment { rst: true, ack: Some(ISS.wrapping_add(1)), ..Segment::default() };
    assert_eq!(harness.receive(refusal), Outcome::Reset);
}
