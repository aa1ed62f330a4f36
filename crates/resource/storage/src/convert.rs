//! From one format to another.

use std::path::Path;

use crate::create::Plan;
use crate::file::HostFile;
use crate::qcow2::{self, Qcow2};
use crate::raw::Raw;
use crate::{Disk, Error, Extent, Format, NewImage, Options, Result, open};

/// How much is copied at once, a multiple of every cluster size.
const CHUNK: u64 = 2 << 20;
/// Pieces of zeroes this large are left out.
const PIECE: usize = 4096;

static ZEROES: [u8; PIECE] = [0; PIECE];

/// How to convert.
#[derive(Clone, Debug)]
pub struct Convert {
    /// The source's format; without it, what it looks like.
    pub from: Option<Format>,
    /// The new image's format.
    pub to: Format,
    /// Compress, which only qcow2 can. Such an image can be read and written as any other.
    pub compress: bool,
    /// Replace a file that is there already.
    pub replace: bool,
}

/// Copies the disk in `source`, with what lies beneath, to a new image in `destination`. Zeroes take no space there.
///
/// The new image has its name only once it is complete and on stable storage. `progress` is told how many bytes of how
/// many are done.
pub fn convert(
    source: impl AsRef<Path>,
    destination: impl AsRef<Path>,
    convert: &Convert,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let destination = destination.as_ref();
    if !convert.replace && destination.symlink_metadata().is_ok() {
        return Err(Error::io("create", destination)(std::io::ErrorKind::AlreadyExists.into()));
    }
    if convert.compress && convert.to != Format::Qcow2 {
        return Err(Error::Invalid(format!("a {} image cannot be compressed; use qcow2", convert.to)));
    }
    let from = open(source, &Options { format: convert.from, read_only: true, snapshot: false })?;
    let plan = Plan::new(destination, &NewImage::new(convert.to, from.size()))?;
    let folder =
        destination.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unfinished = tempfile::Builder::new()
        .prefix(".posada-convert-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(Error::io("create a file in", folder))?;
    let file = unfinished.reopen().map_err(Error::io("open", unfinished.path()))?;
    // Errors name what the user knows.
    let file = HostFile::new(file, destination, true)?;
    plan.make(&file)?;
    match convert.to {
        Format::Qcow2 => {
            let header = qcow2::header(&file)?;
            copy_to_qcow2(&*from, &Qcow2::open(file, header, None)?, convert.compress, progress)?;
        }
        _ => copy(&*from, &Raw::new(file, false)?, progress)?,
    }
    let named = if convert.replace {
        unfinished.persist(destination)
    } else {
        unfinished.persist_noclobber(destination)
    };
    named.map_err(|error| Error::io("name", destination)(error.error))?;
    let folder_file = std::fs::File::open(folder).map_err(Error::io("open", folder))?;
    folder_file.sync_all().map_err(Error::io("flush", folder))
}

fn copy_to_qcow2(
    from: &dyn Disk,
    to: &Qcow2,
    compress: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    if compress {
        let cluster = u64::from(to.limits().discard_granularity);
        copy_with(from, progress, |offset, data| {
            for (at, piece) in (offset..).step_by(cluster as usize).zip(data.chunks(cluster as usize)) {
                if !is_zero(piece) && !to.write_packed(at, piece)? {
                    to.write(at, piece)?;
                }
            }
            Ok(())
        })?;
    } else {
        copy_with(from, progress, |offset, data| write_pieces(to, offset, data))?;
    }
    // Once for the data and tables, once for what the first has set free.
    to.flush()?;
    to.flush()
}

fn copy(from: &dyn Disk, to: &dyn Disk, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    copy_with(from, progress, |offset, data| write_pieces(to, offset, data))?;
    to.flush()
}

/// Calls `write` with each chunk that may hold anything but zeroes.
fn copy_with(
    from: &dyn Disk,
    progress: &mut dyn FnMut(u64, u64),
    mut write: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = from.size();
    let mut buffer = vec![0; CHUNK.min(size) as usize];
    let mut offset = 0;
    while offset < size {
        let chunk = CHUNK.min(size - offset);
        let (extent, length) = from.extent(offset, size - offset)?;
        if extent == Extent::Zero && length >= chunk {
            // To the last whole chunk that is zeroes.
            offset += if offset + length == size { length } else { length / CHUNK * CHUNK };
        } else {
            let data = &mut buffer[..chunk as usize];
            from.read(offset, data)?;
            write(offset, data)?;
            offset += chunk;
        }
        progress(offset, size);
    }
    Ok(())
}

/// Writes what is not zeroes, in pieces as large as can be.
fn write_pieces(to: &dyn Disk, offset: u64, data: &[u8]) -> Result<()> {
    let mut at = 0;
    while at < data.len() {
        let mut end = at;
        while end < data.len() && !is_zero(&data[end..data.len().min(end + PIECE)]) {
            end = data.len().min(end + PIECE);
        }
        if end > at {
            to.write(offset + at as u64, &data[at..end])?;
        }
        at = end.max(at) + PIECE;
    }
    Ok(())
}

fn is_zero(data: &[u8]) -> bool {
    data.chunks(PIECE).all(|piece| *piece == ZEROES[..piece.len()])
}
