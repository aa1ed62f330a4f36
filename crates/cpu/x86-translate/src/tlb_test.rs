use super::*;

/// So far apart that two of them are no neighbours.
const APART: u64 = (NEIGHBOURS as u64) << 12;

fn knows(context: &Context, view: usize, linear: u64) -> bool {
    context.tlb[place(view as u8)].read[index(linear)] == linear
}

#[test]
fn what_is_far_apart_is_forgotten_before_it_takes_much_memory() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: it was made just now, and lives as long as the mapping.
    let context = unsafe { context.as_mut() };
    let mut tlb = Tlb::new(context);
    let insert = |tlb: &mut Tlb, context: &mut Context, n: u64| {
        tlb.insert(context, (2, true), n * APART, 0x7000_0000, false);
    };
    let most = MOST_GROUPS as u64;
    (0..most).for_each(|n| insert(&mut tlb, context, n));
    assert!((0..most).all(|n| knows(context, 2, n * APART)));

    insert(&mut tlb, context, most);
    assert!(knows(context, 2, most * APART));
    assert!((0..most).all(|n| !knows(context, 2, n * APART)), "no address is known by a table of zeros");
    assert_eq!(tlb.used_groups, 1);
    assert!(!context.tlb.iter().any(|tables| tables.is_used(0)));
}

#[test]
fn the_page_of_a_stack_stays_when_room_is_made() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: it was made just now, and lives as long as the mapping.
    let context = unsafe { context.as_mut() };
    let mut tlb = Tlb::new(context);
    let host = 0x7000_0000;
    tlb.insert(context, (2, true), 0x5000, host, false);
    assert!(Tlb::set_stack(context, (2, true), 0x5008));
    (1..=MOST_GROUPS as u64).for_each(|n| tlb.insert(context, (2, true), n * APART, host, false));
    assert!(!knows(context, 2, 0x5000), "room was made");
    assert_eq!(context.stack(2).delta, host - 0x5000);

    tlb.clear(context, false);
    assert_ne!(context.stack(2).delta, host - 0x5000);
}

#[test]
fn the_sum_with_an_entry_is_low_for_its_page_alone() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: it was made just now, and lives as long as the mapping.
    let context = unsafe { context.as_mut() };
    let mut tlb = Tlb::new(context);
    let kinds = [(0, false), (0, true), (1, false), (1, true), (2, false), (2, true)];
    let (page, host) = (0x7fff_8123_4000_u64, 0x7000_0000);
    // All that have the same entry, and some others.
    let others =
        |page: u64| (0..1 << 16).map(move |n| page.wrapping_add(n << 32)).filter(move |other| *other != page);
    let known = |context: &mut Context, linear: u64| kinds.map(|kind| Tlb::knows_low(context, kind, linear));
    for linear in [0, 0x1000, 0x7fff_f000, 0x8000_0000, 1 << 63, 0x8000_0000_7000_0000, !0xfff] {
        assert_eq!(known(context, linear), [false; 6], "{linear:#x}");
    }
    for page in [page, page ^ 0x8000_0000] {
        tlb.insert(context, (2, false), page, host, false);
        assert_eq!(known(context, page + 0xff8), [false, false, false, false, true, false]);
        tlb.insert(context, (2, true), page, host, false);
        assert_eq!(known(context, page), [false, false, false, false, true, true]);
        assert!(others(page).all(|other| known(context, other) == [false; 6]));
    }
    tlb.clear_writes(context);
    assert_eq!(known(context, page), [false, false, false, false, true, false]);
    tlb.insert(context, (2, true), page, 1 << 31, false);
    assert_eq!(known(context, page), [false; 6], "that is not low");
    tlb.insert(context, (2, true), page, host, false);
    tlb.clear(context, true);
    assert!(others(page).chain([page]).all(|other| known(context, other) == [false; 6]));
    tlb.insert(context, (0, true), page, host, false);
    tlb.give_back(context);
    assert!(others(page).chain([page]).all(|other| known(context, other) == [false; 6]));
}
