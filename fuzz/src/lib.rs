//! The logic of the fuzz targets: one plain function for each, from bytes to nothing or a panic.
//!
//! A target in `fuzz_targets/` hands libFuzzer's bytes to its function. The same source files run with a fixed
//! seed and a bound in the ordinary tests of the rooms concerned, so a regression shows there too.
//!
//! ```
//! posada_fuzz::device_registers(b"any bytes at all");
//! ```

#![deny(unsafe_code)]

mod against_host;
mod boot_image;
mod control_socket;
mod device_registers;
mod disk_image;
mod disk_requests;
mod guest_frames;
mod instructions;
mod peripherals;
mod session;
mod switch_peer;
mod tcp_guest;
mod translated;
mod virtio;

/// Any sequence of operations on every device of a PC.
///
/// # Panics
/// If a device misbehaves: that is the finding.
pub fn device_registers(data: &[u8]) {
    device_registers::run(data);
}

/// Any file as a kernel.
///
/// # Panics
/// If the loader panics or writes where nothing of a kernel belongs: that is the finding.
pub fn boot_image(data: &[u8]) {
    boot_image::run(data);
}

/// Any file as a disk image, or a small good one with any changes.
///
/// # Panics
/// If the storage misbehaves: that is the finding.
pub fn disk_image(data: &[u8]) {
    disk_image::run(data);
}

/// Any requests to a good image, compared with an array.
///
/// # Panics
/// If the storage misbehaves: that is the finding.
pub fn disk_requests(data: &[u8]) {
    disk_requests::run(data);
}

/// Any driver of the AHCI controller and of the e1000.
///
/// # Panics
/// If a device misbehaves: that is the finding.
pub fn peripherals(data: &[u8]) {
    peripherals::run(data);
}

/// Any bytes as code, in any mode of the processor.
///
/// # Panics
/// If the interpreter misbehaves: that is the finding.
pub fn instructions(data: &[u8]) {
    instructions::run(data);
}

/// Any bytes from a session's guest.
///
/// # Panics
/// If the host misbehaves: that is the finding.
pub fn session(data: &[u8]) {
    session::run(data);
}

/// Any bytes as an instruction, here and on the host's processor.
///
/// # Panics
/// If the two end differently: that is the finding.
pub fn against_host(data: &[u8]) {
    against_host::run(data);
}

/// Any bytes as code, interpreted and translated.
///
/// # Panics
/// If the two end differently: that is the finding.
pub fn translated(data: &[u8]) {
    translated::run(data);
}

/// Any bytes on a control socket.
///
/// # Panics
/// If the reader or the parser misbehaves: that is the finding.
pub fn control_socket(data: &[u8]) {
    control_socket::run(data);
}

/// Any driver of a virtio device.
///
/// # Panics
/// If the device misbehaves: that is the finding.
pub fn virtio(data: &[u8]) {
    virtio::run(data);
}

/// Any frames from a guest to a user-mode network.
///
/// # Panics
/// If the network misbehaves: that is the finding.
pub fn guest_frames(data: &[u8]) {
    guest_frames::run(data);
}

/// Any segments from a guest to a TCP connection.
///
/// # Panics
/// If the network misbehaves: that is the finding.
pub fn tcp_guest(data: &[u8]) {
    tcp_guest::run(data);
}

/// Any message from another member of a switch.
///
/// # Panics
/// If the network misbehaves: that is the finding.
pub fn switch_peer(data: &[u8]) {
    switch_peer::run(data);
}
