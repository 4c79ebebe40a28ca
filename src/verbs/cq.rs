//! Completion queues, both interfaces.
#![allow(unsafe_code, reason = "reads C's arguments and writes C's objects")]

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libc::{c_int, c_uint};

use super::cast::{self, Fresh, non_null};
use super::channel::Channel;
use super::context::{self, Kind};
use super::memory::{self, cx_of};
use super::{events, guard, watch};
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{Arm as _, AtOf, CompletionQueue as _, CqRequest, Family, Head, Look, Next};
use crate::sync::{Locking, SpinLock};
use crate::uapi::wire::DestroyCqResp;
use crate::uapi::{self, CmdFd, Handle};

/// Our part of a CQ: in front of C's ([`cast::Fronted`]), which is an `ibv_cq` unless it is extended.
#[derive(Debug)]
pub(crate) struct Cq<F: Family> {
    fd: CmdFd,
    handle: Handle,
    queue: SpinLock<F::Cq>,
    arm: F::Arm,
    channel: Option<Arc<Channel>>,
    /// The kernel's CQ was destroyed before the application destroyed this one.
    stopped: OnceLock<DestroyCqResp>,
    /// Made by `ibv_create_cq_ex`.
    extended: bool,
    /// One of the following; only of use once the device is dying.
    armed: AtomicU8,
    /// Held by a thread that is arming just now, and how many more there are.
    arming: SpinLock<(), ()>,
    arming_too: AtomicU32,
    /// Events of ours that were given.
    given: AtomicU32,
    /// The application, until it destroys the CQ, and each QP and SRQ that completes here. A kernel that has lost its device
    /// lets the CQ be destroyed before them; its memory stays until they are gone too.
    users: AtomicU32,
}

/// How long the lock is waited for when the device is gone: the application may be between `ibv_start_poll` and `ibv_end_poll` for as long
/// as it likes.
const PATIENCE: Duration = Duration::from_secs(5);

/// No event was asked for, or since one was given at the end.
const IDLE: u8 = 0;
/// The application may be owed an event.
const ARMED: u8 = 1;
/// It was given at the end, and waits to be read.
const SIGNALLED: u8 = 2;

impl<F: Family> Cq<F> {
    /// What events name it by: the address of C's.
    fn user_handle(&self) -> u64 {
        let at = core::ptr::from_ref(self).expose_provenance() + cast::front::<ibv_cq, Self>();
        at as u64
    }

    /// Whether no thread that began before the device was dying is arming. Asked after a barrier that every CPU passes.
    pub(crate) fn is_quiet(&self) -> bool {
        // ORDER: SeqCst, partner is `arm_any`: either that sees the device dying, or it is seen here.
        self.arming.is_idle() && self.arming_too.load(Ordering::SeqCst) == 0
    }

    /// What names it, if it gives its events to `channel` and one is owed, which the caller gives.
    pub(crate) fn take_owed(&self, channel: &Arc<Channel>) -> Option<u64> {
        if !self.channel.as_ref().is_some_and(|own| Arc::ptr_eq(own, channel)) {
            return None;
        }
        // ORDER: AcqRel, as in `wake`.
        self.armed.compare_exchange(ARMED, SIGNALLED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // ORDER: Relaxed, as in `wake`.
        self.given.fetch_add(1, Ordering::Relaxed);
        Some(self.user_handle())
    }

    /// Gives the event that is owed, if one is.
    pub(crate) fn wake(&self) {
        let Some(channel) = &self.channel else { return };
        // ORDER: SeqCst, partner is the fence in `arm_without_device`.
        fence(Ordering::SeqCst);
        // ORDER: AcqRel: of several that wake it one gives the event.
        let owed = self.armed.compare_exchange(ARMED, SIGNALLED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if owed && channel.post(self.user_handle()) {
            // ORDER: Relaxed: counted before the destroy that reads it, which the caller excludes.
            self.given.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `CompletionQueue::freeze`, if the lock can be had.
    pub(crate) fn freeze(&self) -> Result<(), Errno> {
        self.queue.lock_within(PATIENCE).map(|mut queue| queue.freeze()).ok_or(Errno::EBUSY)
    }

    /// `CompletionQueue::let_go`, if the lock can be had.
    pub(crate) fn let_go(&self) -> Result<(), Errno> {
        self.queue.lock_within(PATIENCE).map_or(Err(Errno::EBUSY), |mut queue| queue.let_go())
    }

    /// Has the kernel's CQ destroyed before the application destroys this one.
    pub(crate) fn stop(&self) {
        if let Ok(reported) = uapi::cq::destroy(self.fd, self.handle) {
            let _ = self.stopped.set(reported);
        }
    }

    /// Destroys the kernel's CQ; how many events it reported.
    fn destroy(&self) -> Result<DestroyCqResp, Errno> {
        match self.stopped.get() {
            Some(reported) => Ok(*reported),
            None => uapi::cq::destroy(self.fd, self.handle),
        }
    }

    /// Arms. The caller is counted as arming.
    #[inline(always)]
    fn arm(&self, solicited_only: bool) -> Result<(), Errno> {
        let over = self.arm.life().is_over();
        // ORDER: Release, partner is the AcqRel in `wake`.
        self.armed.store(ARMED, Ordering::Release);
        if over { Ok(()) } else { self.arm.arm(self.fd, self.handle, solicited_only) }
    }

    /// Arms in the usual way, by a thread that nearly always is the one to arm: false where it is not, or something is to be said.
    ///
    /// It is counted by the mark of a lock that this thread owns, a plain store, where a counter cost 50 of 67 cycles.
    #[inline(always)]
    fn arm_usual(&self, solicited_only: bool) -> bool {
        let Some(guard) = self.arming.lock_own() else { return false };
        let armed = self.arm(solicited_only).is_ok();
        drop(guard);
        armed && !self.arm.life().is_over()
    }

    /// Arms, whoever else does. Nobody waits here: a thread may arm while another polls or arms, or while it does so itself, in a
    /// signal handler.
    #[inline(never)]
    fn arm_any(&self, solicited_only: bool) -> Result<(), Errno> {
        let result = if let Some(_guard) = self.arming.try_lock() {
            self.arm(solicited_only)
        } else {
            // ORDER: SeqCst, partner is the load in `is_quiet`, and the change of the phase before it.
            self.arming_too.fetch_add(1, Ordering::SeqCst);
            let result = self.arm(solicited_only);
            // ORDER: SeqCst, as above.
            self.arming_too.fetch_sub(1, Ordering::SeqCst);
            result
        };
        if self.arm.life().is_over() {
            self.arm_without_device();
        }
        result
    }

    /// Gives the event at once where there is something to poll, else when there will be.
    #[cold]
    fn arm_without_device(&self) {
        // ORDER: SeqCst, partner is the fence in `wake`: either this thread sees the device gone, or it is seen to be armed there.
        fence(Ordering::SeqCst);
        if !self.arm.life().is_gone() {
            return;
        }
        // Before the look: a post that is kept meanwhile finds the sleeper.
        self.arm.life().sleep();
        // Where the queue is being polled just now, an event too many does no harm.
        if !watch::is_running() || self.queue.try_lock().is_none_or(|mut queue| queue.is_pending()) {
            self.wake();
        }
    }
}

/// One more QP or SRQ completes to `cq`, which may be NULL.
///
/// # Safety
/// `cq` is NULL or a live CQ of family `F`.
pub(crate) unsafe fn hold<F: Family>(cq: *mut ibv_cq) {
    if !cq.is_null() {
        // ORDER: Relaxed: the caller has the CQ, so the count is not 0.
        // SAFETY: the caller's word.
        unsafe { ours::<F>(cq) }.users.fetch_add(1, Ordering::Relaxed);
    }
}

/// One user less of `cq`; what is left of it after the last one.
///
/// # Safety
/// `cq` is a CQ of family `F` that the caller is a user of, for the last time.
unsafe fn left<F: Family>(cq: *mut ibv_cq) -> Option<Cq<F>> {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(cq) };
    // One user alone is the caller, and nobody else comes any more.
    // ORDER: Acquire and AcqRel: the last user sees what the others did.
    if ours.users.load(Ordering::Acquire) != 1 && ours.users.fetch_sub(1, Ordering::AcqRel) != 1 {
        return None;
    }
    Some(if ours.extended {
        // SAFETY: nobody is left to use it, and so it was made.
        unsafe { cast::take_fronted::<ibv_cq_ex, Cq<F>>(cq.cast()) }
    } else {
        // SAFETY: as above.
        unsafe { cast::take_fronted::<ibv_cq, Cq<F>>(cq) }
    })
}

/// One user less of `cq`, which may be NULL; the last one frees it, and the family has its parts.
///
/// # Safety
/// `cq` is NULL or a CQ of family `F` that the caller is a user of, for the last time; its context is open.
pub(crate) unsafe fn release<F: Family>(cq: *mut ibv_cq) {
    if cq.is_null() {
        return;
    }
    let cx = cx_of!(F, cq);
    // SAFETY: the caller's word.
    if let Some(Cq { queue, arm, .. }) = unsafe { left::<F>(cq) } {
        cx.family.cq_destroyed(queue.into_inner(), arm);
    }
}

/// As [`release`], while the context is closed.
///
/// # Safety
/// `cq` is a CQ of family `F` that the caller is a user of, for the last time.
unsafe fn release_late<F: Family>(cq: *mut ibv_cq) {
    // SAFETY: the caller's word.
    drop(unsafe { left::<F>(cq) });
}

/// The family's part of the CQ at `cq`; none for NULL.
///
/// # Safety
/// `cq` is NULL or a live CQ of family `F` during `'a`.
pub(crate) unsafe fn queue_of<'a, F: Family>(cq: *mut ibv_cq) -> Option<&'a SpinLock<F::Cq>> {
    // SAFETY: the caller's word.
    (!cq.is_null()).then(|| &unsafe { ours::<F>(cq) }.queue)
}

#[inline(always)]
unsafe fn ours<'a, F: Family>(cq: *mut ibv_cq) -> &'a Cq<F> {
    // SAFETY: the caller's word: a live CQ of family F.
    unsafe { &*cast::in_front(cq) }
}

/// Makes a CQ whose C object is an `H`, an `ibv_cq` or more, which `dress` fills in beyond that.
///
/// # Safety
/// `context` is an open context of family `F`; `H` is `ibv_cq`, or `ibv_cq_ex` where the CQ is to be `extended`.
unsafe fn create<F: Family, H>(
    context: *mut ibv_context,
    request: CqRequest,
    extended: bool,
    dress: impl FnOnce(*mut H),
) -> Result<*mut H, Error> {
    // SAFETY: the caller's word: an open context of family F.
    let cx = unsafe { context::for_creating::<F>(context) };
    let fresh = Fresh::<H, Cq<F>>::fronted()?;
    cx.usable()?;
    let head: *mut ibv_cq = fresh.head().cast();
    let request = CqRequest { user_handle: fresh.user_handle(), ..request };
    let created = cx.family.create_cq(&cx.device, &request)?;
    // SAFETY: ours until `finish`.
    unsafe { (*head).context = context };
    // SAFETY: as above.
    unsafe { (*head).handle = created.handle.0 };
    // SAFETY: as above.
    unsafe { (*head).cqe = created.cqe.try_into().unwrap_or(c_int::MAX) };
    dress(fresh.head());
    // Where the queue may have to be taken off the kernel's memory the lock is needed whatever the application says.
    let single = request.flags & IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0 && !F::WAITS_FOR_USERS;
    let locking = if single || cx.family.is_single_threaded(None) {
        // SAFETY: the application's word, by this flag or by the family's own setting, that one thread uses the CQ.
        unsafe { Locking::no() }
    } else {
        Locking::YES
    };
    let (queue, arm) = (SpinLock::with(locking, created.queue), created.arm);
    let users = AtomicU32::new(1);
    let head = fresh.finish(Cq {
        fd: cx.device.fd,
        handle: created.handle,
        queue,
        arm,
        channel: request.channel.map(|fd| cx.channels.get(fd)),
        stopped: OnceLock::new(),
        extended,
        armed: AtomicU8::new(IDLE),
        arming: SpinLock::among(()),
        arming_too: AtomicU32::new(0),
        given: AtomicU32::new(0),
        users,
    });
    cx.add(Kind::Cq, cast::in_front::<H, Cq<F>>(head));
    Ok(head)
}

/// The channel's file, for NULL none.
unsafe fn channel_fd(channel: *mut ibv_comp_channel) -> Option<c_int> {
    // SAFETY: the caller's word: NULL or a live channel; a single field is read.
    (!channel.is_null()).then(|| unsafe { (*channel).fd })
}

/// `create_cq`.
///
/// # Safety
/// ibv_create_cq(3), by libibverbs, for a context of family `F`.
pub(crate) unsafe extern "C" fn create_cq<F: Family>(
    context: *mut ibv_context,
    cqe: c_int,
    channel: *mut ibv_comp_channel,
    comp_vector: c_int,
) -> *mut ibv_cq {
    guard::pointer_of("ibv_create_cq", || {
        let invalid = Error::new("check the arguments", Errno::EINVAL);
        let request = CqRequest {
            cqe: u32::try_from(cqe).map_err(|_| invalid)?,
            wc_flags: 0,
            flags: 0,
            // SAFETY: the caller's word.
            channel: unsafe { channel_fd(channel) },
            comp_vector: u32::try_from(comp_vector).map_err(|_| invalid)?,
            user_handle: 0,
        };
        // SAFETY: the caller's word.
        unsafe { create::<F, ibv_cq>(context, request, false, |_| {}) }
    })
}

/// `create_cq_ex`.
///
/// # Safety
/// ibv_create_cq_ex(3), by libibverbs, for a context of family `F`.
pub(crate) unsafe extern "C" fn create_cq_ex<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_cq_init_attr_ex,
) -> *mut ibv_cq_ex {
    guard::pointer_of("ibv_create_cq_ex", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        let unsupported = Error::new("check the CQ's wc_flags, comp_mask and flags", Errno::EOPNOTSUPP);
        let flags = if attr.comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS != 0 { attr.flags } else { 0 };
        if attr.wc_flags & !F::WC_FLAGS != 0
            || attr.comp_mask & !F::CQ_COMP_MASK != 0
            || flags & !F::CQ_FLAGS != 0
        {
            return Err(unsupported);
        }
        let request = CqRequest {
            cqe: attr.cqe,
            wc_flags: attr.wc_flags,
            flags,
            // SAFETY: the caller's word.
            channel: unsafe { channel_fd(attr.channel) },
            comp_vector: attr.comp_vector,
            user_handle: 0,
        };
        // SAFETY: zeroed, and nobody else has the address.
        let dress = |cq: *mut ibv_cq_ex| set_reads::<F>(unsafe { &mut *cq }, request.wc_flags);
        // SAFETY: the caller's word.
        unsafe { create::<F, ibv_cq_ex>(context, request, true, dress) }
    })
}

/// `resize_cq`.
///
/// # Safety
/// ibv_resize_cq(3), by libibverbs, for a CQ of family `F`.
pub(crate) unsafe extern "C" fn resize_cq<F: Family>(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    guard::errno_of("ibv_resize_cq", || {
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(cq) };
        let cx = cx_of!(F, cq);
        cx.usable()?;
        let cqe = u32::try_from(cqe).map_err(|_| Error::new("check the arguments", Errno::EINVAL))?;
        let mut queue = ours.queue.lock();
        let cqe = cx.family.resize_cq(&cx.device, &mut queue, ours.handle, cqe)?;
        // SAFETY: the caller's word; whoever resizes is alone in writing it.
        unsafe { (*cq).cqe = cqe.try_into().unwrap_or(c_int::MAX) };
        Ok(())
    })
}

/// `modify_cq`: moderation.
///
/// # Safety
/// ibv_modify_cq(3), by libibverbs, for a CQ of family `F`.
pub(crate) unsafe extern "C" fn modify_cq<F: Family>(
    cq: *mut ibv_cq,
    attr: *mut ibv_modify_cq_attr,
) -> c_int {
    guard::errno_of("ibv_modify_cq", || {
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(cq) };
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        if attr.attr_mask != IBV_CQ_ATTR_MODERATE {
            return Err(Error::new("check the attribute mask", Errno::EINVAL));
        }
        cx_of!(F, cq).usable()?;
        uapi::cq::modify(ours.fd, ours.handle, attr.moderate.cq_count, attr.moderate.cq_period)
            .step("modify the CQ")
    })
}

/// `destroy_cq`.
///
/// # Safety
/// ibv_destroy_cq(3), by libibverbs, for a CQ of family `F`.
pub(crate) unsafe extern "C" fn destroy_cq<F: Family>(cq: *mut ibv_cq) -> c_int {
    guard::errno_of("ibv_destroy_cq", || {
        // SAFETY: the caller's word.
        let ours = unsafe { ours::<F>(cq) };
        let cx = cx_of!(F, cq);
        let (destroyed, life) = (ours.destroy(), &cx.device.life);
        let reported = memory::counted(destroyed, life, "destroy the CQ")?;
        // From here on no event of it is given.
        cx.remove(Kind::Cq, cast::in_front::<ibv_cq, Cq<F>>(cq));
        let mut purged = 0;
        if let Some(channel) = &ours.channel {
            purged = channel.purge(ours.user_handle());
            channel.leave();
        }
        // ORDER: Relaxed: nobody else destroys it.
        let given = ours.given.load(Ordering::Relaxed).wrapping_sub(purged);
        let acknowledged = reported.is_some_and(|reported| {
            let comp = reported.comp_events_reported.wrapping_add(given);
            // SAFETY: libibverbs initialised the CQ after create_cq.
            unsafe { events::wait_cq(cq, comp, reported.async_events_reported, life) }
        });
        if acknowledged {
            // SAFETY: the kernel's side is gone, and no event of ours names it.
            unsafe { release::<F>(cq) };
        } else {
            // SAFETY: as above.
            unsafe { cx.end(cq, false, release_late::<F>) };
        }
        Ok(())
    })
}

/// `req_notify_cq`.
///
/// # Safety
/// ibv_req_notify_cq(3), for a CQ of family `F`.
pub(crate) unsafe extern "C" fn req_notify_cq<F: Family>(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
        // SAFETY: the caller's word.
        match unsafe { ours::<F>(cq) }.arm_any(solicited_only != 0) {
            Ok(()) => 0,
            Err(errno) => {
                guard::set_errno(errno);
                errno.get()
            }
        }
    }
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(cq) };
    if ours.arm_usual(solicited_only != 0) {
        return 0;
    }
    // SAFETY: the caller's word.
    unsafe { any::<F>(cq, solicited_only) }
}

/// [`req_notify_cq`], where no thread watches the device.
///
/// # Safety
/// As of that.
pub(crate) unsafe extern "C" fn req_notify_cq_and_look<F: Family>(
    cq: *mut ibv_cq,
    solicited_only: c_int,
) -> c_int {
    guard::nothing_of("ibv_req_notify_cq", watch::glance);
    // SAFETY: the caller's word.
    unsafe { req_notify_cq::<F>(cq, solicited_only) }
}

/// `cq_event`: libibverbs tells of each completion event that it hands to the application.
///
/// # Safety
/// Called by libibverbs with a CQ of family `F`.
pub(crate) unsafe extern "C" fn cq_event<F: Family>(cq: *mut ibv_cq) {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(cq) };
    // Of the kernel's events none ends an arm here: another thread may have armed since this one was read, and at the end an event
    // too many is better than none.
    // ORDER: Relaxed: only a look.
    if ours.armed.load(Ordering::Relaxed) == SIGNALLED {
        // ORDER: AcqRel, as in `wake`.
        let _ = ours.armed.compare_exchange(SIGNALLED, IDLE, Ordering::AcqRel, Ordering::Relaxed);
    }
    ours.arm.event();
}

/// `poll_cq`. An empty poll ends here, with no register saved and no lock taken.
///
/// # Safety
/// ibv_poll_cq(3), for a CQ of family `F`.
pub(crate) unsafe extern "C" fn poll_cq<F: Family>(
    cq: *mut ibv_cq,
    num_entries: c_int,
    wc: *mut ibv_wc,
) -> c_int {
    if num_entries <= 0 {
        return 0;
    }
    // SAFETY: the caller's word.
    match unsafe { ours::<F>(cq) }.arm.look(num_entries == 1) {
        Look::Nothing => 0,
        // SAFETY: the caller's word.
        Look::Sent(at, seen) => unsafe { poll_sent::<F>(cq, seen, wc, at) },
        // SAFETY: the caller's word.
        Look::Plain(at, seen) => unsafe { poll_plain::<F>(cq, seen, wc, at) },
        // SAFETY: the caller's word.
        Look::Shared(at, seen) => unsafe { poll_shared::<F>(cq, seen, wc, at) },
        // SAFETY: the caller's word.
        Look::Received(at, seen) => unsafe { poll_received::<F>(cq, seen, wc, at) },
        // SAFETY: the caller's word.
        Look::Other => unsafe { poll_some::<F>(cq, num_entries, wc) },
    }
}

/// Polls one completion by the method of this name, which was seen `at` the queue's front as `seen`; or else whatever is there.
/// Functions of their own: each saves few registers, or none, and searches nothing that was found by that look.
macro_rules! polls_of_one {
    ($($(#[$meta:meta])* $name:ident)*) => {
        $($(#[$meta])*
        ///
        /// # Safety
        /// As for [`poll_cq`] with `num_entries` 1.
        #[inline(never)]
        unsafe fn $name<F: Family>(
            cq: *mut ibv_cq,
            seen: u8,
            wc: *mut ibv_wc,
            at: AtOf<'_, F::Cq>,
        ) -> c_int {
            // SAFETY: the caller's word, where it is not NULL.
            if let Some(to) = unsafe { wc.cast::<MaybeUninit<ibv_wc>>().as_mut() }
                // SAFETY: the caller's word.
                && let Some(mut queue) = unsafe { ours::<F>(cq) }.queue.lock_own()
                && queue.$name(at, seen, to).is_some()
            {
                return 1;
            }
            // SAFETY: the caller's word.
            unsafe { poll_some::<F>(cq, 1, wc) }
        })*
    };
}

polls_of_one! {
    /// Polls one completion of a send.
    poll_sent
    /// The same, of a receive of the plainest kind.
    poll_plain
    /// The same, to an SRQ.
    poll_shared
    /// The same, of any receive.
    poll_received
}

/// Where a poll gives its completions.
///
/// # Safety
/// As for [`poll_cq`]: `num_entries`, which is not negative, entries at `wc` that are the caller's to write.
#[inline(always)]
unsafe fn entries<'a>(num_entries: c_int, wc: *mut ibv_wc) -> &'a mut [MaybeUninit<ibv_wc>] {
    // SAFETY: the caller's word.
    unsafe { core::slice::from_raw_parts_mut(wc.cast(), num_entries.unsigned_abs() as usize) }
}

/// Completions of the usual kinds, of a queue that this thread owns, are given without a call; everything else goes on in
/// [`poll_most`].
///
/// # Safety
/// As for [`poll_cq`], and `num_entries` is not negative.
#[inline(never)]
unsafe extern "C" fn poll_some<F: Family>(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    if wc.is_null() {
        return 0;
    }
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(cq) };
    let mut polled = 0;
    if let Some(mut queue) = ours.queue.lock_own() {
        // SAFETY: the caller's word.
        let out = unsafe { entries(num_entries, wc) };
        match queue.poll_usual(out) {
            // No more than num_entries.
            Ok(polled) => return polled.cast_signed(),
            Err(before) => polled = before,
        }
    }
    // SAFETY: the caller's word.
    unsafe { poll_most::<F>(cq, num_entries, wc, polled) }
}

/// Polls on, behind the first `polled` entries, those of more kinds: a function of its own, as for posts.
///
/// # Safety
/// As for [`poll_cq`]; `polled` is at most `num_entries`.
#[inline(never)]
unsafe extern "C" fn poll_most<F: Family>(
    cq: *mut ibv_cq,
    num_entries: c_int,
    wc: *mut ibv_wc,
    mut polled: u32,
) -> c_int {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(cq) };
    if let Some(mut queue) = ours.queue.lock_own() {
        // SAFETY: the caller's word.
        let out = unsafe { entries(num_entries, wc) };
        match queue.poll_most(out.get_mut(polled as usize..).unwrap_or_default()) {
            // No more than num_entries.
            Ok(more) => return (polled + more).cast_signed(),
            Err(more) => polled += more,
        }
    }
    // SAFETY: the caller's word.
    unsafe { poll_on::<F>(cq, num_entries, wc, polled) }
}

/// Polls on, behind the first `polled` entries, whatever comes.
///
/// # Safety
/// As for [`poll_cq`]; `polled` is at most `num_entries`.
#[inline(never)]
unsafe extern "C" fn poll_on<F: Family>(
    cq: *mut ibv_cq,
    num_entries: c_int,
    wc: *mut ibv_wc,
    polled: u32,
) -> c_int {
    // SAFETY: the caller's word.
    let ours = unsafe { ours::<F>(cq) };
    // SAFETY: the caller's word.
    let out = unsafe { entries(num_entries, wc) };
    let rest = out.get_mut(polled as usize..).unwrap_or_default();
    match ours.queue.lock().poll(rest) {
        // No more than num_entries.
        Ok(more) => (polled + more).cast_signed(),
        // Those before it are given on; the application hears of it by itself when there are none.
        Err(_) if polled != 0 => polled.cast_signed(),
        Err(errno) => {
            guard::set_errno(errno);
            -errno.get()
        }
    }
}

/// [`poll_cq`], where no thread watches the device.
///
/// # Safety
/// As of that.
pub(crate) unsafe extern "C" fn poll_cq_and_look<F: Family>(
    cq: *mut ibv_cq,
    num_entries: c_int,
    wc: *mut ibv_wc,
) -> c_int {
    // SAFETY: the caller's word.
    let polled = unsafe { poll_cq::<F>(cq, num_entries, wc) };
    if polled == 0 {
        guard::nothing_of("ibv_poll_cq", watch::glance);
    }
    polled
}

// The extended interface. The lock taken by `start_poll` is given back by `end_poll`, on the same thread
// (ibv_create_cq_ex(3)); in between the queue belongs to that thread.

#[inline(always)]
unsafe fn ours_ex<'a, F: Family>(cq: *mut ibv_cq_ex) -> &'a Cq<F> {
    // SAFETY: the caller's word: a live CQ of family F.
    unsafe { &*cast::in_front(cq) }
}

/// What the application reads of a completion by itself.
///
/// # Safety
/// `cq` is a live CQ between start_poll and end_poll: these two fields belong to the thread that polls.
#[inline(always)]
unsafe fn show(cq: *mut ibv_cq_ex, head: Head) -> c_int {
    // SAFETY: the caller's word.
    unsafe { (*cq).wr_id = head.wr_id };
    // SAFETY: the caller's word.
    unsafe { (*cq).status = head.status };
    0
}

/// `start_poll`. A completion of a usual kind, or none, of a queue that this thread owns is found without a call.
unsafe extern "C" fn start_poll<F: Family>(cq: *mut ibv_cq_ex, attr: *mut ibv_poll_cq_attr) -> c_int {
    #[cold]
    #[inline(never)]
    extern "C" fn refuse() -> c_int {
        guard::set_errno(Errno::EINVAL);
        libc::EINVAL
    }
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(cq: *mut ibv_cq_ex) -> c_int {
        // SAFETY: the caller's word.
        let ours = unsafe { ours_ex::<F>(cq) };
        ours.queue.acquire();
        // SAFETY: acquired just now.
        match unsafe { ours.queue.held() }.start() {
            // SAFETY: acquired above.
            Ok(head) => unsafe { show(cq, head) },
            Err(errno) => {
                // SAFETY: acquired above; a start_poll that fails has no end_poll.
                unsafe { ours.queue.release() };
                errno.get()
            }
        }
    }
    // SAFETY: the caller's word.
    let ours = unsafe { ours_ex::<F>(cq) };
    // SAFETY: the caller's word; a single field of a valid attr.
    if !attr.is_null() && unsafe { (*attr).comp_mask } != 0 {
        return refuse();
    }
    // Before the lock, which where nothing is there would be half of what this takes.
    if matches!(ours.arm.look(false), Look::Nothing) {
        return libc::ENOENT;
    }
    if let Some(mut queue) = ours.queue.lock_own() {
        match queue.next_usual() {
            Next::Usual(head) => {
                // end_poll gives it back.
                queue.keep();
                // SAFETY: this thread has the lock.
                return unsafe { show(cq, head) };
            }
            Next::None => return libc::ENOENT,
            Next::Other => {}
        }
    }
    // SAFETY: the caller's word.
    unsafe { any::<F>(cq) }
}

/// [`start_poll`], where no thread watches the device.
unsafe extern "C" fn start_poll_and_look<F: Family>(
    cq: *mut ibv_cq_ex,
    attr: *mut ibv_poll_cq_attr,
) -> c_int {
    // SAFETY: the caller's word.
    let started = unsafe { start_poll::<F>(cq, attr) };
    if started == libc::ENOENT {
        guard::nothing_of("ibv_start_poll", watch::glance);
    }
    started
}

unsafe extern "C" fn next_poll<F: Family>(cq: *mut ibv_cq_ex) -> c_int {
    #[inline(never)]
    unsafe extern "C" fn any<F: Family>(cq: *mut ibv_cq_ex) -> c_int {
        // SAFETY: the caller's word.
        let ours = unsafe { ours_ex::<F>(cq) };
        // SAFETY: between start_poll and end_poll this thread holds the lock.
        match unsafe { ours.queue.held() }.next() {
            // SAFETY: as above.
            Ok(head) => unsafe { show(cq, head) },
            Err(errno) => errno.get(),
        }
    }
    // SAFETY: the caller's word.
    let ours = unsafe { ours_ex::<F>(cq) };
    // SAFETY: between start_poll and end_poll this thread holds the lock.
    match unsafe { ours.queue.held() }.next_usual() {
        // SAFETY: as above.
        Next::Usual(head) => unsafe { show(cq, head) },
        Next::None => libc::ENOENT,
        // SAFETY: the caller's word.
        Next::Other => unsafe { any::<F>(cq) },
    }
}

unsafe extern "C" fn end_poll<F: Family>(cq: *mut ibv_cq_ex) {
    // SAFETY: the caller's word.
    let ours = unsafe { ours_ex::<F>(cq) };
    // SAFETY: between start_poll and end_poll this thread holds the lock.
    unsafe { ours.queue.held() }.end();
    // SAFETY: as above; this ends it.
    unsafe { ours.queue.release() };
}

macro_rules! reads {
    ($($name:ident($method:ident) -> $ty:ty;)*) => {
        $(unsafe extern "C" fn $name<F: Family>(cq: *mut ibv_cq_ex) -> $ty {
            // SAFETY: the caller's word.
            let ours = unsafe { ours_ex::<F>(cq) };
            // SAFETY: between start_poll and end_poll this thread holds the lock.
            unsafe { ours.queue.held() }.$method()
        })*
    };
}

reads! {
    read_opcode(opcode) -> u32;
    read_vendor_err(vendor_err) -> u32;
    read_byte_len(byte_len) -> u32;
    read_imm_data(imm_data) -> u32;
    read_qp_num(qp_num) -> u32;
    read_src_qp(src_qp) -> u32;
    read_wc_flags(wc_flags) -> c_uint;
    read_slid(slid) -> u32;
    read_sl(sl) -> u8;
    read_dlid_path_bits(dlid_path_bits) -> u8;
    read_completion_ts(completion_ts) -> u64;
    read_completion_wallclock_ns(completion_wallclock_ns) -> u64;
    read_cvlan(cvlan) -> u16;
    read_flow_tag(flow_tag) -> u32;
}

/// The polling functions of an extended CQ: those of `wc_flags`, and those that every one has.
fn set_reads<F: Family>(cq: &mut ibv_cq_ex, wc_flags: u64) {
    cq.start_poll = Some(if watch::is_running() { start_poll::<F> } else { start_poll_and_look::<F> });
    cq.next_poll = Some(next_poll::<F>);
    cq.end_poll = Some(end_poll::<F>);
    cq.read_opcode = Some(read_opcode::<F>);
    cq.read_vendor_err = Some(read_vendor_err::<F>);
    cq.read_wc_flags = Some(read_wc_flags::<F>);
    let wants = |flag: u32| wc_flags & u64::from(flag) != 0;
    cq.read_byte_len = wants(IBV_WC_EX_WITH_BYTE_LEN).then_some(read_byte_len::<F>);
    cq.read_imm_data = wants(IBV_WC_EX_WITH_IMM).then_some(read_imm_data::<F>);
    cq.read_qp_num = wants(IBV_WC_EX_WITH_QP_NUM).then_some(read_qp_num::<F>);
    cq.read_src_qp = wants(IBV_WC_EX_WITH_SRC_QP).then_some(read_src_qp::<F>);
    cq.read_slid = wants(IBV_WC_EX_WITH_SLID).then_some(read_slid::<F>);
    cq.read_sl = wants(IBV_WC_EX_WITH_SL).then_some(read_sl::<F>);
    cq.read_dlid_path_bits = wants(IBV_WC_EX_WITH_DLID_PATH_BITS).then_some(read_dlid_path_bits::<F>);
    cq.read_completion_ts = wants(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP).then_some(read_completion_ts::<F>);
    cq.read_completion_wallclock_ns =
        wants(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK).then_some(read_completion_wallclock_ns::<F>);
    cq.read_cvlan = wants(IBV_WC_EX_WITH_CVLAN).then_some(read_cvlan::<F>);
    cq.read_flow_tag = wants(IBV_WC_EX_WITH_FLOW_TAG).then_some(read_flow_tag::<F>);
}
