use super::*;
use posada_vcpu::{Bus, NoInterrupts};

struct Nothing;
impl Bus for Nothing {}

const CODE: u64 = 0x8000;

/// A guest in 64-bit mode: 64 KiB of RAM, of which 2 MiB are mapped, with this code.
fn guest(code: &[u8]) -> Lockstep {
    const TABLES: u64 = 0x1000;
    let ram = GuestRam::new(&[(Gpa(0), 0x20000)]).unwrap();
    let put = |at: u64, bytes: &[u8]| ram.write(Gpa(at), bytes).unwrap();
    put(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes());
    put(TABLES + 0x1000, &((TABLES + 0x2000) | 3).to_le_bytes());
    put(TABLES + 0x2000, &0x83_u64.to_le_bytes());
    put(CODE, code);
    let connections = Connections {
        index: 0,
        count: 1,
        ram,
        bus: Arc::new(Nothing),
        interrupts: Arc::new(NoInterrupts),
        attention: Arc::new(Attention::default()),
        clock: Arc::new(Clock::new()),
    };
    let mut guest = Lockstep::new(connections, Model::named("x86-64-v2").unwrap(), 1 << 20).unwrap();
    let mut state = State::long_mode(CODE, TABLES);
    state.gpr[gpr::RSP] = 0x10000;
    guest.set_state(&state).unwrap();
    guest
}

/// Counts down from 1000 in one block, calls, and halts.
const LOOP: [u8; 26] = [
    0xb9, 0xe8, 0x03, 0x00, 0x00, // mov ecx, 1000
    0x48, 0x01, 0xc8, // add rax, rcx
    0x48, 0x89, 0x04, 0x25, 0x00, 0xc0, 0x00, 0x00, // mov [0xc000], rax
    0xff, 0xc9, // dec ecx
    0x75, 0xf1, // jnz -15
    0xe8, 0x00, 0x00, 0x00, 0x00, // call to the next
    0xf4, // hlt
];

#[test]
fn a_guest_that_both_carry_out_alike_goes_on() {
    let mut guest = guest(&LOOP);
    assert_eq!(guest.run().unwrap(), Exit::Halted);
    assert_eq!(guest.state().gpr[gpr::RAX], 1000 * 1001 / 2);
    assert_eq!(guest.follower.copy.load::<u64>(0xc000), 1000 * 1001 / 2);
    assert_eq!(guest.follower.interpreter.state(), guest.leader.state());
}

/// What the run says if something is spoiled after the first block.
fn spoiled(mut spoil: impl FnMut(&mut Translator) + Send + 'static) -> String {
    let mut guest = guest(&[0xb8, 7, 0, 0, 0, 0xff, 0xc0, 0xeb, 0x00, 0xf4]); // mov eax, 7; inc eax; jmp $ + 2; hlt
    guest.follower.plant = Some(Box::new(move |leader, blocks| {
        if blocks == 0 {
            spoil(leader);
        }
    }));
    guest.run().unwrap_err().to_string()
}

#[test]
fn a_wrong_register_is_reported_with_both_values_and_the_code() {
    let report = spoiled(|leader| leader.assistant().gpr()[gpr::RAX] ^= 0x10);
    for part in ["0x0000000000000008", "0x0000000000000018", "inc eax", "host code of the block at 0x8000"] {
        assert!(report.contains(part), "{part} is not in\n{report}");
    }
}

#[test]
fn a_wrong_flag_is_reported() {
    let report = spoiled(|leader| {
        let flags = leader.assistant().rflags();
        leader.assistant().set_arithmetic_flags(flags ^ rflags::ZF);
    });
    assert!(report.contains("rflags"), "{report}");
}

#[test]
fn a_wrong_vector_is_reported() {
    let report = spoiled(|leader| leader.assistant().ymm()[3][1] ^= 1);
    assert!(report.contains("xmm3"), "{report}");
}

#[test]
fn a_wrong_byte_in_memory_is_reported() {
    let report = spoiled(|leader| {
        leader.assistant().connections().ram.store(0xd001, 0xab_u8);
    });
    assert!(report.contains("memory differs") && report.contains("0x000000000000d000"), "{report}");
}

#[test]
fn a_block_too_many_is_reported() {
    let report = spoiled(|leader| {
        leader.assistant().set_rip(0x8002);
    });
    assert!(report.contains("rip"), "{report}");
}
