//! Commands that say what the port is: addresses, keys, speed.

use super::general::accept;
use super::{Call, Command, Outcome, PLAIN, SHORT};
use crate::pci::Identity;
use crate::prm::layouts::*;
use crate::prm::{Status, be64, part, part_mut, put, set};

pub(super) const TABLE: &[Command] = &[
    Command::new(op::QUERY_HCA_VPORT_CONTEXT, PLAIN, query_hca_vport_context_out::BYTES, query_context),
    Command::new(op::MODIFY_HCA_VPORT_CONTEXT, modify_hca_vport_context_in::BYTES, SHORT, accept),
    Command::new(op::QUERY_HCA_VPORT_GID, PLAIN, PLAIN, query_gid),
    Command::new(op::QUERY_HCA_VPORT_PKEY, PLAIN, PLAIN, query_pkey),
    Command::new(op::QUERY_VPORT_STATE, PLAIN, PLAIN, query_state),
    Command::new(op::QUERY_VPORT_COUNTER, PLAIN, PLAIN, accept),
    Command::new(op::ACCESS_REG, PLAIN, PLAIN, access_register),
    Command::new(op::MAD_IFC, mad_ifc_in::BYTES, PLAIN, management_datagram),
];

/// States of a port.
const DOWN: u64 = 1;
const ACTIVE: u64 = 4;
const LINK_UP: u64 = 5;
const POLLING: u64 = 2;
/// What the port says that it can do: the bits of an InfiniBand port with a communication manager.
const PORT_CAPABILITIES: u64 = 0x0251_0868;

/// The bit of them that the driver changes: a communication manager is there.
const CHANGEABLE: u64 = 0x0001_0000;

fn query_context(call: &mut Call<'_>) -> Outcome {
    let (port, identity) = (call.device.port, call.device.identity);
    let context = part_mut(call.output, query_hca_vport_context_out::HCA_VPORT_CONTEXT);
    let fields = [
        (hca_vport_context::VPORT_STATE, if port.up { ACTIVE } else { DOWN }),
        (hca_vport_context::PORT_STATE, if port.up { ACTIVE } else { DOWN }),
        (hca_vport_context::PORT_PHYSICAL_STATE, if port.up { LINK_UP } else { POLLING }),
        (hca_vport_context::HAS_SMI, u64::from(identity == Identity::Physical)),
        (hca_vport_context::SYSTEM_IMAGE_GUID, port.guid),
        (hca_vport_context::PORT_GUID, port.guid),
        (hca_vport_context::NODE_GUID, port.guid),
        (hca_vport_context::CAP_MASK1, PORT_CAPABILITIES),
        (hca_vport_context::CAP_MASK1_FIELD_SELECT, CHANGEABLE),
        (hca_vport_context::LID, u64::from(port.lid)),
        (hca_vport_context::SM_LID, 1),
        (hca_vport_context::SUBNET_TIMEOUT, 18),
    ];
    fields.iter().for_each(|(field, value)| set(context, *field, *value));
    Ok(())
}

/// An index that asks for the whole table.
const ALL: u32 = 0xffff;

fn query_gid(call: &mut Call<'_>) -> Outcome {
    let gid = call.device.port.gid();
    call.set(query_hca_vport_gid_out::GIDS_NUM, 1u32);
    match call.get(query_hca_vport_gid_in::GID_INDEX) {
        0 | ALL => put(part_mut(call.output, query_hca_vport_gid_out::GID), 0, &gid),
        _ => {}
    }
    Ok(())
}

fn query_pkey(call: &mut Call<'_>) -> Outcome {
    match call.get(query_hca_vport_pkey_in::PKEY_INDEX) {
        0 | ALL => put(part_mut(call.output, query_hca_vport_pkey_out::PKEY), 2, &[0xff, 0xff]),
        _ => {}
    }
    Ok(())
}

fn query_state(call: &mut Call<'_>) -> Outcome {
    let up = u64::from(call.device.port.up);
    call.set(query_vport_state_out::ADMIN_STATE, 1u32);
    call.set(query_vport_state_out::STATE, up);
    Ok(())
}

/// Registers that the drivers read, by number.
const PTYS: u32 = 0x5004;
const PMTU: u32 = 0x5003;
const PVLC: u32 = 0x500f;

fn access_register(call: &mut Call<'_>) -> Outcome {
    let register = call.get(access_register_in::REGISTER_ID);
    call.note(format_args!("register={register:#x}"));
    let fields: &[_] = match register {
        // Four lanes of EDR.
        PTYS => &[
            (ptys_reg::LOCAL_PORT, 1),
            (ptys_reg::IB_LINK_WIDTH_CAPABILITY, 3),
            (ptys_reg::IB_PROTO_CAPABILITY, 0x3f),
            (ptys_reg::IB_LINK_WIDTH_OPER, 2),
            (ptys_reg::IB_PROTO_OPER, 0x20),
        ],
        PMTU => &[(pmtu_reg::MAX_MTU, 4096), (pmtu_reg::ADMIN_MTU, 4096), (pmtu_reg::OPER_MTU, 4096)],
        PVLC => &[(pvlc_reg::VL_HW_CAP, 4), (pvlc_reg::VL_OPERATIONAL, 4)],
        _ => {
            // A register without effect: it reads back as it was written.
            let data = part(call.input, access_register_in::REGISTER_DATA);
            let room = call.output.len().saturating_sub(PLAIN).min(data.len());
            put(call.output, PLAIN, data.get(..room).unwrap_or(&[]));
            return Ok(());
        }
    };
    let data = call.output.get_mut(PLAIN..).ok_or(Status::BadOutputLength)?;
    fields.iter().for_each(|(field, value)| set(data, *field, *value));
    Ok(())
}

/// The datagram comes back with its response bit and no data: nobody manages this port.
fn management_datagram(call: &mut Call<'_>) -> Outcome {
    const RESPONSE: u64 = 0x80;
    let start = mad_ifc_in::MAD.byte();
    let header = be64(call.input, start) | RESPONSE << 32;
    put(call.output, mad_ifc_out::RESPONSE_MAD_PACKET.byte(), &header.to_be_bytes());
    Ok(())
}
