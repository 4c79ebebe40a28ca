//! Completion queues: the elements are `struct ib_uverbs_wc`.

use core::mem::MaybeUninit;

use super::map_queue;
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{CompletionQueue, Head};
use crate::hw::shared_queue::{Garbage, SharedQueue};
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

/// A completion as verbs.h has it, from what the kernel wrote.
///
/// A status or opcode that verbs.h does not know is not handed on: the completion becomes `IBV_WC_GENERAL_ERR` with the
/// unknown number in `vendor_err`. The flag tells.
fn decode(raw: &Wc) -> (ibv_wc, bool) {
    let known_opcode =
        matches!(raw.opcode, IBV_WC_SEND..=IBV_WC_ATOMIC_WRITE | IBV_WC_RECV | IBV_WC_RECV_RDMA_WITH_IMM);
    let (status, vendor_err, known) = match raw.status {
        IBV_WC_SUCCESS if known_opcode => (IBV_WC_SUCCESS, raw.vendor_err, true),
        IBV_WC_SUCCESS => (IBV_WC_GENERAL_ERR, raw.opcode, false),
        // A failed completion's opcode is undefined (ibv_poll_cq(3)): nothing to check.
        status if status <= IBV_WC_GENERAL_ERR => (status, raw.vendor_err, true),
        status => (IBV_WC_GENERAL_ERR, status, false),
    };
    let wc = ibv_wc {
        wr_id: raw.wr_id,
        status,
        opcode: raw.opcode,
        vendor_err,
        byte_len: raw.byte_len,
        imm_data: raw.ex,
        qp_num: raw.qp_num,
        src_qp: raw.src_qp,
        wc_flags: raw.wc_flags,
        pkey_index: raw.pkey_index,
        slid: raw.slid,
        sl: raw.sl,
        dlid_path_bits: raw.dlid_path_bits,
    };
    (wc, known)
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

    #[cold]
    fn garbage(&mut self, found: Garbage) -> Errno {
        if !core::mem::replace(&mut self.reported, true) {
            log::error!(
                "completion queue: producer index {:#x} lies outside of the ring (mask {:#x}): something wrote over the \
                 mapped queue; its completions cannot be believed any more",
                found.index,
                found.mask
            );
        }
        Errno::EIO
    }

    #[cold]
    fn unknown(&mut self, raw: &Wc) {
        if !core::mem::replace(&mut self.reported, true) {
            log::error!(
                "completion with status {} and opcode {} (wr_id {:#x}, QP {:#x}), which verbs.h does not know: given on as \
                 IBV_WC_GENERAL_ERR",
                raw.status,
                raw.opcode,
                raw.wr_id,
                raw.qp_num
            );
        }
    }

    /// The completion at `index`, which the kernel has published.
    #[inline]
    fn read(&mut self, index: u32) -> Result<ibv_wc, Errno> {
        let raw: Wc = self.ring.as_ref().ok_or(Errno::EIO)?.slot(index).get(0)?;
        let (wc, known) = decode(&raw);
        if !known {
            self.unknown(&raw);
        }
        Ok(wc)
    }

    #[inline]
    fn producer(&mut self) -> Result<u32, Errno> {
        match self.ring.as_ref().ok_or(Errno::EIO)?.load_producer() {
            Ok(index) => Ok(index),
            Err(found) => Err(self.garbage(found)),
        }
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

    fn load(&mut self, index: u32) -> Result<Head, Errno> {
        if self.producer()? == index {
            return Err(Errno::ENOENT);
        }
        let wc = self.read(index)?;
        self.current = wc;
        Ok(Head { wr_id: wc.wr_id, status: wc.status })
    }
}

impl CompletionQueue for Cq {
    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<usize, Errno> {
        let producer = self.producer()?;
        let mut polled = 0;
        for to in out {
            if self.consumer == producer {
                break;
            }
            to.write(self.read(self.consumer)?);
            self.consumer = self.after(self.consumer);
            polled += 1;
        }
        if polled > 0 {
            self.publish();
        }
        Ok(polled)
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
