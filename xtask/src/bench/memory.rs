//! How much memory a monitor takes for itself: what is resident, guest RAM left out.

use std::fs;

use anyhow::Context;

/// How much larger than guest RAM its mapping may be. Linux makes one mapping of allocations that lie side by side, so
/// ROM images and caches may be in the same one.
const SLACK: u64 = 64 << 20;

/// How much smaller: a PC has no RAM where its display's memory is.
const HOLES: u64 = 1 << 20;

/// The file in memory that Posada's translator has its code in, mapped twice: to write and to execute.
const CODE: &str = "/memfd:posada-code";

/// One mapping of /proc/PID/smaps (proc(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mapping {
    bytes: u64,
    resident: u64,
    /// Anonymous, writable and not executable: what RAM is.
    data: bool,
    /// Of a file in memory with this name, as Posada keeps translated code in; or writable and executable, as QEMU's is.
    code: bool,
}

/// The resident bytes of a process besides guest RAM of this size: its program, its libraries, its heap, its code cache.
/// Whatever shares a mapping with guest RAM counts as if all of it were resident: the result is never too small.
pub(crate) fn own(pid: u32, ram: u64) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mappings = parse(&smaps);
    own_of(&mappings, ram)
        .with_context(|| format!("no mapping in {path} looks like {} MiB of guest RAM", ram >> 20))
}

/// The same without translated code.
pub(crate) fn own_without_code(pid: u32, ram: u64) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let mut mappings = parse(&fs::read_to_string(&path).with_context(|| format!("reading {path}"))?);
    mappings.retain(|mapping| !mapping.code);
    own_of(&mappings, ram)
        .with_context(|| format!("no mapping in {path} looks like {} MiB of guest RAM", ram >> 20))
}

/// None if there is no guest RAM yet.
fn own_of(mappings: &[Mapping], ram: u64) -> Option<u64> {
    let like_ram = |mapping: &&Mapping| {
        mapping.data && (ram.saturating_sub(HOLES)..=ram + SLACK).contains(&mapping.bytes)
    };
    let guest = mappings.iter().filter(like_ram).max_by_key(|mapping| mapping.resident)?;
    let all: u64 = mappings.iter().map(|mapping| mapping.resident).sum();
    let beside = guest.bytes.saturating_sub(ram).min(guest.resident);
    Some(all - guest.resident + beside)
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    for line in smaps.lines() {
        if let Some(kilobytes) = line.strip_prefix("Rss:") {
            let kilobytes = kilobytes.trim().trim_end_matches(" kB").parse().unwrap_or(0u64);
            if let Some(last) = mappings.last_mut() {
                let last: &mut Mapping = last;
                last.resident = kilobytes << 10;
            }
        } else if let Some(mapping) = parse_head(line) {
            mappings.push(mapping);
        }
    }
    mappings
}

/// `7f2a00000000-7f2a20000000 rw-p 00000000 00:00 0 [name]`
fn parse_head(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    let permissions = fields.next()?;
    let inode = fields.nth(2)?;
    let data = permissions.starts_with("rw-") && inode == "0";
    let code = permissions.starts_with("rwx") || fields.next().is_some_and(|name| name == CODE);
    Some(Mapping { bytes: to.checked_sub(from)?, resident: 0, data, code })
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
