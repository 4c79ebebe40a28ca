//! Address handles.
//!
//! From 6.1 on the kernel numbers them and a UD work request names the number. 5.10 has no numbers: there the work request
//! carries the whole address vector (`struct rxe_av`), which user space has to make.

use std::fs;
use std::path::Path;

use crate::error::{Error, Step as _};
use crate::family::Device;
use crate::uapi::device::query_gid_entry;
use crate::uapi::rxe as wire;
use crate::uapi::wire::{AhAttr, GidEntry};

/// What a UD work request needs of an address handle.
#[derive(Debug, Clone, Copy)]
pub struct Ah {
    /// The kernel's number; 0 where it has none, and then `av` is used.
    pub(super) ah_num: u32,
    pub(super) av: wire::Av,
}

impl Ah {
    pub(super) fn new(device: &Device, ah_num: u32, attr: &AhAttr) -> Result<Ah, Error> {
        let av = if ah_num == 0 { address_vector(device, attr)? } else { wire::Av::default() };
        Ok(Ah { ah_num, av })
    }
}

/// The IPv4 address inside an IPv4-mapped GID.
fn ipv4_of(gid: &[u8; 16]) -> Option<[u8; 4]> {
    match gid {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, address @ ..] => Some(*address),
        _ => None,
    }
}

/// `gid` as the `sockaddr_in` or `sockaddr_in6` that rxe keeps of it, by the family of `dgid`.
fn sockaddr(gid: &[u8; 16]) -> [u8; 28] {
    let mut out = [0; 28];
    let ipv4 = ipv4_of(gid);
    // Where the address begins in `struct sockaddr_in` and `struct sockaddr_in6`.
    let (family, at, bytes): (i32, usize, &[u8]) = match &ipv4 {
        Some(address) => (libc::AF_INET, 4, address),
        None => (libc::AF_INET6, 8, gid),
    };
    let family = (family as u16).to_ne_bytes();
    for (to, from) in out.iter_mut().zip(family) {
        *to = from;
    }
    for (to, from) in out.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
    out
}

fn address_vector(device: &Device, attr: &AhAttr) -> Result<wire::Av, Error> {
    let (port, index, dgid) = (attr.port_num, attr.grh.sgid_index, attr.grh.dgid);
    let source = query_gid_entry(device.fd, u32::from(port), u32::from(index)).step("read the source GID")?;
    Ok(wire::Av {
        port_num: port,
        network_type: if ipv4_of(&dgid).is_some() {
            wire::NETWORK_TYPE_IPV4
        } else {
            wire::NETWORK_TYPE_IPV6
        },
        dmac: destination_mac(device, &source, &dgid),
        grh: wire::GlobalRoute {
            dgid,
            flow_label: attr.grh.flow_label,
            sgid_index: index,
            hop_limit: attr.grh.hop_limit,
            traffic_class: attr.grh.traffic_class,
            ..Default::default()
        },
        sgid_addr: sockaddr(&source.gid),
        dgid_addr: sockaddr(&dgid),
    })
}

/// The destination's MAC address, as far as rxe looks at it: it compares it with the sending netdev's own, to loop a packet
/// back instead of routing it. So our own address is what has to be found; any other is left 0, and the route decides.
fn destination_mac(device: &Device, source: &GidEntry, dgid: &[u8; 16]) -> [u8; 6] {
    let port = source.port_num;
    // PANIC: none; the table ends at the first index the kernel refuses.
    let entries = (0..).map_while(|index| query_gid_entry(device.fd, port, index).ok());
    let mut local = entries.filter(|entry| entry.netdev_ifindex == source.netdev_ifindex);
    if local.any(|entry| entry.gid == *dgid) {
        mac_of(source.netdev_ifindex).unwrap_or_default()
    } else {
        [0; 6]
    }
}

/// The MAC address of the netdev with this index.
fn mac_of(ifindex: u32) -> Option<[u8; 6]> {
    let read = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).ok();
    let dirs = fs::read_dir("/sys/class/net").ok()?.flatten().map(|entry| entry.path());
    let dir = dirs
        .into_iter()
        .find(|dir| read(dir, "ifindex").and_then(|text| text.trim().parse().ok()) == Some(ifindex))?;
    parse_mac(read(&dir, "address")?.trim())
}

/// "02:00:00:00:00:01" as bytes.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_gid_is_an_ipv4_socket_address() {
        let gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let address = sockaddr(&gid);
        assert_eq!(address[..2], (libc::AF_INET as u16).to_ne_bytes());
        assert_eq!(address[4..8], [10, 0, 0, 1]);
        assert_eq!(address[8..], [0; 20]);
    }

    #[test]
    fn any_other_gid_is_an_ipv6_socket_address() {
        let gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 1];
        let address = sockaddr(&gid);
        assert_eq!(address[..2], (libc::AF_INET6 as u16).to_ne_bytes());
        assert_eq!(address[2..8], [0; 6]);
        assert_eq!(address[8..24], gid);
    }

    #[test]
    fn a_mac_address_has_six_bytes() {
        assert_eq!(parse_mac("02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(parse_mac("02:00:00:00:00"), None);
        assert_eq!(parse_mac("zz:00:00:00:00:01"), None);
    }
}
