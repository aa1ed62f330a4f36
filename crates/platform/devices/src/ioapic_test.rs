use super::*;
use std::sync::mpsc::{Receiver, channel};

type TestIoapic = Ioapic<Box<dyn Fn(Message) + Send>>;

fn ioapic() -> (TestIoapic, Receiver<Message>) {
    let (sender, receiver) = channel();
    let sink: Box<dyn Fn(Message) + Send> = Box::new(move |message| sender.send(message).unwrap());
    (Ioapic::new(0, sink), receiver)
}

fn write(ioapic: &mut TestIoapic, index: u8, value: u32) {
    ioapic.write(IOREGSEL, index.into());
    ioapic.write(IOWIN, value);
}

fn read(ioapic: &mut TestIoapic, index: u8) -> u32 {
    ioapic.write(IOREGSEL, index.into());
    ioapic.read(IOWIN)
}

fn low(pin: u8) -> u8 {
    0x10 + 2 * pin
}

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

fn messages(bus: &Receiver<Message>) -> usize {
    bus.try_iter().count()
}

#[test]
fn an_entry_says_where_and_how() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(9) + 1, 0x0300_0000);
    write(&mut ioapic, low(9), 0x41 | 1 << 8 | 1 << 11 | LEVEL);
    ioapic.set_irq(9, true);
    let message = bus.try_recv().unwrap();
    assert_eq!(
        message,
        Message {
            destination: Destination::Logical(3),
            mode: DeliveryMode::LowestPriority,
            vector: 0x41,
            trigger: TriggerMode::Level,
            assert: true,
        }
    );
}

#[test]
fn a_physical_destination_of_ff_is_everybody() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(4) + 1, 0xff00_0000);
    write(&mut ioapic, low(4), 0x31);
    ioapic.set_irq(4, true);
    assert_eq!(bus.try_recv().unwrap().destination, Destination::All);
}

#[test]
fn an_edge_is_sent_at_its_rise_alone() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(1), 0x31);
    ioapic.set_irq(1, true);
    ioapic.set_irq(1, true);
    ioapic.set_irq(1, false);
    assert_eq!(messages(&bus), 1);
    ioapic.set_irq(1, true);
    assert_eq!(messages(&bus), 1);
}

#[test]
fn an_edge_on_a_masked_input_is_lost() {
    let (mut ioapic, bus) = ioapic();
    ioapic.set_irq(1, true);
    write(&mut ioapic, low(1), 0x31);
    assert_eq!(messages(&bus), 0);
}

#[test]
fn a_level_is_sent_once_until_its_end_and_again_while_it_lasts() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(10), 0x51 | LEVEL);
    ioapic.set_irq(10, true);
    ioapic.set_irq(10, false);
    ioapic.set_irq(10, true);
    assert_eq!(messages(&bus), 1);
    assert_eq!(read(&mut ioapic, low(10)) & REMOTE_IRR, REMOTE_IRR);
    ioapic.end_of_interrupt(0x52);
    assert_eq!(messages(&bus), 0, "another vector's end");
    ioapic.end_of_interrupt(0x51);
    assert_eq!(messages(&bus), 1);
    ioapic.set_irq(10, false);
    ioapic.end_of_interrupt(0x51);
    assert_eq!(messages(&bus), 0);
    assert_eq!(read(&mut ioapic, low(10)) & REMOTE_IRR, 0);
}

#[test]
fn a_level_that_is_asserted_when_unmasked_is_sent() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(10), 0x51 | LEVEL | MASKED);
    ioapic.set_irq(10, true);
    assert_eq!(messages(&bus), 0);
    write(&mut ioapic, low(10), 0x51 | LEVEL);
    assert_eq!(messages(&bus), 1);
}

#[test]
fn the_eoi_register_ends_a_level() {
    let (mut ioapic, _bus) = ioapic();
    write(&mut ioapic, low(10), 0x51 | LEVEL);
    ioapic.set_irq(10, true);
    ioapic.set_irq(10, false);
    ioapic.write(EOI, 0x51);
    assert_eq!(read(&mut ioapic, low(10)) & REMOTE_IRR, 0);
}

#[test]
fn making_an_entry_edge_triggered_clears_a_stuck_remote_irr() {
    let (mut ioapic, _bus) = ioapic();
    write(&mut ioapic, low(10), 0x51 | LEVEL);
    ioapic.set_irq(10, true);
    write(&mut ioapic, low(10), 0x51 | MASKED);
    write(&mut ioapic, low(10), 0x51 | LEVEL | MASKED);
    assert_eq!(read(&mut ioapic, low(10)), 0x51 | LEVEL | MASKED);
}

#[test]
fn read_only_bits_stay() {
    let (mut ioapic, _bus) = ioapic();
    write(&mut ioapic, low(3), 0xffff_ffff);
    write(&mut ioapic, low(3) + 1, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, low(3)), 0x0001_afff);
    assert_eq!(read(&mut ioapic, low(3) + 1), 0xff00_0000);
}

#[test]
fn version_and_identification() {
    let (mut ioapic, _bus) = ioapic();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
    write(&mut ioapic, 0, 0xff00_0000);
    assert_eq!(read(&mut ioapic, 0), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 2), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 0x40), 0, "past the table");
}

#[test]
fn nmi_and_extint_entries_are_sent_as_such() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(0), 7 << 8);
    ioapic.set_irq(0, true);
    assert_eq!(bus.try_recv().unwrap().mode, DeliveryMode::ExtInt);
    write(&mut ioapic, low(2), 4 << 8);
    ioapic.set_irq(2, true);
    assert_eq!(bus.try_recv().unwrap().mode, DeliveryMode::Nmi);
    write(&mut ioapic, low(3), 3 << 8); // reserved
    ioapic.set_irq(3, true);
    assert_eq!(messages(&bus), 0);
}

#[test]
fn pins_that_do_not_exist_are_harmless() {
    let (mut ioapic, bus) = ioapic();
    ioapic.set_irq(24, true);
    ioapic.set_irq(255, true);
    assert_eq!(messages(&bus), 0);
}

#[test]
fn the_state_goes_through_a_file() {
    let (mut ioapic, _bus) = ioapic();
    write(&mut ioapic, low(10), 0x51 | LEVEL);
    ioapic.set_irq(10, true);
    let text = serde_json::to_string(&ioapic.state()).unwrap();
    let (sender, bus) = channel();
    let sink = move |message| sender.send(message).unwrap();
    let mut restored = Ioapic::from_state(serde_json::from_str(&text).unwrap(), sink).unwrap();
    assert_eq!(messages(&bus), 0, "what was sent is not sent again");
    restored.end_of_interrupt(0x51);
    assert_eq!(messages(&bus), 1);
}

#[test]
fn reset_masks_every_entry() {
    let (mut ioapic, bus) = ioapic();
    write(&mut ioapic, low(1), 0x31);
    ioapic.reset();
    ioapic.set_irq(1, true);
    assert_eq!(messages(&bus), 0);
    assert_eq!(read(&mut ioapic, low(1)), MASKED);
}
