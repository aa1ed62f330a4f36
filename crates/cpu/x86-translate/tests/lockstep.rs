//! Interpreter and translator side by side: over the conformance suite, and where they are made to differ.

use std::sync::Arc;

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::conformance::CASES;
use posada_vcpu::x86::State;
use posada_vcpu::{Attention, Bus, Clock, Connections, Error, NoInterrupts, Vcpu};
use posada_x86::Model;
use posada_x86_translate::Lockstep;

fn lockstep(connections: Connections) -> Result<Lockstep, Error> {
    Lockstep::new(connections, Model::named("x86-64-v2").expect("a listed model exists"), 1 << 20)
}

#[test]
fn they_agree_on_the_conformance_suite() {
    let make = |connections| -> Box<dyn Vcpu> { Box::new(lockstep(connections).expect("the host can")) };
    // One kicks so soon that on a busy machine the copy of memory is not ready yet; in another a device writes to memory.
    let unfit = ["processors::", "a_kick_ends_an_endless_loop", "a_store_by_a_device"];
    let cases = CASES.iter().filter(|case| !unfit.iter().any(|part| case.name.contains(part)));
    for case in cases {
        case.run(&make);
    }
}

/// A device that writes to memory behind the engine's back, which no device may while there is a copy.
struct Meddler(GuestRam);

impl Bus for Meddler {
    fn port_write(&self, _: u16, data: &[u8]) {
        self.0.write(Gpa(0x3000), data).expect("inside RAM");
    }
}

fn connections(ram: &GuestRam, count: u32) -> Connections {
    Connections {
        index: 0,
        count,
        ram: ram.clone(),
        bus: Arc::new(Meddler(ram.clone())),
        interrupts: Arc::new(NoInterrupts),
        attention: Arc::new(Attention::default()),
        clock: Arc::new(Clock::new()),
    }
}

#[test]
fn memory_that_only_one_of_them_sees_changing_is_reported() {
    let ram = GuestRam::new(&[(Gpa(0), 0x10000)]).unwrap();
    let mut guest = lockstep(connections(&ram, 1)).unwrap();
    // mov al, 0x55; out 0x80, al; hlt
    ram.write(Gpa(0x1000), &[0xb0, 0x55, 0xe6, 0x80, 0xf4]).unwrap();
    guest.set_state(&State::protected_mode(0x1000)).unwrap();
    let report = guest.run().unwrap_err().to_string();
    for part in ["memory differs", "0x0000000000003000", "out 80h,al", "interpreter:", "translator:"] {
        assert!(report.contains(part), "{part} is not in\n{report}");
    }
    assert_eq!(guest.run().unwrap_err().to_string(), report, "it does not go on");
}

#[test]
fn several_processors_are_refused() {
    let ram = GuestRam::new(&[(Gpa(0), 0x10000)]).unwrap();
    let error = lockstep(connections(&ram, 2)).err().unwrap();
    assert!(error.to_string().contains("one processor, not 2"), "{error}");
}
