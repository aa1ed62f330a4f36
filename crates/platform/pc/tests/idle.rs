//! What a guest that does nothing costs the host. Alone in its program, so that nothing else uses its time.

use std::time::{Duration, Instant};

use posada_boot::{Kernel, Source};
use posada_pc::{Outcome, PcBuilder};

/// Processor time that this process has used, in all its threads.
fn used() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Fields 14 and 15, user and system time in hundredths of a second; the name before may have spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}

#[test]
fn a_halted_guest_uses_next_to_no_processor_time() {
    // A multiboot kernel: header, `sti; l: hlt; jmp l`, with the timer running at 18.2 Hz behind a masked PIC.
    let magic = 0x1bad_b002u32;
    let header =
        [magic, 1 << 16, 0u32.wrapping_sub(magic + (1 << 16)), 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend([0xfb, 0xf4, 0xeb, 0xfd]);
    let kernel = Kernel::new(Source::bytes(image));
    let mut pc = PcBuilder::new(kernel).memory(4 << 20).cpus(2).build().unwrap();
    let handle = pc.handle();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        let (before, start) = (used(), Instant::now());
        std::thread::sleep(Duration::from_secs(2));
        let share = used().saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
        handle.stop();
        share
    });
    assert_eq!(pc.run().unwrap(), Outcome::Stopped);
    let share = stopper.join().unwrap();
    assert!(share < 0.05, "a halted guest used {:.0} % of a processor", share * 100.0);
}
