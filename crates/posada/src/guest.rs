//! What is run: from the command line's words to a kernel, a disk and a session.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use posada_boot::{Kernel, Source};
use posada_image::session::Session;
use posada_image::{Guests, Image, Images};
use posada_storage::{Disk, Options};

use crate::arguments::Run;
use crate::progress::Bars;
use crate::terminal;
use crate::workshop::Workshop;

/// The memory of a guest whose needs nobody knows, in bytes.
const MEMORY: u64 = 512 << 20;

/// What a machine needs to run the guest.
pub(crate) struct Guest {
    pub kernel: Kernel,
    /// The disk that its system is on.
    pub disk: Option<Arc<dyn Disk>>,
    /// Bytes.
    pub memory: u64,
}

/// Whether a command gets a terminal of its own: where it would have one without a machine around it.
pub(crate) fn takes_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The session that an image runs; none for a kernel of the user's own.
pub(crate) fn session(arguments: &Run) -> Option<Session> {
    arguments.image.as_ref()?;
    let mut session =
        if arguments.command.is_empty() { Session::shell() } else { Session::command(&arguments.command) };
    if !arguments.command.is_empty() && takes_terminal() {
        session = session.on_terminal();
    }
    if let Some(size) = terminal::size() {
        session = session.size(size);
    }
    if let Some(term) = std::env::var_os("TERM").filter(|_| io::stdin().is_terminal()) {
        session = session.env("TERM", term);
    }
    Some(session)
}

/// Finds or makes what the arguments name.
pub(crate) fn choose(arguments: &Run, session: Option<&Session>) -> Result<Guest> {
    let (mut guest, mut words) = match (&arguments.image, session, &arguments.kernel) {
        (Some(image), Some(session), _) => from_image(image, arguments.name.as_deref(), session)?,
        (_, _, Some(path)) => {
            let kernel = Kernel::new(open("kernel", path)?);
            (Guest { kernel, disk: None, memory: MEMORY }, String::new())
        }
        _ => bail!("give an image or --kernel"),
    };
    for path in &arguments.initrd {
        guest.kernel = guest.kernel.initrd(open("initrd", path)?);
    }
    if let Some(append) = &arguments.append {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(append);
    }
    guest.kernel = guest.kernel.append(words);
    if let Some(memory) = arguments.memory {
        guest.memory = memory.0;
    }
    Ok(guest)
}

fn open(what: &str, path: &Path) -> Result<Source> {
    let file = File::open(path).with_context(|| format!("opening the {what} {}", path.display()))?;
    Source::file(file).with_context(|| format!("reading the {what} {}", path.display()))
}

/// A guest of an image, and the words of its kernel's command line.
fn from_image(name: &str, guest: Option<&str>, session: &Session) -> Result<(Guest, String)> {
    let images = Images::open()?.with_machine(Arc::new(Workshop));
    let mut bars = Bars::default();
    let mut hostname = String::new();
    let kept = guest.map(|guest| Guests::open()?.open_or_create(guest, name, &images, &mut bars));
    let (image, disk) = match kept {
        Some(Ok(guest)) => {
            hostname = format!(" systemd.hostname={}", guest.name());
            (guest.image()?, Some((guest.disk(), Options::default())))
        }
        // A system in memory has nothing to keep; its name is for other commands.
        Some(Err(error)) if !matches!(error, posada_image::Error::NoDisk { .. }) => return Err(error.into()),
        None | Some(Err(_)) => {
            let image = images.get(name, &mut bars)?;
            // Changes are thrown away.
            let disk = image.disk().map(|path| (path, Options { snapshot: true, ..Options::default() }));
            (image, disk)
        }
    };
    drop(bars);
    let keeps_disk = disk.as_ref().is_some_and(|(_, options)| !options.snapshot);
    let disk = disk.map(|(path, options)| {
        posada_storage::open(&path, &options).with_context(|| format!("opening the disk {}", path.display()))
    });
    let initrd = initrd(&image, session, keeps_disk)?;
    let kernel = Kernel::new(open("kernel", &image.kernel())?).initrd(Source::bytes(initrd));
    let words = image.append(session) + &hostname;
    Ok((Guest { kernel, disk: disk.transpose()?, memory: image.memory() }, words))
}

fn initrd(image: &Image, session: &Session, keeps_disk: bool) -> Result<Vec<u8>> {
    let initrd = if keeps_disk { image.initrd_for_disk(Some(session), true) } else { image.initrd(session) };
    Ok(initrd?)
}
