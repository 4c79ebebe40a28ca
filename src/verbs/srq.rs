//! Shared receive queues.
#![allow(unsafe_code, reason = "reads C's arguments and writes C's objects")]

use std::sync::OnceLock;

use libc::{c_int, c_void};

use super::cast::{self, Fresh, non_null};
use super::context::{self, Kind};
use super::memory::{self, cx_of, handle_of};
use super::{cq, domains, events, guard};
use crate::abi::public::*;
use crate::abi::wr::RecvWrs;
use crate::error::{Errno, Error, Step as _};
use crate::family::{Family, SharedReceiveQueue as _, SrqRequest, Verbs};
use crate::uapi::{self, CmdFd, Handle};

/// Our part of an SRQ.
#[derive(Debug)]
pub(crate) struct Srq<F: Family> {
    fd: CmdFd,
    handle: Handle,
    pub(crate) queue: F::Srq,
    /// The kernel's SRQ was destroyed before the application destroyed this one, and reported so many events.
    stopped: OnceLock<u32>,
}

impl<F: Family> Srq<F> {
    /// Has the kernel's SRQ destroyed before the application destroys this one.
    pub(crate) fn stop(&self) {
        if let Ok(reported) = uapi::srq::destroy(self.fd, self.handle) {
            let _ = self.stopped.set(reported);
        }
    }

    /// Destroys the kernel's SRQ; how many events it reported.
    fn destroy(&self) -> Result<u32, Errno> {
        match self.stopped.get() {
            Some(reported) => Ok(*reported),
            None => uapi::srq::destroy(self.fd, self.handle),
        }
    }
}

/// The family's part of the SRQ at `srq`; none for NULL.
///
/// # Safety
/// `srq` is NULL or a live SRQ of family `F` during `'a`.
pub(crate) unsafe fn queue_of<'a, F: Family>(srq: *mut ibv_srq) -> Option<&'a F::Srq> {
    // SAFETY: the caller's word.
    (!srq.is_null()).then(|| &unsafe { ours::<F>(srq) }.queue)
}

#[inline(always)]
unsafe fn ours<'a, F: Family>(srq: *mut ibv_srq) -> &'a Srq<F> {
    // SAFETY: the caller's word: a live SRQ of family F.
    unsafe { cast::body::<verbs_srq, Srq<F>>(srq.cast()) }
}

unsafe fn create<F: Family>(
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    srq_context: *mut c_void,
    attr: &mut ibv_srq_attr,
    xrc: Option<(*mut ibv_xrcd, *mut ibv_cq)>,
) -> Result<*mut ibv_srq, Error> {
    // SAFETY: the caller's word.
    let cx = unsafe { context::for_creating::<F>(context) };
    cx.usable()?;
    let pd = non_null(pd, "check the PD")?;
    let fresh = Fresh::<verbs_srq, Srq<F>>::new()?;
    let (xrcd, cq) = xrc.unwrap_or((core::ptr::null_mut(), core::ptr::null_mut()));
    let xrc = match xrc {
        Some((xrcd, cq)) => {
            let (xrcd, cq) = (non_null(xrcd, "check the XRC domain")?, non_null(cq, "check the CQ")?);
            // SAFETY: the caller's word.
            Some((unsafe { domains::xrcd_handle(xrcd) }, handle_of!(cq)))
        }
        None => None,
    };
    let mut request = SrqRequest {
        pd: handle_of!(pd),
        xrc,
        // SAFETY: the caller's word: a live PD of family F.
        locking: memory::locking(&cx.family, unsafe { memory::pd_of::<F>(pd) }),
        max_wr: attr.max_wr,
        max_sge: attr.max_sge,
        srq_limit: attr.srq_limit,
        user_handle: fresh.user_handle(),
    };
    // SAFETY: the caller's word: NULL or a live CQ of family F.
    let queue = unsafe { cq::queue_of::<F>(cq) };
    let (created, srq_num) = cx.family.create_srq(&cx.device, &mut request, queue)?;
    attr.max_wr = request.max_wr;
    attr.max_sge = request.max_sge;
    // SAFETY: ours until `finish`, nobody else has the address.
    let head = unsafe { &mut *fresh.head() };
    // libibverbs fills these only for ibv_create_srq, not for the extended verb.
    head.srq.context = context;
    head.srq.srq_context = srq_context;
    head.srq.pd = pd;
    head.srq.handle = created.handle.0;
    head.srq.mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    head.srq.cond = libc::PTHREAD_COND_INITIALIZER;
    head.srq_type = if xrc.is_some() { IBV_SRQT_XRC } else { IBV_SRQT_BASIC };
    head.xrcd = xrcd.cast();
    head.cq = cq;
    head.srq_num = srq_num;
    // SAFETY: the caller's word: NULL or a live CQ of family F.
    unsafe { cq::hold::<F>(cq) };
    let head = fresh.finish(Srq {
        fd: cx.device.fd,
        handle: created.handle,
        queue: created.object,
        stopped: OnceLock::new(),
    });
    cx.add(Kind::Srq, head);
    Ok(head.cast())
}

/// `create_srq`.
///
/// # Safety
/// ibv_create_srq(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn create_srq<F: Family>(
    pd: *mut ibv_pd,
    attr: *mut ibv_srq_init_attr,
) -> *mut ibv_srq {
    guard::pointer_of("ibv_create_srq", || {
        // SAFETY: the caller's word; the caller alone reads and writes it.
        let attr = unsafe { &mut *non_null(attr, "check the arguments")? };
        // SAFETY: the caller's word.
        let context = unsafe { (*pd).context };
        // SAFETY: as above.
        unsafe { create::<F>(context, pd, attr.srq_context, &mut attr.attr, None) }
    })
}

/// `create_srq_ex`: basic SRQs, and XRC ones where the family has them; tag matching is refused.
///
/// # Safety
/// ibv_create_srq_ex(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn create_srq_ex<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_srq_init_attr_ex,
) -> *mut ibv_srq {
    guard::pointer_of("ibv_create_srq_ex", || {
        // SAFETY: the caller's word; the caller alone reads and writes it.
        let attr = unsafe { &mut *non_null(attr, "check the arguments")? };
        let known = IBV_SRQ_INIT_ATTR_TYPE
            | IBV_SRQ_INIT_ATTR_PD
            | IBV_SRQ_INIT_ATTR_XRCD
            | IBV_SRQ_INIT_ATTR_CQ
            | IBV_SRQ_INIT_ATTR_TM;
        let has = |bit: u32| attr.comp_mask & bit != 0;
        let basic = !has(IBV_SRQ_INIT_ATTR_TYPE) || attr.srq_type == IBV_SRQT_BASIC;
        let xrc = !basic && attr.srq_type == IBV_SRQT_XRC && F::VERBS.contains(Verbs::XRC);
        if attr.comp_mask & !known != 0 || !(basic || xrc) {
            return Err(Error::new("check the SRQ's type and comp_mask", Errno::EOPNOTSUPP));
        }
        if attr.comp_mask & IBV_SRQ_INIT_ATTR_PD == 0 {
            return Err(Error::new("find the SRQ's PD", Errno::EINVAL));
        }
        let xrc = match (xrc, has(IBV_SRQ_INIT_ATTR_XRCD) && has(IBV_SRQ_INIT_ATTR_CQ)) {
            (false, _) => None,
            (true, true) => Some((attr.xrcd, attr.cq)),
            (true, false) => return Err(Error::new("find the SRQ's XRC domain and CQ", Errno::EINVAL)),
        };
        // SAFETY: the caller's word.
        unsafe { create::<F>(context, attr.pd, attr.srq_context, &mut attr.attr, xrc) }
    })
}

/// `modify_srq`.
///
/// # Safety
/// ibv_modify_srq(3), by libibverbs, for an SRQ of family `F`.
pub(crate) unsafe extern "C" fn modify_srq<F: Family>(
    srq: *mut ibv_srq,
    attr: *mut ibv_srq_attr,
    mask: c_int,
) -> c_int {
    guard::errno_of("ibv_modify_srq", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(srq) };
        let cx = cx_of!(F, srq);
        cx.usable()?;
        cx.family.modify_srq(
            &cx.device,
            &ours.queue,
            ours.handle,
            attr.max_wr,
            attr.srq_limit,
            mask.cast_unsigned(),
        )
    })
}

/// `query_srq`.
///
/// # Safety
/// ibv_query_srq(3), by libibverbs, for an SRQ of family `F`.
pub(crate) unsafe extern "C" fn query_srq<F: Family>(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int {
    guard::errno_of("ibv_query_srq", || {
        let attr = non_null(attr, "check the arguments")?;
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(srq) };
        cx_of!(F, srq).usable()?;
        let resp = uapi::srq::query(ours.fd, ours.handle).step("query the SRQ")?;
        let answer = ibv_srq_attr { max_wr: resp.max_wr, max_sge: resp.max_sge, srq_limit: resp.srq_limit };
        // SAFETY: the caller's word: room for one.
        unsafe { attr.write(answer) };
        Ok(())
    })
}

/// `destroy_srq`.
///
/// # Safety
/// ibv_destroy_srq(3), by libibverbs, for an SRQ of family `F`.
pub(crate) unsafe extern "C" fn destroy_srq<F: Family>(srq: *mut ibv_srq) -> c_int {
    guard::errno_of("ibv_destroy_srq", || {
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(srq) };
        let cx = cx_of!(F, srq);
        let life = &cx.device.life;
        let reported = memory::counted(ours.destroy(), life, "destroy the SRQ")?;
        // SAFETY: initialised in `create`.
        let acknowledged = reported.is_some_and(|reported| unsafe { events::wait_srq(srq, reported, life) });
        let head: *mut verbs_srq = srq.cast();
        // SAFETY: the caller's word; a single field of our own object.
        let cq = unsafe { (*head).cq };
        // SAFETY: a CQ stays while it has users.
        cx.family.srq_destroyed(&ours.queue, unsafe { cq::queue_of::<F>(cq) });
        // SAFETY: held since the SRQ was created.
        unsafe { cq::release::<F>(cq) };
        cx.remove(Kind::Srq, srq);
        // SAFETY: the kernel's side is gone.
        unsafe { cx.end(head, acknowledged, cast::free::<verbs_srq, Srq<F>>) };
        Ok(())
    })
}

/// `post_srq_recv`.
///
/// # Safety
/// ibv_post_srq_recv(3), for an SRQ of family `F`.
pub(crate) unsafe extern "C" fn post_srq_recv<F: Family>(
    srq: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(srq) };
    // SAFETY: the caller's word: a valid list.
    let wrs = unsafe { RecvWrs::from_ptr(wr) };
    if wrs.only().is_some_and(|wr| ours.queue.post_usual_recv(wr)) {
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { post_srq_recvs::<F>(srq, wr, bad_wr) }
}

/// As [`post_srq_recv`], of a list: a function of its own, since what a list needs takes registers from the one.
///
/// # Safety
/// As for [`post_srq_recv`].
#[inline(never)]
unsafe extern "C" fn post_srq_recvs<F: Family>(
    srq: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(srq) };
    // SAFETY: the caller's word: a valid list.
    if !wr.is_null() && ours.queue.post_usual_recvs(unsafe { RecvWrs::from_ptr(wr) }) {
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { post_any_srq_recv::<F>(srq, wr, bad_wr) }
}

/// Posts any list.
///
/// # Safety
/// As for [`post_srq_recv`].
#[inline(never)]
unsafe extern "C" fn post_any_srq_recv<F: Family>(
    srq: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    bad_wr: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(srq) };
    // SAFETY: the caller's word: a valid list.
    let wrs = unsafe { RecvWrs::from_ptr(wr) };
    // SAFETY: the caller's word: `bad_wr` may be written.
    unsafe { super::qp::answer(ours.queue.post_recv(wrs), bad_wr) }
}

/// `get_srq_num`.
///
/// # Safety
/// ibv_get_srq_num(3), for an SRQ of ours.
pub(crate) unsafe extern "C" fn get_srq_num(srq: *mut ibv_srq, srq_num: *mut u32) -> c_int {
    guard::errno_of("ibv_get_srq_num", || {
        let srq_num = non_null(srq_num, "check the arguments")?;
        let head: *mut verbs_srq = srq.cast();
        // SAFETY: the caller's word; a single field of our own object.
        let number = unsafe { (*head).srq_num };
        // SAFETY: the caller's word: room for one.
        unsafe { srq_num.write(number) };
        Ok(())
    })
}
