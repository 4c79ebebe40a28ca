//! Completion queues: the elements are `struct ib_uverbs_wc`.

use core::mem::{MaybeUninit, offset_of};

use super::map_queue;
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{CompletionQueue, Head};
use crate::hw::shared_queue::{Elements, Garbage, SharedQueue};
use crate::log;
use crate::uapi::wire::Wc;
use crate::uapi::{CmdFd, rxe as wire};

/// The consumer's side of one CQ.
#[derive(Debug)]
pub struct Cq {
    /// `None` after a resize whose new queue could not be mapped.
    ring: Option<SharedQueue>,
    /// Our index; the one in the mapping is only written.
    consumer: u32,
    /// `ibv_start_poll`'s current completion.
    current: ibv_wc,
    /// Garbage was reported: once is enough.
    reported: bool,
}

// The kernel's completion is laid out as verbs.h has it: it is copied whole.
const _: () = {
    assert!(size_of::<ibv_wc>() == size_of::<Wc>());
    assert!(offset_of!(ibv_wc, status) == offset_of!(Wc, status));
    assert!(offset_of!(ibv_wc, opcode) == offset_of!(Wc, opcode));
    assert!(offset_of!(ibv_wc, vendor_err) == offset_of!(Wc, vendor_err));
    assert!(offset_of!(ibv_wc, byte_len) == offset_of!(Wc, byte_len));
    assert!(offset_of!(ibv_wc, imm_data) == offset_of!(Wc, ex));
    assert!(offset_of!(ibv_wc, qp_num) == offset_of!(Wc, qp_num));
    assert!(offset_of!(ibv_wc, src_qp) == offset_of!(Wc, src_qp));
    assert!(offset_of!(ibv_wc, wc_flags) == offset_of!(Wc, wc_flags));
    assert!(offset_of!(ibv_wc, pkey_index) == offset_of!(Wc, pkey_index));
    assert!(offset_of!(ibv_wc, slid) == offset_of!(Wc, slid));
    assert!(offset_of!(ibv_wc, sl) == offset_of!(Wc, sl));
    assert!(offset_of!(ibv_wc, dlid_path_bits) == offset_of!(Wc, dlid_path_bits));
};

/// Whether both the status and the opcode are ones that verbs.h knows: it counts opcodes from 0 for sends and from
/// `IBV_WC_RECV` for receives, up to the same number.
#[inline(always)]
fn plain(wc: &ibv_wc) -> bool {
    wc.status <= IBV_WC_GENERAL_ERR && wc.opcode & !IBV_WC_RECV <= IBV_WC_ATOMIC_WRITE
}

/// What is not [`plain`]. A failure is given on as it is; its opcode is undefined (ibv_poll_cq(3)). A status or opcode that verbs.h
/// does not know is not handed on: it becomes `IBV_WC_GENERAL_ERR`, with the unknown number in `vendor_err`.
#[cold]
#[inline(never)]
fn judge(wc: &mut ibv_wc, reported: &mut bool) {
    if wc.status != IBV_WC_SUCCESS && wc.status <= IBV_WC_GENERAL_ERR {
        return;
    }
    if !core::mem::replace(reported, true) {
        log::error!(
            "completion with status {} and opcode {} (wr_id {:#x}, QP {:#x}), which verbs.h does not know: given on as \
             IBV_WC_GENERAL_ERR",
            wc.status,
            wc.opcode,
            wc.wr_id,
            wc.qp_num
        );
    }
    wc.vendor_err = if wc.status == IBV_WC_SUCCESS { wc.opcode } else { wc.status };
    wc.status = IBV_WC_GENERAL_ERR;
}

#[cold]
fn garbage(found: Garbage, reported: &mut bool) -> Errno {
    if !core::mem::replace(reported, true) {
        log::error!(
            "completion queue: producer index {:#x} lies outside of the ring (mask {:#x}): something wrote over the mapped \
             queue; its completions cannot be believed any more",
            found.index,
            found.mask
        );
    }
    Errno::EIO
}

/// The completion at `index`, which the kernel has published.
#[inline(always)]
fn read<'a>(
    ring: Elements<'_, ibv_wc>,
    index: u32,
    to: &'a mut MaybeUninit<ibv_wc>,
    reported: &mut bool,
) -> &'a ibv_wc {
    let wc = to.write(ring.read(index));
    if !plain(wc) {
        judge(wc, reported);
    }
    wc
}

impl Cq {
    pub(super) fn map(fd: CmdFd, info: wire::MmInfo) -> Result<Cq, Error> {
        let ring = map_queue(fd, info, size_of::<Wc>()).step("map the completion queue")?;
        let consumer =
            ring.load_consumer().map_err(|_| Errno::EPROTO).step("read the completion queue's index")?;
        Ok(Cq { ring: Some(ring), consumer, current: ibv_wc::zeroed(), reported: false })
    }

    /// Takes the queue of a resize in place of the one that the kernel already gave up.
    pub(super) fn replace(&mut self, fd: CmdFd, info: wire::MmInfo) -> Result<(), Error> {
        self.ring = None;
        *self = Cq { reported: self.reported, current: self.current, ..Cq::map(fd, info)? };
        Ok(())
    }

    #[inline]
    fn after(&self, index: u32) -> u32 {
        self.ring.as_ref().map_or(index, |ring| ring.next(index))
    }

    #[inline]
    fn publish(&self) {
        if let Some(ring) = &self.ring {
            ring.store_consumer(self.consumer);
        }
    }

    #[inline]
    fn load(&mut self, index: u32) -> Result<Head, Errno> {
        let Some(ring) = &self.ring else { return Err(Errno::EIO) };
        match ring.load_producer() {
            Ok(producer) if producer == index => return Err(Errno::ENOENT),
            Ok(_) => {}
            Err(found) => return Err(garbage(found, &mut self.reported)),
        }
        let mut wc = MaybeUninit::uninit();
        self.current = *read(ring.elements()?, index, &mut wc, &mut self.reported);
        Ok(Head { wr_id: self.current.wr_id, status: self.current.status })
    }
}

impl CompletionQueue for Cq {
    #[inline(always)]
    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, Errno> {
        let Some(ring) = &self.ring else { return Err(Errno::EIO) };
        let producer = match ring.load_producer() {
            Ok(producer) => producer,
            Err(found) => return Err(garbage(found, &mut self.reported)),
        };
        let mut consumer = self.consumer;
        if consumer == producer {
            return Ok(0);
        }
        let there = ring.between(consumer, producer) as usize;
        let polled = there.min(out.len());
        let elements = ring.elements()?;
        for to in out.get_mut(..polled).unwrap_or_default() {
            read(elements, consumer, to, &mut self.reported);
            consumer = consumer.wrapping_add(1);
        }
        self.consumer = consumer & ring.capacity();
        ring.store_consumer(self.consumer);
        // No more than the ring holds.
        Ok(polled as u32)
    }

    fn start(&mut self) -> Result<Head, Errno> {
        self.load(self.consumer)
    }

    fn next(&mut self) -> Result<Head, Errno> {
        let next = self.after(self.consumer);
        let head = self.load(next)?;
        self.consumer = next;
        self.publish();
        Ok(head)
    }

    fn end(&mut self) {
        self.consumer = self.after(self.consumer);
        self.publish();
    }

    fn is_pending(&mut self) -> bool {
        self.ring
            .as_ref()
            .is_some_and(|ring| ring.load_producer().is_ok_and(|producer| producer != self.consumer))
    }

    fn opcode(&self) -> u32 {
        self.current.opcode
    }

    fn vendor_err(&self) -> u32 {
        self.current.vendor_err
    }

    fn byte_len(&self) -> u32 {
        self.current.byte_len
    }

    fn imm_data(&self) -> u32 {
        self.current.imm_data
    }

    fn qp_num(&self) -> u32 {
        self.current.qp_num
    }

    fn src_qp(&self) -> u32 {
        self.current.src_qp
    }

    fn wc_flags(&self) -> u32 {
        self.current.wc_flags
    }

    fn slid(&self) -> u32 {
        u32::from(self.current.slid)
    }

    fn sl(&self) -> u8 {
        self.current.sl
    }

    fn dlid_path_bits(&self) -> u8 {
        self.current.dlid_path_bits
    }
}
