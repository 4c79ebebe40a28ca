//! Async event descriptors and completion channels.

use super::sys::{Command, OwnedFd};
use super::wire::{AsyncEventDesc, CompEventDesc, CreateCompChannel, CreateCompChannelResp};
use super::{CmdFd, Udata, ids, sys, write};
use crate::error::Errno;
use std::os::fd::RawFd;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// `enum ib_event_type`, the same numbers as `enum ibv_event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventType(pub u32);

#[allow(missing_docs, reason = "the names are those of enum ibv_event_type")]
impl EventType {
    pub const CQ_ERR: EventType = EventType(0);
    pub const QP_FATAL: EventType = EventType(1);
    pub const QP_REQ_ERR: EventType = EventType(2);
    pub const QP_ACCESS_ERR: EventType = EventType(3);
    pub const COMM_EST: EventType = EventType(4);
    pub const SQ_DRAINED: EventType = EventType(5);
    pub const PATH_MIG: EventType = EventType(6);
    pub const PATH_MIG_ERR: EventType = EventType(7);
    pub const DEVICE_FATAL: EventType = EventType(8);
    pub const PORT_ACTIVE: EventType = EventType(9);
    pub const PORT_ERR: EventType = EventType(10);
    pub const LID_CHANGE: EventType = EventType(11);
    pub const PKEY_CHANGE: EventType = EventType(12);
    pub const SM_CHANGE: EventType = EventType(13);
    pub const SRQ_ERR: EventType = EventType(14);
    pub const SRQ_LIMIT_REACHED: EventType = EventType(15);
    pub const QP_LAST_WQE_REACHED: EventType = EventType(16);
    pub const CLIENT_REREGISTER: EventType = EventType(17);
    pub const GID_CHANGE: EventType = EventType(18);
    pub const WQ_FATAL: EventType = EventType(19);
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// The CQ, QP, SRQ or WQ made with this `user_handle`.
    Object(u64),
    /// A port; of `DEVICE_FATAL`, 0: disassociated, a number: reported by the driver before that.
    Port(u64),
}

/// An async event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Its kind.
    pub event_type: EventType,
    /// What it is about.
    pub element: Element,
}

impl TryFrom<AsyncEventDesc> for AsyncEvent {
    type Error = Errno;

    /// # Errors
    /// `EPROTO` for an event type that is none of [`EventType`]'s: then nobody can say what `element` is.
    fn try_from(desc: AsyncEventDesc) -> Result<AsyncEvent, Errno> {
        let event_type = EventType(desc.event_type);
        let element = match event_type.0 {
            0..=7 | 14..=16 | 19 => Element::Object(desc.element),
            8..=13 | 17 | 18 => Element::Port(desc.element),
            _ => return Err(Errno::EPROTO),
        };
        Ok(AsyncEvent { event_type, element })
    }
}

/// Makes a descriptor for async events. The first of a context is also the one that objects made without an event
/// descriptor report to.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn alloc_async_fd(cmd: CmdFd) -> Result<OwnedFd, Errno> {
    Command::new(ids::ASYNC_EVENT_ALLOC)
        .new_fd(ids::ASYNC_EVENT_ALLOC_FD_HANDLE)
        .call(cmd)?
        .fd(ids::ASYNC_EVENT_ALLOC_FD_HANDLE)
}

/// `ibv_create_comp_channel`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create_comp_channel(cmd: CmdFd) -> Result<OwnedFd, Errno> {
    let resp: CreateCompChannelResp =
        write::call(cmd, ids::write::CREATE_COMP_CHANNEL, &CreateCompChannel::default(), Udata::none())?;
    OwnedFd::from_kernel(resp.fd)
}

fn read<T: FromZeros + FromBytes + IntoBytes>(fd: RawFd) -> Result<T, Errno> {
    let mut event = T::new_zeroed();
    let n = sys::read(fd, event.as_mut_bytes())?;
    if n == size_of::<T>() { Ok(event) } else { Err(Errno::EPROTO) }
}

/// One event of an async descriptor, as it came; [`AsyncEvent::try_from`] reads it.
///
/// # Errors
/// The kernel's (`EAGAIN`: none waits, on a non-blocking descriptor); `EPROTO` for a short one.
pub fn read_async_event(fd: RawFd) -> Result<AsyncEventDesc, Errno> {
    read(fd)
}

/// One event of a completion channel: the `user_handle` of its CQ.
///
/// # Errors
/// The kernel's (`EAGAIN`: none waits, on a non-blocking descriptor; `EIO`: disassociated); `EPROTO` for a short one.
pub fn read_comp_event(fd: RawFd) -> Result<u64, Errno> {
    read::<CompEventDesc>(fd).map(|event| event.cq_handle)
}
