//! The system calls themselves.

use super::{Packet, RDMA_VERBS_IOCTL};
use crate::error::Errno;
use core::ffi::CStr;
use core::ptr::NonNull;
use std::os::fd::RawFd;

/// `-1` is a failure, described by `errno`.
pub(super) fn check(ret: i32) -> Result<i32, Errno> {
    if ret == -1 { Err(Errno::last()) } else { Ok(ret) }
}

fn count(ret: isize) -> Result<usize, Errno> {
    // -1 is the only negative.
    usize::try_from(ret).map_err(|_| Errno::last())
}

/// # Safety
/// The first `num_attrs` attributes of `packet` carry addresses as the invariants of [`super`] say.
pub(super) unsafe fn ioctl(fd: RawFd, packet: &mut Packet) -> Result<(), Errno> {
    let arg = core::ptr::from_mut(packet);
    // SAFETY: `arg` is a whole packet, and the caller vouches for the addresses in it.
    check(unsafe { libc::ioctl(fd, libc::Ioctl::from(RDMA_VERBS_IOCTL), arg) }).map(drop)
}

pub(super) fn mmap(
    fd: RawFd,
    len: usize,
    prot: i32,
    flags: i32,
    offset: libc::off_t,
) -> Result<NonNull<u8>, Errno> {
    // Placing a mapping over another is not safe, and nobody asks for it.
    let flags = flags & !(libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
    // SAFETY: without MAP_FIXED the kernel places the mapping where nothing is.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), len, prot, flags, fd, offset) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    NonNull::new(start.cast()).ok_or(Errno::ENOMEM)
}

/// # Safety
/// Nobody uses the range any more.
pub(super) unsafe fn munmap(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller's promise. It fails for a range that cannot be a mapping, and then does nothing.
    let _ = unsafe { libc::munmap(start.as_ptr().cast(), len) };
}

pub(super) fn madvise(addr: usize, len: usize, advice: i32) -> Result<(), Errno> {
    if !matches!(advice, libc::MADV_DOFORK | libc::MADV_DONTFORK) {
        return Err(Errno::EINVAL);
    }
    let addr = core::ptr::with_exposed_provenance_mut(addr);
    // SAFETY: neither advice changes memory of this process.
    check(unsafe { libc::madvise(addr, len, advice) }).map(drop)
}

pub(super) fn open(path: &CStr, flags: i32) -> Result<RawFd, Errno> {
    // O_CREAT and O_TMPFILE would make open read a third argument.
    let flags = flags & !(libc::O_CREAT | libc::O_TMPFILE);
    // SAFETY: `path` ends with a NUL.
    check(unsafe { libc::open(path.as_ptr(), flags) })
}

pub(super) fn close(fd: RawFd) {
    // SAFETY: takes no pointer.
    let _ = unsafe { libc::close(fd) };
}

pub(super) fn read(fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is borrowed for the call.
    count(unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) })
}

pub(super) fn write(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is borrowed for the call.
    count(unsafe { libc::write(fd, buf.as_ptr().cast(), buf.len()) })
}

/// As [`write()`], but no point where a thread may be cancelled: for that, the C library spends 40 instructions on each call of a
/// program of more than one thread, and 14 on calling `syscall`.
#[inline(always)]
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
pub(super) fn command(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    let mut written = libc::SYS_write as isize;
    // SAFETY: write(2) reads the buffer, which is borrowed for the call; the instruction loses rcx and r11.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") written, in("rdi") fd as isize, in("rsi") buf.as_ptr(), in("rdx") buf.len(),
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    usize::try_from(written).map_err(|_| raw(written))
}

/// See the other.
#[inline(always)]
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
pub(super) fn command(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    // SAFETY: as in `write`, which the C library makes the same call for.
    let written = unsafe { libc::syscall(libc::SYS_write, fd, buf.as_ptr(), buf.len()) };
    usize::try_from(written).map_err(|_| Errno::last())
}

/// The error in what the kernel itself returned: a small negative number.
#[cold]
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
fn raw(returned: isize) -> Errno {
    i32::try_from(returned).map_or(Errno::EPROTO, Errno::new)
}

pub(super) fn poll(fds: &mut [libc::pollfd], timeout: i32) -> Result<usize, Errno> {
    let n = libc::nfds_t::try_from(fds.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the array is borrowed for the call and has `n` entries.
    let ready = check(unsafe { libc::poll(fds.as_mut_ptr(), n, timeout) })?;
    usize::try_from(ready).map_err(|_| Errno::EPROTO)
}

pub(super) fn fcntl(fd: RawFd, cmd: i32, arg: i32) -> Result<i32, Errno> {
    if !matches!(cmd, libc::F_GETFL | libc::F_SETFL | libc::F_DUPFD_CLOEXEC) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: these take a number, no pointer.
    check(unsafe { libc::fcntl(fd, cmd, arg) })
}

pub(super) fn dup3(fd: RawFd, over: RawFd, flags: i32) -> Result<RawFd, Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::dup3(fd, over, flags) })
}

pub(super) fn eventfd(value: u32, flags: i32) -> Result<RawFd, Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::eventfd(value, flags) })
}

pub(super) fn pipe2(flags: i32) -> Result<[RawFd; 2], Errno> {
    let mut fds = [-1; 2];
    // SAFETY: the array has the two places that pipe2 fills.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), flags) })?;
    Ok(fds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gives_what_the_kernel_says() {
        let [from, to] = pipe2(0).unwrap();
        assert_eq!(command(to, b"hold"), Ok(4));
        let mut buf = [0; 8];
        assert_eq!((read(from, &mut buf), &buf[..4]), (Ok(4), &b"hold"[..]));
        assert_eq!(command(from, b"fast"), Err(Errno::EBADF), "not open for writing");
        close(from);
        close(to);
    }
}
