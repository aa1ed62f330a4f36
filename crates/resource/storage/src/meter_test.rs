use std::fs::File;

use super::{Counts, metered};
use crate::{Format, Options, open};

#[test]
fn what_is_done_and_what_fails_is_counted_by_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let options = Options { format: Some(Format::Raw), ..Options::default() };
    let (disk, meter) = metered(open(&path, &options).unwrap());
    assert_eq!(meter.counts(), Counts::default());

    disk.write(0, &[1; 1024]).unwrap();
    disk.write_zeroes(4096, 8192, true).unwrap();
    disk.read(512, &mut [0; 512]).unwrap();
    disk.read(0, &mut [0; 4096]).unwrap();
    disk.discard(65536, 4096).unwrap();
    disk.flush().unwrap();
    disk.read(1 << 20, &mut [0; 1]).unwrap_err();
    let expected = Counts {
        reads: 2,
        read_bytes: 4608,
        writes: 2,
        written_bytes: 9216,
        flushes: 1,
        discards: 1,
        discarded_bytes: 4096,
        errors: 1,
    };
    assert_eq!(meter.counts(), expected);
    assert_eq!((disk.size(), disk.is_read_only()), (1 << 20, false));
}
