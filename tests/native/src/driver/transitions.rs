//! `modify_qp`: which transitions there are, with which attributes, and what the device is told.

use vhca::prm::layouts::{ads, op, qpc, rst2init_qp_in};
use vhca::prm::{Field, get};

use super::firmware::Command;
use super::qp::state_of;
use super::{ContextId, Driver};
use crate::Errno;
use crate::attrs::Write;
use crate::uapi::{ExModifyQpResp, Mlx5ModifyQpResp, ModifyQp, access, qp_attr as a, qp_type, write};

const RESET: u8 = 0;
const INIT: u8 = 1;
const RTR: u8 = 2;
const RTS: u8 = 3;
const SQD: u8 = 4;
const SQE: u8 = 5;
const ERR: u8 = 6;

/// Attributes that a transition requires, and those that it may have beside them; `None`: there is no such transition.
fn attributes(kind: u64, from: u8, to: u8) -> Option<(u32, u32)> {
    use qp_type::{RC, UC, UD, XRC_INI, XRC_TGT};
    let connection = a::AV | a::PATH_MTU | a::DEST_QPN | a::RQ_PSN;
    let alternate = a::ALT_PATH | a::ACCESS_FLAGS | a::PATH_MIG_STATE;
    let retries = a::TIMEOUT | a::RETRY_CNT | a::RNR_RETRY | a::MAX_QP_RD_ATOMIC;
    Some(match (from, to) {
        (RESET, RESET) | (_, RESET) | (INIT | RTR | RTS | SQD | SQE | ERR, ERR) => (0, 0),
        (RESET, INIT) => match kind {
            UD => (a::PKEY_INDEX | a::PORT | a::QKEY, 0),
            _ => (a::PKEY_INDEX | a::PORT | a::ACCESS_FLAGS, 0),
        },
        (INIT, INIT) => match kind {
            UD => (0, a::PKEY_INDEX | a::PORT | a::QKEY),
            _ => (0, a::PKEY_INDEX | a::PORT | a::ACCESS_FLAGS),
        },
        (INIT, RTR) => match kind {
            UD => (0, a::PKEY_INDEX | a::QKEY),
            RC | XRC_TGT => (
                connection | a::MAX_DEST_RD_ATOMIC | a::MIN_RNR_TIMER,
                a::ALT_PATH | a::ACCESS_FLAGS | a::PKEY_INDEX,
            ),
            _ => (connection, a::ALT_PATH | a::ACCESS_FLAGS | a::PKEY_INDEX),
        },
        (RTR, RTS) => match kind {
            UD => (a::SQ_PSN, a::CUR_STATE | a::QKEY),
            UC => (a::SQ_PSN, a::CUR_STATE | alternate),
            XRC_INI => (retries | a::SQ_PSN, a::CUR_STATE | alternate),
            XRC_TGT => (a::TIMEOUT | a::SQ_PSN, a::CUR_STATE | alternate | a::MIN_RNR_TIMER),
            _ => (retries | a::SQ_PSN, a::CUR_STATE | alternate | a::MIN_RNR_TIMER),
        },
        (RTS, RTS) | (SQD, RTS) => match kind {
            UD => (0, a::CUR_STATE | a::QKEY),
            UC | XRC_INI => (0, a::CUR_STATE | alternate),
            _ => (0, a::CUR_STATE | alternate | a::MIN_RNR_TIMER),
        },
        (RTS, SQD) => (0, a::EN_SQD_ASYNC_NOTIFY),
        (SQD, SQD) => match kind {
            UD => (0, a::PKEY_INDEX | a::QKEY),
            UC => (0, a::AV | alternate | a::PKEY_INDEX),
            _ => (
                0,
                a::PORT
                    | a::AV
                    | retries
                    | a::MAX_DEST_RD_ATOMIC
                    | alternate
                    | a::PKEY_INDEX
                    | a::MIN_RNR_TIMER,
            ),
        },
        (SQE, RTS) => match kind {
            UD => (0, a::CUR_STATE | a::QKEY),
            UC => (0, a::CUR_STATE | a::ACCESS_FLAGS),
            _ => return None,
        },
        _ => return None,
    })
}

/// Is this allowed at all?
fn check(kind: u64, from: u8, to: u8, mask: u32) -> Result<(), Errno> {
    if mask & a::CUR_STATE != 0 && !matches!(from, RTR | RTS | SQD | SQE) {
        return Err(Errno(libc::EINVAL));
    }
    let (required, optional) = attributes(kind, from, to).ok_or(Errno(libc::EINVAL))?;
    if mask & required != required || mask & !(required | optional | a::STATE) != 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(())
}

/// The device's command for a transition; the device knows fewer than verbs do.
fn opcode(from: u8, to: u8) -> Option<u16> {
    Some(match (from, to) {
        (RESET, RESET) => return None,
        (_, RESET) => op::TO_RST_QP,
        (_, ERR) => op::TO_ERR_QP,
        (RESET, INIT) => op::RST2INIT_QP,
        (INIT, INIT) => op::INIT2INIT_QP,
        (INIT, RTR) => op::INIT2RTR_QP,
        (RTR, RTS) => op::RTR2RTS_QP,
        (RTS, RTS) => op::RTS2RTS_QP,
        (SQD, RTS) => op::SQD_RTS_QP,
        (SQE, RTS) => op::SQERR2RTS_QP,
        _ => return None,
    })
}

/// Which optional fields of the device's context the attributes stand for.
const OPTIONAL: &[(u32, u32)] = &[
    (a::ACCESS_FLAGS, 1 << 1 | 1 << 2 | 1 << 3),
    (a::PKEY_INDEX, 1 << 4),
    (a::QKEY, 1 << 5),
    (a::MIN_RNR_TIMER, 1 << 6),
    (a::AV, 1 << 7),
    (a::MAX_QP_RD_ATOMIC, 1 << 8),
    (a::MAX_DEST_RD_ATOMIC, 1 << 9),
    (a::RETRY_CNT, 1 << 12),
    (a::RNR_RETRY, 1 << 13),
    (a::TIMEOUT, 1 << 14),
];

fn log2(value: u8) -> u64 {
    u64::from(value).checked_ilog2().map_or(0, u64::from)
}

/// The attributes as fields of the device's context.
fn fields(request: &ModifyQp, mask: u32) -> Vec<(Field, u64)> {
    const MTU_4096: u64 = 5;
    const LOG_MESSAGE: u64 = 30;
    let path = |field: Field| field.at(qpc::PRIMARY_ADDRESS_PATH);
    let mut fields = Vec::new();
    let mut set = |bit: u32, list: &[(Field, u64)]| {
        if mask & bit != 0 {
            fields.extend_from_slice(list);
        }
    };
    let allows = |flag: u32| u64::from(request.qp_access_flags & flag != 0);
    set(
        a::ACCESS_FLAGS,
        &[
            (qpc::RRE, allows(access::REMOTE_READ)),
            (qpc::RWE, allows(access::REMOTE_WRITE)),
            (qpc::RAE, allows(access::REMOTE_ATOMIC)),
            (qpc::ATOMIC_MODE, allows(access::REMOTE_ATOMIC)),
        ],
    );
    set(a::PKEY_INDEX, &[(path(ads::PKEY_INDEX), request.pkey_index.into())]);
    set(a::PORT, &[(path(ads::VHCA_PORT_NUM), request.port_num.into())]);
    set(a::QKEY, &[(qpc::Q_KEY, request.qkey.into())]);
    set(a::PATH_MTU, &[(qpc::MTU, request.path_mtu.into()), (qpc::LOG_MSG_MAX, LOG_MESSAGE)]);
    set(a::DEST_QPN, &[(qpc::REMOTE_QPN, (request.dest_qp_num & 0xff_ffff).into())]);
    set(a::RQ_PSN, &[(qpc::NEXT_RCV_PSN, (request.rq_psn & 0xff_ffff).into())]);
    set(a::SQ_PSN, &[(qpc::NEXT_SEND_PSN, (request.sq_psn & 0xff_ffff).into())]);
    set(a::MAX_QP_RD_ATOMIC, &[(qpc::LOG_SRA_MAX, log2(request.max_rd_atomic))]);
    set(a::MAX_DEST_RD_ATOMIC, &[(qpc::LOG_RRA_MAX, log2(request.max_dest_rd_atomic))]);
    set(a::MIN_RNR_TIMER, &[(qpc::MIN_RNR_NAK, request.min_rnr_timer.into())]);
    set(a::RETRY_CNT, &[(qpc::RETRY_COUNT, request.retry_cnt.into())]);
    set(a::RNR_RETRY, &[(qpc::RNR_RETRY, request.rnr_retry.into())]);
    set(a::TIMEOUT, &[(path(ads::ACK_TIMEOUT), request.timeout.into())]);
    let dest = &request.dest;
    set(
        a::AV,
        &[
            (path(ads::RLID), dest.dlid.into()),
            (path(ads::MLID), (dest.src_path_bits & 0x7f).into()),
            (path(ads::SL), (dest.sl & 0xf).into()),
            (path(ads::STAT_RATE), dest.static_rate.into()),
            (path(ads::GRH), u64::from(dest.is_global != 0)),
            (path(ads::SRC_ADDR_INDEX), dest.sgid_index.into()),
            (path(ads::HOP_LIMIT), dest.hop_limit.into()),
            (path(ads::TCLASS), dest.traffic_class.into()),
            (path(ads::FLOW_LABEL), (dest.flow_label & 0xf_ffff).into()),
        ],
    );
    if fields.iter().all(|(field, _)| *field != qpc::MTU) {
        // Datagrams have no path of their own.
        fields.push((qpc::MTU, MTU_4096));
    }
    fields
}

/// What a request changes of the attributes that are kept.
fn keep(kept: &mut ModifyQp, request: &ModifyQp, mask: u32) {
    if mask & a::AV != 0 {
        kept.dest = request.dest;
    }
    if mask & a::PORT != 0 {
        kept.port_num = request.port_num;
    }
}

impl Driver {
    pub(super) fn modify_qp(&mut self, id: ContextId, command: u32, call: &mut Write) -> Result<(), Errno> {
        const PKEYS: u16 = 128;
        const GIDS: u8 = 8;
        const MAX_ATOMICS: u8 = 16;
        let request: ModifyQp = call.input();
        let device = self.device_of(id)?;
        let mut mask = request.attr_mask;
        let mut request = request;
        let wrong_port = |port: u8| port != 1;
        let qp = self.qp(id, request.qp_handle)?;
        let (number, kind, port) = (qp.number, qp.kind, qp.attributes.port_num);
        if mask & a::PORT != 0 && wrong_port(request.port_num)
            || mask & a::CUR_STATE != 0 && request.cur_qp_state > ERR
            || mask & a::STATE != 0 && request.qp_state > ERR
        {
            return Err(Errno(libc::EINVAL));
        }
        if mask & a::AV != 0 {
            let to_rtr = mask & a::STATE != 0 && request.qp_state == RTR;
            if wrong_port(request.dest.port_num) || to_rtr && request.dest.port_num != port {
                return Err(Errno(libc::EINVAL));
            }
            if !to_rtr && mask & a::PORT == 0 {
                mask |= a::PORT;
                request.port_num = request.dest.port_num;
            }
            if request.dest.is_global != 0 && request.dest.sgid_index >= GIDS {
                return Err(Errno(libc::EINVAL));
            }
        }
        let context = self.qp_context(device, number);
        let current = match &context {
            Ok(context) => state_of(get(context, qpc::STATE)),
            // In error, the device tells nothing; taking down goes on.
            Err(_) if self.devices.get(device).is_some_and(|device| device.in_error) => RTS,
            Err(errno) => return Err(*errno),
        };
        let from = if mask & a::CUR_STATE != 0 { request.cur_qp_state } else { current };
        let to = if mask & a::STATE != 0 { request.qp_state } else { from };
        check(kind, from, to, mask)?;
        if mask & a::PKEY_INDEX != 0 && request.pkey_index >= PKEYS
            || mask & a::MAX_QP_RD_ATOMIC != 0 && request.max_rd_atomic > MAX_ATOMICS
            || mask & a::MAX_DEST_RD_ATOMIC != 0 && request.max_dest_rd_atomic > MAX_ATOMICS
            || mask & a::PATH_MTU != 0 && !(1..=5).contains(&request.path_mtu)
        {
            return Err(Errno(libc::EINVAL));
        }
        if (from, to) != (RESET, RESET) {
            let opcode = opcode(from, to).ok_or(Errno(libc::EINVAL))?;
            let mut modify = Command::of(opcode, number);
            if !matches!(to, RESET | ERR) {
                modify = Command::new(opcode, rst2init_qp_in::BYTES);
                let bits = OPTIONAL.iter().filter(|(attr, _)| mask & attr != 0).map(|(_, bits)| *bits);
                let optional = bits.fold(0, |all, bits| all | bits);
                modify.set(rst2init_qp_in::QPN, number);
                modify.set(rst2init_qp_in::OPT_PARAM_MASK, optional);
                modify.set_all(rst2init_qp_in::QPC, &fields(&request, mask));
                let gid = ads::RGID_RIP.at(qpc::PRIMARY_ADDRESS_PATH).at(rst2init_qp_in::QPC);
                if mask & a::AV != 0 && request.dest.is_global != 0 {
                    modify.bytes(gid.byte(), &request.dest.dgid);
                }
            }
            self.execute(device, &modify, 16)?;
        }
        let qp = self.qp(id, request.qp_handle)?;
        keep(&mut qp.attributes, &request, mask);
        if to == RESET {
            (qp.sent, qp.received) = (0, 0);
        }
        if command == write::EX_MODIFY_QP {
            let response_length = size_of::<ExModifyQpResp>() as u32;
            call.answer(&ExModifyQpResp { response_length, ..ExModifyQpResp::default() });
            let response_length = size_of::<Mlx5ModifyQpResp>() as u32;
            call.answer_udata(&Mlx5ModifyQpResp { response_length, ..Mlx5ModifyQpResp::default() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_transition_needs_is_held() {
        let init = a::STATE | a::PKEY_INDEX | a::PORT | a::ACCESS_FLAGS;
        assert_eq!(check(qp_type::RC, RESET, INIT, init), Ok(()));
        assert!(check(qp_type::RC, RESET, INIT, init & !a::PORT).is_err(), "one is missing");
        assert!(check(qp_type::RC, RESET, INIT, init | a::TIMEOUT).is_err(), "one is too many");
        assert!(check(qp_type::UD, RESET, INIT, init).is_err(), "datagrams have a Q_Key, no access");
        assert!(check(qp_type::RC, RESET, RTR, a::STATE).is_err(), "a step left out");
        assert!(check(qp_type::RC, SQE, RTS, a::STATE).is_err(), "a reliable send queue does not come back");
        assert_eq!(check(qp_type::UC, SQE, RTS, a::STATE), Ok(()));
        assert!(check(qp_type::RC, INIT, RTR, a::STATE | a::CUR_STATE).is_err());
        assert!(opcode(RTS, SQD).is_none(), "the device has no command for it");
    }
}
