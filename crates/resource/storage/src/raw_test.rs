use std::path::Path;

use super::*;

fn open(path: &Path, read_only: bool) -> Result<Raw> {
    Raw::new(HostFile::open(path, !read_only)?, true)
}

fn disk(bytes: &[u8]) -> (tempfile::NamedTempFile, Raw) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let disk = open(file.path(), false).unwrap();
    (file, disk)
}

#[test]
fn what_is_written_is_read_back_and_lies_in_the_file() {
    let (file, disk) = disk(&[0; 4096]);
    disk.write(1000, b"posada").unwrap();
    let mut read = [0; 8];
    disk.read(999, &mut read).unwrap();
    assert_eq!(&read, b"\0posada\0");
    assert_eq!(&std::fs::read(file.path()).unwrap()[1000..1006], b"posada");
}

#[test]
fn a_request_past_the_end_is_refused_and_changes_nothing() {
    let (file, disk) = disk(&[7; 1024]);
    assert!(matches!(disk.write(1020, &[0; 5]), Err(Error::OutOfRange { .. })));
    assert!(matches!(disk.read(u64::MAX, &mut [0; 2]), Err(Error::OutOfRange { .. })));
    assert!(matches!(disk.write_zeroes(0, 1025, true), Err(Error::OutOfRange { .. })));
    assert!(matches!(disk.discard(u64::MAX, u64::MAX), Err(Error::OutOfRange { .. })));
    assert_eq!(std::fs::read(file.path()).unwrap(), [7; 1024]);
}

#[test]
fn an_incomplete_last_sector_is_filled_up_with_zeroes() {
    let (_file, disk) = disk(&[9; 700]);
    assert_eq!(disk.size(), 1024);
    let mut sector = [1; 512];
    disk.read(512, &mut sector).unwrap();
    assert_eq!(sector[..188], [9; 188]);
    assert_eq!(sector[188..], [0; 324]);
}

#[test]
fn a_file_that_has_shrunk_is_an_error() {
    let (file, disk) = disk(&[1; 8192]);
    file.as_file().set_len(5000).unwrap();
    let error = disk.read(4096, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("ends at byte 5000"), "{error}");
}

#[test]
fn zeroes_and_discards_leave_holes() {
    let (_file, disk) = disk(&vec![5; 1 << 20]);
    disk.write_zeroes(1 << 16, 1 << 16, true).unwrap();
    let mut read = vec![1; 3 << 16];
    disk.read(0, &mut read).unwrap();
    assert!(read[..1 << 16].iter().all(|&byte| byte == 5));
    assert!(read[1 << 16..2 << 16].iter().all(|&byte| byte == 0));
    assert!(read[2 << 16..].iter().all(|&byte| byte == 5));
    disk.write_zeroes(0, 3, false).unwrap();
    disk.read(0, &mut read[..4]).unwrap();
    assert_eq!(read[..4], [0, 0, 0, 5]);
    disk.discard(1 << 19, 1 << 19).unwrap();
    assert_eq!(disk.size(), 1 << 20);
}

#[test]
fn a_read_only_disk_refuses_changes() {
    let (file, _) = disk(&[0; 512]);
    let disk = open(file.path(), true).unwrap();
    assert!(disk.is_read_only());
    assert!(matches!(disk.write(0, &[1]), Err(Error::ReadOnly { .. })));
    assert!(matches!(disk.write_zeroes(0, 1, false), Err(Error::ReadOnly { .. })));
    assert!(matches!(disk.discard(0, 1), Err(Error::ReadOnly { .. })));
    disk.flush().unwrap();
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path(), true).unwrap_err().to_string();
    assert!(error.contains("no block device"), "{error}");
    let missing = open(&folder.path().join("none"), true).unwrap_err().to_string();
    assert!(missing.contains("could not open"), "{missing}");
}

#[test]
fn a_guest_cannot_make_its_raw_disk_an_image() {
    let (file, disk) = disk(&[0; 4096]);
    for (offset, signature) in
        [(0, &b"QFI\xfb\0\0\0\x03"[..]), (0, b"KDMV"), (0, b"conectix"), (0x40, &[0x7f, 0x10, 0xda, 0xbe])]
    {
        assert!(matches!(disk.write(offset, signature), Err(Error::Disguise { .. })), "{signature:?}");
    }
    // Nor in steps.
    disk.write(0, b"QFI").unwrap();
    assert!(matches!(disk.write(3, b"\xfb"), Err(Error::Disguise { .. })));
    disk.write(0, b"\xeb\x63\x90").unwrap();
    // The user's word counts.
    let told = Raw::new(HostFile::open(file.path(), true).unwrap(), false).unwrap();
    told.write(0, b"QFI\xfb").unwrap();
}
