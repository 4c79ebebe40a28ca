//! The null engine: walks a queue pair's queues when told to, on the caller's thread, and moves no data.
//!
//! Lean on purpose: what it leaves in the caches is what a benchmark's next timed part begins with.
#![allow(
    unsafe_code,
    reason = "queues are the program's memory, at the addresses that it gave when it made them"
)]

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::config::Engine;
use crate::driver::{self, Cq, Driver, Qp, Srq};
use crate::engine;

const BLOCK: usize = 64;
const REQUESTER: u8 = 0;
const RECEIVED_SEND: u8 = 2;
/// The queue pair number that received messages come from.
const SOMEBODY: u32 = 0x321;

/// Addresses of queues fit a pointer: they were pointers in the program.
#[allow(clippy::cast_possible_truncation, reason = "64-bit systems only")]
fn at(address: u64, offset: usize) -> *mut u8 {
    with_exposed_provenance_mut(address.wrapping_add(offset as u64) as usize)
}

/// A word of a doorbell record.
fn record(address: u64, word: usize) -> u16 {
    let pointer = at(address, word * 4).cast::<u32>();
    // SAFETY: the provider gave this address for the record, four-byte aligned, and keeps it until the queue is destroyed.
    let word = unsafe { AtomicU32::from_ptr(pointer) };
    // ORDER: pairs with the provider's barrier between work requests and record.
    (u32::from_be(word.load(Ordering::Acquire)) & 0xffff) as u16
}

/// Writes a completion.
fn complete(cq: &mut Cq, qp: &Qp, kind: u8, counter: u16, opcode: u8, bytes: u32) {
    let owner = u8::from(cq.producer & cq.size != 0);
    let size = cq.entry as usize;
    let place = at(cq.buffer, (cq.producer & (cq.size - 1)) as usize * size + (size - BLOCK));
    let mut entry = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        entry.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    if kind == RECEIVED_SEND {
        put(24, &SOMEBODY.to_be_bytes());
    }
    put(32, &qp.uidx.to_be_bytes());
    put(44, &bytes.to_be_bytes());
    put(48, &u64::from(cq.producer).to_be_bytes());
    put(56, &(u32::from(opcode) << 24 | qp.number).to_be_bytes());
    put(60, &counter.to_be_bytes());
    // SAFETY: the completion queue has `size` entries of `entry` bytes from `buffer` on; all but the last byte is written.
    unsafe { std::ptr::copy_nonoverlapping(entry.as_ptr(), place, BLOCK - 1) };
    // SAFETY: the last byte of the same entry.
    let last = unsafe { place.add(BLOCK - 1) };
    // SAFETY: any byte is a valid `AtomicU8`.
    let last = unsafe { AtomicU8::from_ptr(last) };
    // ORDER: pairs with the provider's load of the ownership bit.
    last.store(kind << 4 | owner, Ordering::Release);
    cq.producer = cq.producer.wrapping_add(1);
}

/// A work request that a provider must not have posted ends the process: what a benchmark measured would be nonsense.
fn refuse(qp: &Qp, first: u32, second: u32) -> ! {
    let text = format!(
        "holdfast-sim: qp {} at {}: no work request begins with {first:08x} {second:08x}\n",
        qp.number, qp.sent
    );
    // SAFETY: the buffer is ours.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    std::process::abort()
}

fn walk(qp: &mut Qp, cq: &mut Cq, most: usize) -> i32 {
    let produced = record(qp.record, 1);
    let mut written = 0;
    for _ in 0..most {
        if qp.sent == produced {
            break;
        }
        let block = at(qp.send_queue, (u32::from(qp.sent) & (qp.send_size - 1)) as usize * BLOCK);
        // SAFETY: the send queue has `send_size` blocks, and this one was announced.
        let head = unsafe { block.cast::<[u32; 4]>().read() };
        let [first, second, flags, _] = head.map(u32::from_be);
        let units = second & 0x3f;
        if (first >> 8) & 0xffff != u32::from(qp.sent) || second >> 8 != qp.number || units == 0 {
            refuse(qp, first, second);
        }
        // CQ_UPDATE; the two bits below it ask for completions in error only.
        if flags & 0x0c == 0x08 {
            complete(cq, qp, REQUESTER, qp.sent, (first & 0xff) as u8, 0);
            written += 1;
        }
        qp.sent = qp.sent.wrapping_add(units.div_ceil(4) as u16);
    }
    written
}

/// What the engine is for a live one, here: everything that there is to do, on the caller's thread.
pub(crate) fn step() -> i32 {
    let mut steps = 0;
    loop {
        let pause = driver::with(|driver| {
            demand(driver);
            driver.run()
        });
        steps += 1;
        if !pause.is_zero() {
            return steps;
        }
    }
}

/// Steps are for processes without the other engine.
fn demand(driver: &Driver) {
    if driver.config.engine == Engine::Live {
        engine::give_up("the null engine is called, but not chosen: set HOLDFAST_SIM_ENGINE=null");
    }
}

/// Consumes up to `most` work requests of a send queue; says how many completions that made.
pub(crate) fn send_queue(number: u32, most: usize) -> i32 {
    driver::with(|driver| {
        demand(driver);
        let parts = driver.queue_pair(number).and_then(|(context, qp)| context.with_cq(qp, false));
        parts.map_or(-1, |(qp, cq)| walk(qp, cq, most))
    })
}

/// Completes all receives posted, to the queue pair or to the shared queue that it has.
pub(crate) fn receive_queue(number: u32, bytes: u32) -> i32 {
    driver::with(|driver| {
        demand(driver);
        let Some((context, handle)) = driver.queue_pair(number) else { return -1 };
        let shared = context.srq_of(handle).map(take_shared).unwrap_or_default();
        let Some((qp, cq)) = context.with_cq(handle, true) else { return -1 };
        let produced = if qp.record == 0 { qp.received } else { record(qp.record, 0) };
        let mut written = 0;
        for index in shared {
            complete(cq, qp, RECEIVED_SEND, index, 0, bytes);
            written += 1;
        }
        while qp.received != produced {
            complete(cq, qp, RECEIVED_SEND, qp.received, 0, bytes);
            qp.received = qp.received.wrapping_add(1);
            written += 1;
        }
        written
    })
}

/// Takes the work requests of a shared queue, each of which says which is next: where they are, in that order.
fn take_shared(srq: &mut Srq) -> Vec<u16> {
    let count = record(srq.record(), 0).wrapping_sub(srq.taken);
    let mut taken = Vec::with_capacity(count.into());
    for _ in 0..count {
        if u32::from(srq.next) >= srq.size() {
            engine::give_up("a shared receive queue's list leads out of it");
        }
        taken.push(srq.next);
        let next = at(srq.at(srq.next), 2).cast::<u16>();
        // SAFETY: inside of the queue, which has `size` work requests that begin with 16 bytes of link.
        srq.next = u16::from_be(unsafe { next.read() });
    }
    srq.taken = srq.taken.wrapping_add(count);
    taken
}

#[cfg(target_arch = "x86_64")]
mod lines {
    use std::arch::asm;

    /// Writes a line back and drops it from all caches.
    pub(super) fn flush(line: *mut u8) {
        // SAFETY: flushing changes no memory; the line is of a queue.
        unsafe { asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)) };
    }

    /// Hints that a line should move to a farther cache; does nothing where the processor does not know it.
    pub(super) fn demote(line: *mut u8) {
        // SAFETY: as above; an unknown hint is a NOP.
        unsafe { asm!("cldemote [{}]", in(reg) line, options(nostack, preserves_flags)) };
    }

    /// Waits until that is done.
    pub(super) fn fence() {
        // SAFETY: a fence.
        unsafe { asm!("mfence", options(nostack, preserves_flags)) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lines {
    pub(super) fn flush(_line: *mut u8) {}
    pub(super) fn demote(_line: *mut u8) {}
    pub(super) fn fence() {}
}

/// Makes lines of a queue pair's queues cold.
pub(crate) fn flush(number: u32, what: i32) {
    const COMPLETIONS: i32 = 1;
    const SENDS: i32 = 2;
    const DEMOTE: i32 = 4;
    driver::with(|driver| {
        demand(driver);
        let parts = driver.queue_pair(number).and_then(|(context, qp)| context.with_cq(qp, false));
        let Some((qp, cq)) = parts else { return };
        let each = |start: u64, len: usize, work: fn(*mut u8)| {
            (0..len).step_by(BLOCK).for_each(|offset| work(at(start, offset)));
        };
        let completions = cq.size as usize * cq.entry as usize;
        if what & COMPLETIONS != 0 {
            each(cq.buffer, completions, lines::flush);
        }
        if what & SENDS != 0 {
            each(qp.send_queue, qp.send_size as usize * BLOCK, lines::flush);
        }
        if what & DEMOTE != 0 {
            each(cq.buffer, completions, lines::demote);
            (0..20_000).for_each(|_| std::hint::spin_loop());
        }
        lines::fence();
    });
}
