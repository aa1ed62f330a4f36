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

/// Writes numbered blocks, and after each flush to a journal what they are. It never ends by itself.
#[test]
#[ignore = "it is the child of another test"]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let disk = posada_storage::open(folder.join("image.qcow2"), &posada_storage::Options::default()).unwrap();
    let mut journal = OpenOptions::new().append(true).open(folder.join("journal")).unwrap();
    let mut rng = Rng::new();
    let mut number =
        std::fs::read_to_string(folder.join("started")).unwrap().trim().parse::<u64>().unwrap() << 32;
    loop {
        let mut lines = String::new();
        for _ in 0..rng.u8(1..30) {
            let block = rng.u64(..BLOCKS);
            number += 1;
            match rng.u8(..10) {
                0 => {
                    disk.write_zeroes(block * BLOCK, BLOCK, true).unwrap();
                    writeln!(lines, "{block} 0").unwrap();
                }
                _ => {
                    disk.write(block * BLOCK, &number.to_le_bytes().repeat(BLOCK as usize / 8)).unwrap();
                    writeln!(lines, "{block} {number}").unwrap();
                }
            }
        }
        // What is about to be flushed may be there already; what was flushed must be.
        journal.write_all(format!("{lines}begin\n").as_bytes()).unwrap();
        disk.flush().unwrap();
        journal.write_all(b"end\n").unwrap();
    }
}

/// For each block what it may hold, by the journal: the last that was flushed, and all later.
fn expected(journal: &str) -> Vec<Vec<u64>> {
    let mut expected = vec![vec![0]; BLOCKS as usize];
    let mut pending = Vec::new();
    for line in journal.lines() {
        match line.split_once(' ') {
            Some((block, number)) => pending.push((block.parse::<usize>().unwrap(), number.parse().unwrap())),
            None if line == "end" => {
                for (block, number) in pending.drain(..) {
                    expected[block] = vec![number];
                }
            }
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
    let mut doubtful = vec![Vec::new(); BLOCKS as usize];
    for round in 1..=20 {
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
        let journal = std::fs::read_to_string(folder.path("journal")).unwrap();
        let disk = folder.open_read_only("image.qcow2");
        for (block, may_be) in expected(&journal).into_iter().enumerate() {
            let mut read = vec![0; BLOCK as usize];
            disk.read(block as u64 * BLOCK, &mut read).unwrap();
            let number = u64::from_le_bytes(read[..8].try_into().unwrap());
            assert!(read.chunks(8).all(|part| part == &read[..8]), "round {round}: block {block} is torn");
            // What was never flushed, in this round, may still be what an earlier one has left. What was written after
            // the last line of the journal is of this round.
            let this_round = number >> 32 == round;
            let known = may_be.contains(&number)
                || may_be == [0] && doubtful[block].contains(&number)
                || number == 0 && may_be.len() > 1;
            assert!(
                known || this_round && may_be != [number],
                "round {round}: block {block} is {number}, not {may_be:?}"
            );
            doubtful[block] = vec![number];
        }
    }
}
