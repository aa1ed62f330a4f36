//! Any file as a disk image: described, checked, read, written and repaired.
//!
//! The first byte chooses what the rest is: a file, or changes to a small good image, each of which is a place (two
//! bytes) and eight bytes for it. An error is as good as success; a panic, or endless work, is not.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use posada_storage::{Disk, Format, NewImage, Options, Repair, check, create, info, open};
use rustix::fs::{MemfdFlags, memfd_create};

const SECTOR: usize = 512;

/// A file in memory, with a name.
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("memory can be had"));
        file.write_all_at(bytes, 0).expect("memory can be had");
        Self(file)
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Uses what `data` describes as an image.
///
/// # Panics
/// If the storage misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let image = match GOOD.get(usize::from(kind & 15)) {
        None => rest.to_vec(),
        Some(good) => changed(good.clone(), rest),
    };
    let format = match kind >> 4 {
        0..=9 => None,
        10 => Some(Format::Raw),
        11 => Some(Format::Qcow2),
        12 => Some(Format::Vmdk),
        13 => Some(Format::Vdi),
        _ => Some(Format::Vhd),
    };
    let file = Memory::new(&image);
    let _ = info(file.path(), format).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = check(file.path(), Repair::Nothing);
    for options in 0..3 {
        match open(file.path(), &Options { read_only: options == 0, format, snapshot: options == 1 }) {
            Ok(disk) => exercise(&*disk),
            Err(error) => {
                let message = error.to_string();
                let read_only = options == 2 && (2..5).contains(&kind);
                assert!(!rest.is_empty() || kind > 4 || read_only, "a good image: {message}");
            }
        }
    }
    let _ = check(file.path(), Repair::Leaks);
    let _ = check(file.path(), Repair::All);
    let _ = check(file.path(), Repair::Nothing);
}

fn changed(mut image: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks_exact(10) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        for (byte, new) in image.iter_mut().skip(at).zip(&change[2..]) {
            *byte = *new;
        }
    }
    image
}

fn exercise(disk: &dyn Disk) {
    let size = disk.size();
    let mut buffer = vec![1; 70_000];
    for at in [0, 511, 4096, size / 2, size.saturating_sub(1), size.saturating_sub(70_000), size] {
        let length = (buffer.len() as u64).min(size.saturating_sub(at)) as usize;
        let _ = disk.read(at, &mut buffer[..length]);
        if length > 0 {
            let _ = disk.extent(at, size - at).inspect(|&(_, run)| assert!(run > 0 && run <= size - at));
        }
        let _ = disk.write(at, &buffer[..length.min(5000)]);
        let _ = disk.write_zeroes(at, length as u64, length.is_multiple_of(2));
        let _ = disk.discard(at, length as u64);
        let _ = disk.write(at, &buffer[..length.min(1)]);
    }
    assert!(disk.read(size, &mut [0]).is_err());
    let _ = disk.flush();
    let _ = disk.flush();
}

/// Small good images.
static GOOD: LazyLock<[Vec<u8>; 5]> =
    LazyLock::new(|| [qcow2(512, false), qcow2(4096, true), vmdk(), vdi(), vhd()]);

/// A qcow2 image with some of everything that a header can say.
fn qcow2(cluster_size: u32, backing: bool) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!("posada-fuzz-{}-{cluster_size}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let mut image = NewImage { cluster_size, ..NewImage::new(Format::Qcow2, 200 * 1024) };
    if backing {
        // A file that is always there.
        image.backing =
            Some(posada_storage::Backing { path: "/proc/self/exe".into(), format: Some(Format::Raw) });
    }
    create(&path, &image).expect("an image can be made");
    let disk = open(&path, &Options::default()).expect("it can be opened");
    disk.write(0, &[1; 9000]).expect("it can be written");
    disk.write(100_000, &[2; 600]).expect("it can be written");
    disk.write_zeroes(4096, 4096, false).expect("it can be written");
    drop(disk);
    let bytes = std::fs::read(&path).expect("it can be read");
    let _ = std::fs::remove_file(&path);
    bytes
}

fn with_numbers(length: usize, numbers: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; length];
    for (at, number) in numbers {
        image[*at..at + number.len()].copy_from_slice(number);
    }
    image
}

/// One grain table, at sector 2, with a grain at sector 8.
fn vmdk() -> Vec<u8> {
    with_numbers(
        24 * SECTOR,
        &[
            (0, b"KDMV"),
            (4, &1_u32.to_le_bytes()),
            (8, &7_u32.to_le_bytes()),
            (12, &64_u64.to_le_bytes()),
            (20, &8_u64.to_le_bytes()),
            (44, &8_u32.to_le_bytes()),
            (56, &1_u64.to_le_bytes()),
            (SECTOR, &2_u32.to_le_bytes()),
            (2 * SECTOR, &8_u32.to_le_bytes()),
            (2 * SECTOR + 4, &1_u32.to_le_bytes()),
            (2 * SECTOR + 8, &16_u32.to_le_bytes()),
        ],
    )
}

/// Two blocks of 4 KiB, one of them there.
fn vdi() -> Vec<u8> {
    with_numbers(
        0x400 + 4096,
        &[
            (0x40, &0xbeda_107f_u32.to_le_bytes()),
            (0x44, &0x1_0001_u32.to_le_bytes()),
            (0x4c, &1_u32.to_le_bytes()),
            (0x154, &0x200_u32.to_le_bytes()),
            (0x158, &0x400_u32.to_le_bytes()),
            (0x170, &8192_u64.to_le_bytes()),
            (0x178, &4096_u32.to_le_bytes()),
            (0x180, &2_u32.to_le_bytes()),
            (0x204, &u32::MAX.to_le_bytes()),
        ],
    )
}

/// A dynamic disk of two blocks of 4 KiB, one of them there.
fn vhd() -> Vec<u8> {
    let mut footer = with_numbers(
        SECTOR,
        &[
            (0, b"conectix"),
            (16, &512_u64.to_be_bytes()),
            (48, &8192_u64.to_be_bytes()),
            (60, &3_u32.to_be_bytes()),
        ],
    );
    let sum = !footer.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    let header = with_numbers(
        1024,
        &[
            (0, b"cxsparse"),
            (16, &1536_u64.to_be_bytes()),
            (28, &2_u32.to_be_bytes()),
            (32, &4096_u32.to_be_bytes()),
        ],
    );
    let table = with_numbers(SECTOR, &[(0, &4_u32.to_be_bytes()), (4, &u32::MAX.to_be_bytes())]);
    [&footer[..], &header, &table, &[5; SECTOR + 4096], &footer].concat()
}
