//! The command, used as a person uses it. Boots of Debian fetch its packages once, through `apt-get`.

mod bad_input;
mod boot;
mod control;
mod debian_disk;
mod devices;
mod disk;
mod disk_faults;
mod engines;
mod killed;
mod network_faults;
mod peripherals;
mod processors;
mod support;
