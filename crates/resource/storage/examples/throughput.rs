//! How fast an image is read and written by several threads at once.
//!
//!     cargo run --release -p posada-storage --example throughput -- FOLDER [MIB]
//!
//! makes a raw and a qcow2 image of that size in FOLDER and measures both: sequential requests of 64 KiB, and random
//! ones of 4 KiB. `qemu-img bench` measures the same in QEMU.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use posada_storage::{Disk, Format, NewImage, Options, create, open};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("which folder?")?);
    let mib = arguments.next().map_or(Ok(1024), |mib| mib.to_string_lossy().parse::<u64>())?;
    for format in [Format::Raw, Format::Qcow2] {
        let path = folder.join(format!("throughput.{format}"));
        let _ = std::fs::remove_file(&path);
        create(&path, &NewImage::new(format, mib << 20))?;
        let disk = open(&path, &Options { format: Some(format), ..Options::default() })?;
        measure(&*disk, format, "write new, 64 KiB", 1, 65536, mib << 4, false, true);
        measure(&*disk, format, "write again, 64 KiB", 1, 65536, mib << 4, false, true);
        measure(&*disk, format, "read, 64 KiB", 1, 65536, mib << 4, false, false);
        for threads in [1, 2, 4] {
            measure(&*disk, format, "random read, 4 KiB", threads, 4096, 200_000, true, false);
            measure(&*disk, format, "random write, 4 KiB", threads, 4096, 100_000, true, true);
        }
        drop(disk);
        std::fs::remove_file(&path)?;
        create(&path, &NewImage::new(format, mib << 20))?;
        let disk = open(&path, &Options { format: Some(format), ..Options::default() })?;
        measure(&*disk, format, "random write new, 4 KiB", 1, 4096, 10_000, true, true);
        drop(disk);
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "it is a table of measurements")]
fn measure(
    disk: &dyn Disk,
    format: Format,
    what: &str,
    threads: u64,
    size: u64,
    count: u64,
    random: bool,
    write: bool,
) {
    let blocks = disk.size() / size;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                let mut buffer = vec![thread as u8 + 1; size as usize];
                for at in 0..count / threads {
                    let block = if random { rng.u64(..blocks) } else { at % blocks };
                    let done = if write {
                        disk.write(block * size, &buffer)
                    } else {
                        disk.read(block * size, &mut buffer)
                    };
                    done.expect("the image works");
                }
            });
        }
    });
    let issued = began.elapsed();
    disk.flush().expect("the image works");
    let all = began.elapsed();
    let rate = |seconds: f64| (count * size) as f64 / 1e6 / seconds;
    println!(
        "{:>5}  {what:<24} {threads} threads  {:>8.0} MB/s  {:>8.0} requests/s  with flush {:>7.0} MB/s",
        format.name(),
        rate(issued.as_secs_f64()),
        count as f64 / issued.as_secs_f64(),
        rate(all.as_secs_f64())
    );
}
