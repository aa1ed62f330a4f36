//! ARP (RFC 826): the router answers for its own addresses, and asks for a guest's.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol};

use super::config::Config;
use super::guest::{Guest, MAC};

/// Takes an ARP packet that came from `mac`.
pub(super) fn receive(guest: &mut Guest, config: &Config, mac: EthernetAddress, payload: &[u8]) {
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpPacket::new_checked(payload).and_then(|packet| ArpRepr::parse(&packet))
    else {
        return;
    };
    let network = &config.ipv4;
    let ours = |address| address == network.gateway || address == network.dns;
    if source_hardware_addr != mac || ours(source_protocol_addr) {
        return;
    }
    // A probe (RFC 5227) has no source yet.
    if network.contains(source_protocol_addr) && source_protocol_addr != network.broadcast() {
        guest.learn(source_protocol_addr.into(), mac);
    }
    if operation == ArpOperation::Request && ours(target_protocol_addr) {
        send(guest, ArpOperation::Reply, target_protocol_addr, mac, source_protocol_addr);
    }
}

/// Asks who has `address`.
pub(super) fn ask(guest: &mut Guest, config: &Config, address: Ipv4Addr) {
    if config.ipv4.contains(address) {
        send(guest, ArpOperation::Request, config.ipv4.gateway, EthernetAddress::BROADCAST, address);
    }
}

fn send(
    guest: &mut Guest,
    operation: ArpOperation,
    source: Ipv4Addr,
    mac: EthernetAddress,
    target: Ipv4Addr,
) {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: MAC,
        source_protocol_addr: source,
        target_hardware_addr: if mac.is_broadcast() { EthernetAddress([0; 6]) } else { mac },
        target_protocol_addr: target,
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    guest.send_raw(mac, EthernetProtocol::Arp, &bytes);
}
