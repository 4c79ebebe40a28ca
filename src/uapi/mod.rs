//! Kernel commands: encode, call, decode. No policy and no state.
//!
//! One function a command, in the module of its object, named after the verb. Each takes the context's [`CmdFd`] and gives
//! what the kernel answered, or its `errno` as it came. `EPROTO` is ours, the kernel's own is not seen from these commands:
//! the call succeeded, but its answer does not hold together (a missing output, a number out of its range, a length beyond
//! the buffer), and what it created, if anything, is unknown.
//!
//! Commands go out as native ioctl methods where 5.10 and all later kernels have them, otherwise in the write form inside
//! the ioctl `INVOKE_WRITE`; only [`qp::post_send_kick`] is a plain `write`, for its cost. The ioctl form needs a 5.10
//! kernel; what came later says so at the function. A kernel that lacks a method or an attribute answers
//! `EPROTONOSUPPORT`, a driver that lacks the verb `EOPNOTSUPP`; [`is_unsupported`] knows both.
//!
//! After the device was taken away (disassociation) every command answers `EIO`, except that a destroy succeeds.
//!
//! All pointers travel in [`sys`], the only module that may say `unsafe` or make a system call. In unit tests its calls are
//! answered by a script (`sys::twin`); structs and numbers are held against the C headers; `tests/uapi_live.rs` runs every
//! command on a real kernel.

use crate::error::Errno;
use std::os::fd::RawFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub mod ah;
#[cfg(test)]
mod check;
pub mod counters;
pub mod cq;
pub mod device;
pub mod dm;
pub mod event;
pub mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ids;
pub mod mlx5;
pub mod mr;
pub mod mw;
pub mod pd;
pub mod qp;
pub mod rwq_ind_table;
pub mod rxe;
pub mod srq;
pub mod sys;
#[cfg(test)]
mod tests;
pub mod wire;
pub mod wq;
mod write;
pub mod xrcd;

/// The kernel driver behind a device, `enum rdma_driver_id`: the ioctl form refuses a command that names another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverId(pub u32);

impl DriverId {
    /// `RDMA_DRIVER_MLX5`.
    pub const MLX5: DriverId = DriverId(1);
    /// `RDMA_DRIVER_RXE`.
    pub const RXE: DriverId = DriverId(14);
}

/// An open `/dev/infiniband/uverbsN` and its driver. Borrowed: libibverbs owns the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmdFd {
    /// The descriptor.
    pub fd: RawFd,
    /// Whose device it is.
    pub driver_id: DriverId,
}

impl CmdFd {
    /// The context behind `fd`, a device of `driver_id`.
    #[must_use]
    pub const fn new(fd: RawFd, driver_id: DriverId) -> CmdFd {
        CmdFd { fd, driver_id }
    }
}

/// A kernel object of one context, `ibv_*::handle`. Its kind is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u32);

/// Driver data that ride on a command.
///
/// The output is zeroed before the call, and an answer is `Ok` only when the kernel says that it wrote it. How many bytes it
/// wrote it does not say: what it left out reads as 0, and driver structs carry their own `response_length` where it matters.
#[derive(Debug, Default)]
pub struct Udata<'a> {
    /// To the driver; empty: none.
    pub input: &'a [u8],
    /// From the driver; empty: none.
    pub output: &'a mut [u8],
}

impl<'a> Udata<'a> {
    /// No driver data.
    #[must_use]
    pub fn none() -> Udata<'a> {
        Udata::default()
    }

    /// `input` to the driver, nothing back.
    #[must_use]
    pub fn input<T: IntoBytes + Immutable>(input: &'a T) -> Udata<'a> {
        Udata { input: input.as_bytes(), output: &mut [] }
    }

    /// Nothing to the driver, `output` from it.
    #[must_use]
    pub fn output<T: IntoBytes + FromBytes>(output: &'a mut T) -> Udata<'a> {
        Udata { input: &[], output: output.as_mut_bytes() }
    }

    /// `input` to the driver, `output` from it.
    #[must_use]
    pub fn both<I: IntoBytes + Immutable, O: IntoBytes + FromBytes>(
        input: &'a I,
        output: &'a mut O,
    ) -> Udata<'a> {
        Udata { input: input.as_bytes(), output: output.as_mut_bytes() }
    }
}

/// Whether `errno` says that kernel or driver do not have the command, rather than that they refused it.
#[must_use]
pub fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS)
}
