//! The orderings between a CPU and a device, under rdma-core's names: `std`'s fences order CPUs among themselves.
//!
//! Each narrow use has its name, as documentation. Ordinary memory is write-back and coherent with the device; a UAR is
//! mapped write-combining or uncached.
//!
//! | name | orders | x86-64 | aarch64 |
//! |---|---|---|---|
//! | [`udma_to_device_barrier`] | our stores to memory, before a store that lets the device read them | nothing to do: stores are not reordered | `dmb oshst` |
//! | [`udma_from_device_barrier`] | a load of the device's sign, before loads of what it announces | nothing to do: loads are not reordered | `dmb oshld` |
//! | [`mmio_wc_start`] | our stores to memory, before stores to write-combining pages | `sfence` | `dsb st` |
//! | [`mmio_flush_writes`] | pushes stores out of the write-combining buffers, before anything else of this CPU | `sfence` | `dsb st` |
//!
//! "Nothing to do" still stops the compiler. On x86-64 rdma-core spends an `lfence` on the second; write-back loads are
//! kept in order by the architecture (Intel SDM 3A 9.2.2, AMD APM 2 7.2: loads are not reordered with other loads), and only
//! loads from write-combining memory or non-temporal ones would need it. Here both are loads of ordinary memory.
#![allow(unsafe_code, reason = "barriers are instructions")]

use core::sync::atomic::{Ordering, compiler_fence};

/// One instruction that the compiler moves no memory access across.
macro_rules! instruction {
    ($text:literal) => {
        // SAFETY: a barrier instruction; it touches no register, no memory and no stack.
        unsafe { core::arch::asm!($text, options(nostack, preserves_flags)) }
    };
}

/// Makes what was stored visible to a device before anything stored later.
#[inline(always)]
pub fn udma_to_device_barrier() {
    #[cfg(target_arch = "x86_64")]
    compiler_fence(Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    instruction!("dmb oshst");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    core::sync::atomic::fence(Ordering::SeqCst);
    compiler_fence(Ordering::SeqCst);
}

/// Loads nothing of what a device wrote before the load that told of it.
#[inline(always)]
pub fn udma_from_device_barrier() {
    #[cfg(target_arch = "aarch64")]
    instruction!("dmb oshld");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    core::sync::atomic::fence(Ordering::SeqCst);
    compiler_fence(Ordering::SeqCst);
}

/// Before stores to write-combining memory: all that was stored comes first.
#[inline(always)]
pub fn mmio_wc_start() {
    flush();
}

/// After stores to write-combining memory: they leave the CPU now.
#[inline(always)]
pub fn mmio_flush_writes() {
    flush();
}

#[inline(always)]
fn flush() {
    #[cfg(target_arch = "x86_64")]
    instruction!("sfence");
    #[cfg(target_arch = "aarch64")]
    instruction!("dsb st");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    core::sync::atomic::fence(Ordering::SeqCst);
}
