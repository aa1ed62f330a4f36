//! Agreement with QEMU's tools, of Debian's `qemu-utils`: they read what is written here, and the other way round.

mod agreement;
mod foreign;
mod killed;
mod locks;
mod support;
