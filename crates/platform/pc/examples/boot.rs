//! Boots a kernel with its console on the terminal:
//!
//! ```text
//! cargo run --release -p posada-pc --example boot -- vmlinuz 'console=ttyS0' [initrd ...]
//! ```
//!
//! Standard input goes to the guest line by line. `--trace io,irq` and all other comforts are the command's.

use std::fs::File;
use std::io::{self, BufRead};

use posada_boot::{Kernel, Source};
use posada_pc::{Outcome, PcBuilder, Port};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let open = |path: String| File::open(path).and_then(Source::file);
    let mut arguments = std::env::args().skip(1);
    let image = open(arguments.next().ok_or("which kernel?")?)?;
    let mut kernel = Kernel::new(image).append(arguments.next().unwrap_or_default());
    for initrd in arguments {
        kernel = kernel.initrd(open(initrd)?);
    }

    let mut pc = PcBuilder::new(kernel).memory(512 << 20).serial(Port::Com1, io::stdout()).build()?;
    let handle = pc.handle();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if handle.send_serial(Port::Com1, format!("{line}\n").as_bytes()).is_err() {
                break;
            }
        }
    });

    let outcome = pc.run()?;
    eprintln!("{outcome}");
    if let Outcome::TripleFault { state, .. } = outcome {
        eprintln!("{state}");
    }
    Ok(())
}
