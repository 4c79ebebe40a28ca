//! Completion queues and queue pairs.

use zerocopy::IntoBytes;

use super::{ContextId, Cq, Driver, Object, Qp, next};
use crate::Errno;
use crate::attrs::{self, Attrs, Write};
use crate::uapi::{
    DestroyCqResp, DestroyResp, ExModifyQpResp, Mlx5CreateCq, Mlx5CreateCqResp, Mlx5CreateQp,
    Mlx5CreateQpResp, Mlx5ModifyQpResp, ModifyQp, QpCap, attr, write,
};

const CQ_UAR_PAGE_INDEX: u16 = 1 << 1;
const QP_UAR_PAGE_INDEX: u32 = 1 << 10;
const RC: u64 = 2;
const STATE_MASK: u32 = 1;

impl Driver {
    pub(super) fn create_cq(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let driver: Mlx5CreateCq = attrs::read(attrs.udata_in());
        let cqe = attrs.number32(attr::CREATE_CQ_CQE)?;
        let size = cqe.checked_add(1).and_then(u32::checked_next_power_of_two);
        let size = size.filter(|_| (1..1 << 22).contains(&cqe)).ok_or(Errno(libc::EINVAL))?;
        // Dynamic doorbell pages: the queue has to say which is its own.
        if !matches!(driver.cqe_size, 64 | 128) || driver.flags & CQ_UAR_PAGE_INDEX == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let number = next(&mut self.numbers.cq);
        let handle = self.context(id)?.insert(Object::Cq(Cq {
            buffer: driver.buf_addr,
            record: driver.db_addr,
            size,
            entry: driver.cqe_size,
            producer: 0,
        }));
        attrs.output(attr::CREATE_CQ_RESP_CQE, (size - 1).as_bytes())?;
        attrs.udata_out(Mlx5CreateCqResp { cqn: number, reserved: 0 }.as_bytes())?;
        attrs.answer(attr::CREATE_CQ_HANDLE, handle.into())
    }

    pub(super) fn destroy_cq(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let handle = attrs.handle(attr::DESTROY_HANDLE)?;
        let context = self.context(id)?;
        let used = context.objects.values().any(
            |object| matches!(object, Object::Qp(qp) if qp.send_cq == handle || qp.receive_cq == handle),
        );
        if used {
            return Err(Errno(libc::EBUSY));
        }
        context.remove(handle, |object| matches!(object, Object::Cq(_)))?;
        attrs.output(attr::DESTROY_RESP, DestroyCqResp::default().as_bytes())
    }

    pub(super) fn create_qp(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let driver: Mlx5CreateQp = attrs::read(attrs.udata_in());
        let cap: QpCap = attrs::read(&attrs.bytes(attr::CREATE_QP_CAP)?);
        let send_cq = attrs.handle(attr::CREATE_QP_SEND_CQ_HANDLE)?;
        let receive_cq = attrs.handle(attr::CREATE_QP_RECV_CQ_HANDLE)?;
        let pd = attrs.handle(attr::CREATE_QP_PD_HANDLE)?;
        if attrs.number(attr::CREATE_QP_TYPE)? != RC {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let receive_len = u64::from(driver.rq_wqe_count) << (driver.rq_wqe_shift & 0x1f);
        let fits = |count: u32| count.is_power_of_two() && count <= 1 << 15;
        if driver.flags & QP_UAR_PAGE_INDEX == 0
            || !fits(driver.sq_wqe_count)
            || driver.rq_wqe_count != 0 && !fits(driver.rq_wqe_count)
        {
            return Err(Errno(libc::EINVAL));
        }
        let number = next(&mut self.numbers.qp);
        let context = self.context(id)?;
        context.has_pd(pd)?;
        context.cq(send_cq)?;
        context.cq(receive_cq)?;
        let handle = context.insert(Object::Qp(Qp {
            number,
            receive_queue: driver.buf_addr,
            send_queue: driver.buf_addr.wrapping_add(receive_len),
            record: driver.db_addr,
            send_size: driver.sq_wqe_count,
            receive_size: driver.rq_wqe_count,
            receive_shift: driver.rq_wqe_shift,
            uidx: driver.uidx,
            uar: driver.bfreg_index,
            send_cq,
            receive_cq,
            sent: 0,
            received: 0,
            state: 0,
        }));
        attrs.output(attr::CREATE_QP_RESP_CAP, cap.as_bytes())?;
        attrs.output(attr::CREATE_QP_RESP_QP_NUM, number.as_bytes())?;
        attrs.udata_out(Mlx5CreateQpResp::default().as_bytes())?;
        attrs.answer(attr::CREATE_QP_HANDLE, handle.into())
    }

    pub(super) fn modify_qp(&mut self, id: ContextId, command: u32, call: &mut Write) -> Result<(), Errno> {
        let request: ModifyQp = call.input();
        let Some(Object::Qp(qp)) = self.context(id)?.objects.get_mut(&request.qp_handle) else {
            return Err(Errno(libc::ENOENT));
        };
        if request.attr_mask & STATE_MASK != 0 {
            qp.state = request.qp_state;
            if qp.state == 0 {
                (qp.sent, qp.received) = (0, 0);
            }
        }
        if command == write::EX_MODIFY_QP {
            let response_length = size_of::<ExModifyQpResp>() as u32;
            call.answer(&ExModifyQpResp { response_length, ..ExModifyQpResp::default() });
            let response_length = size_of::<Mlx5ModifyQpResp>() as u32;
            call.answer_udata(&Mlx5ModifyQpResp { response_length, ..Mlx5ModifyQpResp::default() });
        }
        Ok(())
    }

    pub(super) fn destroy_qp(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let handle = attrs.handle(attr::DESTROY_HANDLE)?;
        self.context(id)?.remove(handle, |object| matches!(object, Object::Qp(_)))?;
        attrs.output(attr::DESTROY_RESP, DestroyResp::default().as_bytes())
    }
}
