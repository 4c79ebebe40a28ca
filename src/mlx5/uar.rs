//! User access regions: the device pages that doorbells are rung on.
//!
//! A page begins with the doorbell of completion queues; from 0x800 on it has registers for send queues, each in two halves
//! that are used in turn. A register is either one QP's own, and then its send queue's lock orders the stores, or shared,
//! and then it has a lock, and can be closed for all of them ([`Uars::close`]). [`Register::ring`] is the only function that
//! rings a send queue's doorbell, [`CqDoorbell::arm`] the only one for a completion queue.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::env::Env;
use super::ring::SND_DBR;
use super::wqe;
use crate::config::OUTLIVES_DEVICES;
use crate::error::{Errno, Error, Step as _};
use crate::hw::barrier::{mmio_flush_writes, mmio_wc_start, udma_to_device_barrier};
use crate::hw::dma::{Block, BlockView, Record};
use crate::hw::mmio::{Halves, Mapping, Registers};
use crate::log;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Marked, SpinLock};
use crate::uapi::mlx5::{self as wire, AllocUcontextResp};
use crate::uapi::sys::{self, Prot};
use crate::uapi::{CmdFd, Handle};

/// Bytes of a UAR, `MLX5_ADAPTER_PAGE_SIZE`.
const UAR_SIZE: usize = 4096;
/// Where the registers begin, `MLX5_BF_OFFSET`.
const BF_OFFSET: usize = 0x800;
/// `MLX5_CQ_DOORBELL`.
const CQ_DOORBELL: usize = 0x20;
/// Registers of a UAR for user space, `MLX5_NUM_NON_FP_BFREGS_PER_UAR`.
const REGISTERS_PER_UAR: usize = 2;
/// All registers of a UAR, `NUM_BFREGS_PER_UAR`.
const ALL_REGISTERS_PER_UAR: usize = 4;
/// The page that the kernel maps at once.
const PAGE: usize = 4096;

/// A register for send queues.
#[derive(Debug)]
pub(super) struct Register {
    /// Its half is 0 where BlueFlame does not work.
    halves: Halves,
    /// Which half is the next to use: the bit of `halves.half()`.
    turn: AtomicU32,
    /// Taken around the stores where several send queues use the register.
    lock: SpinLock<()>,
    shared: bool,
    /// Of a shared one: nobody rings it any more, as behind a [`crate::ha::gate::Gate`]. Read within the lock.
    closed: AtomicBool,
    pub(super) place: Place,
}

/// How the kernel is told of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The UAR's number, of a page allocated dynamically.
    Page(u32),
    /// The register that the kernel chose from the static ones.
    Kernel,
}

/// The right to ring an open register's doorbell.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    register: &'a Register,
    _guard: Option<Marked<'a, ()>>,
}

impl Entered<'_> {
    /// As [`Register::ring`].
    #[inline(always)]
    pub(super) fn ring(&self, record: &Record, post: u32, blocks: BlockView<'_>, last: u32, burst: u32) {
        self.register.publish(record, post);
        self.register.store::<false>(blocks, last, burst);
    }

    /// The same of a WQE each of whose units was written by one store.
    #[inline(always)]
    pub(super) fn ring_wide(&self, record: &Record, post: u32, blocks: BlockView<'_>, last: u32, burst: u32) {
        self.register.publish(record, post);
        self.register.store::<true>(blocks, last, burst);
    }
}

/// What a WQE within one block rings with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short<'a> {
    pub(super) record: &'a Record,
    /// The block behind it.
    pub(super) post: u32,
    pub(super) block: Block<'a>,
    /// Whether it shall be written to the register itself.
    pub(super) burst: bool,
}

impl Register {
    fn new(
        mapping: &Arc<Mapping>,
        offset: usize,
        half: u32,
        shared: bool,
        place: Place,
    ) -> Result<Register, Errno> {
        let halves = Halves::new(mapping, offset, half)?;
        let (turn, closed) = (AtomicU32::new(0), AtomicBool::new(false));
        Ok(Register { halves, turn, lock: SpinLock::new(()), shared, closed, place })
    }

    /// Whether several send queues ring it.
    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    fn close(&self) {
        // ORDER: Relaxed: seen by rings after the barrier that the closer passes, or by the lock.
        self.closed.store(true, Ordering::Relaxed);
    }

    #[inline(always)]
    fn is_closed(&self) -> bool {
        // ORDER: Relaxed: as a gate's limit; the closer waits for those who read it before.
        OUTLIVES_DEVICES && self.closed.load(Ordering::Relaxed)
    }

    /// Bytes of a WQE that BlueFlame takes.
    pub(super) fn half(&self) -> u32 {
        self.halves.half()
    }

    /// Tells the device that a send queue's WQEs up to block `post` are there. `last` is where the last one begins, `burst` its
    /// length in units if it shall be written to the register itself.
    ///
    /// PRM: post_send_db of rdma-core. The caller holds the send queue's lock. False: it is closed, and nothing was done.
    #[inline(always)]
    #[must_use]
    pub(super) fn ring(
        &self,
        record: &Record,
        post: u32,
        blocks: BlockView<'_>,
        last: u32,
        burst: u32,
    ) -> bool {
        let guard = self.shared.then(|| self.lock.lock());
        if guard.is_some() && self.is_closed() {
            return false;
        }
        self.publish(record, post);
        self.store::<false>(blocks, last, burst);
        true
    }

    /// As [`Register::ring`], if this costs next to nothing, as [`Register::enter`]. It is written twice, so that the register of a single
    /// queue has nothing to keep of a lock.
    #[inline(always)]
    pub(super) fn ring_short(&self, short: Short<'_>) -> bool {
        if !self.shared {
            self.store_short(short);
            return true;
        }
        let Some(_guard) = self.lock.lock_own() else { return false };
        if self.is_closed() {
            return false;
        }
        self.store_short(short);
        true
    }

    /// The right to ring, if it costs next to nothing: nobody else uses the register, or this thread owns its lock and it is open.
    #[inline(always)]
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        let guard = if self.shared { Some(self.lock.lock_own()?) } else { None };
        if guard.is_some() && self.is_closed() {
            return None;
        }
        Some(Entered { register: self, _guard: guard })
    }

    #[inline(always)]
    fn publish(&self, record: &Record, post: u32) {
        // The WQEs are in memory before the record lets the device read them.
        udma_to_device_barrier();
        record.store::<SND_DBR>(post & 0xffff);
        // The record is there before the doorbell makes the device read it.
        mmio_wc_start();
    }

    /// As [`Register::publish`] and [`Register::store`]; what both do in their turn, in one closure-taking function, cost a post 24
    /// instructions.
    #[inline(always)]
    fn store_short(&self, Short { record, post, block, burst }: Short<'_>) {
        self.publish(record, post);
        // ORDER: Relaxed, as in `store`.
        let turn = self.turn.load(Ordering::Relaxed);
        if burst {
            self.halves.store_wide(turn, 0, block);
        } else {
            self.halves.store64(turn, block.word(0));
        }
        // As in `store`.
        mmio_flush_writes();
        // ORDER: Relaxed, as above.
        self.turn.store(turn ^ self.halves.half(), Ordering::Relaxed);
    }

    /// The stores themselves, within the lock that orders them; `WIDE` where each unit was written by one store.
    #[inline(always)]
    fn store<const WIDE: bool>(&self, blocks: BlockView<'_>, last: u32, burst: u32) {
        let block = blocks.at(last);
        // ORDER: Relaxed: ordered by the lock, this register's or the send queue's.
        let turn = self.turn.load(Ordering::Relaxed);
        let store = |more: u32, block: Block<'_>| {
            if WIDE {
                self.halves.store_wide(turn, more, block);
            } else {
                self.halves.store_burst(turn, more, block);
            }
        };
        if burst == 0 {
            self.halves.store64(turn, block.word(0));
        } else {
            store(0, block);
            if burst > wqe::UNITS_PER_BB {
                for more in 1..wqe::blocks(burst) {
                    store(more, blocks.at(last.wrapping_add(more)));
                }
            }
        }
        // Within the lock: another CPU's later doorbell must not overtake this one in a write-combining buffer. Before the
        // turn, to be on the way early.
        mmio_flush_writes();
        // ORDER: Relaxed, as above.
        self.turn.store(turn ^ self.halves.half(), Ordering::Relaxed);
    }
}

/// The doorbell of completion queues.
#[derive(Debug, Clone)]
pub(super) struct CqDoorbell {
    registers: Registers,
    /// The page's number for create_cq; `None` where the kernel has chosen.
    pub(super) page_id: Option<u32>,
}

impl CqDoorbell {
    fn new(mapping: &Arc<Mapping>, page_id: Option<u32>) -> Result<CqDoorbell, Errno> {
        Ok(CqDoorbell { registers: Registers::new(mapping, CQ_DOORBELL, 8)?, page_id })
    }

    /// Rings with `command` (the word of the arm record) for CQ `cqn`.
    #[inline]
    pub(super) fn arm(&self, command: u32, cqn: u32) {
        // The record is in memory before the device is told.
        mmio_wc_start();
        self.registers.store64(0, (u64::from(command) << 32 | u64::from(cqn)).to_be());
        mmio_flush_writes();
    }
}

/// The pages of a context, and who has which register.
#[derive(Debug)]
pub(super) struct Uars {
    fd: CmdFd,
    /// Bytes of a BlueFlame register; 0: the device or the machine has none.
    bf_reg_size: u32,
    uars_per_page: u32,
    shut_up_bf: bool,
    single_threaded: bool,
    max_dedicated: usize,
    max_shared: usize,
    pub(super) cq: CqDoorbell,
    /// The register without BlueFlame on the CQ's page; `None` on kernels without dynamic UARs.
    nc: Option<Arc<Register>>,
    /// Registers by number, where the kernel hands out static ones.
    fixed: Vec<Arc<Register>>,
    free: Mutex<Free>,
    /// Registers that are shared by those who get none of their own. Its lock is held for no command of the kernel's, whom
    /// whoever closes these does not wait for.
    shared: Mutex<Vec<Arc<Register>>>,
    /// UAR objects of the kernel, freed with the context's file.
    pages: Mutex<Vec<Handle>>,
}

#[derive(Debug, Default)]
struct Free {
    dedicated: VecDeque<Arc<Register>>,
    thread_domain: VecDeque<Arc<Register>>,
    made_dedicated: usize,
}

/// A register in use.
#[derive(Debug, Clone)]
pub(super) struct Use {
    pub(super) register: Arc<Register>,
    /// None of a register that is counted by who has it, or not to be given back.
    pub(super) back: Option<Arc<Back>>,
}

/// Gives a register back when dropped.
#[derive(Debug)]
pub(super) struct Back {
    register: Arc<Register>,
    list: List,
    uars: Arc<Uars>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Dedicated,
    ThreadDomain,
}

impl Use {
    fn of(register: Arc<Register>) -> Use {
        Use { register, back: None }
    }

    /// Of one that goes back to `list`.
    fn from_list(register: Arc<Register>, list: List, uars: &Arc<Uars>) -> Use {
        let back = Back { register: register.clone(), list, uars: uars.clone() };
        Use { register, back: Some(Arc::new(back)) }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        let mut free = self.uars.free.lock().unwrap_or_else(PoisonError::into_inner);
        match self.list {
            List::Dedicated => free.dedicated.push_back(self.register.clone()),
            List::ThreadDomain => free.thread_domain.push_back(self.register.clone()),
        }
    }
}

/// Maps the page at `offset` of the context's file.
fn map(fd: CmdFd, offset: u64, len: usize) -> Result<Arc<Mapping>, Errno> {
    // Write only, as the kernel wants UARs; on x86 that is readable too.
    sys::map_device(fd.fd, len, Prot::Write, offset).map(|map| Arc::new(Mapping::new(map)))
}

impl Uars {
    /// Maps what the context `resp` tells of needs from the start.
    pub(super) fn new(fd: CmdFd, resp: &AllocUcontextResp, env: &Env) -> Result<Arc<Uars>, Error> {
        let uars_per_page = if resp.log_uar_size == 0 { 1 } else { resp.num_uars_per_page.max(1) };
        if uars_per_page as usize * UAR_SIZE > PAGE {
            // Pages larger than 4 KiB hold several UARs; no such machine is served yet.
            return Err(Error::new("map UARs of a machine with large pages", Errno::EOPNOTSUPP));
        }
        let (mut fixed, nc, cq);
        let mut pages = Vec::new();
        if resp.tot_bfregs == 0 {
            fixed = Vec::new();
            let page = wire::alloc_uar(fd, wire::UAR_ALLOC_TYPE_NC).step("allocate the doorbell page")?;
            let mapping = map(fd, page.mmap_offset, page_len(page.length)).step("map the doorbell page")?;
            pages.push(page.handle);
            let place = Place::Page(page.page_id);
            // Several QPs may ring here, each with a store of 8 bytes that needs no order among them but the flush.
            let register = Register::new(&mapping, BF_OFFSET, 0, false, place).step("find the doorbell")?;
            nc = Some(Arc::new(register));
            cq = CqDoorbell::new(&mapping, Some(page.page_id)).step("find the CQ doorbell")?;
        } else {
            let command = if env.shut_up_bf { wire::MMAP_NC_PAGE } else { wire::MMAP_REGULAR_PAGE };
            let count = (resp.tot_bfregs as usize).div_ceil(REGISTERS_PER_UAR);
            fixed = Vec::with_capacity(count * ALL_REGISTERS_PER_UAR);
            let mut first = None;
            for index in 0..count {
                let offset = wire::mmap_offset(command, index as u64, PAGE as u64);
                let regular = wire::mmap_offset(wire::MMAP_REGULAR_PAGE, index as u64, PAGE as u64);
                let mapping =
                    map(fd, offset, PAGE)
                        .or_else(|errno| {
                            if command == wire::MMAP_NC_PAGE { map(fd, regular, PAGE) } else { Err(errno) }
                        })
                        .step("map a UAR page")?;
                for k in 0..ALL_REGISTERS_PER_UAR {
                    let number = fixed.len();
                    // Register 0 is the one that nobody takes turns on.
                    let half = if number == 0 || env.shut_up_bf { 0 } else { resp.bf_reg_size / 2 };
                    let shared = number != 0
                        && !env.single_threaded
                        && number.div_ceil(2)
                            < resp.tot_bfregs as usize - env.low_lat_uuars.min(resp.tot_bfregs as usize);
                    let at = BF_OFFSET + k * resp.bf_reg_size as usize;
                    let register =
                        Register::new(&mapping, at, half, shared, Place::Kernel).step("find a register")?;
                    fixed.push(Arc::new(register));
                }
                first.get_or_insert(mapping);
            }
            let mapping = first.ok_or(Error::new("find the first UAR page", Errno::EPROTO))?;
            nc = None;
            cq = CqDoorbell::new(&mapping, None).step("find the CQ doorbell")?;
        }
        Ok(Arc::new(Uars {
            fd,
            bf_reg_size: resp.bf_reg_size,
            uars_per_page,
            shut_up_bf: env.shut_up_bf,
            single_threaded: env.single_threaded,
            max_dedicated: env.low_lat_uuars,
            max_shared: env.total_uuars - env.low_lat_uuars,
            cq,
            nc,
            fixed,
            free: Mutex::default(),
            shared: Mutex::default(),
            pages: Mutex::new(pages),
        }))
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Arc<Register>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shared registers that there are so far.
    fn each_shared(&self, mut f: impl FnMut(&Register)) {
        for register in self.shared().iter().chain(&self.fixed).filter(|register| register.shared) {
            f(register);
        }
    }

    /// Closes the shared registers, for good. Does not wait.
    pub(super) fn close(&self) {
        self.each_shared(Register::close);
    }

    /// Whether every ring of a shared register that began before [`Uars::close`] has ended; as [`SpinLock::is_idle`].
    pub(super) fn is_quiet(&self) -> bool {
        let mut quiet = true;
        self.each_shared(|register| quiet &= register.lock.is_idle());
        quiet
    }

    /// Whether the kernel chooses the register of a QP.
    pub(super) fn kernel_chooses(&self) -> bool {
        self.nc.is_none()
    }

    /// The register that the kernel chose.
    pub(super) fn chosen(&self, number: u32) -> Result<Use, Errno> {
        // A number beyond those that were mapped is an address that nobody may use.
        let register = self.fixed.get(number as usize).ok_or(Errno::EPROTO)?.clone();
        Ok(Use::of(register))
    }

    /// The registers of a new BlueFlame page.
    fn new_page(&self, shared: bool) -> Result<Vec<Arc<Register>>, Errno> {
        let page = wire::alloc_uar(self.fd, wire::UAR_ALLOC_TYPE_BF)?;
        let mapping = map(self.fd, page.mmap_offset, page_len(page.length))
            .inspect_err(|_| super::undo(wire::free_uar(self.fd, page.handle)))?;
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push(page.handle);
        let shared = shared && !self.single_threaded;
        (0..REGISTERS_PER_UAR * self.uars_per_page as usize)
            .map(|number| {
                let (uar, k) = (number / REGISTERS_PER_UAR, number % REGISTERS_PER_UAR);
                let at = uar * UAR_SIZE + BF_OFFSET + k * self.bf_reg_size as usize;
                let place = Place::Page(page.page_id + uar as u32);
                Register::new(&mapping, at, self.bf_reg_size / 2, shared, place).map(Arc::new)
            })
            .collect()
    }

    fn without_blueflame(&self) -> Result<Use, Errno> {
        let register = self.nc.clone().ok_or(Errno::EOPNOTSUPP)?;
        Ok(Use::of(register))
    }

    /// A register for a QP: one of its own while there are, then the shared one with the fewest users.
    pub(super) fn for_qp(self: &Arc<Uars>) -> Result<Use, Errno> {
        if self.shut_up_bf || self.bf_reg_size == 0 {
            return self.without_blueflame();
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.dedicated.is_empty() && free.made_dedicated < self.max_dedicated {
            match self.new_page(false) {
                Ok(registers) => {
                    free.made_dedicated += registers.len();
                    free.dedicated.extend(registers);
                }
                Err(errno) => {
                    // No write combining, or no page left: the plain doorbell always works.
                    log::info!("no BlueFlame page ({errno}): doorbells without");
                    drop(free);
                    return self.without_blueflame();
                }
            }
        }
        if let Some(register) = free.dedicated.pop_front() {
            return Ok(Use::from_list(register, List::Dedicated, self));
        }
        let made = self.shared().len();
        if made < self.max_shared
            && let Ok(registers) = self.new_page(true)
        {
            self.shared().extend(registers);
        }
        drop(free);
        let register = self.shared().iter().min_by_key(|register| Arc::strong_count(register)).cloned();
        match register {
            Some(register) => Ok(Use::of(register)),
            None => self.without_blueflame(),
        }
    }

    /// A register for a thread domain: nobody else has it.
    pub(super) fn for_thread_domain(self: &Arc<Uars>) -> Result<Use, Errno> {
        if self.bf_reg_size == 0 {
            return self.without_blueflame();
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.thread_domain.is_empty() {
            let registers = self.new_page(false)?;
            free.thread_domain.extend(registers);
        }
        let register = free.thread_domain.pop_front().ok_or(Errno::ENOMEM)?;
        Ok(Use::from_list(register, List::ThreadDomain, self))
    }
}

/// Bytes to map of a page whose length the kernel says; one page where it says nonsense.
fn page_len(length: u32) -> usize {
    match length as usize {
        len if len.is_multiple_of(PAGE) && (PAGE..=1 << 20).contains(&len) => len,
        _ => PAGE,
    }
}

#[cfg(all(test, loom))]
mod models;
