//! `posada`: one command that hosts any guest.
//!
//! It reads arguments, minds the terminal and words messages; what a guest is and how it runs is all in the
//! libraries ([`posada_pc`], [`posada_image`], [`posada_storage`], [`posada_manage`]).
#![forbid(unsafe_code)]

mod arguments;
mod config;
mod control;
mod devices;
mod disk;
mod exec;
mod guest;
mod image;
mod join;
mod keys;
mod list;
mod progress;
mod run;
mod status;
mod supervise;
mod terminal;
mod trace;
mod workshop;

use std::process::ExitCode;

use arguments::Command;

fn main() -> ExitCode {
    let (arguments, settings) = config::arguments();
    terminal::restore_on_panic();
    let result = match arguments.command {
        Command::Run(arguments) => supervise::run(&arguments, settings),
        Command::Ps(arguments) => list::ps(&arguments),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Console(arguments) => join::run(&arguments.name),
        Command::Logs(arguments) => list::logs(&arguments),
        Command::Stop(arguments) => control::stop(&arguments),
        Command::Kill(arguments) => control::kill(&arguments),
        Command::Pause(arguments) => control::pause(&arguments),
        Command::Resume(arguments) => control::resume(&arguments),
        Command::Stats(arguments) => control::stats(&arguments),
        Command::Balloon(arguments) => control::balloon(&arguments),
        Command::Inspect(arguments) => list::inspect(&arguments.name),
        Command::Rm(arguments) => control::rm(&arguments),
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
