//! Completion queues: entries that the device writes, and the queues they speak of.
//!
//! Each CQ keeps the queues that complete to it by the number that completions carry, so that a poll finds them under the
//! CQ's own lock: no table is shared, nothing is counted, and a queue cannot go while it is looked at. A QP is entered when it
//! is created; when it is destroyed or reset, its entries are taken out of the ring first ([`Cq::clean`]).

use core::hint::cold_path;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::Arc;

use super::clock::Clock;
use super::cqe::{self, Cqe, Usual, opcode};
use super::dbrec::Dbrec;
use super::kits::Kits;
use super::op::Noted;
use super::ring::{Key, Outstanding, Owner, Receives};
use super::srq;
use crate::abi::public::*;
use crate::abi::wc::Success;
use crate::error::Errno;
use crate::family::{self, CompletionQueue, Head, Look, Next};
use crate::ha::flush::Flush;
use crate::ha::life::Life;
use crate::hw::barrier::{udma_from_device_barrier, udma_to_device_barrier};
use crate::hw::dma::{At, Consumer, Entries, Memory};
use crate::hw::table::{Table, View};
use crate::log;
use crate::uapi::{CmdFd, Handle};

use super::uar::CqDoorbell;

/// The word of the doorbell record that says how far we consumed, `MLX5_CQ_SET_CI`.
const SET_CI: usize = 0;
/// The word of the doorbell record that arms, `MLX5_CQ_ARM_DB`.
const ARM_DB: usize = 1;
/// `MLX5_CQ_DB_REQ_NOT_SOL`.
const REQ_NOT_SOL: u32 = 1 << 24;
/// How many completions have the lock of an SRQ at most, for which those who post to it wait.
const RUN: usize = 64;
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
#[derive(Debug, Clone)]
struct Place {
    key: u32,
    role: Role,
    owner: Option<Arc<Owner>>,
}

impl Place {
    /// With a key that no completion carries.
    const EMPTY: Place = Place { key: u32::MAX, role: Role::empty(), owner: None };

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
#[derive(Debug)]
struct Owners {
    places: Table<Place>,
    count: u32,
}

impl Owners {
    fn new() -> Owners {
        static NONE: Place = Place::EMPTY;
        Owners { places: Table::of_static(&NONE), count: 0 }
    }

    fn search(&self, key: Key) -> Option<u32> {
        let mut at = key.0;
        loop {
            let place = self.places.at(at);
            place.owner.as_ref()?;
            if place.key == key.0 {
                return Some(at);
            }
            at = at.wrapping_add(1);
        }
    }

    fn find(&self, key: Key) -> Option<&Owner> {
        self.places.at(self.search(key)?).owner.as_deref()
    }

    /// Room in a table that has some.
    fn put(places: &mut Table<Place>, new: Place) {
        let mut at = new.key;
        while places.at(at).owner.is_some() {
            at = at.wrapping_add(1);
        }
        *places.at_mut(at) = new;
    }

    fn grow(&mut self, len: u32) {
        let mut places = Table::new(len, || Place::EMPTY);
        for place in self.places.iter() {
            if place.owner.is_some() {
                Owners::put(&mut places, place.clone());
            }
        }
        self.places = places;
    }

    fn insert(&mut self, owner: &Arc<Owner>, role: Role) {
        if let Some(at) = self.search(owner.key) {
            self.places.at_mut(at).role |= role;
            return;
        }
        if (self.count + 1) * 2 > self.places.len() {
            self.grow(((self.count + 1) * 2).max(4));
        }
        Owners::put(&mut self.places, Place { key: owner.key.0, role, owner: Some(owner.clone()) });
        self.count += 1;
    }

    fn remove(&mut self, key: Key) {
        let Some(mut hole) = self.search(key) else { return };
        self.count -= 1;
        // Those behind it move up, unless they would come to stand before where a search for them begins.
        let mask = self.places.len() - 1;
        let mut at = hole;
        loop {
            at = at.wrapping_add(1);
            let place = self.places.at(at);
            if place.owner.is_none() {
                break;
            }
            if at.wrapping_sub(place.key) & mask >= at.wrapping_sub(hole) & mask {
                *self.places.at_mut(hole) = place.clone();
                hole = at;
            }
        }
        *self.places.at_mut(hole) = Place::EMPTY;
    }
}

/// The consumer's side of one CQ.
#[derive(Debug)]
pub struct Cq {
    entries: Entries,
    pub(super) shared: Arc<Shared>,
    /// Completions carry a user index (CQE version 1).
    by_uidx: bool,
    owners: Owners,
    /// `ibv_start_poll`'s current completion.
    current: Current,
    /// An entry that cannot be believed was reported: once is enough.
    reported: bool,
    /// Once the device is gone: the walk round the queues, and the memory that it wrote, which is not looked at any more.
    flush: Flush,
    left: Option<Arc<Memory>>,
}

/// What those who poll a CQ have in common with those who arm it: one allocation and one count, since each of them is a fiftieth of
/// what a CQ costs to make and unmake outside of the kernel.
#[derive(Debug)]
pub(super) struct Shared {
    /// Entries consumed, counted from the start. Others look at it to spare an empty poll the lock.
    consumer: Consumer,
    /// What the last receive was that was polled alone, of [`last`]: the next one will be the same.
    last: AtomicU8,
    dbrec: Dbrec,
    life: Arc<Life>,
    /// Time stamps in nanoseconds come from here; `None` where the device itself gives them so.
    clock: Option<Arc<Clock>>,
}

impl Shared {
    /// As [`family::Arm::look`].
    #[inline(always)]
    pub(super) fn look(&self, one: bool) -> Look<At<'_>> {
        let Some(look) = self.consumer.look() else { return Look::Other };
        if !look.is_written() {
            // What a device that is gone still owes is only found under the lock.
            return if self.life.is_gone() { Look::Other } else { Look::Nothing };
        }
        // By this hint the code of an empty poll is one without a jump: 1 of 8 cycles.
        cold_path();
        if !one {
            return Look::Other;
        }
        match cqe::usual(look.op_own, look.lap) {
            Usual::Sent => Look::Sent(look.at, look.op_own),
            // ORDER: Relaxed: a hint.
            Usual::Plain => match self.last.load(Ordering::Relaxed) {
                last::PLAIN => Look::Plain(look.at, look.op_own),
                last::SHARED => Look::Shared(look.at, look.op_own),
                _ => Look::Received(look.at, look.op_own),
            },
            Usual::Received => Look::Received(look.at, look.op_own),
            Usual::None => Look::Other,
        }
    }
}

/// A completion that `ibv_wc_read_*` tell of.
#[derive(Debug, Clone, Copy, Default)]
struct Current {
    index: u32,
    /// What the post of a send noted.
    noted: Noted,
    failed: bool,
}

/// What arms a CQ, beside its lock: a thread may arm while another polls.
#[derive(Debug)]
pub struct Arm {
    shared: Arc<Shared>,
    doorbell: CqDoorbell,
    cqn: u32,
    /// Completion events seen: arming counts them along, so that a late one does not serve twice.
    sequence: AtomicU32,
}

impl Arm {
    /// The same for a new CQ, `cqn`.
    pub(super) fn renewed(self, cqn: u32) -> Arm {
        Arm { cqn, sequence: AtomicU32::new(0), ..self }
    }

    pub(super) fn new(cq: &Cq, doorbell: CqDoorbell, cqn: u32) -> Arm {
        Arm { shared: cq.shared.clone(), doorbell, cqn, sequence: AtomicU32::new(0) }
    }
}

impl family::Arm for Arm {
    type At<'a> = At<'a>;

    /// PRM: mlx5_arm_cq of rdma-core.
    fn arm(&self, _fd: CmdFd, _handle: Handle, solicited_only: bool) -> Result<(), Errno> {
        // ORDER: Relaxed: a number; events and arming are ordered by the application.
        let sequence = self.sequence.load(Ordering::Relaxed) & 3;
        let command = if solicited_only { REQ_NOT_SOL } else { 0 };
        // How far the CQ is consumed stands in the record's other word.
        let word = sequence << 28 | command | self.shared.dbrec.record.load::<SET_CI>();
        self.shared.dbrec.record.store::<ARM_DB>(word);
        self.doorbell.arm(word, self.cqn);
        Ok(())
    }

    #[inline(always)]
    fn life(&self) -> &Life {
        &self.shared.life
    }

    #[inline(always)]
    fn look(&self, one: bool) -> Look<At<'_>> {
        self.shared.look(one)
    }

    fn event(&self) {
        // ORDER: Relaxed, see `arm`.
        self.sequence.fetch_add(1, Ordering::Relaxed);
    }
}

/// What an entry came to.
enum Parsed {
    /// A completion: its `wr_id`, status, and what was noted of a send.
    Done { wr_id: u64, status: u32, noted: Noted },
    /// Nothing that the application sees.
    Skip,
    /// It speaks of a queue or a work request that there is not.
    Garbage,
}

/// The owner that completions call `uidx`, where it is in its home place, as nearly all are. To look there is as quick as to
/// remember the last one found, and does not slow down when the completions of many queues alternate (by 13 cycles each).
#[inline(always)]
fn at_home<'a>(places: View<'a, Place>, uidx: u32) -> Option<&'a Owner> {
    let place = places.at(uidx);
    if place.key == uidx { place.owner.as_deref() } else { None }
}

/// The kinds of good completions, each of which is polled by a loop of its own.
mod kind {
    pub(super) const SENT: u8 = 0;
    /// To the QP's own receive queue.
    pub(super) const RECEIVED: u8 = 1;
    /// To that, or to an SRQ, if this thread owns its lock: that calls nothing.
    pub(super) const OWN: u8 = 2;
}

/// What a receive of a plain send is to a poll of one.
mod last {
    /// It says nothing of where it came from but the QP, and was to the QP's own receive queue.
    pub(super) const PLAIN: u8 = 0;
    /// The same, to an SRQ.
    pub(super) const SHARED: u8 = 1;
    /// It says more.
    pub(super) const OTHER: u8 = 2;
}

/// The work request of a good completion of a send, retired: its `wr_id`, what was noted, and its owner. `None` where it takes
/// more than a look to say which one; then nothing was done.
#[inline(always)]
fn retire_sent<'a>(places: View<'a, Place>, cqe: Cqe<'_>) -> Option<(u64, Noted, &'a Owner)> {
    let owner = at_home(places, cqe.srqn_uidx())?;
    let (wr_id, meta) = owner.send.as_ref()?.complete(cqe.wqe_counter())?;
    Some((wr_id, meta.noted, owner))
}

/// As [`retire_sent`], of a receive of this `KIND`: its `wr_id`, and its owner.
#[inline(always)]
fn retire_received<'a, const KIND: u8>(
    places: View<'a, Place>,
    uidx: u32,
    cqe: Cqe<'_>,
) -> Option<(u64, &'a Owner)> {
    let owner = at_home(places, uidx)?;
    let wr_id = match &owner.receives {
        Receives::Own(ring) => ring.complete(cqe.wqe_counter())?,
        Receives::Shared(srq) if KIND == kind::OWN => srq.complete_own(cqe.wqe_counter())?,
        _ => return None,
    };
    Some((wr_id, owner))
}

/// The bytes of a send that completed well.
#[inline(always)]
fn sent_len(cqe: Cqe<'_>, noted: Noted) -> u32 {
    if noted.is_atomic() {
        // That the others go on without a jump is worth a cycle.
        cold_path();
        return 8;
    }
    cqe.byte_cnt()
}

/// [`retire_sent`], and the completion in `to`.
#[inline(always)]
fn sent(places: View<'_, Place>, cqe: Cqe<'_>, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
    let (wr_id, noted, owner) = retire_sent(places, cqe)?;
    let wc = Success {
        wr_id,
        opcode: noted.opcode(),
        byte_len: sent_len(cqe, noted),
        qp_num: owner.qpn,
        wc_flags: noted.wc_flags(),
        ..Success::default()
    };
    wc.put(to);
    Some(())
}

/// [`retire_received`], and the completion in `to`; whether it is a plain one.
#[inline(always)]
fn received<const KIND: u8>(
    places: View<'_, Place>,
    cqe: Cqe<'_>,
    to: &mut MaybeUninit<ibv_wc>,
) -> Option<bool> {
    let (wr_id, owner) = retire_received::<KIND>(places, cqe.srqn_uidx(), cqe)?;
    Some(put_received(owner, cqe, wr_id, to))
}

/// Writes the completion of a receive to `to`; whether it is a plain one.
#[inline(always)]
fn put_received(owner: &Owner, cqe: Cqe<'_>, wr_id: u64, to: &mut MaybeUninit<ibv_wc>) -> bool {
    if cqe.opcode() == opcode::RESP_SEND
        && !owner.checks_sums()
        && let Some(source) = cqe.plain_source()
    {
        plain(cqe, wr_id, source).put(to);
        return true;
    }
    received_more(owner, cqe, wr_id, to);
    false
}

/// A plain receive, from QP `src_qp`.
#[inline(always)]
fn plain(cqe: Cqe<'_>, wr_id: u64, src_qp: u32) -> Success {
    Success {
        wr_id,
        opcode: IBV_WC_RECV,
        byte_len: cqe.byte_cnt(),
        qp_num: cqe.qpn(),
        src_qp,
        pkey_index: cqe.invalidated_rkey() as u16,
        ..Success::default()
    }
}

/// A receive that says more.
#[inline(always)]
fn received_more(owner: &Owner, cqe: Cqe<'_>, wr_id: u64, to: &mut MaybeUninit<ibv_wc>) {
    let word = cqe.invalidated_rkey();
    let (opcode, wc_flags, imm_data) = cqe.operation_received(word);
    let (slid, dlid_path_bits) = cqe.path();
    let (src_qp, sl, grh) = cqe.source();
    let sums = owner.checks_sums() && cqe.csum_ok();
    let wc = Success {
        wr_id,
        opcode,
        byte_len: cqe.byte_cnt(),
        imm_data,
        qp_num: cqe.qpn(),
        src_qp,
        wc_flags: wc_flags | grh | if sums { IBV_WC_IP_CSUM_OK } else { 0 },
        pkey_index: word as u16,
        slid,
        sl,
        dlid_path_bits,
    };
    wc.put(to);
}

/// The QP's name in `cqe`.
fn key(by_uidx: bool, cqe: Cqe<'_>) -> Key {
    if by_uidx { Key::user_index(cqe.srqn_uidx()) } else { Key::qp(cqe.qpn()) }
}

/// Retires the work request that `cqe` completes, whatever it is.
fn retire(owners: &Owners, by_uidx: bool, cqe: Cqe<'_>) -> Parsed {
    let code = cqe.opcode();
    match code {
        opcode::REQ | opcode::REQ_ERR => {
            let key = key(by_uidx, cqe);
            let Some(ring) = owners.find(key).and_then(|owner| owner.send.as_ref()) else {
                return Parsed::Garbage;
            };
            let Some((wr_id, meta)) = ring.complete(cqe.wqe_counter()) else { return Parsed::Garbage };
            let noted = meta.noted;
            if code == opcode::REQ_ERR {
                return Parsed::Done { wr_id, status: cqe::status(cqe.syndrome()), noted };
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

fn retire_receive(owners: &Owners, by_uidx: bool, cqe: Cqe<'_>) -> Parsed {
    let mut key = key(by_uidx, cqe);
    // Version 0 names the SRQ, whose owner is the QP for all but XRC.
    if !by_uidx && cqe.srqn_uidx() != 0 && owners.find(key).is_none() {
        key = Key::srq(cqe.srqn_uidx());
    }
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
            Parsed::Done { wr_id, status, noted: Noted::default() }
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
                Some(wr_id) => Parsed::Done { wr_id, status, noted: Noted::default() },
                None => Parsed::Garbage,
            }
        }
        Receives::None => Parsed::Garbage,
    }
}

/// `ibv_wc.wc_flags` and the word for `imm_data` or `invalidated_rkey`, of a good completion.
#[inline(always)]
fn flags(cqe: Cqe<'_>, noted: Noted) -> (u32, u32) {
    if cqe.opcode() == opcode::REQ {
        return (noted.wc_flags(), 0);
    }
    let (_, flags, word) = cqe.operation_received(cqe.invalidated_rkey());
    (flags | cqe.grh(), word)
}

/// `ibv_wc.opcode` of a completion that did not fail.
#[inline(always)]
fn wc_opcode(cqe: Cqe<'_>, noted: Noted) -> u32 {
    match cqe.opcode() {
        opcode::RESP_WR_IMM..=opcode::RESP_SEND_INV => cqe.operation_received(0).0,
        _ => noted.opcode(),
    }
}

/// The bytes that a good completion speaks of.
#[inline(always)]
fn byte_len(cqe: Cqe<'_>, noted: Noted) -> u32 {
    if cqe.opcode() == opcode::REQ { sent_len(cqe, noted) } else { cqe.byte_cnt() }
}

impl Cq {
    /// A queue of `entries`, none of which the device has written.
    pub(super) fn new(
        entries: Entries,
        by_uidx: bool,
        dbrec: Dbrec,
        clock: Option<Arc<Clock>>,
        life: Arc<Life>,
    ) -> Cq {
        let shared = Arc::new(Shared {
            consumer: Consumer::new(&entries),
            last: AtomicU8::new(last::PLAIN),
            dbrec,
            life,
            clock,
        });
        Cq {
            entries,
            shared,
            by_uidx,
            owners: Owners::new(),
            current: Current::default(),
            reported: false,
            flush: Flush::default(),
            left: None,
        }
    }

    /// The parts of a CQ of `count` entries, of `size` bytes each, that converts no time stamps.
    pub(super) fn used(kits: &Kits<(Cq, Arm)>, count: u32, size: u32) -> Option<(Cq, Arm)> {
        let (mut cq, arm) = kits.take(|(cq, _)| (cq.entries.count(), cq.entries.size()) == (count, size))?;
        cq.renew();
        Some((cq, arm))
    }

    /// Gives what is left of it, which nobody uses, to `kits`.
    pub(super) fn give_back(mut self, arm: Arm, kits: &Kits<(Cq, Arm)>) {
        // Empty, but as large as it was.
        self.owners = Owners::new();
        let (shared, len) = (&self.shared, self.entries.len());
        // Not what was resized, nor what has to do with a device that is dying.
        if !shared.consumer.is_hidden() && shared.clock.is_none() && !shared.life.is_over() {
            kits.give_back((self, arm), len);
        }
    }

    /// As new, but for what is in the entries.
    fn renew(&mut self) {
        self.shared.consumer.set(0);
        self.shared.dbrec.record.store::<SET_CI>(0);
        self.shared.dbrec.record.store::<ARM_DB>(0);
        self.current = Current::default();
        self.reported = false;
        self.flush.again();
    }

    /// The address of the doorbell record, for the kernel.
    pub(super) fn record(&self) -> u64 {
        self.shared.dbrec.record.address()
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
        self.owners.remove(owner.key);
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

    /// Entries consumed.
    #[inline(always)]
    fn consumer(&self) -> u32 {
        self.shared.consumer.index()
    }

    /// Tells the device how far the queue is consumed.
    #[inline(always)]
    fn publish(&self) {
        self.shared.dbrec.record.store::<SET_CI>(self.consumer() & INDEX);
    }

    /// Everything before `index` is consumed.
    #[inline(always)]
    fn consumed(&self, index: u32) {
        self.shared.consumer.set(index);
        self.shared.dbrec.record.store::<SET_CI>(index & INDEX);
    }

    /// Takes the entries of `owner` out of the ring: the ones before them move up over them. The device writes none of that
    /// owner any more.
    pub(super) fn clean(&mut self, owner: &Owner) {
        let count = self.entries.count();
        let first = self.consumer();
        let mut end = first;
        while end.wrapping_sub(first) < count && self.written(end).is_some() {
            end = end.wrapping_add(1);
        }
        udma_from_device_barrier();
        let mut freed = 0_u32;
        let mut at = end;
        while at != first {
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
            // The entries are where they belong before the device is given their old places.
            udma_to_device_barrier();
            self.consumed(first.wrapping_add(freed));
        }
    }

    /// The WQE of the last send of `owner` that the device completed well and nobody has polled.
    pub(super) fn last_success(&self, owner: &Owner) -> Option<u16> {
        let mut found = None;
        let mut at = self.consumer();
        for _ in 0..self.entries.count() {
            let Some(cqe) = self.written(at) else { break };
            udma_from_device_barrier();
            if cqe.opcode() == opcode::REQ && self.names(cqe, owner) {
                found = Some(cqe.wqe_counter());
            }
            at = at.wrapping_add(1);
        }
        found
    }

    /// Whether an entry is of `owner`.
    fn names(&self, cqe: Cqe<'_>, owner: &Owner) -> bool {
        // An XRC SRQ, whose QPs are elsewhere, is named as such.
        key(self.by_uidx, cqe) == owner.key || !self.by_uidx && Key::srq(cqe.srqn_uidx()) == owner.key
    }

    /// Takes `new` in place of the present entries: the kernel switched over, and ended the old ring with an entry that says
    /// so. What is before that entry moves.
    pub(super) fn replace(&mut self, new: Entries) {
        let first = self.consumer();
        let (mut at, count, room) = (first, self.entries.count(), new.count());
        loop {
            let Some(cqe) = self.written(at) else {
                log::error!("completion queue: the end of the old ring was not found after a resize");
                break;
            };
            udma_from_device_barrier();
            if cqe.opcode() == opcode::RESIZE_CQ {
                break;
            }
            if at.wrapping_sub(first) >= count.min(room) {
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
        // Another thread may be looking at the old ring: it stays, and the new one is only looked at under the lock.
        self.shared.consumer.hide();
        self.entries = new;
        self.consumed(first.wrapping_add(1));
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

    /// The next completion for the extended interface.
    fn load(&mut self) -> Result<Head, Errno> {
        match self.next_usual() {
            Next::Usual(head) => Ok(head),
            Next::None => Err(Errno::ENOENT),
            Next::Other => self.load_other(),
        }
    }

    /// [`Cq::load`], whatever comes.
    fn load_other(&mut self) -> Result<Head, Errno> {
        loop {
            let index = self.consumer();
            let Some(cqe) = self.written(index) else {
                return if self.shared.life.is_gone() { self.load_flushed() } else { Err(Errno::ENOENT) };
            };
            // The entry is read after the byte that says it is ours.
            udma_from_device_barrier();
            let failed = matches!(cqe.opcode(), opcode::REQ_ERR | opcode::RESP_ERR);
            let parsed = self.other(index);
            self.shared.consumer.set(index.wrapping_add(1));
            match parsed {
                Parsed::Done { wr_id, status, noted } => {
                    self.current = Current { index, noted, failed };
                    return Ok(Head { wr_id, status });
                }
                Parsed::Skip => {}
                Parsed::Garbage => return Err(Errno::EIO),
            }
        }
    }

    /// The work request of `cqe`, the entry at `index`, retired, if that is one of the good completions that nearly all are. It calls
    /// nothing.
    #[inline(always)]
    fn retire_good(&self, index: u32, cqe: Cqe<'_>) -> Option<(u64, Noted)> {
        let (count, places) = (self.entries.count(), self.owners.places.view());
        if cqe.is_good(true, index, count) {
            retire_sent(places, cqe).map(|(wr_id, noted, _)| (wr_id, noted))
        } else if cqe.is_good(false, index, count) {
            let wr_id = match &at_home(places, cqe.srqn_uidx())?.receives {
                Receives::Own(ring) => ring.complete(cqe.wqe_counter())?,
                Receives::Shared(srq) => srq.complete_own(cqe.wqe_counter())?,
                Receives::None => return None,
            };
            Some((wr_id, Noted::default()))
        } else {
            None
        }
    }

    /// Retires the work request of the entry at `index`, whatever it is.
    #[inline(never)]
    fn other(&mut self, index: u32) -> Parsed {
        let parsed = retire(&self.owners, self.by_uidx, Cqe::read(self.entries.entry(index)));
        if matches!(parsed, Parsed::Garbage) {
            self.garbage(index);
        }
        parsed
    }

    /// [`Cq::other`] for `ibv_poll_cq`: whether there is something in `to` now.
    fn other_wc(&mut self, index: u32, to: &mut MaybeUninit<ibv_wc>) -> Result<bool, Errno> {
        match self.other(index) {
            Parsed::Done { wr_id, status, noted } => {
                let cqe = Cqe::read(self.entries.entry(index));
                to.write(wc(&self.owners, cqe, self.by_uidx, wr_id, status, noted));
                Ok(true)
            }
            Parsed::Skip => Ok(false),
            Parsed::Garbage => Err(Errno::EIO),
        }
    }

    /// Moves completions from `first` on to `out`, as long as they are good ones of the `KIND` asked for: how many.
    ///
    /// A loop of its own for each kind, which changes nothing of the queue and calls nothing: what it needs stays in registers.
    #[inline(always)]
    fn poll_good<const KIND: u8>(&self, first: u32, out: &mut [MaybeUninit<ibv_wc>]) -> u32 {
        let (entries, places) = (self.entries.view(), self.owners.places.view());
        let mut index = first;
        for to in out {
            let cqe = Cqe::read(entries.entry(index));
            if !cqe.is_good(KIND == kind::SENT, index, entries.count()) {
                break;
            }
            // The entry is read after the byte that says it is ours.
            udma_from_device_barrier();
            let done = match KIND {
                kind::SENT => sent(places, cqe, to).is_some(),
                _ => received::<KIND>(places, cqe, to).is_some(),
            };
            if !done {
                break;
            }
            index = index.wrapping_add(1);
        }
        index.wrapping_sub(first)
    }

    /// The completion that was seen `at` the front as `seen`, if it is still there and the same.
    #[inline(always)]
    fn again<'a>(&self, at: At<'a>, seen: u8) -> Option<Cqe<'a>> {
        let cqe = Cqe::read(self.shared.consumer.again(at)?);
        // The entry is read after the byte that says it is ours.
        udma_from_device_barrier();
        (cqe.op_own() == seen).then_some(cqe)
    }

    /// As `poll_usual`. A call: for many it is nothing, and one that is not polled by a function of its own is a rare one.
    #[inline(never)]
    fn poll_many(&self, first: u32, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32> {
        let polled = if Cqe::read(self.entries.entry(first)).opcode() == opcode::REQ {
            self.poll_good::<{ kind::SENT }>(first, out)
        } else {
            let polled = self.poll_good::<{ kind::RECEIVED }>(first, out);
            if polled == 0 {
                return self.poll_of_srqs(first, out);
            }
            polled
        };
        self.polled(first, polled, out.len())
    }

    /// As `poll_usual`, of receives of SRQs.
    #[inline(never)]
    fn poll_of_srqs(&self, first: u32, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32> {
        let polled = self.poll_runs(first, out);
        self.polled(first, polled, out.len())
    }

    /// Moves good completions of receives of SRQs from `first` on to `out`: how many. The lock of an SRQ is taken once for all that come
    /// one behind the other: for each it is 13 of 150 instructions.
    fn poll_runs(&self, first: u32, out: &mut [MaybeUninit<ibv_wc>]) -> u32 {
        let (entries, places) = (self.entries.view(), self.owners.places.view());
        let mut polled = 0;
        while let Some(out @ [_, ..]) = out.get_mut(polled as usize..) {
            let index = first.wrapping_add(polled);
            let cqe = Cqe::read(entries.entry(index));
            if !cqe.is_good(false, index, entries.count()) {
                break;
            }
            // The entry is read after the byte that says it is ours.
            udma_from_device_barrier();
            let receives = at_home(places, cqe.srqn_uidx()).map(|owner| &owner.receives);
            let Some(Receives::Shared(srq)) = receives else { break };
            let most = out.len().min(RUN);
            let mut list = srq.list();
            let (run, new) = self.poll_run(srq, *list, index, out.get_mut(..most).unwrap_or_default());
            *list = new;
            drop(list);
            if run == 0 {
                break;
            }
            polled += run;
        }
        polled
    }

    /// The same, of those of `srq`, whose list is under its lock; and the list then. It calls nothing.
    #[inline(never)]
    fn poll_run(
        &self,
        srq: &srq::Inner,
        mut list: srq::List,
        first: u32,
        out: &mut [MaybeUninit<ibv_wc>],
    ) -> (u32, srq::List) {
        let (entries, places) = (self.entries.view(), self.owners.places.view());
        let mut index = first;
        for to in out {
            let cqe = Cqe::read(entries.entry(index));
            if !cqe.is_good(false, index, entries.count()) {
                break;
            }
            // The entry is read after the byte that says it is ours.
            udma_from_device_barrier();
            let Some(owner) = at_home(places, cqe.srqn_uidx()) else { break };
            match &owner.receives {
                Receives::Shared(own) if core::ptr::eq(Arc::as_ptr(own), srq) => {}
                _ => break,
            }
            let Some(wr_id) = srq.complete_in(&mut list, cqe.wqe_counter()) else { break };
            put_received(owner, cqe, wr_id, to);
            index = index.wrapping_add(1);
        }
        (index.wrapping_sub(first), list)
    }

    /// As `poll_usual` answers: `polled` completions from `first` on were given, where there was room for `room`.
    #[inline(always)]
    fn polled(&self, first: u32, polled: u32, room: usize) -> Result<u32, u32> {
        let index = first.wrapping_add(polled);
        // Nothing to tell the device otherwise: an empty poll touches nothing but the entry.
        if polled != 0 {
            self.consumed(index);
        }
        if (polled as usize) < room && (self.written(index).is_some() || self.shared.life.is_gone()) {
            return Err(polled);
        }
        Ok(polled)
    }

    /// Polls one plain receive, as [`CompletionQueue::poll_plain`], whose `wr_id` is what `retire` has of it, or which is another, [`last`].
    #[inline(always)]
    fn poll_one_plain(
        &mut self,
        at: At<'_>,
        seen: u8,
        to: &mut MaybeUninit<ibv_wc>,
        retire: impl FnOnce(&Receives, u16) -> Result<Option<u64>, u8>,
    ) -> Option<()> {
        let cqe = self.again(at, seen)?;
        let owner = at_home(self.owners.places.view(), cqe.srqn_uidx())?;
        let (Some(source), false) = (cqe.plain_source(), owner.checks_sums()) else {
            return self.last_was(last::OTHER);
        };
        let wr_id = match retire(&owner.receives, cqe.wqe_counter()) {
            Ok(wr_id) => wr_id?,
            Err(last) => return self.last_was(last),
        };
        plain(cqe, wr_id, source).put(to);
        // To count on from what is in memory leaves a register free, so that none is saved.
        self.consumed(self.consumer().wrapping_add(1));
        Some(())
    }

    /// Notes what the receive was, [`last`], that a poll of one did not take for that.
    #[inline(always)]
    fn last_was(&self, last: u8) -> Option<()> {
        // ORDER: Relaxed, as in `look`.
        self.shared.last.store(last, Ordering::Relaxed);
        None
    }

    #[inline(always)]
    fn current(&self) -> Cqe<'_> {
        Cqe::read(self.entries.entry(self.current.index))
    }

    /// Looks at what the device wrote for the last time; then puts an entry of our own in place of the ring. Whether that
    /// is done: not while there are entries to give on, which may have come after the poll looked and before the device was
    /// gone.
    fn turn(&mut self) -> Result<bool, Errno> {
        if self.left.is_some() {
            return Ok(true);
        }
        if self.written(self.consumer()).is_some() {
            return Ok(false);
        }
        let own = Entries::new(1, 64, self.entries.pages())?;
        Cq::prepare(&own);
        self.shared.consumer.hide();
        self.left = Some(core::mem::replace(&mut self.entries, own).into_memory());
        self.shared.consumer.set(0);
        self.current = Current::default();
        Ok(true)
    }

    fn next_flushed(&mut self) -> Option<Flushed> {
        let places = &self.owners.places;
        self.flush.next(&self.shared.life, places.len(), |at| places.at(at).flush())
    }

    /// What an empty poll of a device that is gone finds.
    #[cold]
    fn flushed(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, Errno> {
        if !self.turn()? {
            return self.poll(out);
        }
        Ok(family::fill(out, || {
            let Flushed { wr, qpn, .. } = self.next_flushed()?;
            Some(family::flushed(wr, qpn, cqe::FLUSHED_VENDOR_ERR))
        }))
    }

    /// As [`Cq::flushed`], for the extended interface: the entry of our own says what the device would have.
    #[cold]
    fn load_flushed(&mut self) -> Result<Head, Errno> {
        if !self.turn()? {
            return self.load_other();
        }
        let Flushed { wr, qpn, received } = self.next_flushed().ok_or(Errno::ENOENT)?;
        cqe::put_flushed(self.entries.entry(0), qpn, received);
        self.current = Current { index: 0, noted: Noted::of_flushed(wr.opcode), failed: true };
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

/// The whole of a completion, whatever it is, for `ibv_poll_cq`.
fn wc(owners: &Owners, cqe: Cqe<'_>, by_uidx: bool, wr_id: u64, status: u32, noted: Noted) -> ibv_wc {
    let code = cqe.opcode();
    let mut wc = ibv_wc { wr_id, status, qp_num: cqe.qpn(), ..ibv_wc::zeroed() };
    match code {
        opcode::REQ => {
            wc.opcode = noted.opcode();
            wc.byte_len = byte_len(cqe, noted);
            wc.wc_flags = noted.wc_flags();
        }
        opcode::REQ_ERR | opcode::RESP_ERR => {
            wc.vendor_err = cqe.vendor_err();
            // Undefined by ibv_poll_cq(3); the side is known all the same.
            wc.opcode = if code == opcode::RESP_ERR { IBV_WC_RECV } else { noted.opcode() };
            Cq::report(cqe);
        }
        _ => {
            let (flags, word) = flags(cqe, noted);
            wc.opcode = wc_opcode(cqe, noted);
            wc.byte_len = cqe.byte_cnt();
            (wc.wc_flags, wc.imm_data) = (flags, word);
            wc.src_qp = cqe.src_qp();
            (wc.slid, wc.dlid_path_bits) = cqe.path();
            wc.sl = cqe.sl();
            wc.pkey_index = cqe.invalidated_rkey() as u16;
            if owners.find(key(by_uidx, cqe)).is_some_and(Owner::checks_sums) && cqe.csum_ok() {
                wc.wc_flags |= IBV_WC_IP_CSUM_OK;
            }
        }
    }
    wc
}

impl CompletionQueue for Cq {
    type Arm = Arm;

    #[inline(always)]
    fn poll_usual(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32> {
        self.poll_many(self.consumer(), out)
    }

    #[inline(always)]
    fn poll_sent(&mut self, at: At<'_>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        let cqe = self.again(at, seen)?;
        sent(self.owners.places.view(), cqe, to)?;
        // To count on from what is in memory leaves a register free.
        self.consumed(self.consumer().wrapping_add(1));
        Some(())
    }

    #[inline(always)]
    fn poll_plain(&mut self, at: At<'_>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        self.poll_one_plain(at, seen, to, |receives, counter| match receives {
            Receives::Own(ring) => Ok(ring.complete(counter)),
            _ => Err(last::SHARED),
        })
    }

    #[inline(always)]
    fn poll_shared(&mut self, at: At<'_>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        self.poll_one_plain(at, seen, to, |receives, counter| match receives {
            Receives::Shared(srq) => Ok(srq.complete_own(counter)),
            _ => Err(last::PLAIN),
        })
    }

    #[inline(always)]
    fn poll_received(&mut self, at: At<'_>, seen: u8, to: &mut MaybeUninit<ibv_wc>) -> Option<()> {
        let cqe = self.again(at, seen)?;
        if received::<{ kind::OWN }>(self.owners.places.view(), cqe, to)? {
            self.last_was(last::PLAIN);
        }
        self.consumed(at.index().wrapping_add(1));
        Some(())
    }

    #[inline(always)]
    fn poll_most(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, u32> {
        let first = self.consumer();
        self.poll_of_srqs(first, out)
    }

    fn poll(&mut self, out: &mut [MaybeUninit<ibv_wc>]) -> Result<u32, Errno> {
        let first = self.consumer();
        let (mut index, mut polled) = (first, 0_u32);
        let mut result = Ok(());
        while (polled as usize) < out.len() {
            let before = index;
            macro_rules! poll_good {
                ($($kind:ident)*) => { $(
                    let room = out.get_mut(polled as usize..).unwrap_or_default();
                    let count = self.poll_good::<{ kind::$kind }>(index, room);
                    (index, polled) = (index.wrapping_add(count), polled + count);
                )* };
            }
            poll_good!(SENT RECEIVED);
            let count = self.poll_runs(index, out.get_mut(polled as usize..).unwrap_or_default());
            (index, polled) = (index.wrapping_add(count), polled + count);
            if index != before {
                continue;
            }
            let Some(to) = out.get_mut(polled as usize).filter(|_| self.written(index).is_some()) else {
                break;
            };
            udma_from_device_barrier();
            let written = self.other_wc(index, to);
            index = index.wrapping_add(1);
            match written {
                Ok(written) => polled += u32::from(written),
                // Those before it are given on; the application hears of it by itself when there are none.
                Err(errno) => {
                    result = Err(errno);
                    if polled == 0 {
                        break;
                    }
                }
            }
        }
        if index != first {
            self.consumed(index);
        } else if self.shared.life.is_gone() && !out.is_empty() {
            return self.flushed(out);
        }
        if polled == 0 { result.map(|()| 0) } else { Ok(polled) }
    }

    #[inline(always)]
    fn next_usual(&mut self) -> Next {
        let index = self.consumer();
        let cqe = Cqe::read(self.entries.entry(index));
        // The entry is read after the byte that says it is ours.
        udma_from_device_barrier();
        if let Some((wr_id, noted)) = self.retire_good(index, cqe) {
            self.shared.consumer.set(index.wrapping_add(1));
            self.current = Current { index, noted, failed: false };
            return Next::Usual(Head { wr_id, status: IBV_WC_SUCCESS });
        }
        if cqe.owned(index, self.entries.count()) || self.shared.life.is_gone() {
            Next::Other
        } else {
            Next::None
        }
    }

    fn start(&mut self) -> Result<Head, Errno> {
        let before = self.consumer();
        self.load().inspect_err(|_| {
            // Entries that nobody sees were consumed.
            if self.consumer() != before {
                self.publish();
            }
        })
    }

    fn next(&mut self) -> Result<Head, Errno> {
        self.load()
    }

    #[inline(always)]
    fn end(&mut self) {
        self.publish();
    }

    fn is_pending(&mut self) -> bool {
        self.written(self.consumer()).is_some()
            || (self.shared.life.is_gone() && self.owners.places.iter().any(Place::owes))
    }

    #[inline(always)]
    fn opcode(&self) -> u32 {
        let cqe = self.current();
        match cqe.opcode() {
            opcode::RESP_ERR => IBV_WC_RECV,
            opcode::REQ_ERR => self.current.noted.opcode(),
            _ => wc_opcode(cqe, self.current.noted),
        }
    }

    fn vendor_err(&self) -> u32 {
        if self.current.failed { self.current().vendor_err() } else { 0 }
    }

    fn byte_len(&self) -> u32 {
        byte_len(self.current(), self.current.noted)
    }

    fn imm_data(&self) -> u32 {
        flags(self.current(), self.current.noted).1
    }

    fn qp_num(&self) -> u32 {
        self.current().qpn()
    }

    fn src_qp(&self) -> u32 {
        self.current().src_qp()
    }

    fn wc_flags(&self) -> u32 {
        if self.current.failed {
            return 0;
        }
        let cqe = self.current();
        let sums = self.owners.find(key(self.by_uidx, cqe)).is_some_and(Owner::checks_sums) && cqe.csum_ok();
        flags(cqe, self.current.noted).0 | if sums { IBV_WC_IP_CSUM_OK } else { 0 }
    }

    fn slid(&self) -> u32 {
        u32::from(self.current().path().0)
    }

    fn sl(&self) -> u8 {
        self.current().sl()
    }

    fn dlid_path_bits(&self) -> u8 {
        self.current().path().1
    }

    fn completion_ts(&self) -> u64 {
        self.current().timestamp()
    }

    fn completion_wallclock_ns(&self) -> u64 {
        let cycles = self.current().timestamp();
        self.shared.clock.as_ref().map_or(cycles, |clock| clock.nanoseconds(cycles))
    }

    fn cvlan(&self) -> u16 {
        self.current().vlan_info()
    }

    fn flow_tag(&self) -> u32 {
        self.current().flow_tag()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn owner(key: u32) -> Arc<Owner> {
        let csum = crate::sync::atomic::AtomicBool::new(false);
        Arc::new(Owner { key: Key(key), send: None, receives: Receives::None, qpn: key, csum, parts: None })
    }

    proptest! {
        #[test]
        fn owners_are_found_until_they_are_removed(steps in prop::collection::vec((any::<bool>(), 0_u32..24), 0..80)) {
            let (mut owners, mut model) = (Owners::new(), BTreeMap::new());
            // Some of them begin their search at the same place, and at the table's end.
            let keys = |n: u32| n / 4 + (n % 4) * 64 + 61;
            for (add, n) in steps {
                if add {
                    owners.insert(&owner(keys(n)), Role::SENDS);
                    model.insert(keys(n), ());
                } else {
                    owners.remove(Key(keys(n)));
                    model.remove(&keys(n));
                }
                prop_assert_eq!(owners.count as usize, model.len());
                for n in 0..24 {
                    let found = owners.find(Key(keys(n))).map(|owner| owner.qpn);
                    prop_assert_eq!(found, model.contains_key(&keys(n)).then(|| keys(n)));
                }
            }
        }
    }
}
