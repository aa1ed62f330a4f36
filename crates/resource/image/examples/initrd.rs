//! Writes what boots an image in any monitor: a kernel, an initramfs for one session and the kernel's command line.
//! An image with a disk must be cached already; its disk is to be the first virtio block device.
//!
//! ```text
//! cargo run -p posada-image --example initrd -- /tmp/guest            # a shell on the first serial port
//! cargo run -p posada-image --example initrd -- /tmp/guest uname -r   # a command, its streams on the second
//! cargo run -p posada-image --example initrd -- --image debian:bookworm /tmp/guest uname -r    # says where its disk is
//! qemu-system-x86_64 -nographic -kernel /tmp/guest/vmlinuz -initrd /tmp/guest/initrd.cpio -append "$(cat /tmp/guest/append)"
//! ```

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use posada_image::session::Session;
use posada_image::{Images, Progress};

/// Says what is being done on standard error.
struct Lines;

impl Progress for Lines {
    fn stage(&mut self, what: &str, _total: Option<u64>) {
        eprintln!("{what} …");
    }

    fn advance(&mut self, _amount: u64) {}

    fn done(&mut self) {}
}

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args_os().skip(1).peekable();
    let mut name = OsString::from("debian");
    if arguments.next_if(|argument| argument == "--image").is_some() {
        name = arguments.next().ok_or("which image?")?;
    }
    let folder =
        PathBuf::from(arguments.next().ok_or("give a folder to write to, and a command if you like")?);
    let command: Vec<OsString> = arguments.collect();
    let session = if command.is_empty() { Session::shell() } else { Session::command(command) };
    let image = Images::open()?.get(&name.to_string_lossy(), &mut Lines)?;
    fs::create_dir_all(&folder)?;
    fs::copy(image.kernel(), folder.join("vmlinuz"))?;
    fs::write(folder.join("initrd.cpio"), image.initrd(&session)?)?;
    fs::write(folder.join("append"), image.append(&session))?;
    eprintln!("{} {} is in {}", image.name(), image.version(), folder.display());
    if let Some(disk) = image.disk() {
        println!("{}", disk.display());
    }
    Ok(())
}
