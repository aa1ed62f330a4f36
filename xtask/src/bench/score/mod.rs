//! The scoreboard: fixed amounts of work, on the host itself and in guests of QEMU's translator and Posada's engines.
//!
//! All run one program, `guests/scoreboard`: on the host as a command, in a guest as the first process.
//!
//! | module | what it does |
//! |---|---|
//! | `row` | what is timed |
//! | `files` | the program and the guest's initramfs |
//! | `programs`, `inputs` | whole programs, and what they work on |
//! | `sample` | what the program says of a row |
//! | `board` | slowdowns and their means |
//! | `table`, `picture` | the same for readers |

mod board;
pub(super) mod files;
mod inputs;
mod picture;
mod programs;
mod row;
mod sample;
mod table;

use board::{Board, Column, Run};
use row::{ROWS, Row};

use super::guest::LEVEL;
use super::measure::{self, Console, Launch, tethered};
use super::monitor::{self, Monitor};
use super::progress::Progress;
use super::{Options, Results, choose, picture_name};

/// What `--only` calls the host itself.
pub(crate) const NATIVE: &str = "native";

/// Its place in the document.
const PART: &str = "scoreboard";

/// The best processor model, which the translator may have.
const BEST: &str = "x86-64-v3";

/// Who takes part, in the order of columns, and which part of the work it does: all of it, but for the interpreter, which takes long and
/// has nothing to warm up.
const ENTRANTS: [(&str, u32); 4] = [(NATIVE, 1), ("qemu", 1), ("translate", 1), ("interpret", 16)];

/// Somebody who does the work.
struct Entrant {
    /// None is the host itself.
    monitor: Option<Box<dyn Monitor>>,
    files: files::Files,
}

impl Entrant {
    fn launch(&self) -> anyhow::Result<Launch> {
        match &self.monitor {
            Some(monitor) => monitor.launch(&self.files.guest),
            None => {
                let mut command = tethered(&self.files.program);
                command.args(&self.files.arguments);
                Ok(Launch { command, console: Console::Stdout, terminal: false, memory: None })
            }
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<Results> {
    let rows: Vec<&Row> = choose("row", ROWS.iter().collect(), &options.row, |row| row.name)?;
    let rounds = options.rounds();
    let wanted: Vec<_> = ENTRANTS.iter().filter(|(key, _)| options.wants(key)).collect();
    let folder = tempfile::Builder::new().prefix("posada-bench").tempdir()?;
    let mut progress = Progress::new(wanted.len() as u64 * u64::from(rounds), rows.len());
    let files = files::Files::new(folder.path(), &rows, &mut progress)?;
    let mut board = Board::new(&rows, &files.guest.title);
    let mut monitors = Vec::new();
    for (key, divide) in wanted {
        let mut monitor = monitor::named(key);
        if let Some(monitor) = &mut monitor {
            progress.say(format!("preparing {}", monitor.name()));
            match monitor.prepare(&files.guest) {
                Ok(version) => board.columns.push(Column::new(key, monitor.name(), version, *divide)),
                Err(error) => {
                    board.columns.push(Column::absent(key, monitor.name(), &error));
                    continue;
                }
            }
        } else {
            board.columns.push(Column::new(key, "native", "native: the host itself".to_owned(), *divide));
        }
        monitors.push((key, *divide, monitor));
    }
    let translator = monitors.iter().find(|(key, ..)| **key == "translate");
    let best = translator.and_then(|(.., monitor)| monitor.as_ref()).is_some_and(|m| m.has_model(BEST));
    let model = options.cpu.clone().unwrap_or_else(|| if best { BEST } else { LEVEL }.to_owned());
    let mut entrants = Vec::new();
    for (key, divide, monitor) in monitors {
        let mut files = files.with(divide, model.clone());
        if let Some(monitor) = &monitor
            && !monitor.has_model(&model)
        {
            board.problems.push(format!("{} has {LEVEL}, for it has no {model}", monitor.name()));
            LEVEL.clone_into(&mut files.guest.cpu);
        }
        if let (Some(column), true) = (board.column_mut(key), monitor.is_some()) {
            column.model = Some(files.guest.cpu.clone());
        }
        entrants.push((*key, Entrant { monitor, files }));
    }
    for round in 1..=rounds {
        for (key, entrant) in &entrants {
            let Some(column) = board.column_mut(key).filter(|column| column.failure.is_none()) else {
                continue;
            };
            let doing = format!("round {round} of {rounds}: {}", column.name);
            progress.say(doing.clone());
            let run = entrant
                .launch()
                .and_then(|launch| measure::measure_partly(launch, &mut |event| progress.at(&doing, event)));
            match run {
                Ok((measured, failure)) => {
                    column.runs.push(Run::new(&measured));
                    column.failure = failure.map(|error| format!("{error:#}"));
                }
                Err(error) => column.failure = Some(format!("{error:#}")),
            }
        }
    }
    progress.end();
    let agreed = board.compare_results();
    Ok(Results {
        part: PART,
        tables: table::tables(&board),
        complaints: board.complaints(),
        page: table::page(&board, &picture_name(PART)),
        picture: Some(picture::svg(&board)),
        agreed,
    })
}
