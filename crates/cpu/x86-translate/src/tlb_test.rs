use super::*;

/// So far apart that two of them are no neighbours.
const APART: u64 = (NEIGHBOURS as u64) << 12;

fn knows(context: &Context, view: usize, linear: u64) -> bool {
    context.tlb[view].read[index(linear)] == linear
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
