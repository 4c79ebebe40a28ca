//! Completion queues: entries that the device writes, and the queues they speak of.
//!
//! Each CQ keeps the queues that complete to it by the number that completions carry, so that a poll finds them under the
//! CQ's own lock: no table is shared, nothing is counted, and a queue cannot go while it is looked at. A QP is entered when it
//! is created; when it is destroyed or reset, its entries are taken out of the ring first ([`Cq::clean`]).

use core::mem::MaybeUninit;
use std::sync::Arc;

use super::clock::Clock;
use super::cqe::{self, Cqe, opcode};
use super::dbrec::Dbrec;
use super::ring::{Key, Outstanding, Owner, Receives};
use super::srq;
use crate::abi::host::ForkRanges;
use crate::abi::public::*;
use crate::error::Errno;
use crate::family::{self, CompletionQueue, Head};
use crate::ha::flush::Flush;
use crate::ha::life::Life;
use crate::hw::barrier::{udma_from_device_barrier, udma_to_device_barrier};
use crate::hw::dma::Entries;
use crate::log;
use crate::uapi::{CmdFd, Handle};

use super::uar::CqDoorbell;

/// The word of the doorbell record that says how far we consumed, `MLX5_CQ_SET_CI`.
const SET_CI: usize = 0;
/// The word of the doorbell record that arms, `MLX5_CQ_ARM_DB`.
const ARM_DB: usize = 1;
/// `MLX5_CQ_DB_REQ_NOT_SOL`.
const REQ_NOT_SOL: u32 = 1 << 24;
/// What counts of an index in records.
const INDEX: u32 = 0xff_ffff;

bitflags::bitflags! {
    /// What of a queue pair completes to a CQ.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Role: u8 {
        const SENDS = 1 << 0;
        const RECEIVES = 1 << 1;
    }
}

/// One place of [`Owners`].
#[derive(Debug, Default, Clone)]
struct Place {
    key: u32,
    role: Role,
    owner: Option<Arc<Owner>>,
}

impl Place {
    /// The oldest work request that its queues owe to this CQ, struck off, and whose: sends first.
    fn flush(&self) -> Option<Flushed> {
        let owner = self.owner.as_deref()?;
        let send = owner.send.as_ref().filter(|_| self.role.contains(Role::SENDS));
        if let Some(wr) = send.and_then(super::ring::SendRing::flush) {
            return Some(Flushed { wr, qpn: owner.qpn, received: false });
        }
        match &owner.receives {
            Receives::Own(ring) if self.role.contains(Role::RECEIVES) => {
                Some(Flushed { wr: ring.flush()?, qpn: owner.qpn, received: true })
            }
            // Those of an SRQ stay in it.
            _ => None,
        }
    }

    /// Whether [`Place::flush`] would find one.
    fn owes(&self) -> bool {
        let Some(owner) = self.owner.as_deref() else { return false };
        let sends = self.role.contains(Role::SENDS) && owner.send.as_ref().is_some_and(|ring| ring.owes());
        let own = matches!(&owner.receives, Receives::Own(ring) if ring.owes());
        sends || (self.role.contains(Role::RECEIVES) && own)
    }
}

/// A work request that ends because the device is gone.
struct Flushed {
    wr: Outstanding,
    qpn: u32,
    received: bool,
}

/// The queues that complete to a CQ, by key: an open table, at most half full.
#[derive(Debug, Default)]
struct Owners {
    /// A power of two of them, or none.
    places: Box<[Place]>,
    count: usize,
    /// Where the last one was found: completions come in bursts.
    last: usize,
}

impl Owners {
    #[inline(always)]
    fn home(&self, key: u32) -> usize {
        // User indices are dense: neighbours get neighbouring places. SRQ numbers differ from QP numbers in the top bit.
        (key ^ key >> 31) as usize & self.places.len().wrapping_sub(1)
    }

    #[inline(always)]
    fn find(&mut self, key: u32) -> Option<&Owner> {
        let cached =
            self.places.get(self.last).is_some_and(|place| place.key == key && place.owner.is_some());
        if !cached {
            self.last = self.search(key)?;
        }
        self.places.get(self.last)?.owner.as_deref()
    }

    fn search(&self, key: u32) -> Option<usize> {
        let mut at = self.home(key);
        loop {
            let place = self.places.get(at)?;
            place.owner.as_ref()?;
            if place.key == key {
                return Some(at);
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }

    fn put(places: &mut [Place], mut at: usize, new: Place) {
        let mask = places.len().wrapping_sub(1);
        while let Some(place) = places.get_mut(at) {
            if place.owner.is_none() {
                *place = new;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn rebuild(&mut self, len: usize, without: Option<u32>) {
        let old = core::mem::replace(&mut self.places, vec![Place::default(); len].into());
        self.last = 0;
        for place in old {
            if place.owner.is_some() && Some(place.key) != without {
                let at = self.home(place.key);
                Owners::put(&mut self.places, at, place);
            }
        }
    }

    fn insert(&mut self, owner: &Arc<Owner>, role: Role) {
        let key = owner.key.0;
        if let Some(place) = self.search(key).and_then(|at| self.places.get_mut(at)) {
            place.role |= role;
            return;
        }
        if (self.count + 1) * 2 > self.places.len() {
            self.rebuild(((self.count + 1) * 2).next_power_of_two().max(4), None);
        }
        let at = self.home(key);
        Owners::put(&mut self.places, at, Place { key, role, owner: Some(owner.clone()) });
        self.count += 1;
    }

    fn remove(&mut self, key: u32) {
        if self.search(key).is_some() {
            self.count -= 1;
            self.rebuild(self.places.len(), Some(key));
        }
    }
}

/// The consumer's side of one CQ.
#[derive(Debug)]
pub struct Cq {
    entries: Entries,
    /// Entries consumed, counted from the start.
    consumer: u32,
    /// Completions carry a user index (CQE version 1).
    by_uidx: bool,
    owners: Owners,
    dbrec: Arc<Dbrec>,
    /// `ibv_start_poll`'s current completion: its index, the opcode its post noted, and whether it failed.
    current: u32,
    noted: u8,
    failed: bool,
    /// Time stamps in nanoseconds come from here; `None` where the device itself gives them so.
    clock: Option<Arc<Clock>>,
    /// An entry that cannot be believed was reported: once is enough.
    reported: bool,
    life: Arc<Life>,
    /// Once the device is gone: the walk round the queues, and the entries that it wrote, which are not looked at any more.
    flush: Flush,
    left: Option<Entries>,
    fork: ForkRanges,
}

/// What arms a CQ, beside its lock: a thread may arm while another polls.
#[derive(Debug)]
pub struct Arm {
    dbrec: Arc<Dbrec>,
    doorbell: CqDoorbell,
    cqn: u32,
    /// Completion events seen: arming counts them along, so that a late one does not serve twice.
    sequence: core::sync::atomic::AtomicU32,
}

impl Arm {
    pub(super) fn new(dbrec: Arc<Dbrec>, doorbell: CqDoorbell, cqn: u32) -> Arm {
        Arm { dbrec, doorbell, cqn, sequence: core::sync::atomic::AtomicU32::new(0) }
    }
}

impl family::Arm for Arm {
    /// PRM: mlx5_arm_cq of rdma-core.
    fn arm(&self, _fd: CmdFd, _handle: Handle, solicited_only: bool) -> Result<(), Errno> {
        // ORDER: Relaxed: a number; events and arming are ordered by the application.
        let sequence = self.sequence.load(core::sync::atomic::Ordering::Relaxed) & 3;
        let command = if solicited_only { REQ_NOT_SOL } else { 0 };
        // How far the CQ is consumed stands in the record's other word.
        let word = sequence << 28 | command | self.dbrec.record.load::<SET_CI>();
        self.dbrec.record.store::<ARM_DB>(word);
        self.doorbell.arm(word, self.cqn);
        Ok(())
    }

    fn event(&self) {
        // ORDER: Relaxed, see `arm`.
        self.sequence.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    }
}

/// What an entry came to.
enum Parsed {
    /// A completion: its `wr_id`, status, and what was noted of a send.
    Done { wr_id: u64, status: u32, noted: u8 },
    /// Nothing that the application sees.
    Skip,
    /// It speaks of a queue or a work request that there is not.
    Garbage,
}

/// Retires the work request that `cqe` completes.
#[inline(always)]
fn retire(owners: &mut Owners, by_uidx: bool, cqe: Cqe<'_>) -> Parsed {
    let code = cqe.opcode();
    match code {
        opcode::REQ | opcode::REQ_ERR => {
            let key = if by_uidx { cqe.srqn_uidx() } else { cqe.qpn() };
            let Some(ring) = owners.find(key).and_then(|owner| owner.send.as_ref()) else {
                return Parsed::Garbage;
            };
            let Some((wr_id, meta)) = ring.complete(cqe.wqe_counter()) else { return Parsed::Garbage };
            let noted = meta.opcode;
            if code == opcode::REQ_ERR {
                return Parsed::Done { wr_id, status: cqe::status(cqe.syndrome()), noted };
            }
            if cqe::send_wc_opcode(cqe.send_opcode(), noted).is_none() {
                return Parsed::Garbage;
            }
            let status = if cqe.has_data() { scatter_send(ring, cqe) } else { IBV_WC_SUCCESS };
            Parsed::Done { wr_id, status, noted }
        }
        opcode::RESP_WR_IMM..=opcode::RESP_SEND_INV | opcode::RESP_ERR => {
            retire_receive(owners, by_uidx, cqe)
        }
        opcode::RESIZE_CQ => Parsed::Skip,
        _ => Parsed::Garbage,
    }
}

#[cold]
fn scatter_send(ring: &super::ring::SendRing, cqe: Cqe<'_>) -> u32 {
    let len = match cqe.send_opcode() {
        super::wqe::opcode::RDMA_READ => cqe.byte_cnt(),
        super::wqe::opcode::ATOMIC_CS | super::wqe::opcode::ATOMIC_FA => 8,
        _ => return IBV_WC_SUCCESS,
    };
    scattered(cqe, len, |data| ring.scatter(cqe.wqe_counter(), data))
}

/// The status after the `len` bytes inside of `cqe` were handed on by `to`.
fn scattered(cqe: Cqe<'_>, len: u32, to: impl FnOnce(&[u8]) -> Result<(), Errno>) -> u32 {
    let len = len as usize;
    let bytes = cqe.data();
    let data = bytes.as_ref().and_then(|bytes| bytes.get(..len)).filter(|_| len <= cqe.data_room());
    match data.map(to) {
        Some(Ok(())) => IBV_WC_SUCCESS,
        // Longer than the buffers, or than an entry can hold.
        _ => IBV_WC_LOC_LEN_ERR,
    }
}

#[inline(always)]
fn retire_receive(owners: &mut Owners, by_uidx: bool, cqe: Cqe<'_>) -> Parsed {
    let key = match (by_uidx, cqe.srqn_uidx()) {
        (true, uidx) => uidx,
        // A QP's own receive queue; the SRQ of one is found through the QP as well.
        (false, 0) => cqe.qpn(),
        // Version 0 names the SRQ, whose owner is the QP for all but XRC.
        (false, srqn) if owners.search(cqe.qpn()).is_none() => srqn | Key::SRQ,
        (false, _) => cqe.qpn(),
    };
    let Some(owner) = owners.find(key) else { return Parsed::Garbage };
    let failed = cqe.opcode() == opcode::RESP_ERR;
    let counter = cqe.wqe_counter();
    match &owner.receives {
        Receives::Own(ring) => {
            let Some(wr_id) = ring.complete(counter) else { return Parsed::Garbage };
            let status = if failed {
                cqe::status(cqe.syndrome())
            } else if cqe.has_data() {
                scattered(cqe, cqe.byte_cnt(), |data| ring.scatter(counter, data))
            } else {
                IBV_WC_SUCCESS
            };
            Parsed::Done { wr_id, status, noted: 0 }
        }
        Receives::Shared(srq) => {
            if failed && cqe.is_odp_fault() {
                return srq.repost(counter).map_or(Parsed::Garbage, |()| Parsed::Skip);
            }
            // Before the receive is given back: its segments may then be written again.
            let status = if failed {
                cqe::status(cqe.syndrome())
            } else if cqe.has_data() {
                scattered(cqe, cqe.byte_cnt(), |data| srq.scatter(counter, data))
            } else {
                IBV_WC_SUCCESS
            };
            match srq.complete(counter) {
                Some(wr_id) => Parsed::Done { wr_id, status, noted: 0 },
                None => Parsed::Garbage,
            }
        }
        Receives::None => Parsed::Garbage,
    }
}

/// `ibv_wc.wc_flags` and the word for `imm_data` or `invalidated_rkey`, of a good completion.
#[inline(always)]
fn flags(cqe: Cqe<'_>) -> (u32, u32) {
    let (mut flags, word) = match cqe.opcode() {
        opcode::RESP_WR_IMM | opcode::RESP_SEND_IMM => (IBV_WC_WITH_IMM, cqe.imm_data()),
        opcode::RESP_SEND_INV => (IBV_WC_WITH_INV, cqe.invalidated_rkey()),
        opcode::RESP_SEND => (0, 0),
        _ => {
            let with_imm = matches!(
                cqe.send_opcode(),
                super::wqe::opcode::RDMA_WRITE_IMM | super::wqe::opcode::SEND_IMM
            );
            return (if with_imm { IBV_WC_WITH_IMM } else { 0 }, 0);
        }
    };
    if cqe.flags_rqpn() >> 28 & 3 != 0 {
        flags |= IBV_WC_GRH;
    }
    (flags, word)
}

/// `ibv_wc.opcode` of a completion that did not fail.
#[inline(always)]
fn wc_opcode(cqe: Cqe<'_>, noted: u8) -> u32 {
    match cqe.opcode() {
        opcode::RESP_WR_IMM => IBV_WC_RECV_RDMA_WITH_IMM,
        opcode::RESP_SEND | opcode::RESP_SEND_IMM | opcode::RESP_SEND_INV => IBV_WC_RECV,
        _ => cqe::send_wc_opcode(cqe.send_opcode(), noted).unwrap_or_default(),
    }
}

/// The bytes that a good completion speaks of.
#[inline(always)]
fn byte_len(cqe: Cqe<'_>) -> u32 {
    let atomic = matches!(cqe.send_opcode(), super::wqe::opcode::ATOMIC_CS | super::wqe::opcode::ATOMIC_FA);
    if cqe.opcode() == opcode::REQ && atomic { 8 } else { cqe.byte_cnt() }
}

impl Cq {
    /// A queue of `entries`, none of which the device has written.
    pub(super) fn new(
        entries: Entries,
        by_uidx: bool,
        dbrec: Arc<Dbrec>,
        clock: Option<Arc<Clock>>,
        life: Arc<Life>,
        fork: ForkRanges,
    ) -> Cq {
        Cq {
            entries,
            consumer: 0,
            by_uidx,
            owners: Owners::default(),
            dbrec,
            current: 0,
            noted: 0,
            failed: false,
            clock,
            reported: false,
            life,
            flush: Flush::default(),
            left: None,
            fork,
        }
    }

    /// The device's memory, for the kernel.
    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Marks every entry as the device's.
    pub(super) fn prepare(entries: &Entries) {
        for index in 0..entries.count() {
            entries.entry(index).set::<{ cqe::OP_OWN }>((opcode::INVALID << 4) as u8);
        }
    }

    /// Completions of `owner` come here from now on.
    pub(super) fn attach(&mut self, owner: &Arc<Owner>, role: Role) {
        self.owners.insert(owner, role);
        self.flush.again();
    }

    /// No completion of `owner` comes any more, and those that came are taken out.
    pub(super) fn detach(&mut self, owner: &Owner) {
        self.clean(owner);
        self.owners.remove(owner.key.0);
        self.flush.again();
    }

    /// What is outstanding of each queue that completes here.
    #[must_use]
    pub fn outstanding(&self) -> Vec<Outstanding> {
        let mut found = Vec::new();
        for owner in self.owners.places.iter().filter_map(|place| place.owner.as_ref()) {
            if let Some(ring) = &owner.send {
                found.extend(ring.outstanding());
            }
            if let Receives::Own(ring) = &owner.receives {
                found.extend(ring.outstanding());
            }
        }
        found
    }

    /// The entry at `index`, if the device wrote it.
    #[inline(always)]
    fn written(&self, index: u32) -> Option<Cqe<'_>> {
        let cqe = Cqe::read(self.entries.entry(index));
        cqe.owned(index, self.entries.count()).then_some(cqe)
    }

    #[inline(always)]
    fn publish(&self) {
        self.dbrec.record.store::<SET_CI>(self.consumer & INDEX);
    }

    /// Takes the entries of `owner` out of the ring: the ones before them move up over them. The device writes none of that
    /// owner any more.
    pub(super) fn clean(&mut self, owner: &Owner) {
        let count = self.entries.count();
        let mut end = self.consumer;
        while end.wrapping_sub(self.consumer) < count && self.written(end).is_some() {
            end = end.wrapping_add(1);
        }
        udma_from_device_barrier();
        let mut freed = 0_u32;
        let mut at = end;
        while at != self.consumer {
            at = at.wrapping_sub(1);
            let entry = self.entries.entry(at);
            let cqe = Cqe::read(entry);
            if self.names(cqe, owner) {
                freed += 1;
                if let Receives::Shared(srq) = &owner.receives {
                    give_back(srq, cqe);
                }
            } else if freed != 0 {
                let to = self.entries.entry(at.wrapping_add(freed));
                let lap = to.first::<{ cqe::OP_OWN }>() & cqe::OWNER_MASK as u8;
                to.copy(entry);
                to.set::<{ cqe::OP_OWN }>(cqe.op_own() & !(cqe::OWNER_MASK as u8) | lap);
            }
        }
        if freed != 0 {
            self.consumer = self.consumer.wrapping_add(freed);
            // The entries are where they belong before the device is given their old places.
            udma_to_device_barrier();
            self.publish();
        }
    }

    /// Whether an entry is of `owner`.
    fn names(&self, cqe: Cqe<'_>, owner: &Owner) -> bool {
        let key = owner.key.0;
        match (self.by_uidx, key & Key::SRQ != 0) {
            (true, _) => cqe.srqn_uidx() == key,
            (false, true) => cqe.srqn_uidx() == key & INDEX,
            (false, false) => cqe.qpn() == key,
        }
    }

    /// Takes `new` in place of the present entries: the kernel switched over, and ended the old ring with an entry that says
    /// so. What is before that entry moves.
    pub(super) fn replace(&mut self, new: Entries) {
        let (mut at, count, room) = (self.consumer, self.entries.count(), new.count());
        loop {
            let Some(cqe) = self.written(at) else {
                log::error!("completion queue: the end of the old ring was not found after a resize");
                break;
            };
            udma_from_device_barrier();
            if cqe.opcode() == opcode::RESIZE_CQ {
                break;
            }
            if at.wrapping_sub(self.consumer) >= count.min(room) {
                log::error!("completion queue: more entries than the resized ring holds");
                break;
            }
            // The ending entry takes a place of its own in the count.
            let place = at.wrapping_add(1);
            let to = new.entry(place);
            to.copy(self.entries.entry(at));
            let lap = u8::from(place & room != 0);
            to.set::<{ cqe::OP_OWN }>(cqe.op_own() & !(cqe::OWNER_MASK as u8) | lap);
            at = at.wrapping_add(1);
        }
        self.consumer = self.consumer.wrapping_add(1);
        self.entries = new;
        self.publish();
    }

    #[cold]
    fn garbage(&mut self, index: u32) {
        if core::mem::replace(&mut self.reported, true) {
            return;
        }
        let cqe = Cqe::read(self.entries.entry(index));
        log::error!(
            "completion queue: entry {index:#x} (opcode {}, index {:#x}, QP {:#x}, WQE {:#x}) speaks of nothing that was \
             posted; it is not given on: {:02x?}",
            cqe.opcode(),
            cqe.srqn_uidx(),
            cqe.qpn(),
            cqe.wqe_counter(),
            cqe.dump()
        );
    }

    /// A completion with an error that the peer or the device made, not a flush: for the log.
    #[cold]
    fn report(cqe: Cqe<'_>) {
        if log::enabled(log::Level::Info) {
            log::info!(
                "completion with error: syndrome {:#x}, vendor syndrome {:#x}, QP {:#x}, WQE {:#x}: {:02x?}",
                cqe.syndrome(),
                cqe.vendor_err(),
                cqe.qpn(),
                cqe.wqe_counter(),
                cqe.dump()
            );
        }
    }

    /// The next completion for the extended interface, from `self.consumer` on.
    #[inline(always)]
    fn load(&mut self) -> Result<Head, Errno> {
        loop {
            let index = self.consumer;
            let cqe = Cqe::read(self.entries.entry(index));
            if !cqe.owned(index, self.entries.count()) {
                return if self.life.is_gone() { self.load_flushed() } else { Err(Errno::ENOENT) };
            }
            // The entry is read after the byte that says it is ours.
            udma_from_device_barrier();
            let parsed = retire(&mut self.owners, self.by_uidx, cqe);
            let failed = matches!(cqe.opcode(), opcode::REQ_ERR | opcode::RESP_ERR);
            self.consumer = index.wrapping_add(1);
            match parsed {
                Parsed::Done { wr_id, status, noted } => {
                    (self.current, self.noted, self.failed) = (index, noted, failed);
                    return Ok(Head { wr_id, status });
                }
                Parsed::Skip => {}
                Parsed::Garbage => {
                    self.garbage(index);
                    return Err(Errno::EIO);
                }
            }
        }
    }

    #[inline(always)]
    fn current(&self) -> Cqe<'_> {
        Cqe::read(self.entries.entry(self.current))
    }

    /// Looks at what the device wrote for the last time; then puts an entry of our own in place of the ring. Whether that
    /// is done: not while there are entries to give on, which may have come after the poll looked and before the device was
    /// gone.
    fn turn(&mut self) -> Result<bool, Errno> {
        if self.left.is_some() {
            return Ok(true);
        }
        if self.written(self.consumer).is_some() {
            return Ok(false);
        }
        let own = Entries::new(1, 64, self.fork)?;
        Cq::prepare(&own);
        self.left = Some(core::mem::replace(&mut self.entries, own));
        (self.consumer, self.current) = (0, 0);
        Ok(true)
    }

    fn next_flushed(&mut self) -> Option<Flushed> {
        let places = &self.owners.places;
        self.flush.next(&self.life, places.len(), |at| places.get(at)?.flush())
    }

    /// What an empty poll of a device that is gone finds.
    #[cold]
    fn flushed(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<usize, Errno> {
        if !self.turn()? {
            return self.poll(out);
        }
        let mut polled = 0;
        for place in out {
            let Some(Flushed { wr, qpn, .. }) = self.next_flushed() else { break };
            place.write(ibv_wc {
                wr_id: wr.wr_id,
                status: IBV_WC_WR_FLUSH_ERR,
                opcode: wr.opcode,
                vendor_err: cqe::FLUSHED_VENDOR_ERR,
                qp_num: qpn,
                ..ibv_wc::zeroed()
            });
            polled += 1;
        }
        Ok(polled)
    }

    /// As [`Cq::flushed`], for the extended interface: the entry of our own says what the device would have.
    #[cold]
    fn load_flushed(&mut self) -> Result<Head, Errno> {
        if !self.turn()? {
            return self.load();
        }
        let Flushed { wr, qpn, received } = self.next_flushed().ok_or(Errno::ENOENT)?;
        cqe::put_flushed(self.entries.entry(0), qpn, received);
        (self.noted, self.failed) = (wr.opcode as u8, true);
        Ok(Head { wr_id: wr.wr_id, status: IBV_WC_WR_FLUSH_ERR })
    }
}

#[cold]
fn give_back(srq: &srq::Inner, cqe: Cqe<'_>) {
    if matches!(cqe.opcode(), opcode::RESP_WR_IMM..=opcode::RESP_SEND_INV | opcode::RESP_ERR) {
        // Nobody will be told of it: the receive is free again, as after a completion.
        let _ = srq.complete(cqe.wqe_counter());
    }
}

/// The whole of a completion, for `ibv_poll_cq`.
#[inline(always)]
fn wc(owners: &mut Owners, cqe: Cqe<'_>, by_uidx: bool, wr_id: u64, status: u32, noted: u8) -> ibv_wc {
    let code = cqe.opcode();
    let mut wc = ibv_wc { wr_id, status, qp_num: cqe.qpn(), ..ibv_wc::zeroed() };
    match code {
        opcode::REQ => {
            wc.opcode = cqe::send_wc_opcode(cqe.send_opcode(), noted).unwrap_or_default();
            wc.byte_len = byte_len(cqe);
            wc.wc_flags = flags(cqe).0;
        }
        opcode::REQ_ERR | opcode::RESP_ERR => {
            wc.vendor_err = cqe.vendor_err();
            // Undefined by ibv_poll_cq(3); the side is known all the same.
            wc.opcode = if code == opcode::RESP_ERR { IBV_WC_RECV } else { u32::from(noted) };
            Cq::report(cqe);
        }
        _ => {
            let (flags, word) = flags(cqe);
            wc.opcode = wc_opcode(cqe, 0);
            wc.byte_len = cqe.byte_cnt();
            (wc.wc_flags, wc.imm_data) = (flags, word);
            wc.src_qp = cqe.src_qp();
            wc.slid = cqe.slid();
            wc.sl = cqe.sl();
            wc.dlid_path_bits = cqe.dlid_path_bits();
            wc.pkey_index = cqe.invalidated_rkey() as u16;
            let key = if by_uidx { cqe.srqn_uidx() } else { cqe.qpn() };
            if owners.find(key).is_some_and(Owner::checks_sums) && cqe.csum_ok() {
                wc.wc_flags |= IBV_WC_IP_CSUM_OK;
            }
        }
    }
    wc
}

impl CompletionQueue for Cq {
    #[inline(always)]
    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<usize, Errno> {
        let count = self.entries.count();
        let mut index = self.consumer;
        let mut polled = 0;
        let mut result = Ok(());
        let mut room = out.iter_mut();
        let mut to = room.next();
        while let Some(place) = to.take() {
            let cqe = Cqe::read(self.entries.entry(index));
            if !cqe.owned(index, count) {
                break;
            }
            // The entry is read after the byte that says it is ours.
            udma_from_device_barrier();
            match retire(&mut self.owners, self.by_uidx, cqe) {
                Parsed::Done { wr_id, status, noted } => {
                    place.write(wc(&mut self.owners, cqe, self.by_uidx, wr_id, status, noted));
                    polled += 1;
                    to = room.next();
                }
                Parsed::Skip => to = Some(place),
                Parsed::Garbage => {
                    self.garbage(index);
                    result = Err(Errno::EIO);
                    // Those before it are given on; the application hears of it by itself when there are none.
                    if polled != 0 {
                        to = Some(place);
                    }
                }
            }
            index = index.wrapping_add(1);
        }
        if index == self.consumer {
            // Nothing to tell the device: an empty poll touches nothing but the entry.
            return if self.life.is_gone() { self.flushed(out) } else { Ok(0) };
        }
        self.consumer = index;
        self.publish();
        if polled == 0 { result.map(|()| 0) } else { Ok(polled) }
    }

    #[inline]
    fn start(&mut self) -> Result<Head, Errno> {
        let before = self.consumer;
        self.load().inspect_err(|_| {
            // Entries that nobody sees were consumed.
            if self.consumer != before {
                self.publish();
            }
        })
    }

    #[inline]
    fn next(&mut self) -> Result<Head, Errno> {
        self.load()
    }

    #[inline]
    fn end(&mut self) {
        self.publish();
    }

    fn is_pending(&mut self) -> bool {
        self.written(self.consumer).is_some()
            || (self.life.is_gone() && self.owners.places.iter().any(Place::owes))
    }

    fn opcode(&self) -> u32 {
        let cqe = self.current();
        match cqe.opcode() {
            opcode::RESP_ERR => IBV_WC_RECV,
            opcode::REQ_ERR => u32::from(self.noted),
            _ => wc_opcode(cqe, self.noted),
        }
    }

    fn vendor_err(&self) -> u32 {
        if self.failed { self.current().vendor_err() } else { 0 }
    }

    fn byte_len(&self) -> u32 {
        byte_len(self.current())
    }

    fn imm_data(&self) -> u32 {
        flags(self.current()).1
    }

    fn qp_num(&self) -> u32 {
        self.current().qpn()
    }

    fn src_qp(&self) -> u32 {
        self.current().src_qp()
    }

    fn wc_flags(&self) -> u32 {
        if self.failed {
            return 0;
        }
        let cqe = self.current();
        let key = if self.by_uidx { cqe.srqn_uidx() } else { cqe.qpn() };
        let owner = self.owners.search(key).and_then(|at| self.owners.places.get(at)?.owner.as_ref());
        let sums = owner.is_some_and(|owner| owner.checks_sums()) && cqe.csum_ok();
        flags(cqe).0 | if sums { IBV_WC_IP_CSUM_OK } else { 0 }
    }

    fn slid(&self) -> u32 {
        u32::from(self.current().slid())
    }

    fn sl(&self) -> u8 {
        self.current().sl()
    }

    fn dlid_path_bits(&self) -> u8 {
        self.current().dlid_path_bits()
    }

    fn completion_ts(&self) -> u64 {
        self.current().timestamp()
    }

    fn completion_wallclock_ns(&self) -> u64 {
        let cycles = self.current().timestamp();
        self.clock.as_ref().map_or(cycles, |clock| clock.nanoseconds(cycles))
    }

    fn cvlan(&self) -> u16 {
        self.current().vlan_info()
    }

    fn flow_tag(&self) -> u32 {
        self.current().flow_tag()
    }
}
