//! Shared receive queues.

use vhca::prm::layouts::{
    arm_xrc_srq_in, create_rmp_in, create_rmp_out, create_xrc_srq_in, create_xrc_srq_out, modify_rmp_in, op,
    query_rmp_out, query_xrc_srq_out, rmp_bitmask, rmpc, wq, xrc_srqc,
};
use vhca::prm::{Field, get32, part};
use zerocopy::IntoBytes;

use super::firmware::Command;
use super::{Affiliated, ContextId, Driver, Object, pages};
use crate::attrs::{self, Attrs, Write};
use crate::uapi::{Mlx5CreateSrq, Mlx5CreateSrqResp, ModifySrq, Query, QuerySrqResp, attr};
use crate::{Errno, user};

const BASIC: u64 = 0;
const XRC: u64 = 1;
/// The most work requests and pieces of one.
const LOG_MAX_SIZE: u32 = 15;
const MAX_PIECES: u32 = 31;
/// Bytes of the link before the pieces, and of a piece.
const LINK: u32 = 16;
const PIECE: u32 = 16;

/// A shared receive queue.
#[derive(Debug)]
pub(crate) struct Srq {
    pub(super) number: u32,
    is_xrc: bool,
    pub(super) pd: u32,
    pub(super) cq: Option<u32>,
    pub(super) xrcd: Option<u32>,
    size: u32,
    pieces: u32,
    pub(super) ranges: [(u64, u64); 2],
    pub(super) affiliated: Affiliated,
    /// The receive that the null engine takes next, and how many it took.
    pub(crate) next: u16,
    pub(crate) taken: u16,
}

impl Srq {
    /// Where the work request at `index` is.
    pub(crate) fn at(&self, index: u16) -> u64 {
        let [(buffer, len), _] = self.ranges;
        buffer + u64::from(index) * (len / u64::from(self.size))
    }

    /// The doorbell record.
    pub(crate) fn record(&self) -> u64 {
        let [_, (record, _)] = self.ranges;
        record
    }

    /// How many work requests there are.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }
}

impl Driver {
    pub(super) fn create_srq(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let driver: Mlx5CreateSrq = attrs::read(attrs.udata_in());
        let kind = attrs.number(attr::CREATE_SRQ_TYPE)?;
        let (max_wr, max_sge) =
            (attrs.number32(attr::CREATE_SRQ_MAX_WR)?, attrs.number32(attr::CREATE_SRQ_MAX_SGE)?);
        let limit = attrs.number32(attr::CREATE_SRQ_LIMIT)?;
        let user_handle = attrs.number(attr::CREATE_SRQ_USER_HANDLE)?;
        let event_fd = attrs.fd_or_none(attr::CREATE_SRQ_EVENT_FD)?;
        let pd = attrs.handle(attr::CREATE_SRQ_PD_HANDLE)?;
        let (cq, xrcd) = (
            attrs.handle_or_none(attr::CREATE_SRQ_CQ_HANDLE)?,
            attrs.handle_or_none(attr::CREATE_SRQ_XRCD_HANDLE)?,
        );
        if !matches!(kind, BASIC | XRC) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        if max_wr >= 1 << LOG_MAX_SIZE || max_sge > MAX_PIECES || !driver.buf_addr.is_multiple_of(64) {
            return Err(Errno(libc::EINVAL));
        }
        let (size, stride) =
            ((max_wr + 1).next_power_of_two(), (LINK + max_sge * PIECE).next_power_of_two().max(32));
        let len = u64::from(size) * u64::from(stride);
        let context = self.context(id)?;
        let affiliated = Affiliated::new(user_handle, context.event_file(event_fd)?);
        let pd_number = context.pd(pd)?.number;
        let cq_number = cq.map(|handle| context.cq(handle).map(|cq| cq.number)).transpose()?;
        let xrcd_number = xrcd.map(|handle| context.xrcd(handle).map(|xrcd| xrcd.number)).transpose()?;
        if kind == XRC && (cq.is_none() || xrcd.is_none()) {
            return Err(Errno(libc::EINVAL));
        }
        let ranges = [(driver.buf_addr, len), (driver.db_addr, 8)];
        for (start, len) in ranges {
            user::pin(start, len, true)?;
        }
        let (log_size, log_stride) = (u64::from(size.trailing_zeros()), u64::from(stride.trailing_zeros()));
        let mut command;
        let number_field: Field;
        if kind == XRC {
            number_field = create_xrc_srq_out::XRC_SRQN;
            command = Command::new(op::CREATE_XRC_SRQ, create_xrc_srq_in::BYTES);
            command.set_all(
                create_xrc_srq_in::XRC_SRQ_CONTEXT_ENTRY,
                &[
                    (xrc_srqc::LOG_XRC_SRQ_SIZE, log_size),
                    (xrc_srqc::LOG_RQ_STRIDE, log_stride - 4),
                    (xrc_srqc::PD, pd_number.into()),
                    (xrc_srqc::CQN, cq_number.unwrap_or(0).into()),
                    (xrc_srqc::XRCD, xrcd_number.unwrap_or(0).into()),
                    (xrc_srqc::USER_INDEX, driver.uidx.into()),
                    (xrc_srqc::DB_RECORD_ADDR_H, driver.db_addr >> 32),
                    (xrc_srqc::DB_RECORD_ADDR_L, (driver.db_addr & 0xffff_ffff) >> 2),
                    (xrc_srqc::PAGE_OFFSET, pages::offset(driver.buf_addr)),
                    (xrc_srqc::LWM, limit.into()),
                ],
            );
            command.pages(create_xrc_srq_in::PAS.byte(), driver.buf_addr, len);
        } else {
            number_field = create_rmp_out::RMPN;
            let of = |field: Field| field.at(rmpc::WQ);
            command = Command::new(op::CREATE_RMP, create_rmp_in::BYTES);
            command.set_all(
                create_rmp_in::CTX,
                &[
                    (of(wq::LOG_WQ_SZ), log_size),
                    (of(wq::LOG_WQ_STRIDE), log_stride),
                    (of(wq::PD), pd_number.into()),
                    (of(wq::DBR_ADDR), driver.db_addr),
                    (of(wq::PAGE_OFFSET), pages::offset(driver.buf_addr)),
                    (of(wq::LWM), limit.into()),
                ],
            );
            let at = create_rmp_in::CTX.byte() + wq::PAS.at(rmpc::WQ).byte();
            command.pages(at, driver.buf_addr, len);
        }
        let device = self.device_of(id)?;
        self.hold(device, &ranges);
        let number =
            self.number(device, &command, number_field).inspect_err(|_| self.release(device, &ranges))?;
        let handle = self.context(id)?.insert(Object::Srq(Srq {
            number,
            is_xrc: kind == XRC,
            pd,
            cq,
            xrcd,
            size,
            pieces: max_sge,
            ranges,
            affiliated,
            next: 0,
            taken: 0,
        }));
        self.by_srqn.insert((device, number), (id, handle));
        attrs.output(attr::CREATE_SRQ_RESP_MAX_WR, (size - 1).as_bytes())?;
        attrs.output(attr::CREATE_SRQ_RESP_MAX_SGE, max_sge.as_bytes())?;
        attrs.output(attr::CREATE_SRQ_RESP_SRQ_NUM, number.as_bytes())?;
        attrs.udata_out(Mlx5CreateSrqResp { srqn: number, reserved: 0 }.as_bytes())?;
        attrs.answer(attr::CREATE_SRQ_HANDLE, handle.into())
    }

    pub(super) fn modify_srq(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        const MAX_WR: u32 = 1;
        const LIMIT: u32 = 2;
        let request: ModifySrq = call.input();
        let device = self.device_of(id)?;
        let srq = self.context(id)?.srq(request.srq_handle).map_err(|_| Errno(libc::EINVAL))?;
        // The device cannot resize.
        if request.attr_mask & MAX_WR != 0 {
            return Err(Errno(libc::EINVAL));
        }
        if request.attr_mask & LIMIT == 0 {
            return Ok(());
        }
        if request.srq_limit >= srq.size {
            return Err(Errno(libc::EINVAL));
        }
        let mut command;
        if srq.is_xrc {
            command = Command::of(op::ARM_XRC_SRQ, srq.number);
            command.set(arm_xrc_srq_in::LWM, request.srq_limit);
        } else {
            command = Command::new(op::MODIFY_RMP, modify_rmp_in::BYTES);
            command.set(modify_rmp_in::RMPN, srq.number);
            command.set(rmp_bitmask::LWM.at(modify_rmp_in::BITMASK), 1u32);
            command.set_all(modify_rmp_in::CTX, &[(wq::LWM.at(rmpc::WQ), request.srq_limit.into())]);
        }
        self.execute(device, &command, 16).map(drop)
    }

    pub(super) fn query_srq(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: Query = call.input();
        let device = self.device_of(id)?;
        let srq = self.context(id)?.srq(request.handle).map_err(|_| Errno(libc::EINVAL))?;
        let (max_wr, max_sge) = (srq.size - 1, srq.pieces);
        let (command, len, base, field) = if srq.is_xrc {
            let command = Command::of(op::QUERY_XRC_SRQ, srq.number);
            (command, query_xrc_srq_out::BYTES, query_xrc_srq_out::XRC_SRQ_CONTEXT_ENTRY, xrc_srqc::LWM)
        } else {
            let command = Command::of(op::QUERY_RMP, srq.number);
            (command, query_rmp_out::BYTES, query_rmp_out::RMP_CONTEXT, wq::LWM.at(rmpc::WQ))
        };
        let output = self.execute(device, &command, len)?;
        // The device answers with the queue's own context at the start of the structure's.
        let srq_limit = get32(part(&output, base), field);
        call.answer(&QuerySrqResp { max_wr, max_sge, srq_limit, reserved: 0 });
        Ok(())
    }

    pub(super) fn free_srq(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let object = self.contexts.get(&id).and_then(|context| context.objects.get(handle));
        let Some(Object::Srq(srq)) = object else { return Ok(()) };
        let opcode = if srq.is_xrc { op::DESTROY_XRC_SRQ } else { op::DESTROY_RMP };
        let (command, ranges) = (Command::of(opcode, srq.number), srq.ranges);
        self.execute(device, &command, 16)?;
        self.release(device, &ranges);
        Ok(())
    }
}
