//! `posada`: one command that hosts any guest.
//!
//! It reads arguments, minds the terminal and words messages; what a guest is and how it runs is all in the
//! libraries ([`posada_pc`], [`posada_image`], [`posada_storage`]).
#![forbid(unsafe_code)]

mod arguments;
mod devices;
mod disk;
mod guest;
mod image;
mod keys;
mod progress;
mod run;
mod status;
mod terminal;
mod trace;
mod workshop;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::Parser;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    terminal::restore_on_panic();
    let result = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Image(arguments) => image::run(arguments),
        Command::Disk(arguments) => disk::run(&arguments),
    };
    terminal::restore();
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("posada: {error:#}");
            ExitCode::from(status::CANNOT_RUN)
        }
    }
}
