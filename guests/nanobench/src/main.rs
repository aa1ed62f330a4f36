//! Nanobenchmarks: how long single operations take that a monitor has to do something about. They are those of Adams and
//! Agesen, "A Comparison of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006), section 6.3.
//!
//! A kernel without an operating system, booted by PVH. For each operation it prints a line, `NAME OPERATIONS TICKS`, on
//! the first serial port, with ticks of the time stamp counter, and ends through the debug exit port.
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

/// How many operations are timed at once; no more than the window has pages.
const ONCE: u64 = 512;

/// How often they are timed. The first time, code is translated and caches are cold.
const TIMES: u64 = 400;

/// A test: its name, itself, and how many operations it does each time round.
type Test = (&'static str, unsafe extern "C" fn(u64), u64);

const TESTS: [Test; 10] = [
    ("loop", test_nothing, 1),
    ("addition", test_additions, 16),
    ("syscall", test_system_call, 1),
    ("in", test_port, 1),
    ("cr8wr", test_cr8, 1),
    ("call-ret", test_call, 1),
    ("pgfault", test_page_fault, 1),
    ("divzero", test_divide, 1),
    ("ptemod", test_pte, 1),
    ("ptemod-invlpg", test_pte_invlpg, 1),
];

#[unsafe(no_mangle)]
extern "C" fn main() {
    for (name, test, operations) in TESTS {
        let mut ticks = 0;
        for time in 0..TIMES {
            // SAFETY: the tests touch nothing but their window, and registers as functions may.
            let taken = unsafe {
                clear_window();
                let before = time_stamp();
                test(ONCE);
                time_stamp() - before
            };
            if time > 0 {
                ticks += taken;
            }
        }
        // The serial port takes everything.
        let _ = writeln!(Serial, "nano: {name} {} {ticks}", ONCE * (TIMES - 1) * operations);
    }
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
