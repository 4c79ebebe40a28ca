//! Commands of the write form, sent inside the ioctl `INVOKE_WRITE`: a core request, a core answer, driver data.

use super::sys::Command;
use super::{CmdFd, Udata, ids};
use crate::error::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

fn invoke<'a>(command: u32, req: &'a [u8], drv: Udata<'a>) -> Command<'a> {
    let mut cmd = Command::new(ids::INVOKE_WRITE);
    cmd.constant(ids::WRITE_CMD, u64::from(command)).input(ids::CORE_IN, req).udata(drv);
    cmd
}

/// `command` with an answer.
///
/// # Errors
/// Those of [`Command::call`].
pub(super) fn call<Q, R>(cmd: CmdFd, command: u32, req: &Q, drv: Udata<'_>) -> Result<R, Errno>
where
    Q: IntoBytes + Immutable + ?Sized,
    R: FromZeros + FromBytes + IntoBytes,
{
    let mut resp = R::new_zeroed();
    invoke(command, req.as_bytes(), drv).expect_output(ids::CORE_OUT, &mut resp).call(cmd)?;
    Ok(resp)
}

/// `command` without an answer.
///
/// # Errors
/// Those of [`Command::call`].
pub(super) fn tell<Q>(cmd: CmdFd, command: u32, req: &Q, drv: Udata<'_>) -> Result<(), Errno>
where
    Q: IntoBytes + Immutable + ?Sized,
{
    invoke(command, req.as_bytes(), drv).call(cmd).map(drop)
}

/// Checks the `response_length` of an extended answer: no more than the `size` we gave, no less than the `least` it
/// needs to mean anything.
///
/// # Errors
/// `EPROTO` where it is out of that range.
pub(super) fn check_length(response_length: u32, least: usize, size: usize) -> Result<(), Errno> {
    match usize::try_from(response_length) {
        Ok(length) if (least..=size).contains(&length) => Ok(()),
        _ => Err(Errno::EPROTO),
    }
}
