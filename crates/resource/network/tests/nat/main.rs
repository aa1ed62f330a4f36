//! User-mode NAT with an independent TCP/IP stack (smoltcp's sockets) as the guest.

mod addresses;
mod datagrams;
mod hostile;
#[path = "../common/peer.rs"]
mod peer;
mod publish;
mod tcp;
