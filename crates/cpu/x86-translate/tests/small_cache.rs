//! A guest with more code than the code cache has room for.

use std::sync::Arc;

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::{State, gpr};
use posada_vcpu::{Attention, Bus, Clock, Connections, Exit, NoInterrupts, Vcpu};
use posada_x86::Model;
use posada_x86_translate::Translator;

struct Nothing;
impl Bus for Nothing {}

const RAM: u64 = 8 << 20;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x20_0000;
/// Instructions that add one, of three bytes each: 4 MiB, which become more when they are translated.
const ADDITIONS: usize = (4 << 20) / 3;
/// How often all of them are carried out.
const ROUNDS: u32 = 3;

/// A guest that carries out `code` and then again, [`ROUNDS`] times.
fn guest(mut code: Vec<u8>) -> (Translator, State) {
    let ram = GuestRam::new(&[(Gpa(0), RAM)]).unwrap();
    ram.write(Gpa(TABLES), &((TABLES + 0x1000) | 3).to_le_bytes()).unwrap();
    ram.write(Gpa(TABLES + 0x1000), &((TABLES + 0x2000) | 3).to_le_bytes()).unwrap();
    for page in 0..RAM >> 21 {
        ram.write(Gpa(TABLES + 0x2000 + page * 8), &(page << 21 | 0x83).to_le_bytes()).unwrap();
    }
    code.extend([0xff, 0xc9, 0x0f, 0x84, 5, 0, 0, 0, 0xe9]); // dec ecx; jz to the hlt; jmp back
    let back = -(code.len() as i32) - 4;
    code.extend(back.to_le_bytes());
    code.push(0xf4);
    ram.write(Gpa(CODE), &code).unwrap();
    let connections = Connections {
        index: 0,
        count: 1,
        ram,
        bus: Arc::new(Nothing),
        interrupts: Arc::new(NoInterrupts),
        attention: Arc::new(Attention::default()),
        clock: Arc::new(Clock::new()),
    };
    let mut state = State::long_mode(CODE, TABLES);
    state.gpr[gpr::RCX] = u64::from(ROUNDS);
    // What is less than there must be becomes that.
    let model = Model::named("x86-64-v2").unwrap();
    (Translator::new(connections, model, 1).expect("the host has what a translator needs"), state)
}

#[test]
fn a_guest_whose_code_does_not_fit_is_carried_out_to_its_end() {
    let (mut guest, state) = guest([0x48, 0xff, 0xc0].repeat(ADDITIONS)); // inc rax
    guest.set_state(&state).unwrap();
    assert_eq!(guest.run().unwrap(), Exit::Halted);
    assert_eq!(guest.state().gpr[gpr::RAX], ADDITIONS as u64 * u64::from(ROUNDS));
    let stats = guest.stats();
    assert!(stats.clears >= u64::from(ROUNDS), "{stats}");
    // What is emptied is filled before it is emptied again: nothing is translated more than once a round. A block has 64
    // instructions, unless a page ends.
    assert!(stats.blocks <= u64::from(ROUNDS) * ADDITIONS as u64 / 40, "{stats}");
    assert!(stats.again > stats.blocks / 2, "{stats}");
}

#[test]
fn an_access_that_comes_to_be_unaligned_when_there_is_no_room_is_made() {
    // inc rax, fifteen times; add rdx, [rbx + 1]; mov rbx, rbx, so that no two accesses are known to be at one place
    let some = [[0x48, 0xff, 0xc0].repeat(15), vec![0x48, 0x03, 0x53, 0x01, 0x48, 0x89, 0xdb]].concat();
    let times = (3 << 20) / some.len();
    let (mut guest, mut state) = guest(some.repeat(times));
    state.gpr[gpr::RBX] = TABLES + 8;
    guest.set_state(&state).unwrap();
    assert_eq!(guest.run().unwrap(), Exit::Halted);
    assert_eq!(guest.state().gpr[gpr::RAX], 15 * times as u64 * u64::from(ROUNDS));
    assert!(guest.stats().clears >= u64::from(ROUNDS), "{}", guest.stats());
}
