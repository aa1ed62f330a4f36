//! Networks that a guest's card can be joined to, and the [`link`] that joins them.
//!
//! A card (virtio-net, e1000) holds one end of a link; a network holds the other and runs on a thread of its own. Frames
//! are Ethernet II (IEEE 802.3, without the frame check sequence); what a side leaves to be done about checksums and
//! segments travels with the frame, as in virtio 1.2 § 5.1.6.
//!
//! | module     | what it does                                                                        |
//! |------------|-------------------------------------------------------------------------------------|
//! | [`link`]   | two queues of frames between a card and a network                                     |
//! | [`nat`]    | user-mode NAT: the host's own sockets, no privileges; the default                     |
//! | [`switch`] | joins guests of several processes, without a process of its own                       |
//! | [`tap`]    | a network interface of the host, where the user has the rights                        |
//! | [`limit`]  | rate limits, which each of these keeps                                                |
//! | [`wire`]   | checksums and segments in software                                                    |
//!
//! ```
//! use posada_network::link::{self, Capacity, Packet};
//!
//! let (card, network) = link::pair(Capacity::default())?;
//! card.send(Packet::new(vec![0xff; 60])).expect("an empty queue has room");
//! assert_eq!(network.receive().expect("it has come").bytes.len(), 60);
//! drop(card);
//! assert!(network.is_closed());
//! # Ok::<(), std::io::Error>(())
//! ```

#![forbid(unsafe_code)]

mod header;
pub mod limit;
pub mod link;
pub mod nat;
pub mod switch;
pub mod tap;
pub mod wire;
