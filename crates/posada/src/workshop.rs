//! The machine in which disks of images are built.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use posada_boot::{Kernel, Source};
use posada_image::{Machine, Task};
use posada_pc::{OnReset, Outcome, PcBuilder, Port};
use posada_storage::Options;

/// One of ours, on the default engine.
#[derive(Debug)]
pub(crate) struct Workshop;

impl Machine for Workshop {
    fn run(
        &self,
        task: Task<'_>,
        console: Box<dyn Write + Send>,
        report: Box<dyn Write + Send>,
    ) -> io::Result<()> {
        let kernel = Source::file(File::open(task.kernel)?).map_err(io::Error::other)?;
        let kernel = Kernel::new(kernel).initrd(Source::bytes(task.initrd)).append(task.append);
        let disk = posada_storage::open(task.disk, &Options::default()).map_err(io::Error::other)?;
        let mut pc = PcBuilder::new(kernel)
            .memory(task.memory)
            .on_reset(OnReset::Exit)
            .serial(Port::Com1, console)
            .serial(Port::Com2, report)
            .disk(Arc::clone(&disk), "build")
            .build()
            .map_err(io::Error::other)?;
        let outcome = pc.run().map_err(io::Error::other)?;
        pc.stop_devices();
        match outcome {
            Outcome::PoweredOff => posada_storage::close(&*disk).map_err(io::Error::other),
            outcome => Err(io::Error::other(outcome.to_string())),
        }
    }
}
