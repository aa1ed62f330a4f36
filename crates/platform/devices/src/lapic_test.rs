use super::*;
use crate::clock::SECOND;

const TIMER_HZ: u64 = 1_000_000_000;
const TSC_HZ: u64 = 2_500_000_000;

fn with_id(id: u32) -> Lapic {
    let config =
        Config { id, bootstrap: id == 0, timer_hz: TIMER_HZ, tsc: TscClock::new(TSC_HZ), physical_bits: 40 };
    Lapic::new(config)
}

/// An APIC that software has enabled.
fn lapic() -> Lapic {
    enabled(0)
}

fn enabled(id: u32) -> Lapic {
    let mut lapic = with_id(id);
    write(&mut lapic, register::SVR, 0x1ff);
    lapic
}

fn x2apic(id: u32) -> Lapic {
    let mut lapic = enabled(id);
    let base = lapic.read_msr(IA32_APIC_BASE, 0).unwrap();
    assert_eq!(lapic.write_msr(IA32_APIC_BASE, base | BASE_X2APIC, 0), Ok(None));
    lapic
}

fn write_at(lapic: &mut Lapic, index: u32, value: u32, now: Nanos) -> Option<Action> {
    lapic.write((index << 4) as u16, value, now)
}

/// A write of which nothing outside comes.
fn write(lapic: &mut Lapic, index: u32, value: u32) {
    assert_eq!(write_at(lapic, index, value, 0), None);
}

fn read_at(lapic: &mut Lapic, index: u32, now: Nanos) -> u32 {
    lapic.read((index << 4) as u16, now)
}

fn read(lapic: &mut Lapic, index: u32) -> u32 {
    read_at(lapic, index, 0)
}

fn ipi(lapic: &mut Lapic, high: u32, low: u32) -> Option<Message> {
    write(lapic, register::ICR_HIGH, high);
    match write_at(lapic, register::ICR, low, 0) {
        Some(Action::Ipi(message)) => Some(message),
        None => None,
        Some(other) => panic!("{other:?}"),
    }
}

fn end_of_interrupt(lapic: &mut Lapic) -> Option<Action> {
    write_at(lapic, register::EOI, 0, 0)
}

// After power-on.

#[test]
fn registers_after_power_on_are_the_manuals() {
    let mut lapic = with_id(3);
    assert_eq!(read(&mut lapic, register::ID), 0x0300_0000);
    assert_eq!(read(&mut lapic, register::VERSION), 0x0005_0014);
    assert_eq!(read(&mut lapic, register::SVR), 0xff);
    assert_eq!(read(&mut lapic, register::DFR), 0xffff_ffff);
    assert_eq!(read(&mut lapic, register::LDR), 0);
    for entry in register::LVT_TIMER..=register::LVT_LAST {
        assert_eq!(read(&mut lapic, entry), LVT_MASKED);
    }
    assert_eq!(lapic.read_msr(IA32_APIC_BASE, 0), Ok(0xfee0_0800));
    assert_eq!(with_id(0).read_msr(IA32_APIC_BASE, 0), Ok(0xfee0_0900));
}

#[test]
fn an_apic_that_software_has_not_enabled_takes_no_fixed_interrupt_but_an_nmi() {
    let mut lapic = with_id(0);
    lapic.deliver(0x40, TriggerMode::Edge);
    assert_eq!(lapic.pending(), None);
    lapic.accept(&Message {
        destination: Destination::All,
        mode: DeliveryMode::Nmi,
        vector: 0,
        trigger: TriggerMode::Edge,
        assert: true,
    });
    assert!(lapic.take_nmi());
    assert!(!lapic.take_nmi());
}

#[test]
fn local_vectors_stay_masked_until_software_enables_the_apic() {
    let mut lapic = with_id(0);
    write(&mut lapic, register::LVT_TIMER, 0x40);
    assert_eq!(read(&mut lapic, register::LVT_TIMER), LVT_MASKED | 0x40);
    write(&mut lapic, register::SVR, 0x1ff);
    write(&mut lapic, register::LVT_TIMER, 0x40);
    assert_eq!(read(&mut lapic, register::LVT_TIMER), 0x40);
    write(&mut lapic, register::SVR, 0xff);
    assert_eq!(read(&mut lapic, register::LVT_TIMER), LVT_MASKED | 0x40);
}

// Priorities.

#[test]
fn the_highest_vector_goes_first_and_only_a_higher_class_interrupts_it() {
    let mut lapic = lapic();
    lapic.deliver(0x41, TriggerMode::Edge);
    lapic.deliver(0x52, TriggerMode::Edge);
    assert_eq!(lapic.acknowledge(), Some(0x52));
    assert_eq!(lapic.pending(), None);
    lapic.deliver(0x5f, TriggerMode::Edge);
    assert_eq!(lapic.pending(), None, "the same class");
    lapic.deliver(0x60, TriggerMode::Edge);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    assert_eq!(end_of_interrupt(&mut lapic), None);
    assert_eq!(end_of_interrupt(&mut lapic), None);
    assert_eq!(lapic.acknowledge(), Some(0x5f));
}

#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    let mut lapic = lapic();
    lapic.deliver(0x4f, TriggerMode::Edge);
    write(&mut lapic, register::TPR, 0x40);
    assert_eq!(lapic.pending(), None);
    assert_eq!(lapic.cr8(), 4);
    lapic.set_cr8(3);
    assert_eq!(read(&mut lapic, register::TPR), 0x30);
    assert_eq!(lapic.pending(), Some(0x4f));
}

#[test]
fn the_processor_priority_is_the_higher_of_task_and_service() {
    let mut lapic = lapic();
    write(&mut lapic, register::TPR, 0x35);
    assert_eq!(read(&mut lapic, register::PPR), 0x35);
    lapic.deliver(0x61, TriggerMode::Edge);
    lapic.acknowledge();
    assert_eq!(read(&mut lapic, register::PPR), 0x60);
    write(&mut lapic, register::TPR, 0x65);
    assert_eq!(read(&mut lapic, register::PPR), 0x65);
}

#[test]
fn requests_and_service_show_in_their_registers() {
    let mut lapic = lapic();
    lapic.deliver(0x45, TriggerMode::Level);
    assert_eq!(read(&mut lapic, register::IRR + 2), 1 << 5);
    assert_eq!(read(&mut lapic, register::TMR + 2), 1 << 5);
    lapic.acknowledge();
    assert_eq!(read(&mut lapic, register::IRR + 2), 0);
    assert_eq!(read(&mut lapic, register::ISR + 2), 1 << 5);
}

#[test]
fn the_end_of_a_level_triggered_interrupt_goes_to_the_io_apics() {
    let mut lapic = lapic();
    lapic.deliver(0x45, TriggerMode::Level);
    lapic.acknowledge();
    assert_eq!(end_of_interrupt(&mut lapic), Some(Action::EndOfInterrupt(0x45)));
    lapic.deliver(0x45, TriggerMode::Edge);
    lapic.acknowledge();
    assert_eq!(end_of_interrupt(&mut lapic), None);
    assert_eq!(end_of_interrupt(&mut lapic), None, "nothing in service");
}

// Errors.

#[test]
fn a_received_illegal_vector_is_an_error_that_a_write_brings_to_light() {
    let mut lapic = lapic();
    lapic.deliver(15, TriggerMode::Edge);
    assert_eq!(lapic.pending(), None);
    assert_eq!(read(&mut lapic, register::ESR), 0);
    write(&mut lapic, register::ESR, 0);
    assert_eq!(read(&mut lapic, register::ESR), ESR_RECEIVED_ILLEGAL_VECTOR);
    write(&mut lapic, register::ESR, 0);
    assert_eq!(read(&mut lapic, register::ESR), 0);
}

#[test]
fn an_error_interrupts_by_its_lvt_entry() {
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_LAST, 0xfe);
    assert_eq!(ipi(&mut lapic, 0, 0x0f), None, "vector 15 is not sent");
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    write(&mut lapic, register::ESR, 0);
    assert_eq!(read(&mut lapic, register::ESR), ESR_SEND_ILLEGAL_VECTOR);
}

#[test]
fn an_illegal_vector_in_the_error_entry_does_not_call_itself() {
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_LAST, 3);
    lapic.deliver(1, TriggerMode::Edge);
    assert_eq!(lapic.pending(), None);
}

#[test]
fn a_register_that_does_not_exist_is_an_error() {
    let mut lapic = lapic();
    assert_eq!(lapic.read(0x2a0, 0), 0);
    write(&mut lapic, register::ESR, 0);
    assert_eq!(read(&mut lapic, register::ESR), ESR_ILLEGAL_REGISTER);
}

// Interprocessor interrupts.

#[test]
fn an_ipi_carries_destination_mode_and_vector() {
    let mut lapic = lapic();
    let message = ipi(&mut lapic, 0x0200_0000, 0x40f6).unwrap();
    assert_eq!(message.destination, Destination::Physical(2));
    assert_eq!((message.mode, message.vector), (DeliveryMode::Fixed, 0xf6));
    assert_eq!(message.trigger, TriggerMode::Edge);
    let message = ipi(&mut lapic, 0x0300_0000, 0x48f6).unwrap();
    assert_eq!(message.destination, Destination::Logical(3));
    assert_eq!(read(&mut lapic, register::ICR), 0x48f6);
    assert_eq!(read(&mut lapic, register::ICR_HIGH), 0x0300_0000);
}

#[test]
fn shorthands_name_self_all_and_the_others() {
    let mut lapic = enabled(4);
    assert_eq!(ipi(&mut lapic, 0, 1 << 18 | 0x55), None);
    assert_eq!(lapic.acknowledge(), Some(0x55), "to self needs no bus");
    assert_eq!(ipi(&mut lapic, 0, 2 << 18 | 0x55).unwrap().destination, Destination::All);
    assert_eq!(ipi(&mut lapic, 0, 3 << 18 | 0x55).unwrap().destination, Destination::AllBut(4));
    assert_eq!(ipi(&mut lapic, 0xff00_0000, 0x55).unwrap().destination, Destination::All);
}

#[test]
fn init_and_start_up_reach_their_processor() {
    let mut sender = lapic();
    let mut target = with_id(1);
    let init = ipi(&mut sender, 0x0100_0000, 0xc500).unwrap();
    assert!(target.matches(init.destination));
    target.accept(&init);
    assert!(target.has_event());
    assert!(target.take_init());
    // "INIT level de-assert" does nothing.
    let deassert = ipi(&mut sender, 0x0100_0000, 0x8500).unwrap();
    assert!(!deassert.assert);
    target.accept(&deassert);
    assert!(!target.take_init());
    let start = ipi(&mut sender, 0x0100_0000, 0x4608).unwrap();
    target.accept(&start);
    assert_eq!(target.take_start_up(), Some(8));
    assert!(!target.has_event());
}

#[test]
fn init_keeps_id_base_and_pins() {
    let mut lapic = x2apic(5);
    lapic.deliver(0x50, TriggerMode::Edge);
    lapic.init();
    assert!(lapic.is_x2apic());
    assert_eq!(lapic.id(), 5);
    assert_eq!(lapic.pending(), None);
    assert_eq!(lapic.read_msr(0x80f, 0), Ok(0xff));
    assert_eq!(lapic.read_msr(0x832, 0), Ok(LVT_MASKED.into()));
}

// Destinations.

#[test]
fn flat_logical_destinations_are_bits() {
    let mut lapic = lapic();
    write(&mut lapic, register::LDR, 0x0400_0000);
    assert!(lapic.matches(Destination::Logical(0x06)));
    assert!(!lapic.matches(Destination::Logical(0x03)));
    assert!(lapic.matches(Destination::Logical(0xff)));
}

#[test]
fn cluster_logical_destinations_are_a_cluster_and_bits() {
    let mut lapic = lapic();
    write(&mut lapic, register::DFR, 0x0fff_ffff);
    write(&mut lapic, register::LDR, 0x2400_0000);
    assert!(lapic.matches(Destination::Logical(0x26)));
    assert!(!lapic.matches(Destination::Logical(0x16)));
    assert!(!lapic.matches(Destination::Logical(0x23)));
    assert!(lapic.matches(Destination::Logical(0xff)), "broadcast to all clusters");
}

#[test]
fn x2apic_logical_ids_follow_from_the_id() {
    let mut lapic = x2apic(0x25);
    assert_eq!(lapic.read_msr(0x80d, 0), Ok(0x0002_0020));
    assert!(lapic.matches(Destination::Logical(0x0002_0021)));
    assert!(!lapic.matches(Destination::Logical(0x0002_0010)));
    assert!(!lapic.matches(Destination::Logical(0x0003_0020)));
    assert!(lapic.matches(Destination::Logical(0xffff_ffff)));
}

#[test]
fn physical_destinations_are_ids() {
    let lapic = enabled(7);
    assert!(lapic.matches(Destination::Physical(7)));
    assert!(!lapic.matches(Destination::Physical(6)));
    assert!(lapic.matches(Destination::All));
    assert!(lapic.matches(Destination::AllBut(6)));
    assert!(!lapic.matches(Destination::AllBut(7)));
}

#[test]
fn a_globally_disabled_apic_hears_nothing() {
    let mut lapic = lapic();
    assert_eq!(lapic.write_msr(IA32_APIC_BASE, DEFAULT_BASE, 0), Ok(None));
    assert!(!lapic.matches(Destination::All));
    assert_eq!(lapic.mmio_base(), None);
    assert!(lapic.accepts_pic(), "its pin is the processor's INTR");
}

// LINT pins.

#[test]
fn virtual_wire_mode_passes_the_8259_and_the_nmi() {
    let mut lapic = with_id(0);
    assert!(!lapic.accepts_pic());
    lapic.enter_virtual_wire_mode();
    assert!(lapic.accepts_pic());
    lapic.set_lint(1, true);
    lapic.set_lint(1, true);
    assert!(lapic.take_nmi());
    assert!(!lapic.take_nmi(), "an NMI is an edge");
    write(&mut lapic, register::LVT_TIMER + 3, LVT_MASKED | 0x700);
    assert!(!lapic.accepts_pic());
}

#[test]
fn lint0_can_be_a_fixed_edge() {
    // As Linux tries when the timer does not come through the I/O APIC.
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_TIMER + 3, 0x30);
    lapic.set_lint(0, true);
    assert_eq!(lapic.acknowledge(), Some(0x30));
    lapic.set_lint(0, false);
    lapic.set_lint(0, true);
    assert_eq!(read(&mut lapic, register::IRR + 1), 1 << 16);
}

#[test]
fn lint0_can_be_a_fixed_level() {
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_TIMER + 3, LVT_LEVEL | 0x30);
    lapic.set_lint(0, true);
    assert_eq!(lapic.acknowledge(), Some(0x30));
    assert_ne!(read(&mut lapic, register::LVT_TIMER + 3) & LVT_REMOTE_IRR, 0);
    assert_eq!(end_of_interrupt(&mut lapic), Some(Action::EndOfInterrupt(0x30)));
    assert_eq!(lapic.acknowledge(), Some(0x30), "still asserted");
    lapic.set_lint(0, false);
    assert_eq!(end_of_interrupt(&mut lapic), Some(Action::EndOfInterrupt(0x30)));
    assert_eq!(lapic.pending(), None);
}

#[test]
fn an_extint_message_waits_for_its_acknowledge_cycle() {
    let mut lapic = lapic();
    lapic.accept(&Message {
        destination: Destination::Physical(0),
        mode: DeliveryMode::ExtInt,
        vector: 0,
        trigger: TriggerMode::Edge,
        assert: true,
    });
    assert!(lapic.has_ext_int());
    assert!(lapic.take_ext_int());
    assert!(!lapic.has_ext_int());
}

// The timer.

fn start_timer(lapic: &mut Lapic, lvt: u32, divide: u32, initial: u32, now: Nanos) {
    assert_eq!(write_at(lapic, register::LVT_TIMER, lvt, now), None);
    assert_eq!(write_at(lapic, register::DIVIDE, divide, now), None);
    assert_eq!(write_at(lapic, register::INITIAL_COUNT, initial, now), None);
}

#[test]
fn a_one_shot_fires_once_and_stays_at_zero() {
    let mut lapic = lapic();
    start_timer(&mut lapic, 0x40, 0x0b, 1000, 500);
    assert_eq!(lapic.next_deadline(), Some(1500));
    assert_eq!(read_at(&mut lapic, register::CURRENT_COUNT, 800), 700);
    lapic.tick(1499);
    assert_eq!(lapic.pending(), None);
    lapic.tick(1500);
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(read_at(&mut lapic, register::CURRENT_COUNT, 9999), 0);
    lapic.tick(99_999);
    assert_eq!(lapic.pending(), None);
}

#[test]
fn the_divider_follows_the_manuals_table() {
    for (divide, divisor) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ] {
        let mut lapic = lapic();
        start_timer(&mut lapic, 0x40, divide, 10, 0);
        assert_eq!(lapic.next_deadline(), Some(10 * divisor), "{divide:04b}");
    }
}

#[test]
fn periodic_ticks_neither_drift_nor_pile_up() {
    let mut lapic = lapic();
    let period = 1_000_003;
    start_timer(&mut lapic, 1 << 17 | 0x40, 0x0b, period, 7);
    let period = u64::from(period);
    let mut late = 0;
    for _ in 0..1000 {
        let due = lapic.next_deadline().unwrap();
        late = (late * 7 + 13) % period;
        lapic.tick(due + late);
        assert_eq!(lapic.acknowledge(), Some(0x40));
        assert_eq!(end_of_interrupt(&mut lapic), None);
        assert_eq!((lapic.next_deadline().unwrap() - 7) % period, 0);
    }
    // The host was away for ten periods: one interrupt, and the next on time.
    let due = lapic.next_deadline().unwrap();
    lapic.tick(due + 10 * period + 5);
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(lapic.next_deadline(), Some(due + 11 * period));
}

#[test]
fn the_periodic_count_runs_from_initial_to_one() {
    let mut lapic = lapic();
    start_timer(&mut lapic, 1 << 17 | 0x40, 0x0b, 100, 0);
    assert_eq!(read_at(&mut lapic, register::CURRENT_COUNT, 0), 100);
    assert_eq!(read_at(&mut lapic, register::CURRENT_COUNT, 99), 1);
    assert_eq!(read_at(&mut lapic, register::CURRENT_COUNT, 100), 100);
}

#[test]
fn an_initial_count_of_zero_stops_the_timer() {
    let mut lapic = lapic();
    start_timer(&mut lapic, 1 << 17 | 0x40, 0x0b, 100, 0);
    assert_eq!(write_at(&mut lapic, register::INITIAL_COUNT, 0, 50), None);
    assert_eq!(lapic.next_deadline(), None);
    lapic.tick(10_000);
    assert_eq!(lapic.pending(), None);
}

#[test]
fn ticks_while_masked_are_not_made_up_for() {
    let mut lapic = lapic();
    start_timer(&mut lapic, 1 << 17 | LVT_MASKED | 0x40, 0x0b, 100, 0);
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(write_at(&mut lapic, register::LVT_TIMER, 1 << 17 | 0x40, 1050), None);
    lapic.tick(1050);
    assert_eq!(lapic.pending(), None);
    assert_eq!(lapic.next_deadline(), Some(1100));
}

#[test]
fn a_new_divisor_goes_on_from_the_current_count() {
    let mut lapic = lapic();
    start_timer(&mut lapic, 0x40, 0x0b, 1000, 0);
    assert_eq!(write_at(&mut lapic, register::DIVIDE, 0, 400), None); // by 2
    assert_eq!(read_at(&mut lapic, register::CURRENT_COUNT, 400), 600);
    assert_eq!(lapic.next_deadline(), Some(400 + 1200));
}

#[test]
fn a_tsc_deadline_fires_when_the_counter_reaches_it() {
    let mut lapic = lapic();
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, 5_000, 0), Ok(None));
    assert_eq!(lapic.read_msr(IA32_TSC_DEADLINE, 0), Ok(0), "ignored in another mode");
    write(&mut lapic, register::LVT_TIMER, 2 << 17 | 0x40);
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, 5_000, 0), Ok(None));
    assert_eq!(lapic.next_deadline(), Some(2_000));
    lapic.tick(1_999);
    assert_eq!(lapic.pending(), None);
    lapic.tick(2_000);
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(lapic.read_msr(IA32_TSC_DEADLINE, 2_000), Ok(0), "disarmed");
}

#[test]
fn a_tsc_deadline_in_the_past_fires_at_once_and_zero_disarms() {
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_TIMER, 2 << 17 | 0x40);
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, 1, SECOND), Ok(None));
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, TSC_HZ * 2, SECOND), Ok(None));
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, 0, SECOND), Ok(None));
    assert_eq!(lapic.next_deadline(), None);
}

#[test]
fn a_tsc_deadline_follows_a_change_of_the_counter() {
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_TIMER, 2 << 17 | 0x40);
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, TSC_HZ * 10, 0), Ok(None));
    let mut tsc = lapic.tsc();
    tsc.write(SECOND, TSC_HZ * 9);
    lapic.set_tsc(tsc);
    assert_eq!(lapic.next_deadline(), Some(2 * SECOND));
}

#[test]
fn leaving_tsc_deadline_mode_disarms() {
    let mut lapic = lapic();
    write(&mut lapic, register::LVT_TIMER, 2 << 17 | 0x40);
    assert_eq!(lapic.write_msr(IA32_TSC_DEADLINE, 5_000, 0), Ok(None));
    write(&mut lapic, register::LVT_TIMER, 0x40);
    assert_eq!(lapic.next_deadline(), None);
    // In TSC-deadline mode, the initial count is not written.
    write(&mut lapic, register::LVT_TIMER, 2 << 17 | 0x40);
    write(&mut lapic, register::INITIAL_COUNT, 77);
    assert_eq!(read(&mut lapic, register::INITIAL_COUNT), 0);
}

// x2APIC.

#[test]
fn mode_transitions_are_the_manuals() {
    let on = DEFAULT_BASE | BASE_ENABLE;
    let x2 = on | BASE_X2APIC;
    let off = DEFAULT_BASE;
    let allowed = [(on, off), (on, x2), (on, on), (x2, off), (x2, x2), (off, on), (off, off)];
    for from in [on, x2, off] {
        for to in [on, x2, off, off | BASE_X2APIC] {
            let mut lapic = with_id(0);
            lapic.write_msr(IA32_APIC_BASE, from, 0).map(drop).unwrap();
            let result = lapic.write_msr(IA32_APIC_BASE, to, 0);
            assert_eq!(result.is_ok(), allowed.contains(&(from, to)), "{from:#x} to {to:#x}");
        }
    }
}

#[test]
fn reserved_bits_of_the_base_are_refused() {
    let mut lapic = lapic();
    for bit in [0, 7, 9, 40, 63] {
        let value = DEFAULT_BASE | BASE_ENABLE | 1 << bit;
        assert_eq!(lapic.write_msr(IA32_APIC_BASE, value, 0), Err(GeneralProtection), "{bit}");
    }
    assert_eq!(lapic.write_msr(IA32_APIC_BASE, 0xfe00_0000 | BASE_ENABLE, 0), Ok(None));
    assert_eq!(lapic.mmio_base(), Some(0xfe00_0000));
}

#[test]
fn x2apic_registers_are_refused_in_xapic_mode() {
    let mut lapic = lapic();
    assert_eq!(lapic.read_msr(0x802, 0), Err(GeneralProtection));
    assert_eq!(lapic.write_msr(0x80b, 0, 0), Err(GeneralProtection));
}

#[test]
fn the_page_is_not_there_in_x2apic_mode() {
    assert_eq!(x2apic(0).mmio_base(), None);
}

#[test]
fn an_x2apic_id_is_32_bits() {
    let mut lapic = x2apic(0x1234);
    assert_eq!(lapic.read_msr(0x802, 0), Ok(0x1234));
}

#[test]
fn the_x2apic_icr_is_one_register() {
    let mut lapic = x2apic(0);
    let sent = lapic.write_msr(0x830, 0x0000_0105_0000_40f2, 0);
    let Ok(Some(Action::Ipi(message))) = sent else { panic!("{sent:?}") };
    assert_eq!(message.destination, Destination::Physical(0x105));
    assert_eq!(lapic.read_msr(0x830, 0), Ok(0x0000_0105_0000_40f2));
    let sent = lapic.write_msr(0x830, 0xffff_ffff_0000_40f2, 0);
    let Ok(Some(Action::Ipi(message))) = sent else { panic!("{sent:?}") };
    assert_eq!(message.destination, Destination::All);
}

#[test]
fn the_self_ipi_register_needs_no_bus() {
    let mut lapic = x2apic(0);
    assert_eq!(lapic.write_msr(0x83f, 0xf0, 0), Ok(None));
    assert_eq!(lapic.acknowledge(), Some(0xf0));
}

#[test]
fn x2apic_msrs_refuse_what_the_manual_refuses() {
    let mut lapic = x2apic(0);
    // Registers that exist in memory only, that cannot be written, that cannot be read, that are none.
    for msr in [0x80e, 0x809, 0x831, 0x80c, 0x82f, 0x800, 0x8ff, 0x80b, 0x83f] {
        assert_eq!(lapic.read_msr(msr, 0), Err(GeneralProtection), "read {msr:#x}");
    }
    for msr in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x820, 0x839, 0x80e, 0x8ff] {
        assert_eq!(lapic.write_msr(msr, 0, 0), Err(GeneralProtection), "write {msr:#x}");
    }
    for (msr, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x828, 1),
        (0x80f, 0x400),
        (0x832, 1 << 19),
        (0x830, 1 << 20),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(lapic.write_msr(msr, value, 0), Err(GeneralProtection), "write {value:#x} to {msr:#x}");
    }
    assert_eq!(lapic.write_msr(0x80b, 0, 0), Ok(None));
}

#[test]
fn disabling_the_apic_forgets_what_it_held() {
    let mut lapic = lapic();
    lapic.deliver(0x50, TriggerMode::Edge);
    assert_eq!(lapic.write_msr(IA32_APIC_BASE, DEFAULT_BASE, 0), Ok(None));
    assert_eq!(lapic.write_msr(IA32_APIC_BASE, DEFAULT_BASE | BASE_ENABLE, 0), Ok(None));
    assert_eq!(lapic.pending(), None);
    assert_eq!(read(&mut lapic, register::SVR), 0xff);
}

#[test]
fn the_state_goes_through_a_file() {
    let mut lapic = lapic();
    lapic.deliver(0x50, TriggerMode::Level);
    start_timer(&mut lapic, 1 << 17 | 0x40, 0x0b, 100, 30);
    let text = serde_json::to_string(&lapic.state()).unwrap();
    let restored = Lapic::from_state(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(restored.state(), lapic.state());
    assert_eq!(restored.next_deadline(), Some(130));
    assert_eq!(restored.pending(), Some(0x50));
}

#[test]
fn an_impossible_state_is_refused() {
    let mut state = lapic().state();
    state.base = BASE_X2APIC;
    assert!(Lapic::from_state(state).is_err());
}
