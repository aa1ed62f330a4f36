//! A DHCP server (RFC 2131): every guest gets an address, the router and the name server.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, IpProtocol};

use super::config::Ipv4Network;
use super::engine::Net;
use super::udp;

/// The server's port and the client's.
pub(super) const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// How long an address is lent, in seconds. They are never given to another guest while the network lasts.
const LEASE: u32 = 86_400;
/// How many addresses there are to give.
const LEASES: usize = 16;
/// The least length of a message, for old clients (RFC 1542 § 2.1).
const MIN_LENGTH: usize = 300;

/// Who has which address: the first has the configured one, the others follow.
#[derive(Debug, Default)]
pub(super) struct Leases {
    holders: Vec<EthernetAddress>,
}

impl Leases {
    /// The address of `mac`, which is given one if there is any left.
    fn address(&mut self, network: &Ipv4Network, mac: EthernetAddress) -> Option<Ipv4Addr> {
        let number = match self.holders.iter().position(|holder| *holder == mac) {
            Some(number) => number,
            None if self.holders.len() < LEASES => {
                self.holders.push(mac);
                self.holders.len() - 1
            }
            None => return None,
        };
        let address = Ipv4Addr::from_bits(network.guest.to_bits().wrapping_add(number as u32));
        let free = ![network.gateway, network.dns, network.broadcast()].contains(&address);
        (free && network.contains(address)).then_some(address)
    }

    /// Takes a message from a client.
    pub(super) fn receive(&mut self, net: &mut Net, payload: &[u8]) {
        let Ok(packet) = DhcpPacket::new_checked(payload) else { return };
        let Ok(request) = DhcpRepr::parse(&packet) else { return };
        let network = net.config.ipv4;
        let ours = request.server_identifier.is_none_or(|server| server == network.gateway);
        let mac = request.client_hardware_address;
        if !ours || !mac.is_unicast() {
            return;
        }
        let Some(address) = self.address(&network, mac) else {
            tracing::warn!(%mac, "all {LEASES} addresses of the network are taken");
            return;
        };
        let message_type = match request.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => {
                let wanted = request.requested_ip.unwrap_or(request.client_ip);
                if wanted == address { DhcpMessageType::Ack } else { DhcpMessageType::Nak }
            }
            DhcpMessageType::Inform => DhcpMessageType::Ack,
            _ => return,
        };
        let reply = reply(&network, &request, message_type, address);
        let mut bytes = vec![0; reply.buffer_len().max(MIN_LENGTH)];
        if reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).is_err() {
            return;
        }
        if message_type == DhcpMessageType::Ack {
            net.guest.learn(address.into(), mac);
        }
        // The client may not have its address yet, but its card has one (RFC 2131 § 4.1).
        let whole = request.broadcast || message_type == DhcpMessageType::Nak;
        let (to, mac) =
            if whole { (Ipv4Addr::BROADCAST, EthernetAddress::BROADCAST) } else { (address, mac) };
        let (from, to) = (IpAddr::V4(network.gateway), IpAddr::V4(to));
        let length = udp::HEADER + bytes.len();
        if let Some(frame) = net.guest.begin_to(mac, from, to, IpProtocol::Udp, 64, length) {
            udp::finish(&mut net.guest, frame, (from, SERVER).into(), (to, CLIENT).into(), &bytes);
        }
    }
}

fn reply<'a>(
    network: &Ipv4Network,
    request: &DhcpRepr<'_>,
    message_type: DhcpMessageType,
    address: Ipv4Addr,
) -> DhcpRepr<'a> {
    let refused = message_type == DhcpMessageType::Nak;
    let informs = request.message_type == DhcpMessageType::Inform;
    DhcpRepr {
        message_type,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if refused { Ipv4Addr::UNSPECIFIED } else { request.client_ip },
        your_ip: if refused || informs { Ipv4Addr::UNSPECIFIED } else { address },
        server_ip: network.gateway,
        router: (!refused).then_some(network.gateway),
        subnet_mask: (!refused).then_some(network.mask()),
        relay_agent_ip: request.relay_agent_ip,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(network.gateway),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| [network.dns].into_iter().collect()),
        max_size: None,
        lease_duration: (!refused && !informs).then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}
