use super::*;

/// Puts an entry into the table as translated code does.
fn put(context: &mut Context, linear: u64) {
    let n = index(linear, NOTED_TABLE);
    context.jumps[NOTED_TABLE][n] = Entry { linear, host: 1 };
    context.noted.entries[context.noted.count as usize] = (n as u32) << LOWEST;
    context.noted.count += 1;
}

fn knows(context: &Context, linear: u64) -> bool {
    context.jumps[NOTED_TABLE][index(linear, NOTED_TABLE)].linear == linear
}

#[test]
fn what_translated_code_has_put_there_is_forgotten_with_the_rest() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: it was made just now, and lives as long as the mapping.
    let context = unsafe { context.as_mut() };
    let mut jumps = Jumps::new(context);
    for all in [false, true] {
        // Even where a global page's entry was before.
        jumps.insert(context, NOTED_TABLE, 0x5000, 2, true);
        put(context, 0x5000);
        put(context, 0x6007);
        let epoch = context.epochs[0];
        jumps.clear(context, all);
        assert!(!knows(context, 0x5000) && !knows(context, 0x6007));
        assert_ne!(context.epochs[0], epoch);
    }
}

#[test]
fn what_cannot_be_kept_account_of_is_forgotten_and_what_comes_then_is_not() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: as above.
    let context = unsafe { context.as_mut() };
    let mut jumps = Jumps::new(context);
    let epochs = context.epochs;
    for _ in 0..=2 * ENTRIES / MOST_NOTED {
        for _ in 0..MOST_NOTED {
            put(context, 0x7000);
        }
        jumps.take_note(context);
    }
    assert_eq!(context.epochs, epochs);
    jumps.insert(context, NOTED_TABLE, 0x8000, 2, false);
    Jumps::know(context, Mode::ALL, 0x8000, 2, 1);
    assert!(!knows(context, 0x7000) && knows(context, 0x8000) && jumps.has_page(0x8000));
    assert_ne!(context.epochs, epochs);
    // And if nobody puts anything in any more.
    for _ in 0..=2 * ENTRIES / MOST_NOTED {
        for _ in 0..MOST_NOTED {
            put(context, 0x7000);
        }
        jumps.take_note(context);
    }
    jumps.clear(context, false);
    assert!(!knows(context, 0x7000) && !knows(context, 0x8000));
}

#[test]
fn once_the_alarm_has_rung_nothing_is_found_not_even_zero() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: as above.
    let context = unsafe { context.as_mut() };
    let mut jumps = Jumps::new(context);
    for table in 0..TABLES {
        let at_0 = u64::from(!0_u32);
        assert_eq!(index(at_0, table), 0);
        assert!(!jumps.insert(context, table, at_0, 2, true));
        jumps.insert(context, table, 0, 2, true);
        jumps.clear(context, true);
        let canonical = |linear: u64| (linear as i64) << 16 >> 16 == linear as i64;
        assert!(!canonical(context.jumps[table][0].linear));
        assert_ne!(context.jumps[table][index(0, table)].linear, 0);
    }
}

#[test]
fn an_epoch_that_comes_again_knows_nothing_of_the_first() {
    let (_mapping, mut context) = Context::allocate().unwrap();
    // SAFETY: as above.
    let context = unsafe { context.as_mut() };
    let mut jumps = Jumps::new(context);
    let (user, epoch) = (View::User as u8, context.epochs[0]);
    Jumps::know(context, Mode::ALL, 0x8000, 2, 1);
    Jumps::link(context, 3, user, 1, 0x1000);
    context.epochs[0] = NO_EPOCH - 1;
    jumps.clear(context, false);
    assert_eq!(context.epochs[0], epoch);
    assert_ne!(context.links.epochs[3], epoch);
    assert!(context.code_pages[0].iter().all(|page| page.epoch != epoch));
}
