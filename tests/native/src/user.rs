//! The program's memory, as the kernel touches it: an address that is not there is `EFAULT`, not a crash.
//!
//! The copy is `process_vm_readv(2)` of the process itself. Where a sandbox forbids that, memory is touched directly.
#![allow(unsafe_code, reason = "addresses come from the program, and the system checks them")]

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Errno, next};

static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// Copies `len` bytes. One of the two addresses is the program's, the other ours.
///
/// Both directions read "remotely": so it is the program's own buffer that tools like valgrind see being written to.
fn copy(to: *mut c_void, from: *mut c_void, len: usize) -> Result<(), Errno> {
    if len == 0 {
        return Ok(());
    }
    let (to_vec, from_vec) =
        (libc::iovec { iov_base: to, iov_len: len }, libc::iovec { iov_base: from, iov_len: len });
    // ORDER: whoever reads an old value makes the system call, which says the same again.
    if !FORBIDDEN.load(Ordering::Relaxed) {
        let own = next::process();
        // SAFETY: both vectors live here; the kernel checks what they point to.
        let copied = unsafe {
            libc::syscall(
                libc::SYS_process_vm_readv,
                own,
                &raw const to_vec,
                1usize,
                &raw const from_vec,
                1usize,
                0usize,
            )
        };
        if usize::try_from(copied) == Ok(len) {
            return Ok(());
        }
        let errno = std::io::Error::last_os_error().raw_os_error();
        if copied >= 0 || !matches!(errno, Some(libc::ENOSYS | libc::EPERM)) {
            return Err(Errno(libc::EFAULT));
        }
        FORBIDDEN.store(true, Ordering::Relaxed);
    }
    // SAFETY: nobody can check the program's address here; a program that gave a bad one ends, as it does not on a kernel.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), len) };
    Ok(())
}

fn pointer(address: u64) -> Result<*mut c_void, Errno> {
    let address = usize::try_from(address).map_err(|_| Errno(libc::EFAULT))?;
    if address == 0 {
        return Err(Errno(libc::EFAULT));
    }
    Ok(std::ptr::with_exposed_provenance_mut(address))
}

/// Copies bytes from the program.
pub(crate) fn read(address: u64, to: &mut [u8]) -> Result<(), Errno> {
    if to.is_empty() {
        return Ok(());
    }
    copy(to.as_mut_ptr().cast(), pointer(address)?, to.len())
}

/// Copies `len` bytes from the program.
pub(crate) fn read_vec(address: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    read(address, &mut bytes)?;
    Ok(bytes)
}

/// Copies bytes to the program.
pub(crate) fn write(address: u64, from: &[u8]) -> Result<(), Errno> {
    if from.is_empty() {
        return Ok(());
    }
    copy(pointer(address)?, from.as_ptr().cast_mut().cast(), from.len())
}

/// Makes a range present, as pinning it does: `EFAULT` where the program has no such memory, or may not write to it.
pub(crate) fn pin(start: u64, len: u64, writes: bool) -> Result<(), Errno> {
    const PAGE: u64 = 4096;
    if len == 0 {
        return Ok(());
    }
    let end = start.checked_add(len).ok_or(Errno(libc::EINVAL))?;
    let (first, end) = (start & !(PAGE - 1), end.checked_next_multiple_of(PAGE).ok_or(Errno(libc::EINVAL))?);
    let (at, bytes) =
        (pointer(start).map(|_| first)?, usize::try_from(end - first).map_err(|_| Errno(libc::EFAULT))?);
    let at = usize::try_from(at).map_err(|_| Errno(libc::EFAULT))?;
    let advice = if writes { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    // SAFETY: populating changes nothing that the program could see; what is not there is an error.
    let done = unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(at), bytes, advice) };
    if done == 0 {
        return Ok(());
    }
    if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
        return Err(Errno(libc::EFAULT));
    }
    // Kernels before 5.14 do not know the advice: each page is looked at. (On others, this is memory that cannot be
    // populated, and whether it can be read decides.)
    (first..end).step_by(PAGE as usize).try_for_each(|page| read(page, &mut [0]))
}
