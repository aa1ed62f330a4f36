//! The machine as small guests see it. Each guest is a multiboot kernel of a few instructions, assembled here.

mod guest;
mod interrupts;
mod outcomes;
mod ports;
mod serial;
mod smp;
