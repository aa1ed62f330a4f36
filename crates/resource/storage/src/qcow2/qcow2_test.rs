//! Random requests against a plain array; crashes at any moment; disks that fill up.

use std::ops::Range;
use std::sync::atomic::Ordering;

use fastrand::Rng;

use std::path::Path;

use super::*;
use crate::file::tap::{Event, Tap};

/// A disk, what it should hold, and what was done to its file.
struct Tested {
    disk: Qcow2,
    model: Vec<u8>,
    tap: Arc<Tap>,
    rng: Rng,
}

/// An array as a backing file.
#[derive(Debug)]
struct Fixed(Vec<u8>);

impl Disk for Fixed {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        unreachable!("it is only read")
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<()> {
        unreachable!("it is only read")
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        unreachable!("it is only read")
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

fn file(bytes: &[u8]) -> HostFile {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
    HostFile::new(file, Path::new("tested.qcow2"), true).unwrap().volatile()
}

fn backing(model: &[u8]) -> Option<Arc<dyn Disk>> {
    (!model.is_empty()).then(|| Arc::new(Fixed(model.to_vec())) as Arc<dyn Disk>)
}

impl Tested {
    fn new(seed: u64, size: usize, cluster_bits: u32, beneath: &[u8]) -> Self {
        let file = file(&[]);
        create(&file, &Create { size: size as u64, cluster_bits, backing: None }).unwrap();
        Self::with(seed, file, beneath, size)
    }

    /// A disk with an internal snapshot of something, which `qemu-img` makes.
    fn with_snapshot(seed: u64, size: usize, cluster_bits: u32) -> Self {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let open = || HostFile::open(&path, true).unwrap().volatile();
        create(&open(), &Create { size: size as u64, cluster_bits, backing: None }).unwrap();
        let start = beneath(size / 3 / 512 * 512);
        Qcow2::open(open(), header(&open()).unwrap(), None).unwrap().write(0, &start).unwrap();
        let mut qemu = std::process::Command::new("qemu-img");
        assert!(
            qemu.args(["snapshot", "-c", "first"])
                .arg(&path)
                .status()
                .expect("qemu-utils is installed")
                .success()
        );
        Self::with(seed, open(), &[], size).holding(&start)
    }

    fn holding(mut self, start: &[u8]) -> Self {
        self.model[..start.len()].copy_from_slice(start);
        self
    }

    fn with(seed: u64, file: HostFile, beneath: &[u8], size: usize) -> Self {
        let tap = Arc::new(Tap::default());
        let file = file.tapped(tap.clone());
        // What is there already, for those that look at the events only.
        let mut all = vec![0; file.len().unwrap() as usize];
        file.read_some(0, &mut all).unwrap();
        tap.events.lock().unwrap().extend([Event::Write(0, all), Event::Sync]);
        let header = header(&file).unwrap();
        let disk = Qcow2::open(file, header, backing(beneath)).unwrap();
        let mut model = beneath.to_vec();
        model.resize(size, 0);
        Self { disk, model, tap, rng: Rng::with_seed(seed) }
    }

    fn range(&mut self) -> Range<usize> {
        let length = match self.rng.u8(..4) {
            0 => self.rng.usize(1..=512),
            1 => self.rng.usize(1..=16) * 4096,
            _ => self.rng.usize(1..=100_000),
        };
        let start = self.rng.usize(..self.model.len());
        start..(start + length).min(self.model.len())
    }

    /// One random request. Returns what it may have changed.
    fn step(&mut self) -> Result<Range<usize>> {
        let range = self.range();
        let (offset, length) = (range.start as u64, range.len() as u64);
        match self.rng.u8(..10) {
            0..=4 => {
                let byte = self.rng.u8(1..);
                let data: Vec<u8> = range.clone().map(|at| byte ^ (at / 512) as u8).collect();
                self.disk.write(offset, &data)?;
                self.model[range.clone()].copy_from_slice(&data);
            }
            5 | 6 => {
                self.disk.write_zeroes(offset, length, self.rng.bool())?;
                self.model[range.clone()].fill(0);
            }
            7 => {
                self.disk.discard(offset, length)?;
                let mut now = vec![0; range.len()];
                self.disk.read(offset, &mut now)?;
                for (at, byte) in range.clone().zip(now) {
                    assert!(byte == 0 || byte == self.model[at], "discarded byte {at} is {byte}");
                    self.model[at] = byte;
                }
            }
            _ => {
                let mut read = vec![0xee; range.len()];
                self.disk.read(offset, &mut read)?;
                assert!(read == self.model[range.clone()], "read {range:?}");
                return Ok(0..0);
            }
        }
        Ok(range)
    }

    fn compare(&self) {
        let mut read = vec![0xee; self.model.len()];
        self.disk.read(0, &mut read).unwrap();
        let differs = read.iter().zip(&self.model).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first byte that differs");
    }

    fn check(&self) {
        // Twice: the second writes what the first has set free.
        self.disk.flush().unwrap();
        self.disk.flush().unwrap();
        let found = self.disk.check().unwrap();
        assert_eq!((found.leaks, found.damage), (0, 0), "{:?}", found.told);
    }
}

fn beneath(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512 % 251) as u8 + 3).collect()
}

#[test]
fn random_requests_do_what_they_do_to_an_array() {
    for (seed, (bits, under)) in
        [(16, 0), (16, 1_500_000), (9, 0), (9, 700_123 / 512 * 512), (12, 0), (21, 3 << 20)]
            .into_iter()
            .enumerate()
    {
        let mut tested = Tested::new(seed as u64, 2_000_000 / 512 * 512, bits, &beneath(under));
        for step in 0..300 {
            tested.step().unwrap();
            if step % 37 == 0 {
                tested.disk.flush().unwrap();
            }
        }
        tested.compare();
        tested.check();
        tested.compare();
    }
}

/// What the file would hold if the host lost power after `events`: of what came after the last flush, any part.
fn survivors(events: &[Event], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    let synced = events.iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |at| at + 1);
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Sync => {}
            Event::Write(offset, data) => {
                let mut offset = *offset as usize;
                let mut data = &data[..];
                while !data.is_empty() {
                    let sector = (512 - offset % 512).min(data.len());
                    if at < synced || rng.u8(..3) > 0 {
                        if bytes.len() < offset + sector {
                            bytes.resize(offset + sector, 0);
                        }
                        bytes[offset..offset + sector].copy_from_slice(&data[..sector]);
                    }
                    offset += sector;
                    data = &data[sector..];
                }
            }
            Event::Punch(offset, length) => {
                let end = (*offset + *length) as usize;
                if end <= bytes.len() {
                    bytes[*offset as usize..end].fill(0);
                }
            }
        }
    }
    bytes
}

#[test]
fn what_was_flushed_survives_a_power_failure_at_any_moment() {
    for (seed, (bits, under)) in
        [(16, 0), (16, 600_000 / 512 * 512), (9, 0), (9, 300_032), (12, 100_352)].into_iter().enumerate()
    {
        let beneath = beneath(under);
        survive(Tested::new(100 + seed as u64, 800_256, bits, &beneath), &beneath);
    }
    for (seed, bits) in [16, 9, 12, 9].into_iter().enumerate() {
        survive(Tested::with_snapshot(200 + seed as u64, 800_256, bits), &[]);
    }
}

/// Crashes it at random moments of 120 random requests.
fn survive(mut tested: Tested, beneath: &[u8]) {
    // After each step: how many events there were, and what it has changed. At each flush: what the disk held.
    let mut steps = Vec::new();
    let mut flushes = vec![(tested.tap.events.lock().unwrap().len(), tested.model.clone())];
    for step in 0..120 {
        let began = tested.tap.events.lock().unwrap().len();
        let changed = tested.step().unwrap();
        steps.push((began, changed));
        if step % 11 == 10 {
            tested.disk.flush().unwrap();
            flushes.push((tested.tap.events.lock().unwrap().len(), tested.model.clone()));
        }
    }
    let events = tested.tap.events.lock().unwrap().clone();
    let mut rng = tested.rng.fork();
    for _ in 0..60 {
        let crash = rng.usize(flushes[0].0..=events.len());
        let (flushed, model) = flushes.iter().rfind(|flush| flush.0 <= crash).unwrap();
        let image = file(&survivors(&events[..crash], &mut rng));
        let header = header(&image).unwrap();
        let disk = Qcow2::load(image, header, backing(beneath)).unwrap();
        let found = disk.check().unwrap();
        assert_eq!(found.damage, 0, "after {crash} of {} events: {:?}", events.len(), found.told);
        let mut read = vec![0; model.len()];
        disk.read(0, &mut read).unwrap();
        let mut expected = model.clone();
        // What was begun later may have been done or not.
        for (_, range) in steps.iter().filter(|step| step.0 >= *flushed && step.0 <= crash) {
            expected[range.clone()].copy_from_slice(&read[range.clone()]);
        }
        let differs = read.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "after {crash} of {} events, flushed at {flushed}", events.len());
    }
}

#[test]
fn a_full_host_disk_is_an_error_and_damages_nothing() {
    for (seed, bits) in [16, 9, 12].into_iter().enumerate() {
        for budget in [0, 1, 2, 3, 5, 8, 13, 40, 100] {
            let mut tested = Tested::new(seed as u64 * 100 + budget, 800_256, bits, &beneath(400_384));
            for _ in 0..10 {
                tested.step().unwrap();
            }
            tested.disk.flush().unwrap();
            tested.tap.budget.store(budget, Ordering::Relaxed);
            let mut failed = false;
            for _ in 0..200 {
                let before = tested.model.clone();
                if let Err(error) = tested.step().and_then(|_| tested.disk.flush()) {
                    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull), "{error}");
                    failed = true;
                    // Where the request was the disk holds old or new bytes: both are what it holds now.
                    let mut now = vec![0; before.len()];
                    tested.disk.read(0, &mut now).unwrap();
                    tested.model = now;
                    break;
                }
            }
            assert!(failed, "a budget of {budget} writes was enough");
            // With space again everything goes on.
            tested.tap.budget.store(u64::MAX, Ordering::Relaxed);
            for _ in 0..20 {
                tested.step().unwrap();
            }
            tested.compare();
            tested.disk.flush().unwrap();
            tested.disk.flush().unwrap();
            let found = tested.disk.check().unwrap();
            assert_eq!(found.damage, 0, "{:?}", found.told);
            assert!(found.leaks <= 4, "{} leaks", found.leaks);
        }
    }
}

#[test]
fn threads_see_their_own_writes() {
    const PART: usize = 300 * 1000;
    let tested = Tested::new(5, 8 * PART / 512 * 512, 12, &beneath(1 << 20));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let disk = &tested.disk;
            scope.spawn(move || {
                let mut rng = Rng::with_seed(thread as u64);
                let start = thread * PART;
                let mut model = vec![0; PART.min(disk.size() as usize - start)];
                disk.read(start as u64, &mut model).unwrap();
                for _ in 0..150 {
                    let from = rng.usize(..model.len());
                    let to = (from + rng.usize(1..20000)).min(model.len());
                    let offset = (start + from) as u64;
                    match rng.u8(..6) {
                        0 => {
                            disk.write_zeroes(offset, (to - from) as u64, true).unwrap();
                            model[from..to].fill(0);
                        }
                        1 => disk.flush().unwrap(),
                        2 | 3 => {
                            model[from..to].fill(rng.u8(..));
                            disk.write(offset, &model[from..to]).unwrap();
                        }
                        _ => {
                            let mut read = vec![0; to - from];
                            disk.read(offset, &mut read).unwrap();
                            assert!(read == model[from..to], "thread {thread}, {from}..{to}");
                        }
                    }
                }
            });
        }
    });
    tested.check();
}
