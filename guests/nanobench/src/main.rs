//! Nanobenchmarks: how long single operations take that a monitor has to do something about. They are those of Adams and
//! Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006), section 6.3.
//!
//! A kernel without an operating system, booted by PVH. For each operation it prints a line, `NAME OPERATIONS TICKS`, on
//! the first serial port, with ticks of the time stamp counter, and ends through the debug exit port. What a tick is, a
//! line `tsc` tells: its operations are periods of the interval timer, which has the same rate on every PC.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};

global_asm!(include_str!("boot.s"));

unsafe extern "C" {
    fn test_nothing(count: u64);
    fn test_additions(count: u64);
    fn test_call(count: u64);
    fn test_port(count: u64);
    fn test_cr8(count: u64);
    fn test_divide(count: u64);
    fn test_page_fault(count: u64);
    fn test_pte(count: u64);
    fn test_pte_invlpg(count: u64);
    fn test_system_call(count: u64);
    fn clear_window();
}

/// How many times round a test goes while it is timed.
const ONCE: u64 = 8192;

/// How many pages the window has.
const PAGES: u64 = 512;

/// How often a test is timed. The least time counts: whatever else the host does makes it longer, and at first code is
/// translated.
const TIMES: u64 = 100;

/// Periods of the interval timer that the time stamp counter is held to: two milliseconds, so that on a busy host some
/// are not disturbed.
const PERIODS: u16 = 2386;

/// How often. The least counts: the end may be seen late, and never early.
const CALIBRATIONS: u64 = 100;

/// A test: its name, itself, how many operations it does each time round, and how many times round it goes.
type Test = (&'static str, unsafe extern "C" fn(u64), u64, u64);

const TESTS: [Test; 10] = [
    ("loop", test_nothing, 1, ONCE),
    ("addition", test_additions, 16, ONCE),
    ("syscall", test_system_call, 1, ONCE),
    ("in", test_port, 1, ONCE),
    ("cr8wr", test_cr8, 1, ONCE),
    ("call-ret", test_call, 1, ONCE),
    ("pgfault", test_page_fault, 1, PAGES),
    ("divzero", test_divide, 1, ONCE),
    ("ptemod", test_pte, 1, ONCE),
    ("ptemod-invlpg", test_pte_invlpg, 1, ONCE),
];

#[unsafe(no_mangle)]
extern "C" fn main() {
    for (name, test, operations, rounds) in TESTS {
        let mut least = u64::MAX;
        for _ in 0..TIMES {
            // SAFETY: the tests touch nothing but their window, and registers as functions may.
            let taken = unsafe {
                clear_window();
                let before = time_stamp();
                test(rounds);
                time_stamp() - before
            };
            least = least.min(taken);
        }
        // The serial port takes everything.
        let _ = writeln!(Serial, "nano: {name} {} {least}", rounds * operations);
    }
    let ticks = (0..CALIBRATIONS).map(|_| calibrate()).min().unwrap_or(0);
    let _ = writeln!(Serial, "nano: tsc {PERIODS} {ticks}");
    let _ = writeln!(Serial, "nano: done 1 1");
    // SAFETY: nobody needs this machine any more.
    unsafe { asm!("out 0xf4, al", in("al") 0_u8, options(nomem, nostack)) };
}

fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Ticks of the time stamp counter in [`PERIODS`] of the interval timer: channel 2, once (mode 0), whose output is bit
/// 5 of port 0x61 (Intel 8254 datasheet; its clock is 1.193182 MHz).
fn calibrate() -> u64 {
    const GATE: u8 = 1;
    const OUTPUT: u8 = 1 << 5;
    let [low, high] = PERIODS.to_le_bytes();
    // The gate is open before the count is there: it starts with the last byte.
    write_port(0x61, read_port(0x61) & !3 | GATE);
    write_port(0x43, 0xb0);
    write_port(0x42, low);
    let before = time_stamp();
    write_port(0x42, high);
    while read_port(0x61) & OUTPUT == 0 {}
    time_stamp() - before
}

fn write_port(port: u16, value: u8) {
    // SAFETY: the interval timer's ports, and that of its gate.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

fn read_port(port: u16) -> u8 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// The first serial port, as firmware leaves it.
struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the transmitter of the first serial port.
            unsafe { asm!("out dx, al", in("dx") 0x3f8_u16, in("al") byte, options(nomem, nostack)) };
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: there is nothing left to do.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}
