//! Completion queues: the elements are `struct ib_uverbs_wc`.

use core::mem::{MaybeUninit, offset_of};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::map_queue;
use super::owed::Owed;
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{self, CompletionQueue, Head};
use crate::ha::flush::Flush;
use crate::ha::life::Life;
use crate::hw::shared_queue::{Elements, Garbage, SharedQueue};
use crate::log;
use crate::uapi::wire::Wc;
use crate::uapi::{CmdFd, rxe as wire};

/// The consumer's side of one CQ.
#[derive(Debug)]
pub struct Cq {
    /// `None` after a resize whose new queue could not be mapped, and while the device is being stopped.
    ring: Option<SharedQueue>,
    /// The kernel's, while the device is being stopped.
    frozen: Option<SharedQueue>,
    /// Whether `ring` is a copy.
    copied: bool,
    /// The queues that complete here.
    owners: Vec<Arc<Owed>>,
    flush: Flush,
    life: Arc<Life>,
    /// The current completion was flushed: it takes no place in the ring.
    flushed: bool,
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
    pub(super) fn map(fd: CmdFd, info: wire::MmInfo, life: Arc<Life>) -> Result<Cq, Error> {
        let (ring, consumer) = Cq::map_ring(fd, info)?;
        Ok(Cq {
            ring: Some(ring),
            frozen: None,
            copied: false,
            owners: Vec::new(),
            flush: Flush::default(),
            life,
            flushed: false,
            consumer,
            current: ibv_wc::zeroed(),
            reported: false,
        })
    }

    /// The ring, and our index in it.
    fn map_ring(fd: CmdFd, info: wire::MmInfo) -> Result<(SharedQueue, u32), Error> {
        let ring = map_queue(fd, info, size_of::<Wc>()).step("map the completion queue")?;
        let consumer =
            ring.load_consumer().map_err(|_| Errno::EPROTO).step("read the completion queue's index")?;
        Ok((ring, consumer))
    }

    /// A queue completes here.
    pub(super) fn add(&mut self, owed: &Arc<Owed>) {
        self.owners.push(owed.clone());
        self.flush.again();
    }

    /// It does no more.
    pub(super) fn remove(&mut self, owed: &Arc<Owed>) {
        self.owners.retain(|known| !Arc::ptr_eq(known, owed));
        self.flush.again();
    }

    /// Takes the queue of a resize in place of the one that the kernel already gave up.
    pub(super) fn replace(&mut self, fd: CmdFd, info: wire::MmInfo) -> Result<(), Error> {
        self.ring = None;
        let (ring, consumer) = Cq::map_ring(fd, info)?;
        (self.ring, self.consumer) = (Some(ring), consumer);
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

    /// The index of the completion after the current one.
    #[inline]
    fn behind(&self) -> u32 {
        if self.flushed { self.consumer } else { self.after(self.consumer) }
    }

    /// What a poll finds where there is no ring.
    #[cold]
    fn without_ring(&self) -> Result<(), Errno> {
        if self.frozen.is_some() { Ok(()) } else { Err(Errno::EIO) }
    }

    fn next_flushed(&mut self) -> Option<ibv_wc> {
        let owners = &self.owners;
        self.flush.next(&self.life, owners.len() as u32, |at| {
            let owed = owners.get(at as usize)?;
            Some(family::flushed(owed.flush()?, owed.qp_num(), 0))
        })
    }

    /// What an empty poll of a device that is gone finds.
    #[cold]
    fn poll_flushed(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> u32 {
        family::fill(out, || self.next_flushed())
    }

    /// As [`Cq::poll_flushed`], for the extended interface.
    #[cold]
    fn load_flushed(&mut self) -> Result<Head, Errno> {
        self.current = self.next_flushed().ok_or(Errno::ENOENT)?;
        self.flushed = true;
        Ok(Head { wr_id: self.current.wr_id, status: self.current.status })
    }

    /// Gives the completions in `ring`, from ours up to the kernel's last one, the `wr_id` of what they complete.
    fn settle(&self, ring: &SharedQueue) {
        let by_tag: BTreeMap<u64, &Arc<Owed>> =
            self.owners.iter().filter_map(|owed| Some((owed.tags()?, owed))).collect();
        let Ok(producer) = ring.load_producer() else { return };
        let mut index = self.consumer;
        while index != producer {
            let slot = ring.slot(index);
            index = ring.next(index);
            let (Ok(tag), Ok(qp_num)) = (slot.get(0), slot.get(offset_of!(Wc, qp_num))) else { return };
            let settled = by_tag.range(..=tag).next_back().and_then(|(_, owed)| owed.settle(qp_num, tag));
            if let Some(wr_id) = settled {
                // A slot holds a whole completion.
                let _ = slot.put(0, &wr_id);
            }
        }
    }

    #[inline]
    fn load(&mut self, index: u32) -> Result<Head, Errno> {
        let Some(ring) = &self.ring else { return self.without_ring().and(Err(Errno::ENOENT)) };
        match ring.load_producer() {
            Ok(producer) if producer == index => {
                return if self.life.is_gone() { self.load_flushed() } else { Err(Errno::ENOENT) };
            }
            Ok(_) => {}
            Err(found) => return Err(garbage(found, &mut self.reported)),
        }
        let mut wc = MaybeUninit::uninit();
        self.current = *read(ring.elements()?, index, &mut wc, &mut self.reported);
        Ok(Head { wr_id: self.current.wr_id, status: self.current.status })
    }
}

impl CompletionQueue for Cq {
    type Arm = super::Arm;

    #[inline(always)]
    fn poll_usual(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32> {
        let Some(ring) = &self.ring else { return Err(0) };
        let (Ok(producer), Ok(elements)) = (ring.load_producer(), ring.elements()) else { return Err(0) };
        if producer == self.consumer {
            return if self.life.is_gone() { Err(0) } else { Ok(0) };
        }
        let there = ring.between(self.consumer, producer);
        let (mut polled, mut usual) = (0, true);
        for (to, _) in out.iter_mut().zip(0..there) {
            usual = plain(to.write(elements.read(self.consumer.wrapping_add(polled))));
            if !usual {
                break;
            }
            polled += 1;
        }
        self.consumer = self.consumer.wrapping_add(polled) & ring.capacity();
        ring.store_consumer(self.consumer);
        if usual { Ok(polled) } else { Err(polled) }
    }

    #[inline(always)]
    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, Errno> {
        let Some(ring) = &self.ring else { return self.without_ring().map(|()| 0) };
        let producer = match ring.load_producer() {
            Ok(producer) => producer,
            Err(found) => return Err(garbage(found, &mut self.reported)),
        };
        let mut consumer = self.consumer;
        if consumer == producer {
            return if self.life.is_gone() { Ok(self.poll_flushed(out)) } else { Ok(0) };
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
        self.flushed = false;
        self.load(self.consumer)
    }

    fn next(&mut self) -> Result<Head, Errno> {
        let next = self.behind();
        let head = self.load(next)?;
        self.consumer = next;
        self.publish();
        Ok(head)
    }

    fn end(&mut self) {
        self.consumer = self.behind();
        self.publish();
    }

    fn is_pending(&mut self) -> bool {
        self.ring
            .as_ref()
            .is_some_and(|ring| ring.load_producer().is_ok_and(|producer| producer != self.consumer))
            || (self.life.is_gone() && self.owners.iter().any(|owed| owed.owes()))
    }

    fn freeze(&mut self) {
        if !self.copied && self.frozen.is_none() {
            self.frozen = self.ring.take();
        }
    }

    fn let_go(&mut self) -> Result<(), Errno> {
        let Some(kernel) = self.frozen.take() else { return Ok(()) };
        let copied = kernel.copy();
        let ring = match &copied {
            Ok(copy) => copy.share(),
            // It stays mapped, and serves as before.
            Err(_) => kernel,
        };
        self.settle(&ring);
        self.ring = Some(ring);
        self.copied = true;
        copied.map(drop)
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
