use std::path::Path;

use super::*;

fn opened(bytes: &[u8], format: Format) -> Result<Arc<dyn Disk>> {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
    open(HostFile::new(file, Path::new("tested"), false).unwrap(), format)
}

/// A VDI of two blocks of 4 KiB, the second of which is there.
fn vdi() -> Vec<u8> {
    let mut image = vec![0; 0x400 + 4096];
    for (at, value) in [
        (0x40, 0xbeda_107f_u32),
        (0x44, 0x1_0001),
        (0x4c, 1),
        (0x154, 0x200),
        (0x158, 0x400),
        (0x170, 8192),
        (0x178, 4096),
        (0x180, 2),
        (0x200, u32::MAX),
        (0x204, 0),
    ] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image[0x400..].fill(7);
    image
}

#[test]
fn a_missing_block_is_zeroes() {
    let disk = opened(&vdi(), Format::Vdi).unwrap();
    let mut read = [1; 8192];
    disk.read(0, &mut read).unwrap();
    assert_eq!((&read[..4096], &read[4096..]), (&[0; 4096][..], &[7; 4096][..]));
    assert_eq!(disk.extent(0, 8192).unwrap(), (Extent::Zero, 4096));
    assert_eq!(disk.extent(4096, 4096).unwrap(), (Extent::Data, 4096));
    assert!(matches!(disk.write(0, &[1]), Err(Error::ReadOnly { .. })));
}

#[test]
fn an_incomplete_file_is_an_error_that_says_so() {
    let mut image = vdi();
    image.truncate(0x400 + 100);
    let disk = opened(&image, Format::Vdi).unwrap();
    let error = disk.read(4096, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("is it complete?"), "{error}");
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    for (at, value) in
        [(0x178, 0_u32), (0x178, 4095), (0x178, 1 << 31), (0x174, 1 << 31), (0x180, 1), (0x44, 2), (0x4c, 4)]
    {
        let mut image = vdi();
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(opened(&image, Format::Vdi).is_err(), "{value} at {at:#x}");
    }
    assert!(opened(b"KDMV", Format::Vmdk).is_err());
    assert!(opened(&[0; 1024], Format::Vhd).is_err());
}
