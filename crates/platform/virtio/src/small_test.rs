//! Console, balloon and entropy, which have little to them.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use crate::balloon::Balloon;
use crate::console::Console;
use crate::testing::{BUFFERS, Driver, WRITE, wait_until};
use posada_memory::Gpa;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_console_passes_bytes_both_ways() {
    let sink = Sink::default();
    let console = Console::new(sink.clone());
    let input = console.input();
    let mut driver = Driver::start(console, 0);
    driver.request(1, b"hello", 0);
    assert_eq!(*sink.0.lock().unwrap(), b"hello");
    // Before the guest has a buffer, and after.
    assert!(input.send(b"early"));
    driver.submit(0, 0, &[], 3);
    driver.submit(0, 1, &[], 30);
    assert_eq!((driver.wait(0), driver.wait(0)), ((0, 3), (2, 2)));
    assert_eq!((driver.written(0, 0, 3), driver.written(0, 1, 2)), (b"ear".to_vec(), b"ly".to_vec()));
    driver.submit(0, 0, &[], 30);
    assert!(input.send(b"late"));
    assert_eq!(driver.wait(0), (0, 4));
    input.resize(100, 30);
    assert_eq!(driver.read(0x1800, 4), 0x1e_0064);
    drop(driver);
    assert!(!input.send(b"too late"));
}

#[test]
fn whoever_sends_waits_for_a_guest_that_is_behind() {
    let console = Console::new(io::sink());
    let input = console.input();
    let mut driver = Driver::start(console, 0);
    let sender = std::thread::spawn(move || input.send(&vec![7; 70_000]));
    let mut received = 0;
    while received < 70_000 {
        driver.submit(0, 0, &[], 4096);
        received += driver.wait(0).1;
    }
    assert!(sender.join().unwrap());
}

#[test]
fn an_inflated_page_is_given_back_and_reads_as_zeroes() {
    let balloon = Balloon::new();
    let control = balloon.control();
    let mut driver = Driver::start(balloon, 0);
    control.set_target(3 * 4096 + 1);
    assert_eq!((driver.read(0x1800, 4), control.target()), (3, 3 * 4096));
    driver.ram.write(Gpa(0x60_0000), &[7; 0x3000]).unwrap();
    // Two pages, one that is none, one twice.
    let pages: Vec<u8> =
        [0x600_u32, 0x602, u32::MAX, 0x600].iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.request(0, &pages, 0);
    let bytes = [0x60_0000, 0x60_1000, 0x60_2fff].map(|at| driver.ram.load::<u8>(at));
    assert_eq!((bytes, control.returned()), ([0, 7, 0], 0x2000));
    driver.write(0x1804, 4, 2);
    assert_eq!(control.actual(), 0x2000);
    driver.request(1, &pages, 0);
    wait_until("the interrupt", || driver.messages.lock().unwrap().len() >= 2);
}

#[test]
fn pages_that_the_guest_reports_as_free_are_given_back() {
    let balloon = Balloon::new();
    let control = balloon.control();
    let mut driver = Driver::start(balloon, 0);
    driver.ram.write(Gpa(BUFFERS), &[7; 0x4000]).unwrap();
    for (address, len) in [
        (BUFFERS + 0x1000, 0x2000),
        (BUFFERS + 1, 0x1000),
        (BUFFERS, 100),
        (1 << 40, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
    ] {
        driver.descriptor(2, 0, address, len, WRITE, 0);
        driver.offer(2, 0);
        driver.wait(2);
    }
    let bytes = [0, 0x1000, 0x2fff, 0x3000].map(|at| driver.ram.load::<u8>(BUFFERS as usize + at));
    assert_eq!((bytes, control.returned()), ([7, 0, 0, 7], 0x2000));
}
