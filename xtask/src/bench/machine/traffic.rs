//! fio on disks and iperf3 over the network, in the `debian` image's own guest.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use posada_image::{Images, Progress};

use super::super::guest::{Guest, script};
use super::super::measure::{Reaped, Work, measure_partly, tethered};
use super::super::monitor::{Disk, Monitor};
use super::row::{FORMATS, TESTS, TO_GUEST, TO_HOST, Value, Values};
use super::{Part, tools};

/// Guest memory: fio's libraries are 80 MiB.
const MEMORY: u64 = 1 << 30;

/// Of a disk, in MiB.
const DISK: u64 = 512;

/// How long a test takes, in seconds.
const SECONDS: u32 = 3;

/// The host, by way of the network in user mode: what is sent there comes to the host's loopback.
const HOST: &str = "10.0.2.2";

/// A first pass over a disk: afterwards no cluster has to be found for what is written. No row of the table.
const FILL: &str = "fill";

pub(super) struct Traffic {
    pub(super) guest: Guest,
    /// Of the tools.
    pub(super) versions: String,
    folder: PathBuf,
    /// The other side of the network's tests.
    _server: Reaped,
}

impl Traffic {
    pub(super) fn new(folder: &Path, progress: &mut dyn Progress) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let (server, port) = serve()?;
        let steps = steps(port);
        let steps = steps.iter().map(|(name, commands)| (&**name, &**commands));
        let image = Images::open()?.get("debian", progress)?;
        let mut guest = Guest::of(&image, folder, &script(steps), tools::archive)?;
        guest.memory = MEMORY;
        Ok(Self { guest, versions: tools::versions()?, folder: folder.to_owned(), _server: server })
    }

    /// New disks, one of each format.
    fn disks(&self) -> anyhow::Result<Vec<Disk>> {
        let disk = |format: &'static str| {
            let path = self.folder.join(format);
            let _ = fs::remove_file(&path);
            let status = Command::new("qemu-img")
                .args(["create", "-q", "-f", format])
                .arg(&path)
                .arg(format!("{DISK}M"))
                .stdin(Stdio::null())
                .status()
                .context("starting qemu-img")?;
            if !status.success() {
                bail!("qemu-img made no {}", path.display());
            }
            Ok(Disk { path, format, snapshot: false })
        };
        FORMATS.into_iter().map(disk).collect()
    }

    fn run(&self, monitor: &dyn Monitor, values: &mut Values) -> anyhow::Result<()> {
        let disks = self.disks()?;
        let mut launch = monitor.launch(&self.guest)?;
        launch.command.args(monitor.devices(&disks).context("it has no disks")?);
        let (measured, failure) = measure_partly(launch, &mut |_| {})?;
        let mut failed = Vec::new();
        for (name, work) in measured.workloads {
            match value(&name, &work) {
                Some(value) => drop(values.insert(name, value)),
                None => failed.push(name),
            }
        }
        failed.retain(|name| !name.ends_with(FILL));
        if !failed.is_empty() {
            bail!("failed in the guest: {}", failed.join(", "));
        }
        failure.map_or(Ok(()), Err)
    }
}

impl Part for Traffic {
    fn name(&self) -> &'static str {
        "disks and network"
    }

    fn measure(&self, monitor: &dyn Monitor) -> (Values, Option<anyhow::Error>) {
        let mut values = Values::new();
        let failure = self.run(monitor, &mut values).err();
        (values, failure)
    }
}

/// Starts iperf3's server on the host's loopback, and says on which port.
fn serve() -> anyhow::Result<(Reaped, u16)> {
    // Free now, and nobody else's a moment later.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server = tethered("iperf3")
        .args(["--server", "--bind", "127.0.0.1", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting iperf3")?;
    Ok((Reaped(server), port))
}

/// What the guest does, by name. Each prints one number, or nothing.
fn steps(port: u16) -> Vec<(String, String)> {
    let mut steps = Vec::new();
    let number = |commands: String| format!("n=$({commands}); echo ${{n:-failed}}");
    let fio = tools::command("fio");
    for (format, device) in FORMATS.iter().zip(["/dev/vda", "/dev/vdb"]) {
        let disk = format!("{fio} --name=disk --filename={device} --direct=1 --ioengine=libaio --thread");
        let fill = format!("{disk} --rw=write --bs=1m --iodepth=4 --output=/dev/null && echo 1");
        steps.push((format!("{format}-{FILL}"), number(fill)));
        for test in TESTS {
            // The fields of fio's terse output, version 3: KiB/s and requests/s, of reading and of writing.
            let field = match (test.access.ends_with("read"), test.unit == "MiB/s") {
                (true, true) => 7,
                (true, false) => 8,
                (false, true) => 48,
                (false, false) => 49,
            };
            let (access, block, depth) = (test.access, test.block, test.depth);
            let run = format!(
                "{disk} --rw={access} --bs={block} --iodepth={depth} --time_based --runtime={SECONDS} \
                 --output-format=terse --terse-version=3 2>/dev/null | cut -d';' -f{field}"
            );
            steps.push((test.row(format), number(run)));
        }
    }
    let iperf = tools::command("iperf3");
    for (name, direction) in [(TO_HOST, ""), (TO_GUEST, " --reverse")] {
        let run = format!(
            "{iperf} --client {HOST} --port {port} --time {SECONDS} --format m{direction} 2>/dev/null | \
             awk '/receiver/ {{ print $7 }}'"
        );
        steps.push((name.to_owned(), number(run)));
    }
    steps
}

/// In the row's unit.
fn value(name: &str, work: &Work) -> Option<Value> {
    let number: f64 = work.result.parse().ok().filter(|number| *number > 0.0)?;
    let in_kib = TESTS
        .iter()
        .any(|test| test.unit == "MiB/s" && FORMATS.iter().any(|format| test.row(format) == name));
    let value = if in_kib { number / 1024.0 } else { number };
    Some(Value { value, processors: Some(work.cpu.as_secs_f64() / work.wall.as_secs_f64().max(1e-3)) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fio_tells_kib_and_rows_are_in_mib() {
        let (wall, cpu) = (Duration::from_secs(4), Duration::from_secs(6));
        let work = |result: &str| Work { wall, cpu, result: result.to_owned() };
        let expected = |value| Some(Value { value, processors: Some(1.5) });
        assert_eq!(value("raw-read-1m", &work("2048")), expected(2.0));
        assert_eq!(value("raw-random-read-4k", &work("2048")), expected(2048.0));
        assert_eq!(value("raw-read-1m", &work("failed")), None);
    }

    #[test]
    fn the_guest_does_every_test_on_every_disk() {
        let steps = steps(5201);
        for format in FORMATS {
            for test in TESTS {
                let (_, commands) = steps.iter().find(|(name, _)| *name == test.row(format)).unwrap();
                assert!(commands.contains(&format!("--rw={} ", test.access)), "{commands}");
            }
        }
    }
}
