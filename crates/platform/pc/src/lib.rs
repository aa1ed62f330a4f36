//! The PC: a board that devices are wired on, and the machine built around it.
//!
//! This is the only room that knows both devices and engines. It gives each device its place in the address map
//! and its interrupt line, takes a kernel to the first instruction, runs every virtual processor on a thread of
//! its own, and carries out what guests ask of a machine: power off, reset.
//!
//! The machine is a PC without firmware and without display: two 16550 serial ports, the 8259 pair, I/O APIC and
//! local APICs, the 8254 timer, the CMOS clock, the 8042, ACPI power management, and PCI with configuration
//! space by ports and by memory, on which [virtio devices](posada_virtio) are plugged. Its tables are those of [`posada_boot::acpi`].
//!
//! - **Ports and memory**: the engine calls its processor's view of the board (`cpu`), which finds the device.
//! - **Interrupts**: a device drives its line (`wiring`), that leads to the PIC and the I/O APIC, and either ends
//!   at a local APIC (`apics`), which raises the processor's [attention](posada_vcpu::Attention). Messages of PCI
//!   devices go straight there.
//! - **Time**: all devices read one [clock](posada_vcpu::Clock). One thread sleeps until the earliest deadline of
//!   all timers (`alarm`); a guest that halts costs the host nothing.
//!
//! # Address map
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | 0x9_fc00 | RAM |
//! | 0x9_fc00 | 0xa_0000 | RAM: extended BIOS data area |
//! | 0xa_0000 | 0xc_0000 | nothing (a PC's display) |
//! | 0xc_0000 | 0xe_0000 | RAM that no memory map announces (a PC's option ROMs) |
//! | 0xe_0000 | 0x10_0000 | RAM: the tables of [`posada_boot::acpi`] |
//! | 0x10_0000 | at most 0xc000_0000 | RAM |
//! | 0xc000_0000 | 0xe000_0000 | PCI devices |
//! | 0xe000_0000 | 0xf000_0000 | PCI configuration space, 256 buses |
//! | 0xfec0_0000 | 0xfec0_1000 | I/O APIC |
//! | 0xfee0_0000 | 0xfee0_1000 | local APIC, of each processor its own |
//! | 0xffff_0000 | 0x1_0000_0000 | the 64 KiB below 1 MiB again, where processors begin after a reset |
//! | 0x1_0000_0000 | | the rest of RAM |
//! | the next multiple of 1 GiB | 64 GiB on | PCI devices with 64-bit addresses |
//!
//! # Example
//!
//! ```
//! use posada_boot::{Kernel, Source};
//! use posada_pc::{Outcome, PcBuilder, Port};
//!
//! // A multiboot kernel of 43 bytes: header, then `mov al, 'P'; mov dx, 0x3f8; out dx, al; mov al, 3;
//! // out 0xf4, al`, which ends the run.
//! let magic = 0x1bad_b002u32;
//! let header = [magic, 1 << 16, 0u32.wrapping_sub(magic + (1 << 16)), 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
//! let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
//! image.extend([0xb0, b'P', 0x66, 0xba, 0xf8, 0x03, 0xee, 0xb0, 3, 0xe6, 0xf4, 0xf4]);
//!
//! let mut pc = PcBuilder::new(Kernel::new(Source::bytes(image)))
//!     .memory(4 << 20)
//!     .debug_exit(true)
//!     .serial(Port::Com1, std::io::stdout())
//!     .build()?;
//! assert_eq!(pc.run()?, Outcome::DebugExit(7));
//! # Ok::<(), posada_pc::Error>(())
//! ```
#![forbid(unsafe_code)]

mod alarm;
mod apics;
mod board;
mod console;
mod control;
mod cpu;
mod engine;
mod error;
mod firmware;
mod handle;
mod layout;
mod lent;
mod pc;
mod wiring;

pub use engine::{DEFAULT_CODE_CACHE, Engine, MAX_CODE_CACHE, MIN_CODE_CACHE};
pub use error::Error;
pub use handle::{Ended, Handle, Port};
pub use layout::{MAX_MEMORY, MIN_MEMORY};
pub use lent::{BalloonUse, CardUse, DiskUse};
pub use pc::{OnReset, OnTripleFault, Outcome, Pc, PcBuilder};
