//! What a guest's first process has to do, and what makes a guest and a host comparable.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::Pid;

/// Mounts what programs expect of a system.
pub(crate) fn set_up() -> Result<(), String> {
    let mounts =
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")];
    for (kind, place) in mounts {
        fs::create_dir_all(place)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
                    .map_err(|error| error.to_string())
            })
            .map_err(|error| format!("mounting {place}: {error}"))?;
    }
    Ok(())
}

/// Ends the guest, after everything that was printed has left it.
pub(crate) fn power_off() -> ! {
    let _ = nix::sys::termios::tcdrain(std::io::stdout());
    let never = reboot(RebootMode::RB_POWER_OFF);
    panic!("the machine cannot be powered off: {never:?}");
}

/// Keeps this process and those that it starts on one processor, the first that it may use: guests have one.
pub(crate) fn stay_on_one_processor() -> nix::Result<()> {
    let me = Pid::from_raw(0);
    let all = sched_getaffinity(me)?;
    let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap_or(false)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(first)?;
    sched_setaffinity(me, &one)
}
