//! INIT and start-up.

use std::sync::Arc;
use std::sync::Mutex;

use posada_vcpu::x86::{Running, Segment, X87Register};
use posada_vcpu::{Event, Exit, Interrupts};

use crate::testing::Guest;

/// Events, the last one first.
struct Events(Mutex<Vec<Event>>);

impl Interrupts for Events {
    fn pending(&self) -> bool {
        false
    }

    fn acknowledge(&self) -> Option<u8> {
        None
    }

    fn take_event(&self) -> Option<Event> {
        self.0.lock().unwrap().pop()
    }
}

fn events(events: &[Event]) -> Arc<Events> {
    Arc::new(Events(Mutex::new(events.to_vec())))
}

/// An application processor in the middle of something.
fn application(list: &[Event]) -> Guest {
    let mut guest = Guest::long().interrupts(events(list)).bytes(&[0x90]);
    guest.connections.index = 1;
    guest
}

#[test]
fn init_puts_an_application_processor_to_sleep() {
    let outcome = application(&[Event::Init])
        .with(|state| {
            state.ymm[3][0] = 3;
            state.x87.registers[2] = X87Register { significand: 5, sign_exponent: 7 };
            state.msrs.star = 11;
            state.gpr[1] = 13;
        })
        .run_delivering();
    assert_eq!((outcome.exit, outcome.state.activity.running), (Some(Exit::Halted), Running::WaitForStartUp));
    assert_eq!((outcome.state.cr0, outcome.state.msrs.efer, outcome.state.cr3), (0x10, 0, 0));
    assert_eq!((outcome.state.rip, outcome.state.segments.cs.base), (0xfff0, 0xffff_0000));
    assert_eq!((outcome.state.ymm[3][0], outcome.state.x87.registers[2].significand), (3, 5));
    assert_eq!((outcome.state.msrs.star, outcome.state.gpr[1]), (11, 0));
}

#[test]
fn start_up_begins_at_its_page() {
    let outcome = application(&[Event::StartUp(0x12), Event::Init]).memory(0x12000, &[0xf4]).run_delivering();
    let cs = Segment { attributes: 0x9b, ..Segment::real_mode(0x1200) };
    assert_eq!((outcome.state.segments.cs, outcome.state.rip), (cs, 1));
    assert_eq!(outcome.exit, Some(Exit::Halted));
}

#[test]
fn start_up_means_nothing_to_a_processor_that_runs() {
    let outcome = application(&[Event::StartUp(0x12)]).bytes(&[0xf4]).run_delivering();
    assert_eq!(outcome.state.segments.cs.selector, 0x10);
}
