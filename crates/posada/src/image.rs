//! `posada image`: what was fetched.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Result;
use indicatif::HumanBytes;
use posada_image::{Entry, Guests, Images};

use crate::arguments::{Image, ImageAction};
use crate::progress::Bars;
use crate::status;
use crate::workshop::Workshop;

pub(crate) fn run(arguments: Image) -> Result<u8> {
    let images = Images::open()?.with_machine(Arc::new(Workshop));
    match arguments.action {
        ImageAction::Ls => list(&images.list()?),
        ImageAction::Rm { names: _, all: true, force } => {
            if !force {
                Guests::open()?.check_unused(&images.list()?)?;
            }
            report(&images.remove_all(&mut Bars::default())?);
        }
        ImageAction::Rm { names, all: false, force } => {
            for name in names {
                if !force {
                    Guests::open()?.check_unused(&images.matching(&name)?)?;
                }
                report(&images.remove(&name, &mut Bars::default())?);
            }
        }
        ImageAction::Update { name } => {
            let image = images.update(&name, &mut Bars::default())?;
            eprintln!("{} is at version {}", image.name(), image.version());
        }
    }
    Ok(status::DONE)
}

fn list(entries: &[Entry]) {
    if entries.is_empty() {
        eprintln!("no images yet: `posada run debian` fetches one");
        return;
    }
    println!("{:<22} {:<28} {:>10}  AGE", "NAME", "VERSION", "SIZE");
    for entry in entries {
        let age = SystemTime::now().duration_since(entry.created).unwrap_or_default();
        let problem = entry.problem.as_deref().map(|problem| format!("  ({problem})")).unwrap_or_default();
        println!(
            "{:<22} {:<28} {:>10}  {}{problem}",
            entry.name,
            entry.version,
            HumanBytes(entry.size).to_string(),
            indicatif::HumanDuration(age)
        );
    }
}

fn report(removed: &[Entry]) {
    for entry in removed {
        eprintln!("removed {} {} ({})", entry.name, entry.version, HumanBytes(entry.size));
    }
}
