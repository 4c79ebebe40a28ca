//! Completion queues.

use std::sync::Weak;

use vhca::prm::layouts::{cqc, create_cq_in, create_cq_out, modify_cq_in, op};
use zerocopy::IntoBytes;

use super::firmware::Command;
use super::{Affiliated, ContextId, Driver, Object, pages};
use crate::attrs::{self, Attrs, Write};
use crate::event::{Counter, EventFile, Kind};
use crate::uapi::{
    DestroyCqResp, ExModifyCq, Mlx5CreateCq, Mlx5CreateCqResp, Mlx5ResizeCq, ResizeCq, ResizeCqResp, attr,
};
use crate::{Errno, user};

/// Vectors that completions may be spread over.
pub(super) const COMP_VECTORS: u32 = 2;
const LOG_MAX: u32 = 22;

/// A completion queue.
#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) number: u32,
    pub(crate) buffer: u64,
    pub(crate) record: u64,
    pub(crate) size: u32,
    pub(crate) entry: u32,
    uar: u32,
    /// Completions that the null engine wrote.
    pub(crate) producer: u32,
    pub(super) affiliated: Affiliated,
    pub(super) channel: Option<Weak<EventFile>>,
    pub(super) completions: Counter,
}

impl Cq {
    fn bytes(&self) -> u64 {
        u64::from(self.size) * u64::from(self.entry)
    }

    pub(super) fn ranges(&self) -> [(u64, u64); 2] {
        [(self.buffer, self.bytes()), (self.record, 8)]
    }

    /// What the destroy command answers.
    pub(super) fn end(&self) -> DestroyCqResp {
        if let Some(channel) = self.channel.as_ref().and_then(Weak::upgrade) {
            channel.forget(&self.completions);
        }
        DestroyCqResp {
            // ORDER: counted under the file's lock, which was just taken.
            comp_events_reported: self.completions.load(std::sync::atomic::Ordering::Relaxed),
            async_events_reported: self.affiliated.end(),
        }
    }
}

/// The size of a queue for so many entries, as the device counts them.
fn size_for(cqe: u32) -> Result<u32, Errno> {
    let size = cqe.checked_add(1).and_then(u32::checked_next_power_of_two);
    size.filter(|size| cqe > 0 && *size <= 1 << LOG_MAX).ok_or(Errno(libc::EINVAL))
}

/// The fields of a context that say where and how large a queue is.
fn shape(buffer: u64, size: u32, entry: u32) -> [(vhca::prm::Field, u64); 3] {
    [
        (cqc::CQE_SZ, u64::from(entry == 128)),
        (cqc::LOG_CQ_SIZE, size.trailing_zeros().into()),
        (cqc::PAGE_OFFSET, pages::offset(buffer)),
    ]
}

impl Driver {
    pub(super) fn create_cq(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        const UAR_PAGE_INDEX: u16 = 1 << 1;
        const REAL_TIME: u16 = 1 << 2;
        const IGNORE_OVERRUN: u64 = 2;
        const KNOWN: u64 = 3;
        let driver: Mlx5CreateCq = attrs::read(attrs.udata_in());
        let flags = attrs.number_or_none(attr::CREATE_CQ_FLAGS)?.unwrap_or(0);
        let user_handle = attrs.number(attr::CREATE_CQ_USER_HANDLE)?;
        let channel = attrs.fd_or_none(attr::CREATE_CQ_COMP_CHANNEL)?;
        let event_fd = attrs.fd_or_none(attr::CREATE_CQ_EVENT_FD)?;
        if attrs.number32(attr::CREATE_CQ_COMP_VECTOR)? >= COMP_VECTORS {
            return Err(Errno(libc::EINVAL));
        }
        if flags & !KNOWN != 0 {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let size = size_for(attrs.number32(attr::CREATE_CQ_CQE)?)?;
        let entry = driver.cqe_size;
        // Dynamic doorbell pages: the queue has to say which is its own. There is no clock of the wall in the device.
        if !matches!(entry, 64 | 128)
            || driver.flags & UAR_PAGE_INDEX == 0
            || driver.flags & REAL_TIME != 0
            || !driver.buf_addr.is_multiple_of(64)
        {
            return Err(Errno(libc::EINVAL));
        }
        let context = self.context(id)?;
        let affiliated = Affiliated::new(user_handle, context.event_file(event_fd)?);
        let channel = channel.map(|fd| context.own_file(Kind::Completion, fd)).transpose()?;
        let len = u64::from(size) * u64::from(entry);
        user::pin(driver.buf_addr, len, true)?;
        user::pin(driver.db_addr, 8, true)?;
        let device = self.device_of(id)?;
        let eqn = self.devices.get(device).map_or(0, |device| device.eqn);
        let mut command = Command::new(op::CREATE_CQ, create_cq_in::BYTES);
        command.set_all(create_cq_in::CQ_CONTEXT, &shape(driver.buf_addr, size, entry)).set_all(
            create_cq_in::CQ_CONTEXT,
            &[
                (cqc::C_EQN_OR_APU_ELEMENT, eqn.into()),
                (cqc::UAR_PAGE, driver.uar_page_index.into()),
                (cqc::DBR_ADDR, driver.db_addr),
                (cqc::OI, u64::from(flags & IGNORE_OVERRUN != 0)),
            ],
        );
        command.pages(create_cq_in::PAS.byte(), driver.buf_addr, len);
        self.hold(device, &[(driver.buf_addr, len), (driver.db_addr, 8)]);
        let number = self
            .number(device, &command, create_cq_out::CQN)
            .inspect_err(|_| self.release(device, &[(driver.buf_addr, len), (driver.db_addr, 8)]))?;
        let handle = self.context(id)?.insert(Object::Cq(Cq {
            number,
            buffer: driver.buf_addr,
            record: driver.db_addr,
            size,
            entry,
            uar: driver.uar_page_index.into(),
            producer: 0,
            affiliated,
            channel,
            completions: Counter::default(),
        }));
        self.by_cqn.insert((device, number), (id, handle));
        attrs.output(attr::CREATE_CQ_RESP_CQE, (size - 1).as_bytes())?;
        attrs.udata_out(Mlx5CreateCqResp { cqn: number, reserved: 0 }.as_bytes())?;
        attrs.answer(attr::CREATE_CQ_HANDLE, handle.into())
    }

    fn cq_mut(&mut self, id: ContextId, handle: u32) -> Result<&mut Cq, Errno> {
        match self.context(id)?.objects.get_mut(handle) {
            Some(Object::Cq(cq)) => Ok(cq),
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    pub(super) fn resize_cq(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: ResizeCq = call.input();
        let driver: Mlx5ResizeCq = attrs::read(&call.udata_in);
        let device = self.device_of(id)?;
        let cq = self.cq_mut(id, request.cq_handle)?;
        let size = size_for(request.cqe)?;
        if size == cq.size {
            call.answer(&ResizeCqResp { cqe: size - 1, reserved: 0 });
            return Ok(());
        }
        if !matches!(driver.cqe_size, 64 | 128) {
            return Err(Errno(libc::EINVAL));
        }
        let (number, uar, record) = (cq.number, cq.uar, cq.record);
        let old = (cq.buffer, cq.bytes());
        let entry = u32::from(driver.cqe_size);
        let len = u64::from(size) * u64::from(entry);
        user::pin(driver.buf_addr, len, true)?;
        self.hold(device, &[(driver.buf_addr, len)]);
        let mut command = Command::of(op::MODIFY_CQ, number);
        command.pages(modify_cq_in::PAS.byte(), driver.buf_addr, len);
        command.set(modify_cq_in::OP_MOD, 1u32);
        command.set_all(modify_cq_in::CQ_CONTEXT, &shape(driver.buf_addr, size, entry));
        command.set_all(modify_cq_in::CQ_CONTEXT, &[(cqc::UAR_PAGE, uar.into()), (cqc::DBR_ADDR, record)]);
        if let Err(errno) = self.execute(device, &command, 16) {
            self.release(device, &[(driver.buf_addr, len)]);
            return Err(errno);
        }
        self.release(device, &[old]);
        let cq = self.cq_mut(id, request.cq_handle)?;
        (cq.buffer, cq.size, cq.entry) = (driver.buf_addr, size, entry);
        call.answer(&ResizeCqResp { cqe: size - 1, reserved: 0 });
        Ok(())
    }

    /// Moderation.
    pub(super) fn modify_cq(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        const MODERATE: u32 = 1;
        const PERIOD_AND_COUNT: u32 = 3;
        /// The device has 12 bits for it.
        const LONGEST: u16 = 0xfff;
        let request: ExModifyCq = call.input();
        if request.attr_mask & !MODERATE != 0 || request.reserved != 0 {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        if request.attr_mask == 0 || request.cq_period > LONGEST {
            return Err(Errno(libc::EINVAL));
        }
        let device = self.device_of(id)?;
        let number = self.cq_mut(id, request.cq_handle)?.number;
        let mut command = Command::new(op::MODIFY_CQ, modify_cq_in::BYTES);
        command.set(modify_cq_in::CQN, number);
        command.set(modify_cq_in::MODIFY_FIELD_SELECT_RESIZE_FIELD_SELECT, PERIOD_AND_COUNT);
        command.set_all(
            modify_cq_in::CQ_CONTEXT,
            &[(cqc::CQ_PERIOD, request.cq_period.into()), (cqc::CQ_MAX_COUNT, request.cq_count.into())],
        );
        self.execute(device, &command, 16).map(drop)
    }

    pub(super) fn free_cq(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let Some(Object::Cq(cq)) = self.contexts.get(&id).and_then(|context| context.objects.get(handle))
        else {
            return Ok(());
        };
        let (command, ranges) = (Command::of(op::DESTROY_CQ, cq.number), cq.ranges());
        self.execute(device, &command, 16)?;
        self.release(device, &ranges);
        Ok(())
    }
}
