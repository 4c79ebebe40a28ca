//! The traits between a device family and the verbs layer.
//!
//! A family is safe code that knows its queues and its driver's uAPI, and no `ibv_*` object. The verbs layer owns those,
//! casts between them and the family's types, and calls through these traits with the family as a type parameter: there
//! is one copy of each verb per family, and no indirect call inside it.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, Ordering};
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::abi::host::ForkRanges;
use crate::abi::public::{
    IBV_WC_WR_FLUSH_ERR, ibv_ah, ibv_mr, ibv_mw, ibv_packet_pacing_caps, ibv_qp_cap, ibv_recv_wr,
    ibv_send_wr, ibv_sge, ibv_wc,
};
use crate::abi::wr::{InlineData, RecvWr, RecvWrs, SendWr, SendWrs, UserBytes};
use crate::error::{Errno, Error};
use crate::ha::ledger::Outstanding;
use crate::ha::life::Life;
use crate::hw::mmio::DeviceMemory;
use crate::sync::{Locking, SpinLock};
use crate::uapi::wire::{AhAttr, ExQueryDeviceResp, ModifyQp};
use crate::uapi::{CmdFd, Handle};

/// What a family is told of the context it serves.
#[derive(Debug, Clone)]
pub struct Device {
    /// The context's command file; libibverbs owns it.
    pub fd: CmdFd,
    /// The RDMA device's name ("rxe0").
    pub ibdev: String,
    /// The application's async event file.
    pub events: EventFile,
    /// Whether it is still there.
    pub life: Arc<Life>,
}

/// The application's async event file: affiliated events of its objects go there. libibverbs opens that of an imported
/// context when we have done our part, so that it is only known by the time of the first object.
#[derive(Debug, Clone)]
pub struct EventFile(Arc<AtomicI32>);

impl EventFile {
    /// The file `fd`; negative: not known yet.
    #[must_use]
    pub fn new(fd: RawFd) -> EventFile {
        EventFile(Arc::new(AtomicI32::new(fd)))
    }

    /// Its descriptor, for the commands that create objects; `None`: the context's first.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        // ORDER: Relaxed: a number; whoever creates objects was given the context by the one who opened it.
        Some(self.0.load(Ordering::Relaxed)).filter(|fd| *fd >= 0)
    }

    /// It is `fd`.
    pub fn set(&self, fd: RawFd) {
        // ORDER: Relaxed, as in `fd`.
        self.0.store(fd, Ordering::Relaxed);
    }
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
    /// For an XRC SRQ: the domain's handle and the CQ's.
    pub xrc: Option<(Handle, Handle)>,
    /// Whether the application's word makes locks needless.
    pub locking: Locking,
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
    /// The PD's handle; none for XRC receivers.
    pub pd: Option<Handle>,
    /// The XRC domain's handle, of an XRC receiver.
    pub xrcd: Option<Handle>,
    /// The send CQ's handle.
    pub send_cq: Option<Handle>,
    /// The receive CQ's handle.
    pub recv_cq: Option<Handle>,
    /// The SRQ's handle, where receives come from one.
    pub srq: Option<Handle>,
    /// Queue sizes wanted.
    pub cap: ibv_qp_cap,
    /// Every send completes, whatever its flags.
    pub sq_sig_all: bool,
    /// `IBV_QP_EX_WITH_*` that the builders shall have; `None` without builders.
    pub send_ops: Option<u64>,
    /// Whether the application's word makes locks needless.
    pub locking: Locking,
    /// The `ibv_qp`'s address.
    pub user_handle: u64,
}

/// The family's side of the objects that a QP is attached to.
pub struct Attached<'a, F: Family> {
    /// The PD; none for XRC receivers.
    pub pd: Option<&'a F::Pd>,
    /// The CQ of its sends.
    pub send_cq: Option<&'a SpinLock<F::Cq>>,
    /// The CQ of its receives.
    pub recv_cq: Option<&'a SpinLock<F::Cq>>,
    /// Where its receives come from, if not from its own queue.
    pub srq: Option<&'a F::Srq>,
}

/// A new kernel object and the family's side of it.
#[derive(Debug)]
pub struct Created<T> {
    /// The kernel's handle.
    pub handle: Handle,
    /// The family's part.
    pub object: T,
}

/// A new CQ.
#[derive(Debug)]
pub struct CreatedCq<F: Family> {
    /// The kernel's handle.
    pub handle: Handle,
    /// The consumer's side.
    pub queue: F::Cq,
    /// What arms it.
    pub arm: F::Arm,
    /// Entries that it really has.
    pub cqe: u32,
}

/// A completion at the head of an extended CQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// `ibv_cq_ex.wr_id`.
    pub wr_id: u64,
    /// `IBV_WC_*` status.
    pub status: u32,
}

/// The completion of a work request of QP `qp_num` that ends because the device is gone.
#[must_use]
pub fn flushed(wr: Outstanding, qp_num: u32, vendor_err: u32) -> ibv_wc {
    ibv_wc {
        wr_id: wr.wr_id,
        status: IBV_WC_WR_FLUSH_ERR,
        opcode: wr.opcode,
        vendor_err,
        qp_num,
        ..ibv_wc::zeroed()
    }
}

/// Fills `out` with what `next` gives; how many.
pub fn fill(out: &mut [MaybeUninit<ibv_wc>], mut next: impl FnMut() -> Option<ibv_wc>) -> u32 {
    let mut filled = 0;
    for place in out {
        let Some(wc) = next() else { break };
        place.write(wc);
        filled += 1;
    }
    filled
}

/// What [`CompletionQueue::next_usual`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A completion, which is the current one.
    Usual(Head),
    /// None, and none is owed.
    None,
    /// Something else, and nothing was done: [`CompletionQueue::start`] or [`CompletionQueue::next`] has to do it.
    Other,
}

/// The consumer's side of a CQ. The verbs layer holds the lock around every call.
pub trait CompletionQueue: Send {
    /// What arms it.
    type Arm: Arm;

    /// Moves completions to the front of `out`, as long as they are of the usual kinds: `Ok` with how many, if that ended because
    /// `out` is full or there are no more; otherwise `Err` with how many, and [`CompletionQueue::poll`] has to go on.
    fn poll_usual(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32>;

    /// Moves the completion that [`Arm::look`] saw `at` the queue's front as `seen`, [`Look::Sent`], to `to`. `None`: it is not there any
    /// more, or something is to be said of it, and nothing was done.
    #[inline(always)]
    fn poll_sent(&mut self, at: AtOf<'_, Self>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        let _ = (at, seen, to);
        None
    }

    /// As [`CompletionQueue::poll_sent`], of [`Look::Plain`].
    #[inline(always)]
    fn poll_plain(&mut self, at: AtOf<'_, Self>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        let _ = (at, seen, to);
        None
    }

    /// As [`CompletionQueue::poll_sent`], of [`Look::Shared`].
    #[inline(always)]
    fn poll_shared(&mut self, at: AtOf<'_, Self>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        let _ = (at, seen, to);
        None
    }

    /// As [`CompletionQueue::poll_sent`], of [`Look::Received`].
    #[inline(always)]
    fn poll_received(&mut self, at: AtOf<'_, Self>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        let _ = (at, seen, to);
        None
    }

    /// As [`CompletionQueue::poll_usual`], of more kinds.
    ///
    /// # Errors
    /// As said there.
    #[inline(always)]
    fn poll_most(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32> {
        let _ = out;
        Err(0)
    }

    /// `ibv_start_poll` and `ibv_next_poll`, as long as what comes is usual.
    #[inline(always)]
    fn next_usual(&mut self) -> Next {
        Next::Other
    }

    /// Moves completions to the front of `out`; how many.
    ///
    /// # Errors
    /// `EIO` where the queue cannot be believed any more.
    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, Errno>;

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

    /// Whether a poll would give something: a completion, or once the device is gone a work request to flush.
    fn is_pending(&mut self) -> bool;

    /// Where the kernel's driver waits for its users: it is about to stop the device. Polls give nothing until
    /// [`CompletionQueue::let_go`].
    fn freeze(&mut self) {}

    /// The kernel writes nothing more: takes what it wrote to memory of our own, and lets go of the kernel's.
    ///
    /// # Errors
    /// `ENOMEM`; everything is as it was.
    fn let_go(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    /// `ibv_wc_read_opcode` of the current completion, and so on.
    fn opcode(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn vendor_err(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn byte_len(&self) -> u32;
    /// In network order, or the invalidated key.
    fn imm_data(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn qp_num(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn src_qp(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn wc_flags(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn slid(&self) -> u32;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn sl(&self) -> u8;
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn dlid_path_bits(&self) -> u8;

    /// In cycles of the device. As the following, it is only asked of CQs that [`Family::WC_FLAGS`] lets have it.
    fn completion_ts(&self) -> u64 {
        0
    }
    /// In nanoseconds of the wall clock.
    fn completion_wallclock_ns(&self) -> u64 {
        0
    }
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn cvlan(&self) -> u16 {
        0
    }
    #[allow(missing_docs, reason = "named as in verbs.h")]
    fn flow_tag(&self) -> u32 {
        0
    }
}

/// Where a completion of `Queue` was seen.
pub type AtOf<'a, Queue> = <<Queue as CompletionQueue>::Arm as Arm>::At<'a>;

/// What is seen of a CQ without its lock.
#[derive(Debug, Clone, Copy)]
pub enum Look<At> {
    /// No completion.
    Nothing,
    /// One of a send, of the usual kind: where, and what is to be seen there again.
    Sent(At, u8),
    /// The same, of a receive, most likely one of the plainest kind.
    Plain(At, u8),
    /// The same, most likely one to an SRQ.
    Shared(At, u8),
    /// The same, of another receive.
    Received(At, u8),
    /// Something else, or only a poll can tell.
    Other,
}

/// What arms a CQ, reached without its lock: a thread may arm while another polls.
pub trait Arm: Send + Sync {
    /// Where [`Arm::look`] sees a completion.
    type At<'a>: Copy
    where
        Self: 'a;

    /// Asks for an event at the next completion, or at the next solicited one.
    ///
    /// # Errors
    /// What the kernel said, where it is asked.
    fn arm(&self, fd: CmdFd, handle: Handle, solicited_only: bool) -> Result<(), Errno>;

    /// The context's.
    fn life(&self) -> &Life;

    /// What a poll would find: for an empty one, which that spares the lock, and for one of `one`, which it spares a second search.
    #[inline(always)]
    fn look(&self, one: bool) -> Look<Self::At<'_>> {
        let _ = one;
        Look::Other
    }

    /// The application read an event of the CQ.
    fn event(&self);
}

/// The `ibv_wr_*` builders of a send queue. The verbs layer holds the lock from `start` to `complete` or `abort`.
/// The first error is kept and becomes the answer of `complete`.
pub trait SendBuilder: Send {
    /// `ibv_wr_start`.
    fn start(&mut self);
    /// One of the `ibv_wr_*` operations, if it is a usual one. False: it is not, nothing was done, and [`SendBuilder::operation`]
    /// has to do it. This and its likes below call nothing, so that they save no registers.
    #[inline(always)]
    fn usual_operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) -> bool {
        let _ = (wr_id, wr_flags, op);
        false
    }
    /// One of the `ibv_wr_*` operations.
    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp);
    /// `ibv_wr_set_sge`, as [`SendBuilder::usual_operation`].
    #[inline(always)]
    fn set_usual_sge(&mut self, sge: ibv_sge) -> bool {
        let _ = sge;
        false
    }
    /// `ibv_wr_set_sge`.
    fn set_sge(&mut self, sge: ibv_sge);
    /// `ibv_wr_set_sge_list`.
    fn set_sge_list(&mut self, list: &[ibv_sge]);
    /// `ibv_wr_set_inline_data`, as [`SendBuilder::usual_operation`].
    #[inline(always)]
    fn set_usual_inline_data(&mut self, bytes: UserBytes<'_>) -> bool {
        let _ = bytes;
        false
    }
    /// As [`SendBuilder::set_usual_inline_data`], of more bytes.
    #[inline(always)]
    fn set_most_inline_data(&mut self, bytes: UserBytes<'_>) -> bool {
        let _ = bytes;
        false
    }
    /// `ibv_wr_set_inline_data` and `ibv_wr_set_inline_data_list`.
    fn set_inline_data(&mut self, data: &InlineData<'_>);
    /// `ibv_wr_set_xrc_srqn`.
    fn set_xrc_srqn(&mut self, remote_srqn: u32);
    /// A setter was called with what no setter takes.
    fn refuse(&mut self, errno: Errno);
    /// `ibv_wr_complete`, as [`SendBuilder::usual_operation`].
    #[inline(always)]
    fn complete_usual(&mut self) -> bool {
        false
    }
    /// As [`SendBuilder::complete_usual`], of more kinds.
    #[inline(always)]
    fn complete_most(&mut self) -> bool {
        false
    }
    /// `ibv_wr_complete`: hands what was built to the device; whether that is yet to be told, by [`QueuePair::kick`].
    ///
    /// # Errors
    /// The first error since `start`; nothing was posted then.
    fn complete(&mut self) -> Result<bool, Errno>;
    /// `ibv_wr_abort`: forgets everything since `start`.
    fn abort(&mut self);
    /// Tells the device of what was [`Posted::Untold`].
    fn tell(&mut self, last: u32, burst: u32) {
        let _ = (last, burst);
    }
}

/// What became of a work request that was to be posted without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// The device was told of it.
    Told,
    /// It is in the queue, which this thread keeps until it has called [`SendBuilder::tell`]: somebody else rings the doorbell just now.
    Untold {
        /// Where it begins.
        last: u32,
        /// What of it the doorbell has.
        burst: u32,
    },
    /// Nothing was done.
    Not,
}

/// The data of a single send, of a usual kind as far as nothing but the work request tells.
#[derive(Debug, Clone, Copy)]
pub enum Single<'a> {
    /// One entry.
    Entry(&'a ibv_sge),
    /// Two.
    Entries(&'a [ibv_sge; 2]),
    /// Few bytes, inline.
    Inline(UserBytes<'a>),
    /// More of them.
    Long(UserBytes<'a>),
}

/// The objects that a send work request names by pointer, looked up by the verbs layer, which made them.
pub trait Objects<'a, A: 'a>: Copy {
    /// The family's part of an address handle; `None` for NULL.
    fn ah(self, ah: *mut ibv_ah) -> Option<&'a A>;
    /// The memory window's present rkey and its type; `None` for NULL.
    fn mw(self, mw: *mut ibv_mw) -> Option<(u32, u32)>;
    /// The memory region's lkey; `None` for NULL.
    fn mr_lkey(self, mr: *mut ibv_mr) -> Option<u32>;
}

/// A queue pair's two queues.
pub trait QueuePair: Send + Sync {
    /// What an address handle carries for this family.
    type Ah: 'static;
    /// The send queue's builder.
    type Sq: SendBuilder;

    /// Whether the posts of sends below do anything: where each is a system call, they would save nothing.
    const USUAL_SENDS: bool;

    /// Posts a work request that is `OPCODE` and has the data `single` on a queue that this thread owns. Where it is something else after
    /// all, [`QueuePair::post_most_send`] has to do it.
    #[inline(always)]
    fn post_usual_send<const OPCODE: u32>(&self, wr: SendWr<'_>, single: Single<'_>) -> Posted {
        let _ = (wr, single);
        Posted::Not
    }

    /// Posts a list of usual kinds; whether that was done.
    #[inline(always)]
    fn post_usual_sends<'a>(&self, wrs: SendWrs<'a>, objects: impl Objects<'a, Self::Ah>) -> bool {
        let _ = (wrs, objects);
        false
    }

    /// The data of `wr`, if [`QueuePair::post_usual_send`] may do it, at a glance: else it is not asked, and
    /// [`QueuePair::post_most_send`] is.
    #[inline(always)]
    fn single(wr: SendWr<'_>) -> Option<Single<'_>> {
        let _ = wr;
        None
    }

    /// As [`QueuePair::post_usual_send`], of more kinds, each a little slower.
    #[inline(always)]
    fn post_most_send<'a>(&self, wr: SendWr<'a>, objects: impl Objects<'a, Self::Ah>) -> Posted {
        let _ = (wr, objects);
        Posted::Not
    }

    /// As [`QueuePair::post_usual_sends`], of more kinds; the list is not empty.
    #[inline(always)]
    fn post_most_sends<'a>(&self, wrs: SendWrs<'a>, objects: impl Objects<'a, Self::Ah>) -> bool {
        let _ = (wrs, objects);
        false
    }

    /// As [`QueuePair::post_usual_sends`], of one, to the QP's own receive queue.
    #[inline(always)]
    fn post_usual_recv(&self, wr: RecvWr<'_>) -> bool {
        let _ = wr;
        false
    }

    /// As [`QueuePair::post_usual_sends`], to the QP's own receive queue.
    #[inline(always)]
    fn post_usual_recvs(&self, wrs: RecvWrs<'_>) -> bool {
        let _ = wrs;
        false
    }

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

    /// The caller, who has the send queue, is about to give it back and [`QueuePair::kick`]: until then [`QueuePair::is_quiet`] is false.
    #[inline(always)]
    fn will_kick(&self) {}

    /// Tells the kernel of what was published, after [`QueuePair::will_kick`].
    ///
    /// # Errors
    /// The kernel's.
    #[inline(always)]
    fn kick(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether [`Family::close_doorbells`] closes what its sends are told by.
    fn shares_doorbell(&self) -> bool {
        false
    }

    /// Closes both queues for good: the device hears of no post that begins later, which is kept instead. Does not wait.
    fn close(&self);

    /// Whether every post that began before [`QueuePair::close`] has ended, but for sends by a doorbell that is shared. Between the
    /// two, each CPU passes a barrier.
    fn is_quiet(&self) -> bool;

    /// What was posted and has not completed, in posting order: sends, then receives of its own queue. Nobody posts or polls
    /// meanwhile.
    fn outstanding(&self) -> Vec<Outstanding>;

    /// Where the kernel's driver waits for its users: takes what was posted to memory of our own, since stopping the QP may
    /// make the kernel's forget it. Called again just before that.
    ///
    /// # Errors
    /// `ENOMEM`; `EBUSY` where the application holds a queue's lock.
    fn freeze(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// The QP is stopped: lets go of the kernel's memory.
    fn let_go(&self) {}

    /// `ibv_wr_set_ud_addr`, under the send queue's lock.
    fn set_ud_addr(sq: &mut Self::Sq, ah: &Self::Ah, remote_qpn: u32, remote_qkey: u32);
}

/// A shared receive queue.
pub trait SharedReceiveQueue: Send + Sync {
    /// As [`QueuePair::post_usual_recv`].
    #[inline(always)]
    fn post_usual_recv(&self, wr: RecvWr<'_>) -> bool {
        let _ = wr;
        false
    }

    /// As [`QueuePair::post_usual_sends`].
    #[inline(always)]
    fn post_usual_recvs(&self, wrs: RecvWrs<'_>) -> bool {
        let _ = wrs;
        false
    }

    /// Posts a list.
    ///
    /// # Errors
    /// The first work request that was refused.
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>>;

    /// As [`QueuePair::close`]. What is kept stays so until the SRQ is destroyed.
    fn close(&self);

    /// As [`QueuePair::is_quiet`].
    fn is_quiet(&self) -> bool;

    /// The QPs that receive from it are stopped: takes what was posted to memory of our own, and lets go of the kernel's.
    ///
    /// # Errors
    /// As [`QueuePair::freeze`].
    fn let_go(&self) -> Result<(), Errno> {
        Ok(())
    }
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
    /// `IBV_QPT_*` of the QPs that it creates.
    const QP_TYPES: &'static [u32];
    /// What of the verbs that not every driver has it serves.
    const VERBS: Verbs;
    /// The kernel's driver never takes a device away from its users: its removal waits until they let go of it.
    const WAITS_FOR_USERS: bool;
    /// Completions.
    type Cq: CompletionQueue<Arm = Self::Arm>;
    /// What arms them.
    type Arm: Arm;
    /// Protection domains.
    type Pd: Send + Sync;
    /// Thread domains.
    type Td: Send + Sync;
    /// Queue pairs.
    type Qp: QueuePair<Ah = Self::Ah>;
    /// Shared receive queues.
    type Srq: SharedReceiveQueue;
    /// Address handles.
    type Ah: Send + Sync;

    /// Begins to serve a context: issues the family's GET_CONTEXT. `fork` is for memory that the device uses.
    ///
    /// # Errors
    /// What the kernel said, with the step.
    fn open(fd: CmdFd, fork: ForkRanges) -> Result<Opened<Self>, Error>;

    /// Begins to serve a context that another process, or another library, opened.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where contexts cannot be shared; what the kernel said.
    fn import(_fd: CmdFd, _fork: ForkRanges) -> Result<Opened<Self>, Error> {
        Err(Error::new("import a context", Errno::EOPNOTSUPP))
    }

    /// Closes the doorbells that several queues share, for good, so that thousands of queues are closed by a few. Does not wait.
    fn close_doorbells(&self) {}

    /// Whether every store to one of them that began before has ended, as for [`QueuePair::is_quiet`].
    fn is_quiet(&self) -> bool {
        true
    }

    /// query_device_ex, with what the driver adds.
    ///
    /// # Errors
    /// What the kernel said.
    fn query_device_ex(&self, device: &Device) -> Result<(ExQueryDeviceResp, DriverCaps), Errno>;

    /// The device's clock, in its cycles.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is none.
    fn raw_clock(&self) -> Result<u64, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Allocates a PD.
    ///
    /// # Errors
    /// What the kernel said.
    fn alloc_pd(&self, device: &Device) -> Result<Created<Self::Pd>, Error>;

    /// The family's side of a PD that somebody else allocated in the same context.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where contexts cannot be shared; what the kernel said.
    fn import_pd(&self, _device: &Device, _pd: Handle) -> Result<Self::Pd, Error> {
        Err(Error::new("import a PD", Errno::EOPNOTSUPP))
    }

    /// Allocates `length` bytes of device memory, aligned to `1 << log_align_req`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is none; what the kernel said.
    fn alloc_dm(
        &self,
        _device: &Device,
        _length: usize,
        _log_align_req: u32,
    ) -> Result<Created<DeviceMemory>, Error> {
        Err(Error::new("allocate device memory", Errno::EOPNOTSUPP))
    }

    /// Device memory that somebody else allocated in the same context.
    ///
    /// # Errors
    /// As for [`Family::alloc_dm`].
    fn import_dm(&self, _device: &Device, _dm: Handle) -> Result<DeviceMemory, Error> {
        Err(Error::new("import device memory", Errno::EOPNOTSUPP))
    }

    /// The family's side of a parent domain of `pd` and, if there is one, `td`.
    fn parent_domain(&self, pd: &Self::Pd, td: Option<&Self::Td>) -> Self::Pd;

    /// Whether QPs and SRQs of `pd` are used by one thread, by the application's word.
    fn is_single_threaded(&self, pd: Option<&Self::Pd>) -> bool;

    /// Allocates a thread domain.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there are none; what the kernel said.
    fn alloc_td(&self, device: &Device) -> Result<Self::Td, Error>;

    /// The key of the region that swallows what is written and gives nothing.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the device has none.
    fn null_mr(&self) -> Result<u32, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Creates a CQ.
    ///
    /// # Errors
    /// What the kernel said, or a mapping that cannot be had; nothing is left behind.
    fn create_cq(&self, device: &Device, request: &CqRequest) -> Result<CreatedCq<Self>, Error>;

    /// The kernel destroyed the CQ, and nobody uses it any more.
    fn cq_destroyed(&self, cq: Self::Cq, arm: Self::Arm) {
        drop((cq, arm));
    }

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
        cq: Option<&SpinLock<Self::Cq>>,
    ) -> Result<(Created<Self::Srq>, u32), Error>;

    /// The kernel destroyed the SRQ, whose completions went to `cq` if it is an XRC one.
    fn srq_destroyed(&self, srq: &Self::Srq, cq: Option<&SpinLock<Self::Cq>>);

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
    fn create_qp(
        &self,
        device: &Device,
        request: &mut QpRequest,
        attached: &Attached<'_, Self>,
    ) -> Result<(Created<Self::Qp>, u32), Error>;

    /// The family's side of a QP that somebody else created: it posts and receives nothing.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there are none.
    fn opened_qp(&self) -> Result<Self::Qp, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// The QP is in `state` (`IBV_QPS_*`) now, by a modify that the kernel accepted.
    fn qp_entered(&self, qp: &Self::Qp, state: u32, attached: &Attached<'_, Self>);

    /// [`QueuePair::outstanding`], with all that can be known of each.
    fn outstanding(&self, qp: &Self::Qp, _attached: &Attached<'_, Self>) -> Vec<Outstanding> {
        qp.outstanding()
    }

    /// The kernel destroyed the QP.
    fn qp_destroyed(&self, qp: &Self::Qp, attached: &Attached<'_, Self>);

    /// What `ibv_query_qp` tells of the queues' sizes, where it is not what the kernel says.
    fn qp_cap(&self, qp: &Self::Qp, cap: ibv_qp_cap) -> ibv_qp_cap;

    /// `ibv_set_ece` of a QP: `options` of the vendor `vendor_id`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is none, `EINVAL` for another vendor's.
    fn set_ece(&self, _qp: &Self::Qp, _vendor_id: u32, _options: u32) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `ibv_query_ece`: vendor and options.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is none.
    fn query_ece(&self, _qp: &Self::Qp) -> Result<(u32, u32), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Sends the modify_qp command, with what the family adds to it.
    ///
    /// # Errors
    /// What the kernel said.
    fn modify_qp(
        &self,
        device: &Device,
        qp: &Self::Qp,
        command: &ModifyQp,
        rate_limit: Option<u32>,
    ) -> Result<(), Errno>;

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

    /// Whether the kernel has an object for an address handle.
    fn ah_is_in_kernel(_ah: &Self::Ah) -> bool {
        true
    }

    /// The firmware version string of query_device, from the kernel's number.
    fn fw_ver(raw: u64) -> String;
}

bitflags::bitflags! {
    /// Verbs that not every driver has: libibverbs answers `EOPNOTSUPP` for those a family leaves out.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Verbs: u32 {
        /// `ibv_alloc_td`, `ibv_alloc_parent_domain`.
        const THREAD_DOMAINS = 1 << 0;
        /// `ibv_open_xrcd`, `ibv_open_qp`, `ibv_get_srq_num`.
        const XRC = 1 << 1;
        /// `ibv_alloc_null_mr`.
        const NULL_MR = 1 << 2;
        /// `ibv_query_rt_values_ex`.
        const CLOCK = 1 << 3;
        /// `ibv_query_port_speed`.
        const PORT_SPEED = 1 << 5;
        /// `ibv_alloc_dm`, `ibv_reg_dm_mr`.
        const DEVICE_MEMORY = 1 << 6;
        /// `ibv_import_pd`, `ibv_import_mr`, `ibv_import_dm`.
        const IMPORT = 1 << 7;
        /// `ibv_set_ece`, `ibv_query_ece`.
        const ECE = 1 << 4;
    }
}

/// Parts of `ibv_device_attr_ex` that the driver tells, beside those of the core.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "named as in verbs.h")]
pub struct DriverCaps {
    pub max_tso: u32,
    pub tso_qpts: u32,
    pub rx_hash_fields_mask: u64,
    pub rx_hash_function: u8,
    pub packet_pacing: Option<ibv_packet_pacing_caps>,
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
