//! The functions of `include/holdfast_sim.h`, where they are described.
#![allow(unsafe_code, reason = "functions for C, named as C calls them")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::with_exposed_provenance_mut;

use crate::{driver, null};

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_sim_sq(qpn: u32) -> c_int {
    null::send_queue(qpn, usize::MAX)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_sim_sq1(qpn: u32) -> c_int {
    null::send_queue(qpn, 1)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_sim_rq(qpn: u32, bytes: u32) -> c_int {
    null::receive_queue(qpn, bytes)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_sim_flush(qpn: u32, what: c_int) {
    null::flush(qpn, what);
}

/// `struct holdfast_sim_info`.
#[derive(Debug)]
#[repr(C)]
pub struct Info {
    sq: *mut c_void,
    rq: *mut c_void,
    cq: *mut c_void,
    rcq: *mut c_void,
    db: *mut u32,
    cdb: *mut u32,
    rcdb: *mut u32,
    uar: *mut c_void,
    sq_cnt: u32,
    rq_cnt: u32,
    rq_shift: u32,
    cq_size: u32,
    rcq_size: u32,
    uidx: u32,
    qpn: u32,
    cq_pi: u32,
    rcq_pi: u32,
    sq_ci: u32,
    rq_ci: u32,
}

#[allow(clippy::cast_possible_truncation, reason = "64-bit systems only")]
fn pointer<T>(address: u64) -> *mut T {
    with_exposed_provenance_mut(address as usize)
}

fn info(qpn: u32) -> Option<Info> {
    driver::with(|driver| {
        let (context, handle) = driver.queue_pair(qpn)?;
        let (_, receive) = context.with_cq(handle, true)?;
        let (rcq, rcdb, rcq_size, rcq_pi) =
            (pointer(receive.buffer), pointer(receive.record), receive.size, receive.producer);
        let page = context.with_cq(handle, false)?.0.uar;
        let uar = driver.page_address(page);
        let (context, handle) = driver.queue_pair(qpn)?;
        let (qp, cq) = context.with_cq(handle, false)?;
        Some(Info {
            sq: pointer(qp.send_queue),
            rq: pointer(qp.receive_queue),
            cq: pointer(cq.buffer),
            rcq,
            db: pointer(qp.record),
            cdb: pointer(cq.record),
            rcdb,
            uar: pointer(uar),
            sq_cnt: qp.send_size,
            rq_cnt: qp.receive_size,
            rq_shift: qp.receive_shift,
            cq_size: cq.size,
            rcq_size,
            uidx: qp.uidx,
            qpn: qp.number,
            cq_pi: cq.producer,
            rcq_pi,
            sq_ci: qp.sent.into(),
            rq_ci: qp.received.into(),
        })
    })
}

/// See the header.
///
/// # Safety
/// `to` is null or points to a `struct holdfast_sim_info`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_sim_info(qpn: u32, to: *mut Info) -> c_int {
    match info(qpn) {
        Some(info) if !to.is_null() => {
            // SAFETY: the caller's contract.
            unsafe { to.write(info) };
            0
        }
        _ => -1,
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_sim_step() -> c_int {
    null::step()
}

/// See the header.
///
/// # Safety
/// `line` is a C string; `answer` is null or has room for `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_sim_control(
    line: *const c_char,
    answer: *mut c_char,
    room: usize,
) -> c_int {
    if line.is_null() {
        return -1;
    }
    // SAFETY: the caller's contract.
    let line = unsafe { CStr::from_ptr(line) };
    let (text, status) = match driver::control(&line.to_string_lossy()) {
        Ok(text) => (text, 0),
        Err(why) => (why, -1),
    };
    if let Some(last) = room.checked_sub(1).filter(|_| !answer.is_null()) {
        let len = text.len().min(last);
        // SAFETY: the caller's contract, and the text is cut to the room.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), answer.cast(), len) };
        // SAFETY: `len` is at most the last byte.
        let end = unsafe { answer.add(len) };
        // SAFETY: as above.
        unsafe { end.write(0) };
    }
    status
}
