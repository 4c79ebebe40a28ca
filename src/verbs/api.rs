//! What the C API asks of a context, whatever its family.
#![allow(unsafe_code, reason = "finds our part of C's objects")]

use std::os::fd::RawFd;
use std::time::Duration;

use super::context::{self, Context};
use super::qp;
use super::watch;
use crate::abi::public::{ibv_context, ibv_qp};
use crate::error::Errno;
use crate::family::Family;
use crate::ha::ledger::Outstanding;
use crate::ha::life::{Life, Sign};
use crate::mlx5::Mlx5;
use crate::rxe::Rxe;
use crate::uapi::sys;

/// A context of ours.
pub trait Api {
    /// Where it is on its way.
    fn life(&self) -> &Life;

    /// An eventfd that counts changes of phase; it is the context's.
    ///
    /// # Errors
    /// The kernel's.
    fn changes(&self) -> Result<RawFd, Errno>;

    /// Lets it die as if the device had.
    fn kill(&self);

    /// How long it waits for the final sign after an early one.
    fn set_patience(&self, patience: Duration);

    /// What the QP at `qp` has outstanding.
    ///
    /// # Safety
    /// A live QP of this context.
    unsafe fn outstanding(&self, qp: *mut ibv_qp) -> Vec<Outstanding>;
}

impl<F: Family> Api for Context<F> {
    fn life(&self) -> &Life {
        &self.device.life
    }

    fn changes(&self) -> Result<RawFd, Errno> {
        if let Some(fd) = self.changes.get() {
            return Ok(fd.as_raw());
        }
        let fd = sys::eventfd(0, libc::EFD_NONBLOCK)?;
        Ok(self.changes.get_or_init(|| fd).as_raw())
    }

    fn kill(&self) {
        watch::sign(self, Sign::Forced);
    }

    fn set_patience(&self, patience: Duration) {
        self.device.life.set_patience(patience);
        watch::kick();
    }

    unsafe fn outstanding(&self, qp: *mut ibv_qp) -> Vec<Outstanding> {
        // SAFETY: the caller's word.
        let ours = unsafe { qp::ours::<F>(qp) };
        // SAFETY: as above.
        let attached = unsafe { qp::attached_of::<F>(qp) };
        self.family.outstanding(&ours.queues, &attached)
    }
}

/// Whether `context` is of ours and of the mlx5 family.
///
/// # Safety
/// As for [`of`].
pub unsafe fn is_mlx5(context: *mut ibv_context) -> bool {
    // SAFETY: the caller's word.
    unsafe { context::family_of(context) }.and_then(|name| name.to_str().ok()) == Some(Mlx5::NAME)
}

/// Our part of `context`; `None` for NULL and for contexts of other providers.
///
/// # Safety
/// `context` is NULL or an open context of any provider, and stays open during `'a`.
pub unsafe fn of<'a>(context: *mut ibv_context) -> Option<&'a dyn Api> {
    // SAFETY: the caller's word.
    match unsafe { context::family_of(context) }?.to_str() {
        // SAFETY: an open context of this family.
        Ok(Rxe::NAME) => Some(unsafe { context::of::<Rxe>(context) }),
        // SAFETY: as above.
        Ok(Mlx5::NAME) => Some(unsafe { context::of::<Mlx5>(context) }),
        _ => None,
    }
}
