//! A writer that is killed at any moment.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use posada_storage::{Format, NewImage, Repair, check, create};

use crate::support::Folder;

/// Blocks of the disk that the writer writes to.
const BLOCKS: u64 = 2000;
const BLOCK: u64 = 4096;
/// Tells the child where to write.
const FOLDER: &str = "POSADA_KILLED_WRITER";

/// Writes numbered blocks, and to a journal first what it is about to write, later that it was flushed. It never ends by
/// itself.
#[test]
#[ignore = "it is the child of another test"]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let disk = posada_storage::open(folder.join("image.qcow2"), &posada_storage::Options::default()).unwrap();
    let mut journal = OpenOptions::new().append(true).open(folder.join("journal")).unwrap();
    let mut rng = Rng::new();
    let mut number = std::fs::read_to_string(folder.join("started")).unwrap().parse::<u64>().unwrap() << 32;
    loop {
        let mut batch = Vec::new();
        let mut lines = String::new();
        for _ in 0..rng.u8(1..30) {
            number += 1;
            let (block, number) = (rng.u64(..BLOCKS), if rng.u8(..10) == 0 { 0 } else { number });
            batch.push((block, number));
            writeln!(lines, "{block} {number}").unwrap();
        }
        journal.write_all(lines.as_bytes()).unwrap();
        for (block, number) in batch {
            match number {
                0 => disk.write_zeroes(block * BLOCK, BLOCK, true).unwrap(),
                _ => disk.write(block * BLOCK, &number.to_le_bytes().repeat(BLOCK as usize / 8)).unwrap(),
            }
        }
        disk.flush().unwrap();
        journal.write_all(b"flushed\n").unwrap();
    }
}

/// What each block may hold, by the journal and what it held `before`: what was flushed last, and all that came later.
fn expected(journal: &str, before: &[u64]) -> Vec<Vec<u64>> {
    let mut expected: Vec<_> = before.iter().map(|&number| vec![number]).collect();
    let mut pending = Vec::new();
    for line in journal.lines() {
        match line.split_once(' ') {
            Some((block, number)) => pending.push((block.parse::<usize>().unwrap(), number.parse().unwrap())),
            None if line == "flushed" => {
                for (block, number) in pending.drain(..) {
                    expected[block] = vec![number];
                }
            }
            // The writer was killed within the line, before it has written anything else.
            None => {}
        }
    }
    for (block, number) in pending {
        expected[block].push(number);
    }
    expected
}

#[test]
fn nothing_flushed_is_lost_when_the_writer_is_killed() {
    let folder = Folder::new();
    create(
        folder.path("image.qcow2"),
        &NewImage { cluster_size: 16384, ..NewImage::new(Format::Qcow2, BLOCKS * BLOCK) },
    )
    .unwrap();
    File::create(folder.path("journal")).unwrap();
    let mut rng = Rng::with_seed(21);
    let mut holds = vec![0; BLOCKS as usize];
    for round in 1..=20_u64 {
        std::fs::write(folder.path("started"), round.to_string()).unwrap();
        std::fs::write(folder.path("journal"), "").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "killed::writer"])
            .env(FOLDER, folder.path("."))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(rng.u64(30..250)));
        child.kill().unwrap();
        child.wait().unwrap();
        let report = check(folder.path("image.qcow2"), Repair::Nothing).unwrap();
        assert_eq!(report.damage, 0, "round {round}: {:?}", report.findings);
        let status = folder.try_qemu_img("check image.qcow2").status.code();
        assert!(matches!(status, Some(0 | 3)), "round {round}: {status:?}");
        if round % 2 == 0 {
            check(folder.path("image.qcow2"), Repair::Leaks).unwrap();
            folder.check("image.qcow2");
        }
        if round % 5 == 0 {
            // From now on nothing of it may be written in place.
            folder.qemu_img(&format!("snapshot -c round{round} image.qcow2"));
        }
        let journal = std::fs::read_to_string(folder.path("journal")).unwrap();
        let disk = folder.open_read_only("image.qcow2");
        for (block, may_be) in expected(&journal, &holds).into_iter().enumerate() {
            let mut read = vec![0; BLOCK as usize];
            disk.read(block as u64 * BLOCK, &mut read).unwrap();
            let number = u64::from_le_bytes(read[..8].try_into().unwrap());
            assert!(
                may_be.contains(&number),
                "round {round}: block {block} is {number}, not one of {may_be:?}"
            );
            assert!(read.chunks(8).all(|part| part == &read[..8]), "round {round}: block {block} is torn");
            holds[block] = number;
        }
    }
}
