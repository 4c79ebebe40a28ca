//! Queue pairs: create, query, destroy.

use vhca::prm::layouts::{ads, create_qp_in, create_qp_out, op, qpc, query_qp_out};
use vhca::prm::{Field, get, get32, part};
use zerocopy::IntoBytes;

use super::firmware::Command;
use super::{Affiliated, ContextId, Driver, Object, pages};
use crate::attrs::{self, Attrs, Write};
use crate::uapi::{
    Mlx5CreateQp, Mlx5CreateQpResp, ModifyQp, QpCap, QpDest, Query, QueryQpResp, access, attr, qp_type,
};
use crate::{Errno, user};

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) number: u32,
    pub(super) kind: u64,
    pub(crate) receive_queue: u64,
    pub(crate) send_queue: u64,
    pub(crate) record: u64,
    /// Blocks of 64 bytes.
    pub(crate) send_size: u32,
    pub(crate) receive_size: u32,
    pub(crate) receive_shift: u32,
    pub(crate) uidx: u32,
    pub(crate) uar: u32,
    /// Handles.
    pub(crate) send_cq: Option<u32>,
    pub(crate) receive_cq: Option<u32>,
    pub(super) pd: Option<u32>,
    pub(super) srq: Option<u32>,
    pub(super) xrcd: Option<u32>,
    /// Blocks, and receives, that the null engine consumed.
    pub(crate) sent: u16,
    pub(crate) received: u16,
    pub(super) affiliated: Affiliated,
    /// Multicast groups that it is attached to.
    pub(super) groups: Vec<([u8; 16], u16)>,
    cap: QpCap,
    signal_all: bool,
    /// The attributes as last set, for what the device does not tell.
    pub(super) attributes: ModifyQp,
}

impl Qp {
    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        let receives = u64::from(self.receive_size) << self.receive_shift;
        let mut ranges = vec![(self.receive_queue, receives + u64::from(self.send_size) * 64)];
        if self.record != 0 {
            ranges.push((self.record, 8));
        }
        ranges.retain(|(_, len)| *len > 0);
        ranges
    }
}

/// What the driver data asks for, checked.
fn check_shape(driver: &Mlx5CreateQp) -> Result<(), Errno> {
    const UAR_PAGE_INDEX: u32 = 1 << 10;
    const LARGEST: u32 = 1 << 15;
    const LARGEST_STRIDE: u32 = 9;
    let fits = |count: u32| count == 0 || count.is_power_of_two() && count <= LARGEST;
    if driver.flags & UAR_PAGE_INDEX == 0
        || !fits(driver.sq_wqe_count)
        || !fits(driver.rq_wqe_count)
        || driver.rq_wqe_count != 0 && !(4..=LARGEST_STRIDE).contains(&driver.rq_wqe_shift)
        || !driver.buf_addr.is_multiple_of(64)
    {
        return Err(Errno(libc::EINVAL));
    }
    Ok(())
}

/// Data of responses and receives goes to the completion where the provider says that it looks for it there, for the types of
/// queue pairs for which the kernel's driver asks for it.
fn inline_completions(
    kind: u64,
    driver: &Mlx5CreateQp,
    send_entry: u32,
    receive_entry: u32,
    signal_all: bool,
) -> [(Field, u64); 2] {
    const SCATTER_CQE: u32 = 1 << 1;
    if driver.flags & SCATTER_CQE == 0 {
        return [(qpc::CS_REQ, 0), (qpc::CS_RES, 0)];
    }
    let request = match (kind, signal_all, send_entry) {
        (qp_type::RC, true, 128) => 0x22,
        (qp_type::RC, true, _) => 0x11,
        _ => 0,
    };
    let response = match (kind, receive_entry) {
        (qp_type::RC | qp_type::UC, 128) => 2,
        (qp_type::RC | qp_type::UC, _) => 1,
        _ => 0,
    };
    [(qpc::CS_REQ, request), (qpc::CS_RES, response)]
}

impl Driver {
    pub(super) fn create_qp(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        const SIGNAL_ALL: u64 = 1 << 12;
        const BLOCK_LOOPBACK: u64 = 1 << 1;
        const MIGRATED: u64 = 3;
        let driver: Mlx5CreateQp = attrs::read(attrs.udata_in());
        let cap: QpCap = attrs::read(&attrs.bytes(attr::CREATE_QP_CAP)?);
        let kind = attrs.number(attr::CREATE_QP_TYPE)?;
        let flags = attrs.number_or_none(attr::CREATE_QP_FLAGS)?.unwrap_or(0);
        let user_handle = attrs.number(attr::CREATE_QP_USER_HANDLE)?;
        let event_fd = attrs.fd_or_none(attr::CREATE_QP_EVENT_FD)?;
        let [pd, srq, send_cq, receive_cq, xrcd] = [
            attr::CREATE_QP_PD_HANDLE,
            attr::CREATE_QP_SRQ_HANDLE,
            attr::CREATE_QP_SEND_CQ_HANDLE,
            attr::CREATE_QP_RECV_CQ_HANDLE,
            attr::CREATE_QP_XRCD_HANDLE,
        ]
        .map(|id| attrs.handle_or_none(id));
        let (pd, srq, send_cq, receive_cq, xrcd) = (pd?, srq?, send_cq?, receive_cq?, xrcd?);
        let service: u64 = match kind {
            qp_type::RC => 0x0,
            qp_type::UC => 0x1,
            qp_type::UD => 0x2,
            qp_type::XRC_INI | qp_type::XRC_TGT => 0x3,
            _ => return Err(Errno(libc::EOPNOTSUPP)),
        };
        if flags & !(SIGNAL_ALL | BLOCK_LOOPBACK) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let target = kind == qp_type::XRC_TGT;
        let receives = srq.is_none() && !matches!(kind, qp_type::XRC_INI | qp_type::XRC_TGT);
        let mut driver = driver;
        if !receives {
            (driver.rq_wqe_count, driver.rq_wqe_shift) = (0, 0);
        }
        if !target {
            check_shape(&driver)?;
        } else {
            driver = Mlx5CreateQp { flags: driver.flags, uidx: driver.uidx, ..Mlx5CreateQp::default() };
        }
        let context = self.context(id)?;
        let affiliated = Affiliated::new(user_handle, context.event_file(event_fd)?);
        let found_cq = |handle: Option<u32>| handle.map(|handle| context.cq(handle)).transpose();
        let (send, receive) = (found_cq(send_cq)?, found_cq(receive_cq)?);
        let (send_entry, receive_entry) = (send.map_or(64, |cq| cq.entry), receive.map_or(64, |cq| cq.entry));
        let (send_number, receive_number) =
            (send.map_or(0, |cq| cq.number), receive.map_or(0, |cq| cq.number));
        let pd_number = pd.map(|handle| context.pd(handle).map(|pd| pd.number)).transpose()?;
        let srq_number = srq.map(|handle| context.srq(handle).map(|srq| srq.number)).transpose()?;
        let xrcd_number = xrcd.map(|handle| context.xrcd(handle).map(|xrcd| xrcd.number)).transpose()?;
        let missing = if target { xrcd.is_none() } else { pd.is_none() || send_cq.is_none() };
        if missing || receives && receive_cq.is_none() || target && pd.is_some() {
            return Err(Errno(libc::EINVAL));
        }
        let device = self.device_of(id)?;
        // A target's domain is the device's own.
        let pd_number = match pd_number {
            Some(number) => number,
            None => self.own_domain(device)?,
        };
        let mut qp = Qp {
            number: 0,
            kind,
            receive_queue: driver.buf_addr,
            send_queue: driver.buf_addr.wrapping_add(u64::from(driver.rq_wqe_count) << driver.rq_wqe_shift),
            record: driver.db_addr,
            send_size: driver.sq_wqe_count,
            receive_size: driver.rq_wqe_count,
            receive_shift: driver.rq_wqe_shift,
            uidx: driver.uidx,
            uar: driver.bfreg_index,
            send_cq,
            receive_cq,
            pd,
            srq,
            xrcd,
            sent: 0,
            received: 0,
            affiliated,
            groups: Vec::new(),
            cap,
            signal_all: flags & SIGNAL_ALL != 0,
            attributes: ModifyQp::default(),
        };
        for (start, len) in qp.ranges() {
            user::pin(start, len, true)?;
        }
        let receive_type: u64 = match (srq, driver.rq_wqe_count) {
            (Some(_), _) => 1,
            (None, 0) => 3,
            (None, _) => 0,
        };
        let log = |count: u32| u64::from(count.max(1).trailing_zeros());
        let mut command = Command::new(op::CREATE_QP, create_qp_in::BYTES);
        command.set_all(
            create_qp_in::QPC,
            &[
                (qpc::ST, service),
                (qpc::PM_STATE, MIGRATED),
                (qpc::PD, pd_number.into()),
                (qpc::UAR_PAGE, driver.bfreg_index.into()),
                (qpc::NO_SQ, u64::from(driver.sq_wqe_count == 0)),
                (qpc::LOG_SQ_SIZE, log(driver.sq_wqe_count)),
                (qpc::RQ_TYPE, receive_type),
                (qpc::LOG_RQ_SIZE, log(driver.rq_wqe_count)),
                (qpc::LOG_RQ_STRIDE, u64::from(driver.rq_wqe_shift.max(4) - 4)),
                (qpc::CQN_SND, send_number.into()),
                (qpc::CQN_RCV, receive_number.into()),
                (qpc::SRQN_RMPN_XRQN, srq_number.unwrap_or(0).into()),
                (qpc::XRCD, xrcd_number.unwrap_or(0).into()),
                (qpc::USER_INDEX, driver.uidx.into()),
                (qpc::DBR_ADDR, driver.db_addr),
                (qpc::PAGE_OFFSET, pages::offset(driver.buf_addr)),
                (qpc::BLOCK_LB_MC, u64::from(flags & BLOCK_LOOPBACK != 0)),
            ],
        );
        let inline = inline_completions(kind, &driver, send_entry, receive_entry, qp.signal_all);
        command.set_all(create_qp_in::QPC, &inline);
        if let Some((start, len)) = qp.ranges().first().copied() {
            command.pages(create_qp_in::PAS.byte(), start, len);
        }
        let ranges = qp.ranges();
        self.hold(device, &ranges);
        qp.number = self
            .number(device, &command, create_qp_out::QPN)
            .inspect_err(|_| self.release(device, &ranges))?;
        let number = qp.number;
        let handle = self.context(id)?.insert(Object::Qp(qp));
        self.by_qpn.insert((device, number), (id, handle));
        attrs.output(attr::CREATE_QP_RESP_CAP, cap.as_bytes())?;
        attrs.output(attr::CREATE_QP_RESP_QP_NUM, number.as_bytes())?;
        attrs.udata_out(Mlx5CreateQpResp::default().as_bytes())?;
        attrs.answer(attr::CREATE_QP_HANDLE, handle.into())
    }

    /// A queue pair by its handle, opened once more or its first time.
    pub(super) fn qp(&mut self, id: ContextId, handle: u32) -> Result<&mut Qp, Errno> {
        let device = self.device_of(id)?;
        let shared = match self.context(id)?.objects.get(handle) {
            Some(Object::Shared(shared)) => Some(shared.number),
            _ => None,
        };
        let home = match shared {
            Some(number) => self.by_qpn.get(&(device, number)).copied(),
            None => Some((id, handle)),
        };
        let (id, handle) = home.ok_or(Errno(libc::EINVAL))?;
        match self.context(id)?.objects.get_mut(handle) {
            Some(Object::Qp(qp)) => Ok(qp),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// The context of a queue pair in the device.
    pub(super) fn qp_context(&mut self, device: usize, number: u32) -> Result<Vec<u8>, Errno> {
        let command = Command::of(op::QUERY_QP, number);
        let output = self.execute(device, &command, query_qp_out::QPC.byte() + qpc::BYTES)?;
        Ok(part(&output, query_qp_out::QPC).to_vec())
    }

    pub(super) fn query_qp(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        const SQ_SIG_ALL: u8 = 1;
        let request: Query = call.input();
        let device = self.device_of(id)?;
        let qp = self.qp(id, request.handle)?;
        let (number, cap, kept, signal_all) = (qp.number, qp.cap, qp.attributes, qp.signal_all);
        let context = self.qp_context(device, number)?;
        let path = |field: Field| get(&context, field.at(qpc::PRIMARY_ADDRESS_PATH));
        let state = state_of(get(&context, qpc::STATE));
        let small = |value: u64| u8::try_from(value & 0xff).unwrap_or(0);
        let flag = |field, access: u32| if get(&context, field) != 0 { access } else { 0 };
        call.answer(&QueryQpResp {
            dest: QpDest { port_num: small(path(ads::VHCA_PORT_NUM)), ..kept.dest },
            cap,
            qkey: get32(&context, qpc::Q_KEY),
            rq_psn: get32(&context, qpc::NEXT_RCV_PSN),
            sq_psn: get32(&context, qpc::NEXT_SEND_PSN),
            dest_qp_num: get32(&context, qpc::REMOTE_QPN),
            qp_access_flags: flag(qpc::RRE, access::REMOTE_READ)
                | flag(qpc::RWE, access::REMOTE_WRITE)
                | flag(qpc::RAE, access::REMOTE_ATOMIC),
            pkey_index: u16::try_from(path(ads::PKEY_INDEX)).unwrap_or(0),
            qp_state: state,
            cur_qp_state: state,
            path_mtu: small(get(&context, qpc::MTU)),
            path_mig_state: 0,
            max_rd_atomic: 1 << get(&context, qpc::LOG_SRA_MAX),
            max_dest_rd_atomic: 1 << get(&context, qpc::LOG_RRA_MAX),
            min_rnr_timer: small(get(&context, qpc::MIN_RNR_NAK)),
            port_num: small(path(ads::VHCA_PORT_NUM)),
            timeout: small(path(ads::ACK_TIMEOUT)),
            retry_cnt: small(get(&context, qpc::RETRY_COUNT)),
            rnr_retry: small(get(&context, qpc::RNR_RETRY)),
            sq_sig_all: if signal_all { SQ_SIG_ALL } else { 0 },
            ..QueryQpResp::default()
        });
        Ok(())
    }

    pub(super) fn free_qp(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let (number, ranges) = match self.contexts.get(&id).and_then(|context| context.objects.get(handle)) {
            Some(Object::Qp(qp)) => (qp.number, qp.ranges()),
            Some(Object::Shared(shared)) => (shared.number, Vec::new()),
            _ => return Ok(()),
        };
        // One that others opened, too, lives on until the last of them closes it. A device that came back numbers anew.
        let contexts = self.contexts.iter().filter(|(_, context)| context.device == device && !context.gone);
        let objects = contexts.flat_map(|(owner, context)| {
            context.objects.iter().map(move |(known, object)| ((*owner, known), object))
        });
        let used = objects.filter(|(at, _)| *at != (id, handle)).any(|(_, object)| match object {
            Object::Qp(qp) => qp.number == number,
            Object::Shared(shared) => shared.number == number,
            _ => false,
        });
        if used {
            return Ok(());
        }
        self.execute(device, &Command::of(op::DESTROY_QP, number), 16)?;
        self.release(device, &ranges);
        Ok(())
    }
}

/// The state as verbs count it, from the device's own.
pub(super) fn state_of(state: u64) -> u8 {
    const RESET: u8 = 0;
    match state {
        1 => 1,
        2 => 2,
        3 => 3,
        // Send queue drained, and in error.
        5 => 4,
        4 => 5,
        6 => 6,
        _ => RESET,
    }
}
