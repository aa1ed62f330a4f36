//! The scoreboard: fixed amounts of work, timed one after another.
//!
//! It runs as the first process of a Linux guest, or as an ordinary command on the host; the work is the same, and so
//! are its results. Each row is one line, `NAME UNITS NANOSECONDS CHECKSUM`: how many units of work were done between
//! two looks at `CLOCK_MONOTONIC`, and what came of it. The work is cut into equal batches, each of which must come to
//! the same; so a slow engine can do a part of them, and its checksum still is everybody's.
//!
//! | module | what it does |
//! |---|---|
//! | `arguments` | the command line |
//! | `row` | what a row is, and timing one |
//! | `registers`, `memory`, `vectors`, `system` | the rows: processor, caches, SSE and its kin, the kernel |
//! | `program` | whole programs as rows |
//! | `guest` | what the first process of a guest has to do besides |

mod arguments;
mod guest;
mod memory;
mod program;
mod random;
mod registers;
mod row;
mod system;
mod vectors;

use std::io::{self, Write};
use std::process::ExitCode;

use arguments::Arguments;
use row::{Outcome, Row};

/// Begins a mark on the console of a guest, by which whoever runs it keeps time from outside.
const MARK: &str = "posada-bench:";

/// With this argument alone the program ends at once: something to execute.
const NOTHING: &str = "--nothing";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(NOTHING) {
        return ExitCode::SUCCESS;
    }
    let first = nix::unistd::getpid().as_raw() == 1;
    if first && let Err(error) = guest::set_up() {
        eprintln!("scoreboard: {error}");
    }
    let done = Arguments::parse(std::env::args().skip(1), first)
        .and_then(|arguments| run(&arguments).map_err(|error| error.to_string()));
    if let Err(message) = &done {
        eprintln!("scoreboard: {message}");
    }
    if first {
        guest::power_off();
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all_rows(arguments: &Arguments) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    rows.extend(registers::rows());
    rows.extend(memory::rows());
    rows.extend(vectors::rows());
    rows.extend(system::rows());
    if let Some(tree) = &arguments.programs {
        rows.extend(program::rows(tree)?);
    }
    Ok(rows)
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let rows = all_rows(arguments)?;
    let mut out = io::stdout().lock();
    if arguments.list {
        for row in rows {
            writeln!(out, "{} {}", row.name, row.unit)?;
        }
        return Ok(());
    }
    if let Some(unknown) = arguments.rows.iter().find(|name| rows.iter().all(|row| row.name != **name)) {
        let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
        return Err(format!("there is no row {unknown}; there are {}", names.join(", ")).into());
    }
    guest::stay_on_one_processor()?;
    if arguments.marks {
        writeln!(out, "{MARK} shell")?;
    }
    let wanted = |row: &Row| arguments.rows.is_empty() || arguments.rows.contains(&row.name);
    let mut failed = false;
    for row in rows.into_iter().filter(wanted) {
        let name = row.name.clone();
        let begun = |out: &mut dyn Write| {
            if arguments.marks {
                writeln!(out, "{MARK} begin {name}").and_then(|()| out.flush())
            } else {
                Ok(())
            }
        };
        let outcome = row.run(arguments.divide, &mut || begun(&mut out));
        let mark = if arguments.marks { format!("{MARK} end ") } else { String::new() };
        match outcome {
            Ok(Outcome::Done { units, nanoseconds, checksum }) => {
                writeln!(out, "{mark}{name} {units} {nanoseconds} {checksum:016x}")?;
            }
            Ok(Outcome::Absent(why)) => writeln!(out, "{mark}{name} 0 0 {why}")?,
            // The others may do better.
            Err(error) => {
                failed = true;
                begun(&mut out)?;
                writeln!(out, "scoreboard: {error}\n{mark}{name} 0 0 failed")?;
            }
        }
        out.flush()?;
    }
    if arguments.marks {
        writeln!(out, "{MARK} done")?;
    }
    if failed { Err("there are rows that failed".into()) } else { Ok(()) }
}
