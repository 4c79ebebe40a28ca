//! Queue pairs: life, state, posting, and the `ibv_wr_*` builders.
#![allow(unsafe_code, reason = "reads C's arguments and writes C's objects")]

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::sync::OnceLock;

use libc::{c_int, c_void, size_t};

use super::attr;
use super::cast::{self, Fresh, WrObjects, non_null};
use super::context::{self, Context, Kind};
use super::memory::{self, cx_of, handle_of};
use super::{cq, domains, events, guard, srq};
use crate::abi::layout::Layout;
use crate::abi::public::*;
use crate::abi::wr::{self, InlineData, RecvWrs, SendWr, SendWrs, UserBytes};
use crate::error::{Errno, Error, Step as _};
use crate::family::{
    Attached, Family, Posted, QpRequest, QueuePair, Refused, SendBuilder as _, SendOp, Single, Verbs,
};
use crate::log;
use crate::sync::Locking;
use crate::uapi::{self, CmdFd, Handle, Udata};

/// C's `struct verbs_qp` in any layout: the words behind the builders hold `comp_mask` and `xrcd` at places that differ.
#[repr(C)]
pub(crate) struct QpHead {
    pub(crate) ex: ibv_qp_ex,
    tail: [u64; 2],
}

/// `verbs_qp.comp_mask`: the QP has the `ibv_wr_*` builders.
const VERBS_QP_EX: u32 = 1 << 1;

/// Our part of a QP.
#[derive(Debug)]
pub(crate) struct Qp<F: Family> {
    fd: CmdFd,
    handle: Handle,
    /// Opened by number, and not created here: an XRC receiver of another process.
    opened: bool,
    /// Created in a parent domain, which counts it.
    in_parent_domain: bool,
    pub(crate) queues: F::Qp,
    /// What it was granted, for `ibv_query_qp` once nobody else knows.
    cap: ibv_qp_cap,
    sq_sig_all: bool,
    /// The kernel's QP was destroyed before the application destroyed this one, and reported so many events.
    stopped: OnceLock<u32>,
}

/// The kind of a QP with these queues.
fn kind_of<F: Family>(queues: &F::Qp) -> Kind {
    if queues.shares_doorbell() { Kind::Sharer } else { Kind::Qp }
}

impl<F: Family> Qp<F> {
    /// Has the kernel's QP destroyed, so that the device touches no memory any more.
    pub(crate) fn stop(&self) {
        if self.opened {
            return;
        }
        self.stopped.get_or_init(|| {
            let destroyed = uapi::qp::destroy(self.fd, self.handle);
            destroyed.or_else(|errno| reset(self.fd, self.handle).map_err(|_| errno)).unwrap_or_else(
                |errno| {
                    log::warn!("a queue pair of a dead device could not be stopped: {errno}");
                    0
                },
            )
        });
    }

    /// Destroys the kernel's QP; how many events it reported.
    fn destroy(&self) -> Result<u32, Errno> {
        match self.stopped.get() {
            Some(reported) => Ok(*reported),
            None => uapi::qp::destroy(self.fd, self.handle),
        }
    }
}

/// Stops a QP that the kernel does not destroy, since it is attached to a multicast group; its events are not known.
fn reset(fd: CmdFd, handle: Handle) -> Result<u32, Errno> {
    let command = uapi::wire::ModifyQp {
        qp_handle: handle.0,
        attr_mask: IBV_QP_STATE,
        qp_state: IBV_QPS_RESET as u8,
        ..Default::default()
    };
    uapi::qp::modify(fd, &command, Udata::none()).map(|()| 0)
}

/// Our part of the QP at `qp`.
///
/// # Safety
/// `qp` is a live QP of family `F`.
#[inline(always)]
pub(crate) unsafe fn ours<'a, F: Family>(qp: *mut ibv_qp) -> &'a Qp<F> {
    // SAFETY: the caller's word.
    unsafe { cast::body::<QpHead, Qp<F>>(qp.cast()) }
}

/// A field of a C object that nobody writes meanwhile, or only the thread that reads it.
macro_rules! field {
    ($object:ident.$field:ident) => {
        // SAFETY: a live object, by the caller's word; a single field is copied.
        unsafe { (*$object).$field }
    };
}

/// What both create verbs ask for.
struct Init {
    qp_context: *mut c_void,
    pd: *mut ibv_pd,
    send_cq: *mut ibv_cq,
    recv_cq: *mut ibv_cq,
    srq: *mut ibv_srq,
    xrcd: *mut ibv_xrcd,
    qp_type: u32,
    sq_sig_all: bool,
    send_ops_flags: Option<u64>,
}

/// The family's side of what a QP is attached to.
///
/// # Safety
/// Each pointer is NULL or a live object of family `F` during `'a`.
unsafe fn attached<'a, F: Family>(
    pd: *mut ibv_pd,
    send_cq: *mut ibv_cq,
    recv_cq: *mut ibv_cq,
    srq: *mut ibv_srq,
) -> Attached<'a, F> {
    Attached {
        // SAFETY: the caller's word.
        pd: (!pd.is_null()).then(|| &unsafe { memory::pd_of::<F>(pd) }.part),
        // SAFETY: the caller's word.
        send_cq: unsafe { cq::queue_of::<F>(send_cq) },
        // SAFETY: the caller's word.
        recv_cq: unsafe { cq::queue_of::<F>(recv_cq) },
        // SAFETY: the caller's word.
        srq: unsafe { srq::queue_of::<F>(srq) },
    }
}

/// The CQs of a QP that is there. Its PD and SRQ are only told when it is created: after the device was taken away the
/// kernel lets them be destroyed first.
///
/// # Safety
/// `qp` is a live QP of family `F`.
pub(super) unsafe fn attached_of<'a, F: Family>(qp: *mut ibv_qp) -> Attached<'a, F> {
    let (send_cq, recv_cq) = (field!(qp.send_cq), field!(qp.recv_cq));
    // SAFETY: a CQ stays while it has users, and this QP is one.
    unsafe { attached::<F>(core::ptr::null_mut(), send_cq, recv_cq, core::ptr::null_mut()) }
}

unsafe fn create<F: Family>(
    cx: &Context<F>,
    context: *mut ibv_context,
    init: &Init,
    cap: &mut ibv_qp_cap,
) -> Result<*mut ibv_qp, Error> {
    cx.usable()?;
    if !F::QP_TYPES.contains(&init.qp_type) {
        return Err(Error::new("check the QP type", Errno::EOPNOTSUPP));
    }
    // An XRC receiver has nothing but its domain; an XRC sender receives nothing.
    let receiver = init.qp_type == IBV_QPT_XRC_RECV;
    let sender = init.qp_type == IBV_QPT_XRC_SEND;
    let needed = |present: bool, what| if present { Ok(()) } else { Err(Error::new(what, Errno::EINVAL)) };
    needed(receiver || !init.pd.is_null(), "check the PD")?;
    needed(receiver || !init.send_cq.is_null(), "check the send CQ")?;
    needed(receiver || sender || !init.recv_cq.is_null(), "check the receive CQ")?;
    needed(!receiver || !init.xrcd.is_null(), "check the XRC domain")?;
    let null = core::ptr::null_mut();
    let Init { pd, send_cq, recv_cq, srq, .. } = *init;
    let (pd, send_cq) = if receiver { (null, core::ptr::null_mut()) } else { (pd, send_cq) };
    let recv_cq = if receiver || sender { core::ptr::null_mut() } else { recv_cq };
    let srq = if receiver || sender { core::ptr::null_mut() } else { srq };
    // SAFETY: the caller's word: live objects of this family.
    let attached = unsafe { attached::<F>(pd, send_cq, recv_cq, srq) };
    // SAFETY: the caller's word: a live PD of this family.
    let pd_part = (!pd.is_null()).then(|| unsafe { memory::pd_of::<F>(pd) });
    let fresh = Fresh::<QpHead, Qp<F>>::new()?;
    let handle = |present: bool, handle: &dyn Fn() -> Handle| present.then(handle);
    let mut request = QpRequest {
        qp_type: init.qp_type,
        pd: handle(!pd.is_null(), &|| handle_of!(pd)),
        // SAFETY: the caller's word: a live XRC domain.
        xrcd: handle(receiver, &|| unsafe { domains::xrcd_handle(init.xrcd) }),
        send_cq: handle(!send_cq.is_null(), &|| handle_of!(send_cq)),
        recv_cq: handle(!recv_cq.is_null(), &|| handle_of!(recv_cq)),
        srq: handle(!srq.is_null(), &|| handle_of!(srq)),
        cap: *cap,
        sq_sig_all: init.sq_sig_all,
        send_ops: init.send_ops_flags,
        locking: pd_part.map_or(Locking::YES, |pd| memory::locking(&cx.family, pd)),
        user_handle: fresh.user_handle(),
    };
    let (created, qp_num) = cx.family.create_qp(&cx.device, &mut request, &attached)?;
    let in_parent_domain = pd_part.is_some_and(memory::Pd::is_parent_domain);
    if let Some(pd) = pd_part.filter(|_| in_parent_domain) {
        // ORDER: Relaxed: a count; the application orders creating and destroying.
        pd.users.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the caller's word: NULL or live CQs of family F.
    unsafe { cq::hold::<F>(send_cq) };
    // SAFETY: as above.
    unsafe { cq::hold::<F>(recv_cq) };
    *cap = request.cap;
    // SAFETY: ours until `finish`, nobody else has the address.
    let head = unsafe { &mut *fresh.head() };
    // libibverbs fills in nothing of a QP.
    let qp = &mut head.ex.qp_base;
    qp.context = context;
    qp.qp_context = init.qp_context;
    qp.pd = pd;
    qp.send_cq = send_cq;
    qp.recv_cq = recv_cq;
    qp.srq = srq;
    qp.handle = created.handle.0;
    qp.qp_num = qp_num;
    qp.state = IBV_QPS_RESET;
    qp.qp_type = init.qp_type;
    qp.mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    qp.cond = libc::PTHREAD_COND_INITIALIZER;
    if let Some(flags) = init.send_ops_flags {
        set_builders::<F>(&mut head.ex, flags);
        // SAFETY: `head` is a whole QpHead.
        unsafe { set_comp_mask(fresh.head(), cx.host.layout(), VERBS_QP_EX) };
    }
    let kind = kind_of::<F>(&created.object);
    let head = fresh.finish(Qp {
        fd: cx.device.fd,
        handle: created.handle,
        opened: false,
        in_parent_domain,
        queues: created.object,
        cap: *cap,
        sq_sig_all: init.sq_sig_all,
        stopped: OnceLock::new(),
    });
    cx.add(kind, head);
    Ok(head.cast())
}

/// Writes `verbs_qp.comp_mask` where this libibverbs keeps it. In the older layouts that is over a builder's slot which
/// they do not have; `set_builders` leaves it empty since [`missing_builders`] refused its flag.
unsafe fn set_comp_mask(head: *mut QpHead, layout: &Layout, value: u32) {
    let offset = layout.comp_mask();
    if offset + size_of::<u32>() <= size_of::<QpHead>() {
        // SAFETY: the caller's word and the test above.
        let at = unsafe { head.cast::<u8>().add(offset) };
        // SAFETY: as above; every layout keeps it at a multiple of 8.
        unsafe { at.cast::<u32>().write(value) };
    }
}

/// Builders that this libibverbs has no slot for.
fn missing_builders(layout: &Layout) -> u64 {
    let mut missing = 0;
    if !layout.has_wr_atomic_write() {
        missing |= IBV_QP_EX_WITH_ATOMIC_WRITE;
    }
    if !layout.has_wr_flush() {
        missing |= IBV_QP_EX_WITH_FLUSH;
    }
    u64::from(missing)
}

/// `create_qp`.
///
/// # Safety
/// ibv_create_qp(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn create_qp<F: Family>(
    pd: *mut ibv_pd,
    attr: *mut ibv_qp_init_attr,
) -> *mut ibv_qp {
    guard::pointer_of("ibv_create_qp", || {
        // SAFETY: the caller's word; the caller alone reads and writes it.
        let attr = unsafe { &mut *non_null(attr, "check the arguments")? };
        let init = Init {
            qp_context: attr.qp_context,
            pd,
            send_cq: attr.send_cq,
            recv_cq: attr.recv_cq,
            srq: attr.srq,
            xrcd: core::ptr::null_mut(),
            qp_type: attr.qp_type,
            sq_sig_all: attr.sq_sig_all != 0,
            send_ops_flags: None,
        };
        // SAFETY: the caller's word: a live PD.
        let context = unsafe { (*pd).context };
        // SAFETY: the PD's family is that of its context.
        let cx = unsafe { context::for_creating::<F>(context) };
        // SAFETY: as above.
        unsafe { create::<F>(cx, context, &init, &mut attr.cap) }
    })
}

/// `create_qp_ex`.
///
/// # Safety
/// ibv_create_qp_ex(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn create_qp_ex<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_qp_init_attr_ex,
) -> *mut ibv_qp {
    guard::pointer_of("ibv_create_qp_ex", || {
        // SAFETY: the caller's word; the caller alone reads and writes it.
        let attr = unsafe { &mut *non_null(attr, "check the arguments")? };
        // SAFETY: the caller's word.
        let cx = unsafe { context::for_creating::<F>(context) };
        let unsupported = Err(Error::new("check the QP's comp_mask and flags", Errno::EOPNOTSUPP));
        let mut known = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
        if F::VERBS.contains(Verbs::XRC) {
            known |= IBV_QP_INIT_ATTR_XRCD;
        }
        let has = |bit: u32| attr.comp_mask & bit != 0;
        if attr.comp_mask & !known != 0 || (has(IBV_QP_INIT_ATTR_CREATE_FLAGS) && attr.create_flags != 0) {
            return unsupported;
        }
        if !has(IBV_QP_INIT_ATTR_PD) && attr.qp_type != IBV_QPT_XRC_RECV {
            return Err(Error::new("find the QP's PD", Errno::EINVAL));
        }
        let send_ops_flags = has(IBV_QP_INIT_ATTR_SEND_OPS_FLAGS).then_some(attr.send_ops_flags);
        if let Some(flags) = send_ops_flags {
            let possible = cx.family.send_ops(&cx.device, attr.qp_type) & !missing_builders(cx.host.layout());
            if possible == 0 || flags & !possible != 0 {
                return unsupported;
            }
        }
        let init = Init {
            qp_context: attr.qp_context,
            pd: if has(IBV_QP_INIT_ATTR_PD) { attr.pd } else { core::ptr::null_mut() },
            send_cq: attr.send_cq,
            recv_cq: attr.recv_cq,
            srq: attr.srq,
            xrcd: if has(IBV_QP_INIT_ATTR_XRCD) { attr.xrcd } else { core::ptr::null_mut() },
            qp_type: attr.qp_type,
            sq_sig_all: attr.sq_sig_all != 0,
            send_ops_flags,
        };
        // SAFETY: the caller's word.
        unsafe { create::<F>(cx, context, &init, &mut attr.cap) }
    })
}

/// `modify_qp`.
///
/// # Safety
/// ibv_modify_qp(3), by libibverbs, for a QP of family `F`.
pub(crate) unsafe extern "C" fn modify_qp<F: Family>(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    mask: c_int,
) -> c_int {
    guard::errno_of("ibv_modify_qp", || {
        let attr = non_null(attr, "check the arguments")?;
        let mask = mask.cast_unsigned();
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(qp) };
        // SAFETY: the caller's word. Headers before rate_limit was added make the struct shorter: it is only read when asked for.
        let rate_limit = if mask & IBV_QP_RATE_LIMIT != 0 { unsafe { (*attr).rate_limit } } else { 0 };
        // SAFETY: the caller's word: all fields that any mask of this libibverbs can name.
        let command = unsafe { attr::modify_command(ours.handle, &*attr, mask) };
        let rate_limit = (mask & IBV_QP_RATE_LIMIT != 0).then_some(rate_limit);
        let cx = cx_of!(F, qp);
        if cx.device.life.is_over() {
            // Every QP is in error; all that is left to ask of it is to be so, or to forget what it owes.
            let state = u32::from(command.qp_state);
            if mask & IBV_QP_STATE == 0 || !matches!(state, IBV_QPS_ERR | IBV_QPS_RESET) {
                cx.usable()?;
            }
        } else {
            cx.family.modify_qp(&cx.device, &ours.queues, &command, rate_limit).step("modify the QP")?;
        }
        if mask & IBV_QP_STATE != 0 {
            // SAFETY: the caller's word.
            let attached = unsafe { attached_of::<F>(qp) };
            cx.family.qp_entered(&ours.queues, u32::from(command.qp_state), &attached);
        }
        Ok(())
    })
}

/// `query_qp`.
///
/// # Safety
/// ibv_query_qp(3), by libibverbs, for a QP of family `F`.
pub(crate) unsafe extern "C" fn query_qp<F: Family>(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    mask: c_int,
    init_attr: *mut ibv_qp_init_attr,
) -> c_int {
    guard::errno_of("ibv_query_qp", || {
        let attr = non_null(attr, "check the arguments")?;
        let init_attr = non_null(init_attr, "check the arguments")?;
        let mask = mask.cast_unsigned();
        if mask & IBV_QP_RATE_LIMIT != 0 {
            return Err(Error::new("check the attribute mask", Errno::EOPNOTSUPP));
        }
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(qp) };
        if cx_of!(F, qp).device.life.is_over() {
            // SAFETY: the caller's word, as below.
            unsafe { query_without_device(ours, qp, attr, init_attr) };
            return Ok(());
        }
        let resp = uapi::qp::query(ours.fd, ours.handle, mask).step("query the QP")?;
        // SAFETY: the caller's word: its own struct.
        attr::fill_qp_attr(unsafe { &mut *attr }, &resp);
        let (qp_context, send_cq) = (field!(qp.qp_context), field!(qp.send_cq));
        let (recv_cq, srq, qp_type) = (field!(qp.recv_cq), field!(qp.srq), field!(qp.qp_type));
        let cx = cx_of!(F, qp);
        let cap = cx.family.qp_cap(&ours.queues, attr::cap_of(&resp));
        // SAFETY: the caller's word: its own struct.
        unsafe { (*attr).cap = cap };
        let sq_sig_all = c_int::from(resp.sq_sig_all);
        // SAFETY: the caller's word: its own struct.
        unsafe {
            init_attr.write(ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all })
        };
        // A state that the device went into by itself takes posts as before: they complete with an error.
        Ok(())
    })
}

/// What is known of a QP whose device is gone: it is in error.
///
/// # Safety
/// ibv_query_qp(3), by libibverbs, for a QP of family `F`.
unsafe fn query_without_device<F: Family>(
    ours: &Qp<F>,
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    init_attr: *mut ibv_qp_init_attr,
) {
    let resp = uapi::wire::QueryQpResp {
        qp_state: IBV_QPS_ERR as u8,
        cur_qp_state: IBV_QPS_ERR as u8,
        ..Default::default()
    };
    let cap = ours.cap;
    // SAFETY: the caller's word: its own struct.
    attr::fill_qp_attr(unsafe { &mut *attr }, &resp);
    // SAFETY: as above.
    unsafe { (*attr).cap = cap };
    let (qp_context, send_cq) = (field!(qp.qp_context), field!(qp.send_cq));
    let (recv_cq, srq, qp_type) = (field!(qp.recv_cq), field!(qp.srq), field!(qp.qp_type));
    let sq_sig_all = c_int::from(ours.sq_sig_all);
    let init = ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all };
    // SAFETY: as above.
    unsafe { init_attr.write(init) };
}

/// `destroy_qp`.
///
/// # Safety
/// ibv_destroy_qp(3), by libibverbs, for a QP of family `F`.
pub(crate) unsafe extern "C" fn destroy_qp<F: Family>(qp: *mut ibv_qp) -> c_int {
    guard::errno_of("ibv_destroy_qp", || {
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(qp) };
        let cx = cx_of!(F, qp);
        let life = &cx.device.life;
        let reported = memory::counted(ours.destroy(), life, "destroy the QP")?;
        // SAFETY: initialised in `create`.
        let acknowledged = reported.is_some_and(|reported| unsafe { events::wait_qp(qp, reported, life) });
        if !ours.opened {
            // SAFETY: the caller's word.
            cx.family.qp_destroyed(&ours.queues, &unsafe { attached_of::<F>(qp) });
        }
        let (pd, send_cq, recv_cq) = (field!(qp.pd), field!(qp.send_cq), field!(qp.recv_cq));
        // SAFETY: held since the QP was created.
        unsafe { cq::release::<F>(send_cq) };
        // SAFETY: as above.
        unsafe { cq::release::<F>(recv_cq) };
        if ours.in_parent_domain {
            // ORDER: Relaxed: a count; the application orders creating and destroying.
            // SAFETY: a parent domain stays while it has QPs.
            unsafe { memory::pd_of::<F>(pd) }.users.fetch_sub(1, Ordering::Relaxed);
        }
        cx.remove(kind_of::<F>(&ours.queues), qp);
        // SAFETY: the kernel's side is gone.
        unsafe { cx.end(qp.cast(), acknowledged, cast::free::<QpHead, Qp<F>>) };
        Ok(())
    })
}

/// `open_qp`: an XRC receiver that somebody else created, by number.
///
/// # Safety
/// ibv_open_qp(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn open_qp<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_qp_open_attr,
) -> *mut ibv_qp {
    guard::pointer_of("ibv_open_qp", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        let needed = IBV_QP_OPEN_ATTR_NUM | IBV_QP_OPEN_ATTR_XRCD | IBV_QP_OPEN_ATTR_TYPE;
        if attr.comp_mask & !(needed | IBV_QP_OPEN_ATTR_CONTEXT) != 0 {
            return Err(Error::new("check the QP's comp_mask", Errno::ENOSYS));
        }
        if attr.comp_mask & needed != needed || attr.qp_type != IBV_QPT_XRC_RECV {
            return Err(Error::new("find the QP's number, type and XRC domain", Errno::EINVAL));
        }
        let xrcd = non_null(attr.xrcd, "check the XRC domain")?;
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        // SAFETY: the caller's word: a live XRC domain.
        let xrcd = unsafe { domains::xrcd_handle(xrcd) };
        let fresh = Fresh::<QpHead, Qp<F>>::new()?;
        let kind = IBV_QPT_XRC_RECV as u8;
        let opened =
            uapi::qp::open(cx.device.fd, xrcd, fresh.user_handle(), attr.qp_num, kind, Udata::none())
                .step("open the QP")?;
        // SAFETY: ours until `finish`, nobody else has the address.
        let qp = unsafe { &mut (*fresh.head()).ex.qp_base };
        qp.context = context;
        if attr.comp_mask & IBV_QP_OPEN_ATTR_CONTEXT != 0 {
            qp.qp_context = attr.qp_context;
        }
        qp.handle = opened.handle.0;
        qp.qp_num = opened.qp_num;
        qp.qp_type = attr.qp_type;
        qp.mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        qp.cond = libc::PTHREAD_COND_INITIALIZER;
        let queues = cx.family.opened_qp().step("open the QP")?;
        let head = fresh.finish(Qp {
            fd: cx.device.fd,
            handle: opened.handle,
            opened: true,
            in_parent_domain: false,
            queues,
            cap: ibv_qp_cap::zeroed(),
            sq_sig_all: false,
            stopped: OnceLock::new(),
        });
        cx.add(Kind::Qp, head);
        Ok(head.cast())
    })
}

/// `attach_mcast`.
///
/// # Safety
/// ibv_attach_mcast(3), by libibverbs, for a QP of family `F`.
pub(crate) unsafe extern "C" fn attach_mcast<F: Family>(
    qp: *mut ibv_qp,
    gid: *const ibv_gid,
    lid: u16,
) -> c_int {
    guard::errno_of("ibv_attach_mcast", || {
        // SAFETY: the caller's word; plain bytes.
        let gid = unsafe { *non_null(gid.cast_mut(), "check the arguments")? };
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(qp) };
        cx_of!(F, qp).usable()?;
        uapi::qp::attach_mcast(ours.fd, ours.handle, gid.raw, lid).step("attach the QP to the group")
    })
}

/// `detach_mcast`.
///
/// # Safety
/// ibv_detach_mcast(3), by libibverbs, for a QP of family `F`.
pub(crate) unsafe extern "C" fn detach_mcast<F: Family>(
    qp: *mut ibv_qp,
    gid: *const ibv_gid,
    lid: u16,
) -> c_int {
    guard::errno_of("ibv_detach_mcast", || {
        // SAFETY: the caller's word; plain bytes.
        let gid = unsafe { *non_null(gid.cast_mut(), "check the arguments")? };
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(qp) };
        let detached = uapi::qp::detach_mcast(ours.fd, ours.handle, gid.raw, lid);
        memory::destroyed(detached, &cx_of!(F, qp).device.life, "detach the QP from the group")
    })
}

/// A post's return value; `bad_wr` is written on failure only.
///
/// # Safety
/// `bad_wr` is NULL or may be written.
#[inline(always)]
pub(crate) unsafe fn answer<W>(result: Result<(), Refused<W>>, bad_wr: *mut *mut W) -> c_int {
    match result {
        Ok(()) => 0,
        Err(refused) => {
            if !bad_wr.is_null() {
                // SAFETY: the caller's word.
                unsafe { bad_wr.write(refused.wr) };
            }
            guard::set_errno(refused.errno);
            refused.errno.get()
        }
    }
}

/// `post_send`. A work request of a usual kind, on a queue that this thread owns, is done without a call; everything else goes to
/// [`post_one_send`] or [`post_sends`]. What kind it is, a glance tells here: to find it out on the way cost those others 15 of 75
/// cycles.
///
/// # Safety
/// ibv_post_send(3), for a QP of family `F`.
pub(crate) unsafe extern "C" fn post_send<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    if wr.is_null() || bad_wr.is_null() {
        return refuse_null(bad_wr);
    }
    if !<F::Qp as QueuePair>::USUAL_SENDS {
        // SAFETY: the caller's word.
        return unsafe { post_any_send::<F>(qp, wr, bad_wr) };
    }
    // SAFETY: the caller's word: a valid list.
    let Some(one) = unsafe { SendWrs::from_ptr(wr) }.only() else {
        // SAFETY: the caller's word.
        return unsafe { post_sends::<F>(qp, wr, bad_wr) };
    };
    /// The function of each operation.
    macro_rules! by_opcode {
        ($post:ident $args:tt: $($opcode:ident)*) => {
            match one.opcode() {
                $($opcode => return by_opcode!(@ $post $opcode $args),)*
                _ => {}
            }
        };
        (@ $post:ident $opcode:ident ($($arg:expr),*)) => {
            // SAFETY: the caller's word; the data are those of the request.
            unsafe { $post::<F, { $opcode }>(qp, wr, bad_wr, $($arg),*) }
        };
    }
    match F::Qp::single(one) {
        Some(Single::Inline(data)) => by_opcode!(post_usual_inline(data.as_ptr(), data.len()):
            IBV_WR_RDMA_WRITE IBV_WR_RDMA_WRITE_WITH_IMM IBV_WR_SEND IBV_WR_SEND_WITH_IMM),
        Some(Single::Long(data)) => by_opcode!(post_usual_long(data.as_ptr(), data.len()):
            IBV_WR_RDMA_WRITE IBV_WR_RDMA_WRITE_WITH_IMM IBV_WR_SEND IBV_WR_SEND_WITH_IMM),
        Some(Single::Entry(sge)) => by_opcode!(post_usual_entry(sge):
            IBV_WR_RDMA_WRITE IBV_WR_RDMA_WRITE_WITH_IMM IBV_WR_SEND IBV_WR_SEND_WITH_IMM IBV_WR_RDMA_READ
            IBV_WR_ATOMIC_CMP_AND_SWP IBV_WR_ATOMIC_FETCH_AND_ADD),
        Some(Single::Entries(sges)) => by_opcode!(post_usual_entries(sges):
            IBV_WR_RDMA_WRITE IBV_WR_RDMA_WRITE_WITH_IMM IBV_WR_SEND IBV_WR_SEND_WITH_IMM IBV_WR_RDMA_READ),
        None => {}
    }
    // SAFETY: the caller's word.
    unsafe { post_one_send::<F>(qp, wr, bad_wr) }
}

/// As [`post_send`], of one that is `OPCODE` and has one entry of data, which is `sge`.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL, and it is such a one.
#[inline(never)]
unsafe extern "C" fn post_usual_entry<F: Family, const OPCODE: u32>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
    sge: *const ibv_sge,
) -> c_int {
    // SAFETY: the caller's word.
    let single = Single::Entry(unsafe { &*sge });
    // SAFETY: the caller's word.
    unsafe { post_usual_send::<F, OPCODE>(qp, wr, bad_wr, single) }
}

/// As [`post_usual_entry`], of two entries, which are `sges`.
///
/// # Safety
/// As of that.
#[inline(never)]
unsafe extern "C" fn post_usual_entries<F: Family, const OPCODE: u32>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
    sges: *const [ibv_sge; 2],
) -> c_int {
    // SAFETY: the caller's word.
    let single = Single::Entries(unsafe { &*sges });
    // SAFETY: the caller's word.
    unsafe { post_usual_send::<F, OPCODE>(qp, wr, bad_wr, single) }
}

/// As [`post_send`], of one that is `OPCODE` and has these bytes inline.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL, and it is such a one.
#[inline(never)]
unsafe extern "C" fn post_usual_inline<F: Family, const OPCODE: u32>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
    data: *const u8,
    len: usize,
) -> c_int {
    // SAFETY: the caller's word.
    let single = Single::Inline(unsafe { UserBytes::new(data, len) });
    // SAFETY: the caller's word.
    unsafe { post_usual_send::<F, OPCODE>(qp, wr, bad_wr, single) }
}

/// As [`post_usual_inline`], of more bytes.
///
/// # Safety
/// As of that.
#[inline(never)]
unsafe extern "C" fn post_usual_long<F: Family, const OPCODE: u32>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
    data: *const u8,
    len: usize,
) -> c_int {
    // SAFETY: the caller's word.
    let single = Single::Long(unsafe { UserBytes::new(data, len) });
    // SAFETY: the caller's word.
    unsafe { post_usual_send::<F, OPCODE>(qp, wr, bad_wr, single) }
}

/// As [`post_send`], of one that is `OPCODE` and has the data `single`.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL, and it is such a one.
#[inline(always)]
unsafe fn post_usual_send<F: Family, const OPCODE: u32>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
    single: Single<'_>,
) -> c_int {
    // SAFETY: the caller's word.
    let (ours, one, _) = unsafe { send::<F>(qp, wr) };
    match ours.queues.post_usual_send::<OPCODE>(one, single) {
        Posted::Told => 0,
        // SAFETY: the caller's word, and the queue was kept.
        Posted::Untold { last, burst } => unsafe { tell::<F>(qp, last, burst) },
        // SAFETY: the caller's word.
        Posted::Not => unsafe { post_one_send::<F>(qp, wr, bad_wr) },
    }
}

/// As [`post_send`], of one of more kinds: a function of its own, since what these need takes registers from the others.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL, and it is one.
#[inline(never)]
unsafe extern "C" fn post_one_send<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let (ours, one, objects) = unsafe { send::<F>(qp, wr) };
    match ours.queues.post_most_send(one, objects) {
        Posted::Told => 0,
        // SAFETY: the caller's word, and the queue was kept.
        Posted::Untold { last, burst } => unsafe { tell::<F>(qp, last, burst) },
        // SAFETY: the caller's word.
        Posted::Not => unsafe { post_any_send::<F>(qp, wr, bad_wr) },
    }
}

/// Tells the device of what was posted, and gives the queue back.
///
/// # Safety
/// A QP of family `F`, whose send queue this thread keeps since a post that was [`Posted::Untold`].
#[inline(never)]
unsafe extern "C" fn tell<F: Family>(qp: *mut ibv_qp, last: u32, burst: u32) -> c_int {
    // SAFETY: the caller's word.
    let queue = unsafe { ours::<F>(qp) }.queues.send_queue();
    // SAFETY: kept by the caller's word.
    unsafe { queue.held() }.tell(last, burst);
    // SAFETY: as above; this ends it.
    unsafe { queue.release() };
    0
}

/// What a post of one has to do with.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL.
#[inline(always)]
unsafe fn send<'a, F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
) -> (&'a Qp<F>, SendWr<'a>, WrObjects<F>) {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(qp) };
    // SAFETY: the caller's word.
    let wr = unsafe { NonNull::new_unchecked(wr) };
    // SAFETY: the caller's word: a valid request.
    let one = unsafe { SendWr::from_ptr(wr) };
    // SAFETY: the caller's word: what the request names is alive.
    (ours, one, unsafe { WrObjects::<F>::new() })
}

/// What a post of a list has to do with.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL.
#[inline(always)]
unsafe fn sends<'a, F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
) -> (&'a Qp<F>, SendWrs<'a>, WrObjects<F>) {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(qp) };
    // SAFETY: the caller's word: a valid list.
    let wrs = unsafe { SendWrs::from_ptr(wr) };
    // SAFETY: the caller's word: what the list names is alive.
    (ours, wrs, unsafe { WrObjects::<F>::new() })
}

/// As [`post_send`], of a list.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL.
#[inline(never)]
unsafe extern "C" fn post_sends<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let (ours, wrs, objects) = unsafe { sends::<F>(qp, wr) };
    if ours.queues.post_usual_sends(wrs, objects) {
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { post_most_sends::<F>(qp, wr, bad_wr) }
}

/// As [`post_sends`], of more kinds.
///
/// # Safety
/// As for [`post_send`]; no argument is NULL.
#[inline(never)]
unsafe extern "C" fn post_most_sends<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let (ours, wrs, objects) = unsafe { sends::<F>(qp, wr) };
    if ours.queues.post_most_sends(wrs, objects) {
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { post_any_send::<F>(qp, wr, bad_wr) }
}

/// Posts any list.
///
/// # Safety
/// As for [`post_sends`].
#[inline(never)]
unsafe extern "C" fn post_any_send<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let (ours, wrs, objects) = unsafe { sends::<F>(qp, wr) };
    // SAFETY: not NULL, the caller's to be written.
    unsafe { answer(ours.queues.post_send(wrs, objects), bad_wr) }
}

/// `post_recv`, made as [`post_send`].
///
/// # Safety
/// ibv_post_recv(3), for a QP of family `F`.
pub(crate) unsafe extern "C" fn post_recv<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's word: a valid list.
    let wrs = unsafe { RecvWrs::from_ptr(wr) };
    if let Some(wr) = wrs.only()
        && !bad_wr.is_null()
    {
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(qp) };
        if ours.queues.post_usual_recv(wr) {
            return 0;
        }
    }
    // SAFETY: the caller's word.
    unsafe { post_recvs::<F>(qp, wr, bad_wr) }
}

/// As [`post_recv`], of a list.
///
/// # Safety
/// As for [`post_recv`].
#[inline(never)]
unsafe extern "C" fn post_recvs<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    if wr.is_null() || bad_wr.is_null() {
        return refuse_null(bad_wr);
    }
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(qp) };
    // SAFETY: the caller's word: a valid list.
    if ours.queues.post_usual_recvs(unsafe { RecvWrs::from_ptr(wr) }) {
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { post_any_recv::<F>(qp, wr, bad_wr) }
}

/// Posts any list.
///
/// # Safety
/// As for [`post_recv`]; no argument is NULL.
#[inline(never)]
unsafe extern "C" fn post_any_recv<F: Family>(
    qp: *mut ibv_qp,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(qp) };
    // SAFETY: the caller's word: a valid list.
    let wrs = unsafe { RecvWrs::from_ptr(wr) };
    // SAFETY: not NULL, the caller's to be written.
    unsafe { answer(ours.queues.post_recv(wrs), bad_wr) }
}

#[cold]
#[inline(never)]
fn refuse_null<W>(bad_wr: *mut *mut W) -> c_int {
    if !bad_wr.is_null() {
        // SAFETY: the caller of the post gives it to be written.
        unsafe { bad_wr.write(core::ptr::null_mut()) };
    }
    guard::set_errno(Errno::EINVAL);
    libc::EINVAL
}

// The builders. `wr_start` takes the send queue's lock and `wr_complete` or `wr_abort` gives it back, on the same thread
// (ibv_wr_post(3)); in between the send queue belongs to that thread.

/// The send queue of a QP under construction of work requests.
#[inline(always)]
unsafe fn held<'a, F: Family>(qp: *mut ibv_qp_ex) -> &'a mut <F::Qp as QueuePair>::Sq {
    // SAFETY: the caller's word: a live QP of family F.
    let ours = unsafe { ours::<F>(qp.cast()) };
    // SAFETY: the caller's word: between wr_start and its end, on the thread that holds the lock.
    unsafe { ours.queues.send_queue().held() }
}

unsafe extern "C" fn wr_start<F: Family>(qp: *mut ibv_qp_ex) {
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(qp: *mut ibv_qp_ex) {
        // SAFETY: the caller's word.
        let queue = unsafe { ours::<F>(qp.cast()) }.queues.send_queue();
        queue.acquire();
        // SAFETY: acquired just now.
        unsafe { queue.held() }.start();
    }
    // SAFETY: the caller's word.
    match unsafe { ours::<F>(qp.cast()) }.queues.send_queue().lock_own() {
        Some(mut queue) => {
            queue.start();
            queue.keep();
        }
        // SAFETY: the caller's word.
        None => unsafe { any::<F>(qp) },
    }
}

unsafe extern "C" fn wr_complete<F: Family>(qp: *mut ibv_qp_ex) -> c_int {
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(qp: *mut ibv_qp_ex) -> c_int {
        // SAFETY: the caller's word.
        let queues = &unsafe { ours::<F>(qp.cast()) }.queues;
        let queue = queues.send_queue();
        // SAFETY: held since wr_start.
        let held = unsafe { queue.held() };
        let completed = held.complete();
        let owes_kick = completed == Ok(true);
        if owes_kick {
            queues.will_kick();
        }
        // SAFETY: as above; this ends it.
        unsafe { queue.release() };
        match if owes_kick { queues.kick() } else { completed.map(drop) } {
            Ok(()) => 0,
            Err(errno) => {
                guard::set_errno(errno);
                errno.get()
            }
        }
    }
    /// What is not usual, but needs no call: a function of its own, as for posts.
    #[inline(never)]
    unsafe extern "C" fn most<F: Family>(qp: *mut ibv_qp_ex) -> c_int {
        // SAFETY: the caller's word.
        let queue = unsafe { ours::<F>(qp.cast()) }.queues.send_queue();
        // SAFETY: held since wr_start.
        if queue.is_own() && unsafe { queue.held() }.complete_most() {
            // SAFETY: as above; this ends it.
            unsafe { queue.release() };
            return 0;
        }
        // SAFETY: the caller's word.
        unsafe { any::<F>(qp) }
    }
    // SAFETY: the caller's word.
    let queue = unsafe { ours::<F>(qp.cast()) }.queues.send_queue();
    // SAFETY: held since wr_start.
    if queue.is_own() && unsafe { queue.held() }.complete_usual() {
        // SAFETY: as above; this ends it.
        unsafe { queue.release() };
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { most::<F>(qp) }
}

unsafe extern "C" fn wr_abort<F: Family>(qp: *mut ibv_qp_ex) {
    // SAFETY: the caller's word.
    let queue = unsafe { ours::<F>(qp.cast()) }.queues.send_queue();
    // SAFETY: held since wr_start.
    unsafe { queue.held() }.abort();
    // SAFETY: as above; this ends it.
    unsafe { queue.release() };
}

/// One operation, with the `wr_id` and `wr_flags` that the application left in the QP.
#[inline(always)]
unsafe fn operation<F: Family>(qp: *mut ibv_qp_ex, op: SendOp) {
    let (wr_id, wr_flags) = (field!(qp.wr_id), field!(qp.wr_flags));
    // SAFETY: the caller's word.
    unsafe { held::<F>(qp) }.operation(wr_id, wr_flags, op);
}

/// The operations: each does the usual without a call, and calls for the rest.
macro_rules! builders {
    ($($name:ident($($arg:ident: $ty:ty),*) => $op:expr;)*) => {
        $(unsafe extern "C" fn $name<F: Family>(qp: *mut ibv_qp_ex, $($arg: $ty),*) {
            #[inline(never)]
            unsafe extern "C" fn any<F: Family>(qp: *mut ibv_qp_ex, $($arg: $ty),*) {
                // SAFETY: the caller's word.
                unsafe { operation::<F>(qp, $op) }
            }
            let (wr_id, wr_flags) = (field!(qp.wr_id), field!(qp.wr_flags));
            // SAFETY: ibv_wr_post(3): between wr_start and its end.
            if !unsafe { held::<F>(qp) }.usual_operation(wr_id, wr_flags, $op) {
                // SAFETY: as above.
                unsafe { any::<F>(qp, $($arg),*) }
            }
        })*
    };
}

builders! {
    wr_send() => SendOp::Send;
    wr_send_imm(imm_data: u32) => SendOp::SendImm { imm_data };
    wr_send_inv(invalidate_rkey: u32) => SendOp::SendInv { invalidate_rkey };
    wr_rdma_write(rkey: u32, remote_addr: u64) => SendOp::Write { rkey, remote_addr };
    wr_rdma_write_imm(rkey: u32, remote_addr: u64, imm_data: u32) => SendOp::WriteImm { rkey, remote_addr, imm_data };
    wr_rdma_read(rkey: u32, remote_addr: u64) => SendOp::Read { rkey, remote_addr };
    wr_atomic_cmp_swp(rkey: u32, remote_addr: u64, compare: u64, swap: u64)
        => SendOp::CmpSwp { rkey, remote_addr, compare, swap };
    wr_atomic_fetch_add(rkey: u32, remote_addr: u64, add: u64) => SendOp::FetchAdd { rkey, remote_addr, add };
    wr_local_inv(invalidate_rkey: u32) => SendOp::LocalInv { invalidate_rkey };
    wr_flush(rkey: u32, remote_addr: u64, length: size_t, r#type: u8, level: u8)
        => SendOp::Flush { rkey, remote_addr, length, r#type, level };
}

unsafe extern "C" fn wr_atomic_write<F: Family>(
    qp: *mut ibv_qp_ex,
    rkey: u32,
    remote_addr: u64,
    atomic_wr: *const c_void,
) {
    if atomic_wr.is_null() {
        // SAFETY: the caller's word.
        return unsafe { held::<F>(qp) }.refuse(Errno::EINVAL);
    }
    // SAFETY: ibv_wr_atomic_write takes 8 bytes at any alignment.
    let data = unsafe { atomic_wr.cast::<[u8; 8]>().read_unaligned() };
    // SAFETY: the caller's word.
    unsafe { operation::<F>(qp, SendOp::AtomicWrite { rkey, remote_addr, data }) }
}

unsafe extern "C" fn wr_bind_mw<F: Family>(
    qp: *mut ibv_qp_ex,
    mw: *mut ibv_mw,
    rkey: u32,
    info: *const ibv_mw_bind_info,
) {
    use crate::family::Objects as _;
    // SAFETY: the caller's word: the objects are alive.
    let objects = unsafe { WrObjects::<F>::new() };
    // SAFETY: the caller's word; plain data.
    let info = (!info.is_null()).then(|| unsafe { *info });
    let keys = info.and_then(|info| Some((info, objects.mw(mw)?, objects.mr_lkey(info.mr)?)));
    let Some((info, (mw_rkey, _), mr_lkey)) = keys else {
        // SAFETY: the caller's word.
        return unsafe { held::<F>(qp) }.refuse(Errno::EINVAL);
    };
    let op = SendOp::BindMw {
        mw_rkey,
        rkey,
        addr: info.addr,
        length: info.length,
        mr_lkey,
        access: info.mw_access_flags,
    };
    // SAFETY: the caller's word.
    unsafe { operation::<F>(qp, op) }
}

unsafe extern "C" fn wr_set_ud_addr<F: Family>(
    qp: *mut ibv_qp_ex,
    ah: *mut ibv_ah,
    remote_qpn: u32,
    remote_qkey: u32,
) {
    use crate::family::Objects as _;
    // SAFETY: the caller's word: the AH is alive.
    let objects = unsafe { WrObjects::<F>::new() };
    // SAFETY: the caller's word.
    let sq = unsafe { held::<F>(qp) };
    match objects.ah(ah) {
        Some(ah) => F::Qp::set_ud_addr(sq, ah, remote_qpn, remote_qkey),
        None => sq.refuse(Errno::EINVAL),
    }
}

unsafe extern "C" fn wr_set_xrc_srqn<F: Family>(qp: *mut ibv_qp_ex, remote_srqn: u32) {
    // SAFETY: the caller's word.
    unsafe { held::<F>(qp) }.set_xrc_srqn(remote_srqn);
}

unsafe extern "C" fn wr_set_sge<F: Family>(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
        // SAFETY: the caller's word.
        unsafe { held::<F>(qp) }.set_sge(ibv_sge { addr, length, lkey });
    }
    // SAFETY: the caller's word.
    if !unsafe { held::<F>(qp) }.set_usual_sge(ibv_sge { addr, length, lkey }) {
        // SAFETY: as above.
        unsafe { any::<F>(qp, lkey, addr, length) }
    }
}

unsafe extern "C" fn wr_set_sge_list<F: Family>(
    qp: *mut ibv_qp_ex,
    num_sge: size_t,
    sg_list: *const ibv_sge,
) {
    // SAFETY: the caller's word.
    let sq = unsafe { held::<F>(qp) };
    let count = c_int::try_from(num_sge).unwrap_or(-1);
    // SAFETY: the caller's word: `num_sge` entries.
    match unsafe { wr::sge_list(sg_list, count) } {
        Ok(list) => sq.set_sge_list(list),
        Err(errno) => sq.refuse(errno),
    }
}

unsafe extern "C" fn wr_set_inline_data<F: Family>(qp: *mut ibv_qp_ex, addr: *mut c_void, length: size_t) {
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(qp: *mut ibv_qp_ex, addr: *mut c_void, length: size_t) {
        // SAFETY: the caller's word.
        let sq = unsafe { held::<F>(qp) };
        if addr.is_null() && length != 0 {
            return sq.refuse(Errno::EINVAL);
        }
        // SAFETY: the caller's word: `length` bytes, readable until the call returns.
        let data = unsafe { UserBytes::new(addr.cast_const().cast(), length) };
        sq.set_inline_data(&InlineData::one(data));
    }
    /// What is longer than usual, but needs no call: a function of its own, as for posts.
    #[inline(never)]
    unsafe extern "C" fn most<F: Family>(qp: *mut ibv_qp_ex, addr: *mut c_void, length: size_t) {
        // SAFETY: the caller's word: `length` bytes, readable until the call returns.
        let data = unsafe { UserBytes::new(addr.cast_const().cast(), length) };
        // SAFETY: the caller's word.
        if addr.is_null() || !unsafe { held::<F>(qp) }.set_most_inline_data(data) {
            // SAFETY: as above.
            unsafe { any::<F>(qp, addr, length) }
        }
    }
    // SAFETY: the caller's word: `length` bytes, readable until the call returns.
    let data = unsafe { UserBytes::new(addr.cast_const().cast(), length) };
    // SAFETY: the caller's word.
    if addr.is_null() || !unsafe { held::<F>(qp) }.set_usual_inline_data(data) {
        // SAFETY: as above.
        unsafe { most::<F>(qp, addr, length) }
    }
}

unsafe extern "C" fn wr_set_inline_data_list<F: Family>(
    qp: *mut ibv_qp_ex,
    num_buf: size_t,
    list: *const ibv_data_buf,
) {
    // SAFETY: the caller's word.
    let sq = unsafe { held::<F>(qp) };
    // SAFETY: the caller's word: `num_buf` entries and their bytes.
    match unsafe { InlineData::from_bufs(list, num_buf) } {
        Ok(data) => sq.set_inline_data(&data),
        Err(errno) => sq.refuse(errno),
    }
}

/// The builders of an extended QP: those of `flags`, and those that every one has.
fn set_builders<F: Family>(qp: &mut ibv_qp_ex, flags: u64) {
    let has = |flag: u32| flags & u64::from(flag) != 0;
    qp.wr_atomic_cmp_swp = has(IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP).then_some(wr_atomic_cmp_swp::<F>);
    qp.wr_atomic_fetch_add = has(IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD).then_some(wr_atomic_fetch_add::<F>);
    qp.wr_bind_mw = has(IBV_QP_EX_WITH_BIND_MW).then_some(wr_bind_mw::<F>);
    qp.wr_local_inv = has(IBV_QP_EX_WITH_LOCAL_INV).then_some(wr_local_inv::<F>);
    qp.wr_rdma_read = has(IBV_QP_EX_WITH_RDMA_READ).then_some(wr_rdma_read::<F>);
    qp.wr_rdma_write = has(IBV_QP_EX_WITH_RDMA_WRITE).then_some(wr_rdma_write::<F>);
    qp.wr_rdma_write_imm = has(IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM).then_some(wr_rdma_write_imm::<F>);
    qp.wr_send = has(IBV_QP_EX_WITH_SEND).then_some(wr_send::<F>);
    qp.wr_send_imm = has(IBV_QP_EX_WITH_SEND_WITH_IMM).then_some(wr_send_imm::<F>);
    qp.wr_send_inv = has(IBV_QP_EX_WITH_SEND_WITH_INV).then_some(wr_send_inv::<F>);
    qp.wr_atomic_write = has(IBV_QP_EX_WITH_ATOMIC_WRITE).then_some(wr_atomic_write::<F>);
    qp.wr_flush = has(IBV_QP_EX_WITH_FLUSH).then_some(wr_flush::<F>);
    qp.wr_set_ud_addr = Some(wr_set_ud_addr::<F>);
    qp.wr_set_xrc_srqn = F::VERBS.contains(Verbs::XRC).then_some(wr_set_xrc_srqn::<F>);
    qp.wr_set_inline_data = Some(wr_set_inline_data::<F>);
    qp.wr_set_inline_data_list = Some(wr_set_inline_data_list::<F>);
    qp.wr_set_sge = Some(wr_set_sge::<F>);
    qp.wr_set_sge_list = Some(wr_set_sge_list::<F>);
    qp.wr_start = Some(wr_start::<F>);
    qp.wr_complete = Some(wr_complete::<F>);
    qp.wr_abort = Some(wr_abort::<F>);
}
