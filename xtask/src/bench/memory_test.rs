use super::*;

const SMAPS: &str = "\
55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 1234                       /usr/bin/monitor
Size:               1024 kB
Rss:                 512 kB
Pss:                 256 kB
7f0000000000-7f0020000000 rw-p 00000000 00:00 0 
Size:             524288 kB
Rss:              131072 kB
VmFlags: rd wr mr mw me ac sd
7f1000000000-7f1040000000 rwxp 00000000 00:00 0 
Size:            1048576 kB
Rss:               20480 kB
7f2000000000-7f2020000000 rw-p 00000000 00:00 0 
Size:             524288 kB
Rss:                   0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Rss:                 100 kB
";

#[test]
fn everything_but_guest_ram_is_the_monitors_own() {
    assert_eq!(own_of(&parse(SMAPS), 512 << 20), Some((512 + 20480 + 100) << 10));
}

#[test]
fn translated_code_can_be_left_out() {
    let posada =
        "7f21c8000000-7f21d8000000 r-xs 00000000 00:01 102990    /memfd:posada-code (deleted)\nRss: 8 kB\n";
    let mut mappings = parse(&format!("{SMAPS}{posada}"));
    mappings.retain(|mapping| !mapping.code);
    assert_eq!(own_of(&mappings, 512 << 20), Some((512 + 100) << 10));
}

#[test]
fn what_shares_a_mapping_with_guest_ram_counts_in_full() {
    assert_eq!(own_of(&parse(SMAPS), 510 << 20), Some((2048 + 512 + 20480 + 100) << 10));
}

#[test]
fn guest_ram_may_lack_the_hole_of_a_pc() {
    assert_eq!(own_of(&parse(SMAPS), (512 << 20) + (128 << 10)), Some((512 + 20480 + 100) << 10));
}

#[test]
fn a_code_cache_of_the_size_of_guest_ram_is_not_taken_for_it() {
    assert_eq!(own_of(&parse(SMAPS), 1 << 30), None);
}

#[test]
fn the_memory_of_this_process_can_be_read() {
    let error = own(std::process::id(), 1 << 50).unwrap_err();
    assert!(error.to_string().contains("looks like"), "{error}");
}
