use posada_vcpu::x86::{Segment, gpr, rflags};

use crate::testing::{CODE, DATA, Guest, Outcome};

fn bytes(o: &Outcome, at: u64, len: u64) -> Vec<u8> {
    (0..len).map(|n| o.load(at + n)).collect()
}

#[test]
fn one_element_moves_the_pointers_by_its_size_and_direction() {
    let guest = |code: &[u8], flags| {
        Guest::long()
            .bytes(code)
            .reg(gpr::RSI, DATA)
            .reg(gpr::RDI, DATA + 0x100)
            .reg(gpr::RAX, 0x1111_1111_1111_1111)
            .memory(DATA, &[1, 2, 3, 4, 5, 6, 7, 8])
            .flags(flags)
            .run()
    };
    for (code, size) in [(&[0xa4][..], 1), (&[0x66, 0xa5], 2), (&[0xa5], 4), (&[0x48, 0xa5], 8)] {
        let o = guest(code, 0);
        assert_eq!((o.reg(gpr::RSI), o.reg(gpr::RDI)), (DATA + size, DATA + 0x100 + size));
        let expected: Vec<u8> = (1..=8).map(|n| if n <= size { n as u8 } else { 0 }).collect();
        assert_eq!(bytes(&o, DATA + 0x100, 8), expected);
        let o = guest(code, rflags::DF);
        assert_eq!((o.reg(gpr::RSI), o.reg(gpr::RDI)), (DATA - size, DATA + 0x100 - size));
    }
    let o = guest(&[0xac], 0);
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RSI)), (0x1111_1111_1111_1101, DATA + 1));
    let o = guest(&[0xab], 0);
    assert_eq!((o.load::<u64>(DATA + 0x100), o.reg(gpr::RDI)), (0x1111_1111, DATA + 0x104));
}

#[test]
fn repeated_moves_cross_pages_and_pieces() {
    let pattern: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    for (code, size) in [(&[0xf3, 0xa4][..], 1), (&[0xf3, 0x66, 0xa5], 2), (&[0xf3, 0x48, 0xa5], 8)] {
        for offset in [0, 3, 0xfff] {
            let (from, to) = (0x10_0000 + offset, 0x20_0123);
            let count = 20_000 / size;
            let o = Guest::long()
                .bytes(code)
                .reg(gpr::RSI, from)
                .reg(gpr::RDI, to)
                .reg(gpr::RCX, count)
                .memory(from, &pattern)
                .run();
            assert_eq!(bytes(&o, to, 20_000), pattern);
            assert_eq!(o.load::<u8>(to + 20_000), 0);
            assert_eq!((o.reg(gpr::RCX), o.reg(gpr::RSI), o.reg(gpr::RDI)), (0, from + 20_000, to + 20_000));
        }
    }
}

#[test]
fn overlapping_moves_go_element_by_element() {
    for distance in 1..20_u64 {
        for size in [1, 2, 4, 8_u64] {
            let code: &[u8] = match size {
                1 => &[0xf3, 0xa4],
                2 => &[0xf3, 0x66, 0xa5],
                4 => &[0xf3, 0xa5],
                _ => &[0xf3, 0x48, 0xa5],
            };
            let mut memory: Vec<u8> = (0..100).collect();
            let o = Guest::long()
                .bytes(code)
                .reg(gpr::RSI, DATA)
                .reg(gpr::RDI, DATA + distance)
                .reg(gpr::RCX, 8)
                .memory(DATA, &memory)
                .run();
            for element in 0..8 {
                let from = (element * size) as usize;
                memory.copy_within(from..from + size as usize, from + distance as usize);
            }
            assert_eq!(bytes(&o, DATA, 100), memory, "{size} bytes, {distance} apart");
        }
    }
}

#[test]
fn repeated_stores_fill_and_go_backwards_too() {
    let fill = |code: &[u8], count: u64, flags: u64| {
        Guest::long()
            .bytes(code)
            .reg(gpr::RDI, 0x10_0ff0)
            .reg(gpr::RCX, count)
            .reg(gpr::RAX, 0x0807_0605_0403_0201)
            .flags(flags)
            .run()
    };
    let o = fill(&[0xf3, 0x48, 0xab], 1000, 0);
    assert!((0..1000).all(|n| o.load::<u64>(0x10_0ff0 + n * 8) == 0x0807_0605_0403_0201));
    assert_eq!((o.load::<u64>(0x10_0fe8), o.load::<u64>(0x10_0ff0 + 8000)), (0, 0));
    assert_eq!((o.reg(gpr::RDI), o.reg(gpr::RCX)), (0x10_0ff0 + 8000, 0));
    let o = fill(&[0xf3, 0xaa], 0x1000, rflags::DF);
    assert!((0..0x1000).all(|n| o.load::<u8>(0x10_0ff0 - n) == 1));
    assert_eq!((o.load::<u8>(0x10_0ff1), o.reg(gpr::RDI)), (0, 0xf_fff0));
}

#[test]
fn a_count_of_zero_does_nothing_not_even_to_upper_halves() {
    let o = Guest::user()
        .bytes(&[0x67, 0xf3, 0xa4])
        .reg(gpr::RCX, 5 << 32)
        .reg(gpr::RSI, 1 << 40)
        .reg(gpr::RDI, 1 << 40)
        .run();
    assert_eq!((o.fault(), o.reg(gpr::RCX), o.reg(gpr::RSI)), (None, 5 << 32, 1 << 40));
}

#[test]
fn a_fault_in_the_middle_leaves_the_registers_at_the_element() {
    // The first GiB is mapped, nothing above.
    let top = 1 << 30;
    let o = Guest::long().bytes(&[0xf3, 0xab]).reg(gpr::RDI, top - 6).reg(gpr::RCX, 5).run();
    let fault = o.fault.expect("the second element is not mapped");
    assert_eq!((fault.vector, fault.error, fault.address), (14, Some(2), top));
    assert_eq!((o.reg(gpr::RDI), o.reg(gpr::RCX), o.state.rip), (top - 2, 4, CODE));
}

#[test]
fn comparisons_end_at_a_difference_or_at_equality() {
    let strings = |code: &[u8], count: u64| {
        Guest::long()
            .bytes(code)
            .reg(gpr::RSI, DATA)
            .reg(gpr::RDI, DATA + 0x100)
            .reg(gpr::RCX, count)
            .memory(DATA, b"hello, world")
            .memory(DATA + 0x100, b"hello, World")
            .run()
    };
    let (repe_cmpsb, repne_cmpsb) = ([0xf3, 0xa6], [0xf2, 0xa6]);
    let o = strings(&repe_cmpsb, 12);
    assert_eq!((o.reg(gpr::RCX), o.reg(gpr::RSI), o.reg(gpr::RDI)), (4, DATA + 8, DATA + 0x108));
    assert!(!o.has(rflags::ZF) && !o.has(rflags::CF), "w is above W");
    let o = strings(&repe_cmpsb, 7);
    assert!(o.reg(gpr::RCX) == 0 && o.has(rflags::ZF));
    let o = strings(&repne_cmpsb, 12);
    assert!(o.reg(gpr::RCX) == 11 && o.has(rflags::ZF));
    let o = strings(&repe_cmpsb, 0);
    assert!(!o.has(rflags::ZF), "no element, no comparison");
}

#[test]
fn scans_find_an_element_pages_away() {
    let scan = |code: &[u8], sought: u64| {
        Guest::long()
            .bytes(code)
            .reg(gpr::RAX, sought)
            .reg(gpr::RDI, 0x10_0f00)
            .reg(gpr::RCX, u64::MAX)
            .memory(0x10_5001, &[7])
            .run()
    };
    let o = scan(&[0xf2, 0xae], 7);
    assert_eq!((o.reg(gpr::RDI), u64::MAX - o.reg(gpr::RCX)), (0x10_5002, 0x4102));
    assert!(o.has(rflags::ZF));
    let o = scan(&[0xf3, 0x66, 0xaf], 0);
    assert_eq!((o.reg(gpr::RDI), o.has(rflags::ZF)), (0x10_5002, false));
}

#[test]
fn addresses_wrap_at_their_size() {
    // In real mode: two bytes, around the end of the segment.
    let o = Guest::real()
        .code(|a| a.rep().stosb())
        .reg(gpr::RDI, 0x1234_ffff)
        .reg(gpr::RCX, 0x1234_0002)
        .reg(gpr::RAX, 7)
        .run();
    assert_eq!((o.load::<u8>(0xffff), o.load::<u8>(0)), (7, 7));
    assert_eq!((o.reg(gpr::RDI), o.reg(gpr::RCX)), (0x1234_0001, 0x1234_0000));
}

#[test]
fn a_source_segment_can_be_overridden_and_the_destination_is_es() {
    let segment = |base| Segment { base, ..Segment::flat_data(0x18) };
    let o = Guest::protected()
        .bytes(&[0x64, 0xa4])
        .with(|state| {
            state.segments.fs = segment(0x1000);
            state.segments.es = segment(0x2000);
        })
        .reg(gpr::RSI, DATA)
        .reg(gpr::RDI, DATA)
        .memory(DATA + 0x1000, &[9])
        .run();
    assert_eq!(o.load::<u8>(DATA + 0x2000), 9);
}

#[test]
fn what_runs_into_the_segment_limit_faults_at_the_element_beyond() {
    let o = Guest::protected()
        .bytes(&[0xf3, 0xaa])
        .with(|state| state.segments.es = Segment { limit: 0x1_0010, ..Segment::flat_data(0x18) })
        .reg(gpr::RDI, 0x1_0000)
        .reg(gpr::RCX, 0x100)
        .run();
    assert_eq!((o.fault(), o.reg(gpr::RDI), o.reg(gpr::RCX)), (Some((13, Some(0))), 0x1_0011, 0xef));
}

#[test]
fn a_long_move_lets_others_in_between() {
    let guest = Guest::long()
        .bytes(&[0xf3, 0xa4])
        .reg(gpr::RSI, 0x10_0000)
        .reg(gpr::RDI, 0x20_0000)
        .reg(gpr::RCX, 0x10_0000);
    let mut interpreter = guest.interpreter();
    assert_eq!(interpreter.single_step(), crate::access::LEAVE);
    let core = interpreter.core();
    let left = core.registers[gpr::RCX];
    assert!(left > 0 && left < 0x10_0000 && core.rip() == CODE);
    assert_eq!(core.registers[gpr::RSI] + left, 0x20_0000);
}

#[test]
fn a_move_over_its_own_code_goes_on_with_what_it_wrote() {
    // rep movsb copies `mov al, 5` over the `mov al, 1` that follows it.
    let o = Guest::long()
        .bytes(&[0xf3, 0xa4, 0xb0, 1])
        .reg(gpr::RSI, DATA)
        .reg(gpr::RDI, CODE + 2)
        .reg(gpr::RCX, 2)
        .memory(DATA, &[0xb0, 5])
        .run();
    assert_eq!(o.reg(gpr::RAX), 5);
}
