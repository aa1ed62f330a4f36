//! What a thread promises to those who have it pause.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;

use mio::Interest;
use mio::unix::SourceFd;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a handler has done.
#[derive(Debug, Default)]
struct Done {
    begun: AtomicUsize,
    queues: AtomicUsize,
    bytes: AtomicUsize,
    resets: AtomicUsize,
}

impl Done {
    fn get(&self) -> [usize; 4] {
        [&self.begun, &self.queues, &self.bytes, &self.resets].map(|count| count.load(Ordering::SeqCst))
    }

    fn wait_for(&self, expected: [usize; 4]) {
        let deadline = Instant::now() + PATIENCE;
        while self.get() != expected {
            assert!(Instant::now() < deadline, "{:?} in place of {expected:?}", self.get());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Counts notifications, each of which takes a while, and bytes.
struct Counter {
    done: Arc<Done>,
    stream: UnixStream,
    takes: Duration,
}

impl Handler for Counter {
    fn start(&mut self, registry: &Registry) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        registry.register(&mut SourceFd(&self.stream.as_raw_fd()), Token(0), Interest::READABLE)
    }

    fn queue(&mut self, _queue: usize) -> bool {
        self.done.begun.fetch_add(1, Ordering::SeqCst);
        thread::sleep(self.takes);
        self.done.queues.fetch_add(1, Ordering::SeqCst);
        false
    }

    fn ready(&mut self, _token: Token, _registry: &Registry) {
        let mut buffer = [0; 16];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            self.done.bytes.fetch_add(count, Ordering::SeqCst);
        }
    }

    fn reset(&mut self) {
        self.done.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn start(takes: Duration) -> (Worker, Arc<Done>, UnixStream) {
    let done = Arc::<Done>::default();
    let (stream, other) = UnixStream::pair().unwrap();
    let counter = Counter { done: Arc::clone(&done), stream, takes };
    (Worker::start("counter".to_owned(), |_| Box::new(counter)).unwrap(), done, other)
}

#[test]
fn a_thread_that_is_paused_does_nothing_and_misses_nothing() {
    let (worker, done, mut other) = start(Duration::ZERO);
    for round in 1..=3 {
        worker.pause();
        let before = done.get();
        worker.bell().notify(5);
        other.write_all(b"ten bytes!").unwrap();
        thread::sleep(Duration::from_millis(30));
        assert_eq!(done.get(), before);
        worker.reset();
        assert_eq!(done.get()[3], round, "a reset is not held up");
        worker.resume();
        done.wait_for([round, round, 10 * round, round]);
    }
}

#[test]
fn a_pause_waits_for_what_the_thread_is_at() {
    let (worker, done, _other) = start(Duration::from_millis(100));
    worker.bell().notify(0);
    done.wait_for([1, 0, 0, 0]);
    worker.pause();
    assert_eq!(done.get(), [1, 1, 0, 0]);
}

#[test]
fn a_thread_that_is_never_idle_is_paused_as_well() {
    struct Busy(Arc<AtomicUsize>);
    impl Handler for Busy {
        fn queue(&mut self, _queue: usize) -> bool {
            self.0.fetch_add(1, Ordering::SeqCst);
            true
        }
    }
    let rounds = Arc::<AtomicUsize>::default();
    let busy = Busy(Arc::clone(&rounds));
    let worker = Worker::start("busy".to_owned(), |_| Box::new(busy)).unwrap();
    worker.bell().notify(0);
    for _ in 0..100 {
        let before = rounds.load(Ordering::SeqCst);
        while rounds.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        worker.pause();
        let stands = rounds.load(Ordering::SeqCst);
        thread::sleep(Duration::from_micros(100));
        assert_eq!(rounds.load(Ordering::SeqCst), stands);
        worker.resume();
    }
}

#[test]
fn a_thread_that_is_paused_can_end() {
    let (worker, done, _other) = start(Duration::ZERO);
    worker.pause();
    worker.bell().notify(0);
    drop(worker);
    assert_eq!(done.get(), [0; 4]);
}
