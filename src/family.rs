//! The traits between a device family and the verbs layer.
//!
//! A family is safe code that knows its queues and its driver's uAPI, and no `ibv_*` object. The verbs layer owns those,
//! casts between them and the family's types, and calls through these traits with the family as a type parameter: there
//! is one copy of each verb per family, and no indirect call inside it.

use core::mem::MaybeUninit;
use std::os::fd::RawFd;

use crate::abi::public::{ibv_ah, ibv_mr, ibv_mw, ibv_qp_cap, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wc};
use crate::abi::wr::{InlineData, RecvWrs, SendWrs};
use crate::error::{Errno, Error};
use crate::sync::SpinLock;
use crate::uapi::wire::AhAttr;
use crate::uapi::{CmdFd, Handle};

/// What a family is told of the context it serves.
#[derive(Debug, Clone)]
pub struct Device {
    /// The context's command file; libibverbs owns it.
    pub fd: CmdFd,
    /// The RDMA device's name ("rxe0").
    pub ibdev: String,
    /// The application's async event file: affiliated events of its objects go there.
    pub async_fd: RawFd,
}

/// A work request that was refused, and why. Those before it in the list are posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused<W> {
    /// For `bad_wr`.
    pub wr: *mut W,
    /// For the return value.
    pub errno: Errno,
}

/// One send operation with what is its own; the fields are those of the `ibv_wr_*` builders.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "named as in verbs.h")]
pub enum SendOp {
    Send,
    /// `imm_data` in network byte order.
    SendImm {
        imm_data: u32,
    },
    SendInv {
        invalidate_rkey: u32,
    },
    Write {
        rkey: u32,
        remote_addr: u64,
    },
    WriteImm {
        rkey: u32,
        remote_addr: u64,
        imm_data: u32,
    },
    Read {
        rkey: u32,
        remote_addr: u64,
    },
    CmpSwp {
        rkey: u32,
        remote_addr: u64,
        compare: u64,
        swap: u64,
    },
    FetchAdd {
        rkey: u32,
        remote_addr: u64,
        add: u64,
    },
    LocalInv {
        invalidate_rkey: u32,
    },
    BindMw {
        mw_rkey: u32,
        rkey: u32,
        addr: u64,
        length: u64,
        mr_lkey: u32,
        access: u32,
    },
    AtomicWrite {
        rkey: u32,
        remote_addr: u64,
        data: [u8; 8],
    },
    /// `type` and `level` as `ibv_placement_type` and `ibv_selectivity_level`.
    Flush {
        rkey: u32,
        remote_addr: u64,
        length: usize,
        r#type: u8,
        level: u8,
    },
}

/// What a verb asks of a new CQ.
#[derive(Debug, Clone, Copy)]
pub struct CqRequest {
    /// Entries wanted.
    pub cqe: u32,
    /// `IBV_WC_EX_WITH_*` of an extended CQ.
    pub wc_flags: u64,
    /// `IBV_CREATE_CQ_ATTR_*`.
    pub flags: u32,
    /// The completion channel's file.
    pub channel: Option<RawFd>,
    /// Below the context's `num_comp_vectors`.
    pub comp_vector: u32,
    /// The `ibv_cq`'s address: the kernel gives it back in events.
    pub user_handle: u64,
}

/// What a verb asks of a new SRQ.
#[derive(Debug, Clone, Copy)]
pub struct SrqRequest {
    /// The PD's handle.
    pub pd: Handle,
    /// `ibv_srq_attr`.
    pub max_wr: u32,
    /// `ibv_srq_attr`.
    pub max_sge: u32,
    /// `ibv_srq_attr`.
    pub srq_limit: u32,
    /// The `ibv_srq`'s address.
    pub user_handle: u64,
}

/// What a verb asks of a new QP. Handles belong to the same context.
#[derive(Debug, Clone, Copy)]
pub struct QpRequest {
    /// `IBV_QPT_*`.
    pub qp_type: u32,
    /// The PD's handle.
    pub pd: Handle,
    /// The send CQ's handle.
    pub send_cq: Handle,
    /// The receive CQ's handle.
    pub recv_cq: Handle,
    /// The SRQ's handle, where receives come from one.
    pub srq: Option<Handle>,
    /// Queue sizes wanted.
    pub cap: ibv_qp_cap,
    /// Every send completes, whatever its flags.
    pub sq_sig_all: bool,
    /// The `ibv_qp`'s address.
    pub user_handle: u64,
}

/// A new kernel object and the family's side of it.
#[derive(Debug)]
pub struct Created<T> {
    /// The kernel's handle.
    pub handle: Handle,
    /// The family's part.
    pub object: T,
}

/// A completion at the head of an extended CQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// `ibv_cq_ex.wr_id`.
    pub wr_id: u64,
    /// `IBV_WC_*` status.
    pub status: u32,
}

/// The consumer's side of a CQ. The verbs layer holds the lock around every call.
pub trait CompletionQueue: Send {
    /// Moves completions to the front of `out`; how many.
    ///
    /// # Errors
    /// `EIO` where the queue cannot be believed any more.
    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<usize, Errno>;

    /// The first completion of a `start_poll` batch.
    ///
    /// # Errors
    /// `ENOENT` where there is none, `EIO` as for [`CompletionQueue::poll`].
    fn start(&mut self) -> Result<Head, Errno>;

    /// The next one; the one before is consumed.
    ///
    /// # Errors
    /// As for [`CompletionQueue::start`]; the current completion stays readable.
    fn next(&mut self) -> Result<Head, Errno>;

    /// Ends the batch: the current completion is consumed.
    fn end(&mut self);

    /// The current completion, in full.
    fn current(&self) -> &ibv_wc;
}

/// The `ibv_wr_*` builders of a send queue. The verbs layer holds the lock from `start` to `complete` or `abort`.
/// The first error is kept and becomes the answer of `complete`.
pub trait SendBuilder: Send {
    /// `ibv_wr_start`.
    fn start(&mut self);
    /// One of the `ibv_wr_*` operations.
    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp);
    /// `ibv_wr_set_sge`.
    fn set_sge(&mut self, sge: ibv_sge);
    /// `ibv_wr_set_sge_list`.
    fn set_sge_list(&mut self, list: &[ibv_sge]);
    /// `ibv_wr_set_inline_data` and `ibv_wr_set_inline_data_list`.
    fn set_inline_data(&mut self, data: &InlineData<'_>);
    /// A setter was called with what no setter takes.
    fn refuse(&mut self, errno: Errno);
    /// `ibv_wr_complete`: hands what was built to the device.
    ///
    /// # Errors
    /// The first error since `start`; nothing was posted then.
    fn complete(&mut self) -> Result<(), Errno>;
    /// `ibv_wr_abort`: forgets everything since `start`.
    fn abort(&mut self);
}

/// The objects that a send work request names by pointer, looked up by the verbs layer, which made them.
pub trait Objects<'a, A: 'a>: Copy {
    /// The family's part of an address handle; `None` for NULL.
    fn ah(self, ah: *mut ibv_ah) -> Option<&'a A>;
    /// The memory window's present rkey; `None` for NULL.
    fn mw_rkey(self, mw: *mut ibv_mw) -> Option<u32>;
    /// The memory region's lkey; `None` for NULL.
    fn mr_lkey(self, mr: *mut ibv_mr) -> Option<u32>;
}

/// A queue pair's two queues.
pub trait QueuePair: Send + Sync {
    /// What an address handle carries for this family.
    type Ah: 'static;
    /// The send queue's builder.
    type Sq: SendBuilder;

    /// Posts a list.
    ///
    /// # Errors
    /// The first work request that was refused.
    fn post_send<'a>(
        &self,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Self::Ah>,
    ) -> Result<(), Refused<ibv_send_wr>>;

    /// Posts a list to the QP's own receive queue.
    ///
    /// # Errors
    /// The first work request that was refused; `EINVAL` where the QP receives from an SRQ.
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>>;

    /// The send queue, for the builders.
    fn send_queue(&self) -> &SpinLock<Self::Sq>;

    /// `ibv_wr_set_ud_addr`, under the send queue's lock.
    fn set_ud_addr(sq: &mut Self::Sq, ah: &Self::Ah, remote_qpn: u32, remote_qkey: u32);

    /// The QP is in `state` (`IBV_QPS_*`) now, by a modify that the kernel accepted.
    fn entered(&self, state: u32);
}

/// A shared receive queue.
pub trait SharedReceiveQueue: Send + Sync {
    /// Posts a list.
    ///
    /// # Errors
    /// The first work request that was refused.
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>>;
}

/// A device family: what the verbs layer is generic over.
pub trait Family: Sized + Send + Sync + 'static {
    /// The name in messages ("rxe").
    const NAME: &'static str;
    /// `RDMA_DRIVER_*` of the kernel.
    const DRIVER_ID: u32;
    /// Extended CQ fields that it can give, `IBV_WC_EX_WITH_*`.
    const WC_FLAGS: u64;
    /// `IBV_CQ_INIT_ATTR_MASK_*` that it understands.
    const CQ_COMP_MASK: u32;
    /// `IBV_CREATE_CQ_ATTR_*` that it understands.
    const CQ_FLAGS: u32;
    /// Completions.
    type Cq: CompletionQueue;
    /// Queue pairs.
    type Qp: QueuePair<Ah = Self::Ah>;
    /// Shared receive queues.
    type Srq: SharedReceiveQueue;
    /// Address handles.
    type Ah: Send + Sync;

    /// Begins to serve a context: issues the family's GET_CONTEXT.
    ///
    /// # Errors
    /// What the kernel said, with the step.
    fn open(fd: CmdFd) -> Result<Opened<Self>, Error>;

    /// Creates a CQ; the number of entries it really has comes along.
    ///
    /// # Errors
    /// What the kernel said, or a mapping that cannot be had; nothing is left behind.
    fn create_cq(&self, device: &Device, request: &CqRequest) -> Result<(Created<Self::Cq>, u32), Error>;

    /// Resizes a CQ, under its lock; the new number of entries.
    ///
    /// # Errors
    /// What the kernel said; the CQ is as it was, unless the new queue could not be mapped.
    fn resize_cq(&self, device: &Device, cq: &mut Self::Cq, handle: Handle, cqe: u32) -> Result<u32, Error>;

    /// Creates an SRQ; `max_wr`, `max_sge` of the request become what it really has, and its number comes along.
    ///
    /// # Errors
    /// As for [`Family::create_cq`].
    fn create_srq(
        &self,
        device: &Device,
        request: &mut SrqRequest,
    ) -> Result<(Created<Self::Srq>, u32), Error>;

    /// Modifies an SRQ (`IBV_SRQ_*` in `mask`).
    ///
    /// # Errors
    /// What the kernel said.
    fn modify_srq(
        &self,
        device: &Device,
        srq: &Self::Srq,
        handle: Handle,
        max_wr: u32,
        srq_limit: u32,
        mask: u32,
    ) -> Result<(), Error>;

    /// Which `IBV_QP_EX_WITH_*` a QP of this type may ask for on this device; 0 for types it has no builders for.
    fn send_ops(&self, device: &Device, qp_type: u32) -> u64;

    /// Creates a QP; `cap` of the request becomes what it really has, and its number comes along.
    ///
    /// # Errors
    /// As for [`Family::create_cq`].
    fn create_qp(&self, device: &Device, request: &mut QpRequest) -> Result<(Created<Self::Qp>, u32), Error>;

    /// Creates an address handle.
    ///
    /// # Errors
    /// What the kernel said.
    fn create_ah(
        &self,
        device: &Device,
        pd: Handle,
        user_handle: u64,
        attr: &AhAttr,
    ) -> Result<Created<Self::Ah>, Error>;

    /// The firmware version string of query_device, from the kernel's number.
    fn fw_ver(raw: u64) -> String;
}

/// An opened context of a family.
#[derive(Debug)]
pub struct Opened<F> {
    /// The family's part of the context.
    pub family: F,
    /// `ibv_context.num_comp_vectors`.
    pub num_comp_vectors: u32,
    /// `IB_UVERBS_CORE_SUPPORT_*` bits of the kernel.
    pub core_support: u64,
}
