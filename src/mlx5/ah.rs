//! Address handles: an address vector, ready to be copied into a WQE. The kernel is asked only for the MAC address behind a
//! RoCE address.

use crate::error::{Errno, Error, Step as _};
use crate::family::{Created, Device};
use crate::uapi::device::query_gid_entry;
use crate::uapi::mlx5 as wire;
use crate::uapi::wire::AhAttr;
use crate::uapi::{self, Handle, Udata};

use super::wqe::{Av, Unit};

/// The 20 bits of a flow label.
const FLOW_LABEL: u32 = 0xf_ffff;
/// `IB_GID_TYPE_ROCE` of the kernel's GID entries; others are RoCE version 2.
const GID_TYPE_ROCE_V1: u32 = 1;
/// The UDP ports of RoCE version 2, `IB_ROCE_UDP_ENCAP_VALID_PORT_MIN`.
const UDP_PORT_MIN: u16 = 0xc000;

/// What a UD work request needs of an address handle.
#[derive(Debug, Clone)]
pub struct Ah {
    /// The datagram segment without the receiver's QP number and Q_Key.
    pub(super) units: [Unit; 3],
    /// The kernel has an object for it.
    pub(super) kernel: bool,
}

/// The device's number for an `ibv_rate`, on a best-effort basis; 0: no limit.
fn rate(static_rate: u8) -> u8 {
    match static_rate {
        2 => 7,
        3 => 8,
        4 | 15 | 19 => 9,
        5 => 10,
        6 | 11 => 11,
        7 => 12,
        8 | 12 | 20 => 13,
        9 => 14,
        10 | 13 | 16 => 15,
        _ => 0,
    }
}

/// The UDP source port that a flow label stands for (`ibv_flow_label_to_udp_sport`).
fn udp_sport(flow_label: u32) -> u16 {
    let low = flow_label & 0x03fff;
    let high = (flow_label & 0xfc000) >> 14;
    (low ^ high) as u16 | UDP_PORT_MIN
}

/// The address as the device wants it, on an Ethernet port with RoCE version 2 if `roce_v2`.
fn vector(attr: &AhAttr, ethernet: bool, sport: u16) -> Av {
    let rate = rate(attr.static_rate) << 4;
    let mut av = Av::default();
    if ethernet {
        av.rlid = sport;
        av.stat_rate_sl = rate | (attr.sl & 0x7) << 1;
    } else {
        av.fl_mlid = attr.src_path_bits & 0x7f;
        av.rlid = attr.dlid;
        av.stat_rate_sl = rate | attr.sl & 0xf;
    }
    if attr.is_global != 0 {
        // On Ethernet every packet has the header, and the bit that asks for it is reserved.
        let grh = u32::from(!ethernet) << 30;
        av.tclass = attr.grh.traffic_class;
        av.hop_limit = attr.grh.hop_limit;
        av.grh_gid_fl = grh | u32::from(attr.grh.sgid_index) << 20 | attr.grh.flow_label & FLOW_LABEL;
        av.rgid = attr.grh.dgid;
    }
    av
}

impl Ah {
    /// The handle for `attr` on a port of which is known whether it is Ethernet and wants a global header.
    pub(super) fn create(
        device: &Device,
        pd: Handle,
        user_handle: u64,
        attr: &AhAttr,
        (ethernet, grh_required): (bool, bool),
    ) -> Result<Created<Ah>, Error> {
        if attr.is_global == 0 && (ethernet || grh_required) {
            return Err(Error::new("check that the address is global", Errno::EINVAL));
        }
        if !ethernet {
            let units = vector(attr, false, 0).units();
            return Ok(Created { handle: Handle(0), object: Ah { units, kernel: false } });
        }
        let gid = query_gid_entry(device.fd, u32::from(attr.port_num), u32::from(attr.grh.sgid_index))
            .step("read the source GID")?;
        let label = attr.grh.flow_label & FLOW_LABEL;
        let sport = match (gid.gid_type, label) {
            (GID_TYPE_ROCE_V1, _) => 0,
            // Any port will do; one that differs from handle to handle spreads them over the paths.
            (_, 0) => udp_sport((user_handle >> 4) as u32 & FLOW_LABEL),
            (_, label) => udp_sport(label),
        };
        let mut resp = wire::CreateAhResp::default();
        let handle = uapi::ah::create(device.fd, pd, user_handle, attr, Udata::output(&mut resp))
            .step("resolve the address")?;
        let av = Av { rmac: resp.dmac, ..vector(attr, true, sport) };
        Ok(Created { handle, object: Ah { units: av.units(), kernel: true } })
    }
}

#[cfg(test)]
mod tests {
    use super::super::wqe;
    use super::*;
    use crate::uapi::wire::GlobalRoute;

    #[test]
    fn an_infiniband_address_is_a_lid_and_perhaps_a_gid() {
        let attr = AhAttr { dlid: 0x1234, sl: 5, src_path_bits: 0xff, static_rate: 5, ..AhAttr::default() };
        let bytes = wqe::bytes(&vector(&attr, false, 0).units());
        assert_eq!(bytes[8..16], [0, 0, 0, 0, 0xa5, 0x7f, 0x12, 0x34]);
        assert_eq!(bytes[16..], [0; 32]);
        let grh = GlobalRoute {
            dgid: [7; 16],
            flow_label: 0xfff1_2345,
            sgid_index: 2,
            hop_limit: 64,
            traffic_class: 9,
            ..GlobalRoute::default()
        };
        let bytes = wqe::bytes(&vector(&AhAttr { grh, is_global: 1, ..attr }, false, 0).units());
        assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 64, 0x40, 0x21, 0x23, 0x45]);
        assert_eq!(bytes[32..], [7; 16]);
    }

    #[test]
    fn an_ethernet_address_has_a_port_and_no_bit_for_its_header() {
        let attr = AhAttr { sl: 3, is_global: 1, ..AhAttr::default() };
        let av = vector(&attr, true, udp_sport(0x1));
        assert_eq!((av.rlid, av.stat_rate_sl, av.grh_gid_fl), (0xc001, 6, 0));
    }

    #[test]
    fn an_unknown_rate_is_no_limit() {
        assert_eq!((rate(0), rate(2), rate(10), rate(200)), (0, 7, 15, 0));
    }
}
