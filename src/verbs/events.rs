//! Waiting, in a destroy verb, until the application acknowledged every event of the object.
//!
//! The kernel's answer to a destroy tells how many events it gave out. The C object is the event's element: freeing it
//! before `ibv_ack_*` would leave the acknowledging thread with a dangling pointer (ibv_get_async_event(3),
//! ibv_get_cq_event(3)).
#![allow(unsafe_code, reason = "pthread objects and counters inside C's objects")]

use std::time::Duration;

use libc::{pthread_cond_t, pthread_mutex_t};

use crate::abi::public::{ibv_cq, ibv_qp, ibv_srq};
use crate::ha::life::Life;
use crate::uapi::sys::process;

/// How long an acknowledgement is waited for once the device is gone: the thread that owes it may be the one that waits.
const AFTER_DEATH: Duration = Duration::from_millis(500);
/// How often a wait looks whether the device is still there.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until each counter equals what the kernel reported; whether it does. Without a device the wait is bounded.
///
/// # Safety
/// The mutex and the condition are initialised, the counters valid, and all of them stay so during the call.
unsafe fn wait(
    mutex: *mut pthread_mutex_t,
    cond: *mut pthread_cond_t,
    counters: &[(*const u32, u32)],
    life: &Life,
) -> bool {
    if counters.iter().all(|(_, reported)| *reported == 0) {
        // None was ever read, and nobody acknowledges what he did not read: nobody is here to be waited for.
        return true;
    }
    let unequal = || {
        // SAFETY: the caller's word; the mutex is held, as by whoever acknowledges.
        counters.iter().any(|&(counter, reported)| unsafe { counter.read_volatile() != reported })
    };
    let mut dead = Duration::ZERO;
    // SAFETY: the caller's word.
    unsafe { libc::pthread_mutex_lock(mutex) };
    while unequal() && dead < AFTER_DEATH {
        let until = process::deadline(LOOK);
        // SAFETY: the mutex is held; the time is borrowed for the call.
        unsafe { libc::pthread_cond_timedwait(cond, mutex, &raw const until) };
        if life.is_over() {
            dead += LOOK;
        }
    }
    let acknowledged = !unequal();
    // SAFETY: held since above.
    unsafe { libc::pthread_mutex_unlock(mutex) };
    acknowledged
}

/// The mutex, condition and counters of a C object.
macro_rules! wait {
    ($object:expr, $life:expr, $($counter:ident = $reported:expr),*) => {{
        // SAFETY: a live object, by the caller's word; addresses only.
        let mutex = unsafe { &raw mut (*$object).mutex };
        // SAFETY: as above.
        let cond = unsafe { &raw mut (*$object).cond };
        // SAFETY: as above.
        let counters = [$((unsafe { &raw const (*$object).$counter }, $reported)),*];
        // SAFETY: as above.
        unsafe { wait(mutex, cond, &counters, $life) }
    }};
}

/// Waits for a CQ's completion events and async events; whether all were acknowledged.
///
/// # Safety
/// `cq` is a live CQ that libibverbs initialised.
pub(crate) unsafe fn wait_cq(cq: *mut ibv_cq, comp: u32, r#async: u32, life: &Life) -> bool {
    wait!(cq, life, comp_events_completed = comp, async_events_completed = r#async)
}

/// Waits for a QP's async events; whether all were acknowledged.
///
/// # Safety
/// `qp` is a live QP.
pub(crate) unsafe fn wait_qp(qp: *mut ibv_qp, reported: u32, life: &Life) -> bool {
    wait!(qp, life, events_completed = reported)
}

/// Waits for an SRQ's async events; whether all were acknowledged.
///
/// # Safety
/// `srq` is a live SRQ.
pub(crate) unsafe fn wait_srq(srq: *mut ibv_srq, reported: u32, life: &Life) -> bool {
    wait!(srq, life, events_completed = reported)
}
