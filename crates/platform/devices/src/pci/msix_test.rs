use super::*;
use std::sync::Mutex;

type Sent = Arc<Mutex<Vec<(u64, u32)>>>;

fn msix(vectors: u16) -> (Msix, Sent) {
    let sent = Sent::default();
    let bus = Arc::clone(&sent);
    (Msix::new(vectors, Arc::new(move |address, data| bus.lock().unwrap().push((address, data)))), sent)
}

fn program(msix: &mut Msix, vector: u64, data: u64) {
    msix.write_table(vector * 16, 8, 0xfee0_0000);
    msix.write_table(vector * 16 + 8, 8, data);
}

fn take(sent: &Sent) -> Vec<(u64, u32)> {
    std::mem::take(&mut sent.lock().unwrap())
}

#[test]
fn a_masked_vector_waits_as_a_pending_bit_and_is_sent_once() {
    let (mut msix, sent) = msix(70);
    msix.set_control(0x8000);
    program(&mut msix, 69, 1 << 32 | 0x55);
    msix.trigger(69);
    msix.trigger(69);
    assert_eq!((msix.read_pending(8, 8), msix.read_pending(8, 4)), (1 << 5, 1 << 5));
    assert!(take(&sent).is_empty());
    msix.write_table(69 * 16 + 12, 4, 0);
    assert_eq!(take(&sent), [(0xfee0_0000, 0x55)]);
    assert_eq!(msix.read_pending(8, 8), 0);
}

#[test]
fn the_function_mask_holds_back_all_vectors() {
    let (mut msix, sent) = msix(2);
    program(&mut msix, 0, 0x40);
    program(&mut msix, 1, 0x41);
    msix.set_control(0xc000);
    msix.trigger(0);
    msix.trigger(1);
    assert_eq!(msix.read_pending(0, 4), 3);
    msix.set_control(0x8000);
    assert_eq!(take(&sent), [(0xfee0_0000, 0x40), (0xfee0_0000, 0x41)]);
}

#[test]
fn nothing_is_sent_or_pending_while_disabled() {
    let (mut msix, sent) = msix(1);
    program(&mut msix, 0, 0x40);
    msix.trigger(0);
    assert_eq!(msix.read_pending(0, 8), 0);
    msix.set_control(0x8000);
    assert!(take(&sent).is_empty());
}

#[test]
fn accesses_that_are_not_defined_do_nothing() {
    let (mut msix, sent) = msix(1);
    msix.set_control(0x8000);
    for (offset, size) in [(0, 1), (1, 4), (2, 2), (12, 8), (16, 4), (u64::MAX, 8)] {
        msix.write_table(offset, size, u64::MAX);
        assert_eq!(msix.read_table(offset, size), 0);
        assert_eq!(msix.read_pending(offset, size), 0);
    }
    msix.trigger(1);
    msix.trigger(u16::MAX);
    assert!(take(&sent).is_empty());
    assert_eq!(msix.read_table(12, 4), 1, "still masked");
}

#[test]
fn a_saved_state_goes_into_a_table_of_the_same_size_only() {
    let (mut old, _) = msix(3);
    program(&mut old, 2, 1 << 32 | 0x42);
    old.set_control(0x8000);
    old.trigger(2);
    let (mut new, sent) = msix(3);
    new.restore(&old.state()).unwrap();
    new.write_table(2 * 16 + 12, 4, 0);
    assert_eq!(take(&sent), [(0xfee0_0000, 0x42)]);
    assert!(msix(4).0.restore(&old.state()).is_err());
}
