use std::io::Read;

use super::*;

struct Found {
    name: String,
    mode: u32,
    device: (u32, u32),
    contents: Vec<u8>,
}

/// Reads an archive back.
fn read(mut archive: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    loop {
        let mut reader = cpio::NewcReader::new(archive).unwrap();
        if reader.entry().is_trailer() {
            assert!(reader.finish().unwrap().is_empty(), "nothing follows the trailer");
            return found;
        }
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).unwrap();
        let entry = reader.entry();
        found.push(Found {
            name: entry.name().to_owned(),
            mode: entry.mode(),
            device: (entry.rdev_major(), entry.rdev_minor()),
            contents,
        });
        archive = reader.finish().unwrap();
    }
}

#[test]
fn files_links_folders_and_devices_keep_their_modes() {
    let mut archive = Initramfs::new(Vec::new());
    archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
    archive.link("bin", "usr/bin").unwrap();
    archive.folder("tmp", 0o1777).unwrap();
    archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
    let archive = archive.finish().unwrap();
    assert_eq!(archive.len() % 4, 0);
    let found = read(&archive);
    let modes: Vec<_> = found.iter().map(|entry| (entry.name.as_str(), entry.mode, entry.device)).collect();
    let expected = [
        ("init", 0o100_755, (0, 0)),
        ("bin", 0o120_777, (0, 0)),
        ("tmp", 0o041_777, (0, 0)),
        ("dev", 0o040_755, (0, 0)),
        ("dev/console", 0o020_600, (5, 1)),
    ];
    assert_eq!(modes, expected);
    assert_eq!(found[0].contents, b"#!/bin/sh\n");
    assert_eq!(found[1].contents, b"usr/bin");
}

#[test]
fn folders_above_a_file_come_once_and_before_it() {
    let mut archive = Initramfs::new(Vec::new());
    archive.file("a/b/c", 0o644, b"1").unwrap();
    archive.file("a/b/d", 0o644, b"22").unwrap();
    archive.file("a/e", 0o644, b"333").unwrap();
    let names: Vec<_> = read(&archive.finish().unwrap()).into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d", "a/e"]);
}

#[test]
fn a_writer_that_fails_makes_the_archive_fail() {
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(bytes.len()) {
                Some(left) => self.0 = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut archive = Initramfs::new(Full(1000));
    let error = archive.file("big", 0o644, &[0; 2000]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(archive.finish().is_err(), "what is incomplete cannot be finished");
}
