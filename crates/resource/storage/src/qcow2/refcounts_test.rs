use super::*;

#[test]
fn refcounts_of_every_width_are_kept_apart() {
    for order in 0..=6 {
        let mut block = vec![0; 512];
        let per_block = (512 * 8) >> order;
        let mask = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
        let value = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) & mask;
        for at in 0..per_block {
            set(&mut block, order, at, value(at));
        }
        for at in 0..per_block {
            assert_eq!(get(&block, order, at), value(at), "order {order}, {at}");
        }
    }
    // The first of those that share a byte is the lowest.
    assert_eq!((get(&[0b0000_0001], 0, 0), get(&[0b1000_0000], 0, 7), get(&[0b11_00], 1, 1)), (1, 1, 3));
}
