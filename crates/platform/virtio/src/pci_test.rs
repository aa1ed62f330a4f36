use super::*;
use crate::entropy::Entropy;
use crate::testing::{
    BUFFERS, Driver, INDIRECT, NEEDS_RESET, NEXT, RAM, READY, SIZE, WRITE, descriptor, wait_until,
};
use posada_memory::Gpa;

const STATUS: u64 = 0x14;

fn entropy() -> Driver {
    Driver::start(Entropy, 0)
}

/// Offers one buffer and expects it back: the device works.
fn check_works(driver: &mut Driver) {
    driver.descriptor(0, 0, BUFFERS, 32, WRITE, 0);
    driver.offer(0, 0);
    assert_eq!(driver.wait(0), (0, 32));
}

#[test]
fn the_function_says_what_it_is_and_where_its_structures_are() {
    let mut driver = Driver::new(Entropy);
    assert_eq!(driver.pci.read_config(0, 4), 0x1044_1af4);
    let mut kinds = Vec::new();
    let mut at = driver.pci.read_config(0x34, 1) as u16;
    while at != 0 {
        if driver.pci.read_config(at, 1) == u32::from(CAPABILITY_VENDOR) {
            kinds.push(driver.pci.read_config(at + 3, 1));
        }
        at = driver.pci.read_config(at + 1, 1) as u16;
    }
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
}

#[test]
fn a_request_goes_through_and_interrupts_with_its_queues_vector() {
    let mut driver = entropy();
    check_works(&mut driver);
    wait_until("the interrupt", || !driver.messages.lock().unwrap().is_empty());
    assert_eq!(driver.messages.lock().unwrap()[..], [(0xfee0_0000, 0x40)]);
    let mut bytes = [0; 32];
    driver.ram.read(Gpa(BUFFERS), &mut bytes).unwrap();
    assert_ne!(bytes, [0; 32]);
}

#[test]
fn features_that_are_not_offered_or_not_of_this_version_are_refused() {
    let mut driver = Driver::new(Entropy);
    let offered = driver.offered();
    assert_eq!(offered, feature::TRANSPORT);
    for features in [offered | 1, offered & !feature::VERSION_1, 0, u64::MAX] {
        driver.write(STATUS, 1, 0);
        driver.write(STATUS, 1, 3);
        driver.accept(features);
        driver.write(STATUS, 1, 11);
        assert_eq!(driver.status(), 3, "{features:#x}");
        driver.write(STATUS, 1, 7);
        driver.notify(0);
        assert_eq!(driver.status(), 7);
    }
}

#[test]
fn features_are_settled_once_they_were_accepted() {
    let mut driver = entropy();
    driver.accept(u64::MAX);
    driver.write(8, 4, 0);
    assert_eq!(driver.read(0xc, 4), (feature::TRANSPORT & !feature::EVENT_IDX) & 0xffff_ffff);
}

#[test]
fn a_queue_that_is_live_is_not_moved() {
    let mut driver = entropy();
    for (register, size, value) in
        [(0x18, 2, 2), (0x20, 8, 0x1000), (0x28, 8, 0x1000), (0x30, 4, 0x1000), (0x1c, 2, 0)]
    {
        let before = driver.read(register, 4);
        driver.write(register, size, value);
        assert_eq!(driver.read(register, 4), before, "{register:#x}");
    }
    check_works(&mut driver);
}

#[test]
fn queue_sizes_that_cannot_be_are_not_taken() {
    let mut driver = Driver::new(Entropy);
    for size in [0, 3, 128, 0xffff] {
        driver.write(0x18, 2, size);
        assert_eq!(driver.read(0x18, 2), 64);
    }
    driver.write(0x18, 2, 8);
    assert_eq!(driver.read(0x18, 2), 8);
    // There is no queue 1.
    driver.write(0x16, 2, 1);
    driver.write(0x18, 2, 8);
    driver.write(0x1c, 2, 1);
    assert_eq!((driver.read(0x18, 2), driver.read(0x1c, 2), driver.read(0x1a, 2)), (0, 0, 0xffff));
}

#[test]
fn rings_outside_memory_or_not_aligned_need_a_reset() {
    for areas in [
        [RAM, 0x2000, 0x3000],
        [0x1008, 0x2000, 0x3000],
        [0x1000, u64::MAX - 1, 0x3000],
        [0x1000, 0x2000, RAM - 8],
    ] {
        let mut driver = Driver::new(Entropy);
        driver.write(STATUS, 1, 3);
        let offered = driver.offered();
        driver.accept(offered);
        driver.write(STATUS, 1, 11);
        for (register, area) in (0x20..).step_by(8).zip(areas) {
            driver.write(register, 8, area);
        }
        driver.write(0x1c, 2, 1);
        assert_eq!(driver.read(0x1c, 2), 0);
        assert_eq!(driver.status(), READY[2] | NEEDS_RESET, "{areas:#x?}");
        driver.write(STATUS, 1, 15);
        driver.notify(0);
        driver.set_up(0);
        check_works(&mut driver);
    }
}

#[test]
fn chains_that_lead_astray_need_a_reset_and_a_reset_helps() {
    type Break = fn(&Driver);
    let breaks: [(&str, Break); 8] = [
        ("a loop", |driver| {
            driver.descriptor(0, 0, BUFFERS, 16, NEXT | WRITE, 1);
            driver.descriptor(0, 1, BUFFERS, 16, NEXT | WRITE, 0);
        }),
        ("a next that does not exist", |driver| driver.descriptor(0, 0, BUFFERS, 16, NEXT | WRITE, SIZE)),
        ("indirect in indirect", |driver| {
            driver.descriptor(0, 0, BUFFERS, 16, INDIRECT, 0);
            driver.ram.write(Gpa(BUFFERS), &descriptor(BUFFERS, 16, INDIRECT, 0)).unwrap();
        }),
        ("an indirect table outside memory", |driver| driver.descriptor(0, 0, RAM, 16, INDIRECT, 0)),
        ("an indirect table of no whole entries", |driver| driver.descriptor(0, 0, BUFFERS, 15, INDIRECT, 0)),
        ("an empty indirect table", |driver| driver.descriptor(0, 0, BUFFERS, 0, INDIRECT, 0)),
        ("more than 4 GiB", |driver| {
            driver.descriptor(0, 0, BUFFERS, u32::MAX, NEXT | WRITE, 1);
            driver.descriptor(0, 1, BUFFERS, u32::MAX, WRITE, 0);
        }),
        ("reading after writing", |driver| {
            driver.descriptor(0, 0, BUFFERS, 16, NEXT | WRITE, 1);
            driver.descriptor(0, 1, BUFFERS, 16, 0, 0);
        }),
    ];
    let mut driver = entropy();
    for (what, make) in breaks {
        make(&driver);
        driver.offer(0, 0);
        driver.wait_for_needs_reset();
        assert!(!driver.has_used(0), "{what}");
        driver.set_up(0);
        check_works(&mut driver);
    }
    // A head that does not exist, and an index that runs ahead of the ring.
    driver.offer(0, SIZE);
    driver.wait_for_needs_reset();
    driver.set_up(0);
    driver.ram.write(Gpa(Driver::areas(0)[1] + 2), &(SIZE + 1).to_le_bytes()).unwrap();
    driver.notify(0);
    driver.wait_for_needs_reset();
    driver.set_up(0);
    check_works(&mut driver);
}

#[test]
fn a_long_indirect_chain_has_an_end() {
    let mut driver = entropy();
    let table: Vec<u8> = (0..2048_u16).flat_map(|n| descriptor(BUFFERS, 1, NEXT | WRITE, n + 1)).collect();
    driver.ram.write(Gpa(BUFFERS + 0x1000), &table).unwrap();
    driver.descriptor(0, 0, BUFFERS + 0x1000, table.len() as u32, INDIRECT, 0);
    driver.offer(0, 0);
    driver.wait_for_needs_reset();
    driver.set_up(0);
    // A hundred are fine.
    driver.ram.write(Gpa(BUFFERS + 0x1000), &table).unwrap();
    driver.ram.write(Gpa(BUFFERS + 0x1000 + 99 * 16), &descriptor(BUFFERS, 1, WRITE, 0)).unwrap();
    driver.descriptor(0, 0, BUFFERS + 0x1000, table.len() as u32, INDIRECT, 0);
    driver.offer(0, 0);
    assert_eq!(driver.wait(0), (0, 100));
}

#[test]
fn buffers_outside_memory_harm_nobody() {
    let mut driver = entropy();
    for address in [RAM, RAM - 8, u64::MAX - 8, 1 << 63] {
        driver.descriptor(0, 0, address, 64, WRITE, 0);
        driver.offer(0, 0);
        assert_eq!(driver.wait(0).0, 0);
    }
    check_works(&mut driver);
}

#[test]
fn a_paused_device_leaves_memory_as_it_is_and_takes_up_what_was_asked_meanwhile() {
    let mut driver = entropy();
    driver.request(0, &[], 32);
    driver.pci.pause();
    driver.submit(0, 1, &[], 32);
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(!driver.has_used(0) && driver.written(0, 1, 32) == [0; 32]);
    driver.pci.resume();
    assert_eq!(driver.wait(0), (2, 32));
    assert_ne!(driver.written(0, 1, 32), [0; 32]);
}

#[test]
fn resets_amid_requests_leave_a_device_that_works() {
    let mut driver = entropy();
    for round in 0..200 {
        driver.descriptor(0, 0, BUFFERS, 0x8000, WRITE, 0);
        for _ in 0..round % 8 {
            driver.offer(0, 0);
        }
        driver.set_up(0);
        // After a reset nothing is written any more.
        assert!(!driver.has_used(0));
    }
    check_works(&mut driver);
}

#[test]
fn one_queue_can_be_reset_by_itself() {
    let mut driver = entropy();
    check_works(&mut driver);
    driver.write(0x16, 2, 0);
    driver.write(0x3a, 2, 1);
    assert_eq!((driver.read(0x3a, 2), driver.read(0x1c, 2), driver.read(0x18, 2)), (0, 0, 64));
    driver.offer(0, 0);
    driver.set_up_queue(0);
    assert_eq!(driver.status(), READY[3]);
    check_works(&mut driver);
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let mut driver = entropy();
    let window = driver.pci.window_at;
    driver.pci.write_config(window + 4, 1, 0);
    driver.pci.write_config(window + 8, 4, STATUS as u32);
    driver.pci.write_config(window + 12, 4, 1);
    assert_eq!(driver.pci.read_config(window + 16, 1), u32::from(READY[3]));
    driver.pci.write_config(window + 16, 1, 0);
    assert_eq!(driver.status(), 0);
    for (bar, offset, len) in
        [(1, 0, 4), (0, 0x4000, 4), (0, u32::MAX, 1), (0, 2, 4), (0, 0, 0), (0, 0, u32::MAX)]
    {
        driver.pci.write_config(window + 4, 1, bar);
        driver.pci.write_config(window + 8, 4, offset);
        driver.pci.write_config(window + 12, 4, len);
        driver.pci.write_config(window + 16, 4, 0xffff_ffff);
        driver.pci.read_config(window + 16, 4);
    }
}

#[test]
fn without_messages_the_pin_is_raised_until_the_status_is_read() {
    let level = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let line = Arc::clone(&level);
    let pin = move |on| line.store(on, Ordering::SeqCst);
    let interrupt = Interrupt::new(1, Arc::new(|_: u64, _: u32| panic!("no messages")), Box::new(pin));
    interrupt.queue(0);
    assert!(level.load(Ordering::SeqCst));
    assert_eq!(interrupt.take_isr(), 1);
    assert!(!level.load(Ordering::SeqCst));
    // Software has switched the pin off, and on again.
    interrupt.set_pin_disabled(true);
    interrupt.configuration_changed();
    assert!(!level.load(Ordering::SeqCst));
    interrupt.set_pin_disabled(false);
    assert!(level.load(Ordering::SeqCst));
    assert_eq!(interrupt.take_isr(), 2);
}

#[test]
fn a_device_goes_on_where_it_was_saved() {
    let mut old = entropy();
    check_works(&mut old);
    let state = old.pci.state();
    let text = serde_json::to_string(&state).unwrap();
    let mut new = Driver::new(Entropy);
    let mut memory = vec![0; RAM as usize];
    old.ram.read(Gpa(0), &mut memory).unwrap();
    new.ram.write(Gpa(0), &memory).unwrap();
    new.pci.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(new.pci.state(), state);
    // The second request of the same rings.
    new.offer(0, 0);
    new.offer(0, 0);
    assert_eq!((new.wait(0), new.wait(0)), ((0, 32), (0, 32)));
    let mut damaged = state;
    damaged.common.break_queue_for_test();
    assert!(new.pci.restore(&damaged).is_err());
}
