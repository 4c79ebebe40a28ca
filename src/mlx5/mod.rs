//! ConnectX: the kernel's mlx5 driver, ConnectX-4 and later.
//!
//! Queues are memory of the process that the device reads and writes by DMA; a post writes WQEs and a doorbell record, and
//! stores to a page of the device that is mapped through uverbs. No post, poll or arm makes a system call. The kernel makes
//! and unmakes the objects.
//!
//! | module | what |
//! |---|---|
//! | `wqe`, `cqe` | layouts, as values |
//! | `op` | what an operation is: in a WQE and in its completion |
//! | `ring` | what post and poll share of a queue, and its outstanding work requests |
//! | `send`, `builder`, `recv`, `srq` | posting |
//! | `cq` | polling |
//! | `uar`, `dbrec` | doorbells and their records |
//! | `shape` | how large the queues are |
//! | `kits` | what is left of queues, for the next ones |
//! | `ah`, `clock`, `dm`, `env` | addresses, time stamps, device memory, environment variables |
//!
//! Lock order: a CQ's lock before an SRQ's; a send queue's before its doorbell register's; no other two together.

mod ah;
mod builder;
#[cfg(test)]
mod check;
mod clock;
mod cq;
mod cqe;
mod dbrec;
mod dm;
mod env;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod kits;
mod op;
mod recv;
mod ring;
mod send;
mod shape;
mod srq;
#[cfg(test)]
mod tests;
mod uar;
mod wqe;

use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::host::ForkRanges;
use crate::abi::public::*;
use crate::abi::wr::{RecvWr, RecvWrs, SendWr, SendWrs};
use crate::error::{Errno, Error, Step as _};
use crate::family::{
    Attached, CqRequest, Created, CreatedCq, Device, DriverCaps, Family, Objects, Opened, Posted, QpRequest,
    QueuePair, Refused, Single, SrqRequest, Verbs,
};
use crate::ha::ledger::Fate;
use crate::hw::dma::{Blocks, ENTRY, Entries, Pages, Units};
use crate::hw::mmio::DeviceMemory;
use crate::hw::table::Table;
use crate::log;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Marked, SpinLock};
use crate::uapi::mlx5 as wire;
use crate::uapi::wire::{AhAttr, ExModifyQp, ExQueryDeviceResp, ModifyQp, QpCap};
use crate::uapi::{self, CmdFd, DriverId, Handle, Udata};

pub use ah::Ah;
use cq::Role;
pub use cq::{Arm, Cq};
pub use ring::Outstanding;
pub use send::SendQueue;
pub use srq::Srq;

use dbrec::Pool;
use env::Env;
use kits::Kits;
use recv::RecvQueue;
use ring::{Key, Owner, Parts, Receives, RecvRing, SendRing, Slot};
use uar::{Place, Uars, Use};

/// The PCI vendor, which ECE options belong to.
const VENDOR_ID: u32 = 0x15b3;
/// What create_qp is told to get the device's ECE options: version 1 of them.
const ECE_VERSION_1: u32 = 0x1000_0000;
/// `IBV_QPF_GRH_REQUIRED` of a port's flags.
const PORT_GRH_REQUIRED: u8 = 1 << 0;
/// `IBV_LINK_LAYER_ETHERNET`.
const LINK_LAYER_ETHERNET: u8 = 2;
/// More ports than any device has.
const MAX_PORTS: u16 = 8;
/// The most entries of a CQ.
const MAX_CQE: u32 = 1 << 24;

/// Takes back what a create made before it failed. The error that is reported is the create's.
fn undo<T>(destroyed: Result<T, Errno>) {
    if let Err(errno) = destroyed {
        log::warn!("an object of a failed create stays in the kernel until the context is closed: {errno}");
    }
}

/// The user indices of a context: numbers by which completions name their queue, chosen by us and used again.
#[derive(Debug, Default)]
struct Indices {
    free: Mutex<(Vec<u32>, u32)>,
}

/// One of them, given back when dropped: after the CQs have forgotten it.
#[derive(Debug)]
struct Index {
    value: u32,
    indices: Arc<Indices>,
}

impl Indices {
    fn take(self: &Arc<Indices>) -> Result<Index, Errno> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let value = match free.0.pop() {
            Some(value) => value,
            // The last number means none.
            None if free.1 < wire::UIDX_NONE => {
                free.1 += 1;
                free.1 - 1
            }
            None => return Err(Errno::ENOMEM),
        };
        Ok(Index { value, indices: self.clone() })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.indices.free.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.value);
    }
}

/// ConnectX.
#[derive(Debug)]
pub struct Mlx5 {
    resp: wire::AllocUcontextResp,
    env: Env,
    uars: Arc<Uars>,
    records: Arc<Pool>,
    indices: Arc<Indices>,
    clock: Arc<clock::Clock>,
    /// For memory that the device uses.
    pages: Arc<Pages>,
    /// What is left of CQs.
    kits: Kits<(Cq, Arm)>,
    /// What is left of QPs, each with its sizes at hand.
    queues: Kits<(shape::Qp, Arc<Owner>)>,
    /// The device has atomics.
    atomics: bool,
    /// Of each port, whether it is Ethernet and whether it wants a global header.
    ports: Vec<(bool, bool)>,
}

/// A protection domain: of a parent domain, the register of its thread domain.
#[derive(Debug, Clone, Default)]
pub struct Pd {
    td: Option<Td>,
}

/// A thread domain: a doorbell register that its QPs have to themselves.
#[derive(Debug, Clone)]
pub struct Td {
    register: Use,
}

/// A queue pair.
#[derive(Debug)]
pub struct Qp {
    sq: SpinLock<SendQueue>,
    rq: Option<SpinLock<RecvQueue>>,
    owner: Arc<Owner>,
    cap: ibv_qp_cap,
    /// ECE options to set with the next modify, and those that the device answered.
    set_ece: AtomicU32,
    ece: AtomicU32,
    shares_doorbell: bool,
}

impl Qp {
    /// What came of a post to `sq`, which is kept where the device is not told.
    #[inline(always)]
    fn posted(sq: Marked<'_, SendQueue>, posted: Posted) -> Posted {
        if matches!(posted, Posted::Untold { .. }) {
            sq.keep();
        }
        posted
    }
}

impl QueuePair for Qp {
    type Ah = Ah;
    type Sq = SendQueue;

    const USUAL_SENDS: bool = true;

    #[inline(always)]
    fn post_usual_send<const OPCODE: u32>(&self, wr: SendWr<'_>, single: Single<'_>) -> Posted {
        let Some(mut sq) = self.sq.lock_own() else { return Posted::Not };
        let posted = sq.post_single::<OPCODE>(wr, single);
        Qp::posted(sq, posted)
    }

    #[inline(always)]
    fn single(wr: SendWr<'_>) -> Option<Single<'_>> {
        send::single(wr)
    }

    #[inline(always)]
    fn post_most_send<'a>(&self, wr: SendWr<'a>, objects: impl Objects<'a, Ah>) -> Posted {
        let Some(mut sq) = self.sq.lock_own() else { return Posted::Not };
        let posted = sq.post_most(wr, objects);
        Qp::posted(sq, posted)
    }

    #[inline(always)]
    fn post_usual_sends<'a>(&self, wrs: SendWrs<'a>, objects: impl Objects<'a, Ah>) -> bool {
        let _ = objects;
        self.sq.lock_own().is_some_and(|mut sq| sq.post_usual_list(wrs))
    }

    #[inline(always)]
    fn post_most_sends<'a>(&self, wrs: SendWrs<'a>, objects: impl Objects<'a, Ah>) -> bool {
        self.sq.lock_own().is_some_and(|mut sq| sq.post_list(wrs, objects))
    }

    #[inline(always)]
    fn post_usual_recv(&self, wr: RecvWr<'_>) -> bool {
        self.rq.as_ref().and_then(SpinLock::lock_own).is_some_and(|mut rq| rq.post_usual(&wr))
    }

    #[inline(always)]
    fn post_usual_recvs(&self, wrs: RecvWrs<'_>) -> bool {
        self.rq.as_ref().and_then(SpinLock::lock_own).is_some_and(|mut rq| rq.post_usual_list(wrs))
    }

    #[inline(always)]
    fn post_send<'a>(
        &self,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        self.sq.lock().post_send(wrs, objects)
    }

    #[inline(always)]
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        match &self.rq {
            Some(rq) => rq.lock().post(wrs),
            None => Err(Refused { wr: wrs.as_ptr(), errno: Errno::EINVAL }),
        }
    }

    #[inline(always)]
    fn send_queue(&self) -> &SpinLock<SendQueue> {
        &self.sq
    }

    fn shares_doorbell(&self) -> bool {
        self.shares_doorbell
    }

    fn close(&self) {
        if let Some(send) = &self.owner.send {
            send.gate.close();
        }
        if let Receives::Own(ring) = &self.owner.receives {
            ring.gate.close();
        }
    }

    fn is_quiet(&self) -> bool {
        (self.shares_doorbell || self.sq.is_idle()) && self.rq.as_ref().is_none_or(SpinLock::is_idle)
    }

    fn outstanding(&self) -> Vec<Outstanding> {
        let mut found = self.owner.send.as_ref().map(SendRing::outstanding).unwrap_or_default();
        if let Receives::Own(ring) = &self.owner.receives {
            found.extend(ring.outstanding());
        }
        found
    }

    fn set_ud_addr(sq: &mut SendQueue, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
        sq.set_ud_addr(ah, remote_qpn, remote_qkey);
    }
}

impl Mlx5 {
    fn by_uidx(&self) -> bool {
        self.resp.cqe_version == 1
    }

    /// A user index, where completions carry one, and what the kernel is told.
    fn index(&self) -> Result<(Option<Index>, u32), Errno> {
        if !self.by_uidx() {
            return Ok((None, wire::UIDX_NONE));
        }
        let index = self.indices.take()?;
        let value = index.value;
        Ok((Some(index), value))
    }

    /// Everything a context has from the start, after the kernel opened it.
    fn new(
        fd: CmdFd,
        fork: ForkRanges,
        (context, resp): wire::Ucontext,
        env: Env,
    ) -> Result<Opened<Mlx5>, Error> {
        let uars = Uars::new(fd, &resp, &env)?;
        let clock = clock::Clock::of(fd, &resp);
        // What is only asked later decides then; a device that does not answer now has no atomics.
        let atomics = uapi::device::query_device(fd).is_ok_and(|resp| resp.atomic_cap != 0);
        let port = |number: u16| match uapi::device::query_port(fd, number as u8) {
            Ok(port) => {
                let (layer, flags) = (port.legacy_resp.link_layer, port.legacy_resp.flags);
                (layer == LINK_LAYER_ETHERNET, flags & PORT_GRH_REQUIRED != 0)
            }
            Err(_) => (false, false),
        };
        let ports = (1..=resp.num_ports.min(MAX_PORTS)).map(port).collect();
        let family = Mlx5 {
            env,
            uars,
            records: Pool::new(resp.cache_line_size, fork),
            indices: Arc::default(),
            clock,
            pages: Pages::new(fork),
            kits: Kits::new(),
            queues: Kits::new(),
            atomics,
            ports,
            resp,
        };
        let (num_comp_vectors, core_support) = (context.num_comp_vectors, context.core_support);
        Ok(Opened { family, num_comp_vectors, core_support })
    }

    fn limits(&self) -> shape::Limits {
        shape::Limits {
            max_sq_desc_sz: u32::from(self.resp.max_sq_desc_sz),
            max_rq_desc_sz: u32::from(self.resp.max_rq_desc_sz),
            max_send_wqebb: self.resp.max_send_wqebb,
            max_recv_wr: self.resp.max_recv_wr,
            max_srq_recv_wr: self.resp.max_srq_recv_wr,
        }
    }

    /// The doorbell register of a new QP, if we choose it.
    fn register(&self, pd: Option<&Pd>) -> Result<Option<Use>, Errno> {
        if let Some(td) = pd.and_then(|pd| pd.td.as_ref()) {
            return Ok(Some(td.register.clone()));
        }
        if self.uars.kernel_chooses() { Ok(None) } else { self.uars.for_qp().map(Some) }
    }

    /// A QP with nothing to post to: an XRC receiver.
    fn receiver(&self, key: Key) -> Result<Qp, Errno> {
        let owner = Arc::new(Owner {
            key,
            send: None,
            receives: Receives::None,
            qpn: 0,
            csum: AtomicBool::new(false),
            parts: None,
        });
        let shape = send::Shape { transport: op::transport::XRC, ..send::Shape::default() };
        Ok(Qp {
            sq: SpinLock::new(SendQueue::new(shape, owner.clone(), None)),
            rq: None,
            owner,
            cap: ibv_qp_cap::zeroed(),
            set_ece: AtomicU32::new(0),
            ece: AtomicU32::new(0),
            shares_doorbell: false,
        })
    }

    /// Queues of a QP that was destroyed.
    fn used_queues(&self, sizes: &shape::Qp, transport: u8) -> Option<Arc<Owner>> {
        let (_, mut owner) = self.queues.take(|(kept, _)| kept == sizes)?;
        // Unless that QP is still there: for an event that nobody has acknowledged, or since another thread is not done with it.
        Arc::get_mut(&mut owner)?.renew(send::prefix(transport));
        Some(owner)
    }

    /// New queues of a QP, which has yet to be named.
    fn new_queues(&self, device: &Device, sizes: shape::Qp, transport: u8) -> Result<Arc<Owner>, Error> {
        // What is noted of sends and of receives, in what is left of the queues' last page, or behind it.
        let slots = Table::<Slot>::bytes(sizes.sq_blocks).next_multiple_of(ENTRY);
        let wr_ids = Table::<AtomicU64>::bytes(sizes.rq_count);
        let (memory, beside) =
            self.pages.take_beside(sizes.bytes(), slots + wr_ids).step("allocate the queues")?;
        let (slots, wr_ids) = beside.split(slots);
        let dbrec = self.records.take().step("allocate a doorbell record")?;
        let (index, uidx) = self.index().step("find a user index")?;
        let lay_out = "lay out the queues";
        let send = if sizes.sq_blocks == 0 {
            None
        } else {
            let blocks = Blocks::new(&memory, sizes.sq_offset(), sizes.sq_blocks).step(lay_out)?;
            let slots = Table::zeroed(slots, sizes.sq_blocks).step(lay_out)?;
            let (record, life) = (dbrec.record.clone(), device.life.clone());
            Some(SendRing::new(slots, send::prefix(transport), blocks, record, life))
        };
        let receives = if sizes.rq_count == 0 {
            Receives::None
        } else {
            let units = Units::new(&memory, 0, sizes.rq_count << sizes.rq_log_units).step(lay_out)?;
            let wr_ids = Table::zeroed(wr_ids, sizes.rq_count).step(lay_out)?;
            let (record, life) = (dbrec.record.clone(), device.life.clone());
            Receives::Own(RecvRing::new(wr_ids, sizes.rq_log_units, units, record, life))
        };
        let (key, csum) = (Key::user_index(uidx), AtomicBool::new(false));
        let parts = Some(Parts { sizes, memory, dbrec, index });
        Ok(Arc::new(Owner { key, send, receives, qpn: 0, csum, parts }))
    }

    fn create_receiver(&self, device: &Device, request: &mut QpRequest) -> Result<(Created<Qp>, u32), Error> {
        let create = uapi::qp::Create {
            qp_type: request.qp_type,
            user_handle: request.user_handle,
            xrcd: request.xrcd,
            event_fd: device.events.fd(),
            ..Default::default()
        };
        let ece_options = if self.resp.comp_mask & wire::RESP_MASK_ECE != 0 { ECE_VERSION_1 } else { 0 };
        let uidx = if self.by_uidx() { 0 } else { wire::UIDX_NONE };
        let command = wire::CreateQp { uidx, ece_options, ..Default::default() };
        let mut resp = wire::CreateQpResp::default();
        let made =
            uapi::qp::create(device.fd, &create, Udata::both(&command, &mut resp)).step("create the QP")?;
        request.cap = ibv_qp_cap::zeroed();
        let object = self
            .receiver(Key::qp(made.qp_num))
            .inspect_err(|_| undo(uapi::qp::destroy(device.fd, made.handle)))
            .step("create the QP")?;
        // ORDER: Relaxed: not shared yet.
        object.ece.store(resp.ece_options, Ordering::Relaxed);
        Ok((Created { handle: made.handle, object }, made.qp_num))
    }
}

/// Runs `f` on the CQs of a QP, each once, locked.
fn each_cq(attached: &Attached<'_, Mlx5>, mut f: impl FnMut(&mut Cq)) {
    if let Some(recv) = attached.recv_cq {
        f(&mut recv.lock());
    }
    if let Some(send) = attached.send_cq
        && !attached.recv_cq.is_some_and(|recv| core::ptr::eq(recv, send))
    {
        f(&mut send.lock());
    }
}

impl Family for Mlx5 {
    const NAME: &'static str = "mlx5";
    const DRIVER_ID: u32 = DriverId::MLX5.0;
    const WC_FLAGS: u64 = (IBV_WC_STANDARD_FLAGS
        | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP
        | IBV_WC_EX_WITH_CVLAN
        | IBV_WC_EX_WITH_FLOW_TAG
        | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK) as u64;
    const CQ_COMP_MASK: u32 = IBV_CQ_INIT_ATTR_MASK_FLAGS;
    const CQ_FLAGS: u32 = IBV_CREATE_CQ_ATTR_SINGLE_THREADED | IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN;
    const QP_TYPES: &'static [u32] =
        &[IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD, IBV_QPT_XRC_SEND, IBV_QPT_XRC_RECV];
    const WAITS_FOR_USERS: bool = false;
    const VERBS: Verbs = Verbs::all();
    type Cq = Cq;
    type Arm = Arm;
    type Pd = Pd;
    type Td = Td;
    type Qp = Qp;
    type Srq = Srq;
    type Ah = Ah;

    fn open(fd: CmdFd, fork: ForkRanges) -> Result<Opened<Mlx5>, Error> {
        let env = Env::of_process()?;
        let req = wire::AllocUcontextReq {
            total_num_bfregs: env.total_uuars as u32,
            num_low_latency_bfregs: env.low_lat_uuars as u32,
            max_cqe_version: 1,
            lib_caps: wire::LIB_CAP_4K_UAR | wire::LIB_CAP_DYN_UAR,
            ..Default::default()
        };
        let context = wire::alloc_ucontext(fd, &req).step("get the context")?;
        Mlx5::new(fd, fork, context, env)
    }

    fn import(fd: CmdFd, fork: ForkRanges) -> Result<Opened<Mlx5>, Error> {
        let env = Env::of_process()?;
        let context = wire::query_ucontext(fd).step("ask for the context")?;
        if context.1.tot_bfregs != 0 {
            // Static registers are the opener's: who uses which, only it knows.
            return Err(Error::new("share a context with static doorbells", Errno::EINVAL));
        }
        Mlx5::new(fd, fork, context, env)
    }

    fn import_pd(&self, device: &Device, pd: Handle) -> Result<Pd, Error> {
        wire::query_pd(device.fd, pd).step("ask for the PD")?;
        Ok(Pd::default())
    }

    fn alloc_dm(
        &self,
        device: &Device,
        length: usize,
        log_align_req: u32,
    ) -> Result<Created<DeviceMemory>, Error> {
        dm::alloc(device, length, log_align_req)
    }

    fn import_dm(&self, device: &Device, dm: Handle) -> Result<DeviceMemory, Error> {
        dm::import(device, dm)
    }

    fn query_device_ex(&self, device: &Device) -> Result<(ExQueryDeviceResp, DriverCaps), Errno> {
        if self.resp.cmds_supp_uhw & wire::UHW_QUERY_DEVICE == 0 {
            let resp = uapi::device::query_device_ex(device.fd, Udata::none())?;
            return Ok((resp, DriverCaps::default()));
        }
        let mut driver = wire::QueryDeviceResp::default();
        let resp = uapi::device::query_device_ex(device.fd, Udata::output(&mut driver))?;
        let pacing = driver.packet_pacing_caps;
        let caps = DriverCaps {
            max_tso: driver.tso_caps.max_tso,
            tso_qpts: driver.tso_caps.supported_qpts,
            rx_hash_fields_mask: driver.rss_caps.rx_hash_fields_mask,
            rx_hash_function: driver.rss_caps.rx_hash_function,
            packet_pacing: Some(ibv_packet_pacing_caps {
                qp_rate_limit_min: pacing.qp_rate_limit_min,
                qp_rate_limit_max: pacing.qp_rate_limit_max,
                supported_qpts: pacing.supported_qpts,
            }),
        };
        Ok((resp, caps))
    }

    fn close_doorbells(&self) {
        self.uars.close();
    }

    fn is_quiet(&self) -> bool {
        self.uars.is_quiet()
    }

    fn raw_clock(&self) -> Result<u64, Errno> {
        self.clock.cycles()
    }

    fn alloc_pd(&self, device: &Device) -> Result<Created<Pd>, Error> {
        // Its number, which the driver gives, is of no use here.
        let mut resp = wire::AllocPdResp::default();
        let handle = uapi::pd::alloc(device.fd, Udata::output(&mut resp)).step("allocate the PD")?;
        Ok(Created { handle, object: Pd::default() })
    }

    fn parent_domain(&self, _pd: &Pd, td: Option<&Td>) -> Pd {
        Pd { td: td.cloned() }
    }

    fn is_single_threaded(&self, pd: Option<&Pd>) -> bool {
        self.env.single_threaded || pd.is_some_and(|pd| pd.td.is_some())
    }

    fn alloc_td(&self, _device: &Device) -> Result<Td, Error> {
        let register = self.uars.for_thread_domain().step("find a doorbell of its own")?;
        Ok(Td { register })
    }

    fn null_mr(&self) -> Result<u32, Errno> {
        if self.resp.comp_mask & wire::RESP_MASK_DUMP_FILL_MKEY == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(self.resp.dump_fill_mkey)
    }

    fn create_cq(&self, device: &Device, request: &CqRequest) -> Result<CreatedCq<Mlx5>, Error> {
        let invalid = Error::new("check the number of entries", Errno::EINVAL);
        // One more than asked for, so that a full CQ is told from an empty one.
        let count = request.cqe.checked_add(1).and_then(u32::checked_next_power_of_two).ok_or(invalid)?;
        if request.cqe == 0 || count > MAX_CQE {
            return Err(invalid);
        }
        let size = self.env.cqe_size.ok_or(Error::new("read MLX5_CQE_SIZE", Errno::EINVAL))?;
        let wants = |flag: u32| request.wc_flags & u64::from(flag) != 0;
        let wallclock = wants(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK);
        let real_time = wallclock
            && self.resp.comp_mask & wire::RESP_MASK_REAL_TIME_TS != 0
            && !wants(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
        if wallclock && !real_time && !self.clock.converts() {
            return Err(Error::new("find a wall clock for completions", Errno::EOPNOTSUPP));
        }
        let clock = (wallclock && !real_time).then(|| self.clock.clone());
        let kit = if clock.is_none() { Cq::used(&self.kits, count, size) } else { None };
        let (cq, arm) = match kit {
            Some((cq, arm)) => (cq, Some(arm)),
            None => {
                let entries = Entries::new(count, size, &self.pages).step("allocate the completion queue")?;
                let dbrec = self.records.take().step("allocate a doorbell record")?;
                (Cq::new(entries, self.by_uidx(), dbrec, clock, device.life.clone()), None)
            }
        };
        Cq::prepare(cq.entries());
        let (page_flag, uar_page_index) = match self.uars.cq.page_id {
            Some(id) => {
                let id =
                    u16::try_from(id).map_err(|_| Error::new("name the doorbell page", Errno::EOVERFLOW))?;
                (wire::CREATE_CQ_FLAGS_UAR_PAGE_INDEX, id)
            }
            None => (0, 0),
        };
        let command = wire::CreateCq {
            buf_addr: cq.entries().address(),
            db_addr: cq.record(),
            cqe_size: size,
            flags: page_flag | if real_time { wire::CREATE_CQ_FLAGS_REAL_TIME_TS } else { 0 },
            uar_page_index,
            ..Default::default()
        };
        let overrun = request.flags & IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN != 0;
        let create = uapi::cq::Create {
            cqe: count - 1,
            user_handle: request.user_handle,
            comp_channel: request.channel,
            comp_vector: request.comp_vector,
            flags: if overrun { uapi::cq::IGNORE_OVERRUN } else { 0 },
            event_fd: device.events.fd(),
        };
        let mut resp = wire::CreateCqResp::default();
        let made =
            uapi::cq::create(device.fd, &create, Udata::both(&command, &mut resp)).step("create the CQ")?;
        let arm = match arm {
            Some(arm) => arm.renewed(resp.cqn),
            None => Arm::new(&cq, self.uars.cq.clone(), resp.cqn),
        };
        Ok(CreatedCq { handle: made.handle, queue: cq, arm, cqe: count - 1 })
    }

    fn cq_destroyed(&self, cq: Cq, arm: Arm) {
        cq.give_back(arm, &self.kits);
    }

    fn resize_cq(&self, device: &Device, cq: &mut Cq, handle: Handle, cqe: u32) -> Result<u32, Error> {
        let invalid = Error::new("check the number of entries", Errno::EINVAL);
        let count = cqe.checked_add(1).and_then(u32::checked_next_power_of_two).ok_or(invalid)?;
        if count > MAX_CQE {
            return Err(invalid);
        }
        let (old, size) = (cq.entries().count(), cq.entries().size());
        if count == old {
            return Ok(count - 1);
        }
        let entries = Entries::new(count, size, &self.pages).step("allocate the completion queue")?;
        Cq::prepare(&entries);
        let command =
            wire::ResizeCq { buf_addr: entries.address(), cqe_size: size as u16, ..Default::default() };
        uapi::cq::resize(device.fd, handle, count - 1, Udata::input(&command)).step("resize the CQ")?;
        cq.replace(entries);
        Ok(count - 1)
    }

    fn create_srq(
        &self,
        device: &Device,
        request: &mut SrqRequest,
        cq: Option<&SpinLock<Cq>>,
    ) -> Result<(Created<Srq>, u32), Error> {
        let shape = shape::srq(&self.limits(), request.max_wr, request.max_sge)
            .step("check the SRQ's sizes against the device")?;
        let memory = self.pages.take(shape.bytes()).step("allocate the shared receive queue")?;
        let units = Units::new(&memory, 0, shape.count << shape.log_units)
            .step("lay out the shared receive queue")?;
        let dbrec = Arc::new(self.records.take().step("allocate a doorbell record")?);
        let (index, uidx) = match request.xrc {
            Some(_) => self.index().step("find a user index")?,
            None => (None, 0),
        };
        let command = wire::CreateSrq {
            buf_addr: memory.address(0),
            db_addr: dbrec.record.address(),
            uidx,
            ..Default::default()
        };
        let srq_type = match request.xrc {
            Some((xrcd, cq)) => uapi::srq::Type::Xrc { xrcd, cq },
            None => uapi::srq::Type::Basic,
        };
        let create = uapi::srq::Create {
            pd: request.pd,
            srq_type,
            user_handle: request.user_handle,
            max_wr: shape.count - 1,
            max_sge: shape.max_sge(),
            srq_limit: request.srq_limit,
            event_fd: device.events.fd(),
        };
        let mut resp = wire::CreateSrqResp::default();
        let made =
            uapi::srq::create(device.fd, &create, Udata::both(&command, &mut resp)).step("create the SRQ")?;
        (request.max_wr, request.max_sge) = (shape.count - 1, shape.max_sge());
        let inner = Arc::new(srq::Inner::new(shape, units, dbrec, request.locking));
        let owner = cq.map(|cq| {
            let key = if self.by_uidx() { Key::user_index(uidx) } else { Key::srq(resp.srqn) };
            let receives = Receives::Shared(inner.clone());
            let csum = AtomicBool::new(false);
            let owner = Arc::new(Owner { key, send: None, receives, qpn: 0, csum, parts: None });
            cq.lock().attach(&owner, Role::RECEIVES);
            owner
        });
        let object = Srq { inner, owner, _index: index };
        Ok((Created { handle: made.handle, object }, resp.srqn))
    }

    fn srq_destroyed(&self, srq: &Srq, cq: Option<&SpinLock<Cq>>) {
        if let (Some(owner), Some(cq)) = (&srq.owner, cq) {
            cq.lock().detach(owner);
        }
    }

    fn modify_srq(
        &self,
        device: &Device,
        _srq: &Srq,
        handle: Handle,
        max_wr: u32,
        srq_limit: u32,
        mask: u32,
    ) -> Result<(), Error> {
        // The kernel refuses to resize.
        uapi::srq::modify(device.fd, handle, mask, max_wr, srq_limit, Udata::none()).step("modify the SRQ")
    }

    fn send_ops(&self, _device: &Device, qp_type: u32) -> u64 {
        op::builders(qp_type, self.atomics)
    }

    fn create_qp(
        &self,
        device: &Device,
        request: &mut QpRequest,
        attached: &Attached<'_, Mlx5>,
    ) -> Result<(Created<Qp>, u32), Error> {
        if request.qp_type == IBV_QPT_XRC_RECV {
            return self.create_receiver(device, request);
        }
        let own_receives = request.srq.is_none() && request.qp_type != IBV_QPT_XRC_SEND;
        let sizes = shape::qp(&self.limits(), request.qp_type, request.send_ops, &request.cap, own_receives)
            .step("check the QP's sizes against the device")?;
        let transport = op::transport_of(request.qp_type);
        let mut owner = match self.used_queues(&sizes, transport) {
            Some(owner) => owner,
            None => self.new_queues(device, sizes, transport)?,
        };
        let parts = owner.parts.as_ref().ok_or(Error::new("lay out the queues", Errno::EINVAL))?;
        let register = self.register(attached.pd).step("find a doorbell")?;
        let mut flags = if self.env.scatter_to_cqe { wire::QP_FLAG_SCATTER_CQE } else { 0 };
        let mut bfreg_index = 0;
        if let Some(Place::Page(id)) = register.as_ref().map(|register| register.register.place) {
            flags |= wire::QP_FLAG_UAR_PAGE_INDEX;
            bfreg_index = id;
        }
        let command = wire::CreateQp {
            buf_addr: parts.memory.address(0),
            db_addr: parts.dbrec.record.address(),
            sq_wqe_count: sizes.sq_blocks,
            rq_wqe_count: sizes.rq_count,
            rq_wqe_shift: sizes.rq_shift(),
            flags,
            uidx: parts.index.as_ref().map_or(wire::UIDX_NONE, |index| index.value),
            bfreg_index,
            ece_options: if self.resp.comp_mask & wire::RESP_MASK_ECE != 0 { ECE_VERSION_1 } else { 0 },
            ..Default::default()
        };
        let cap = ibv_qp_cap { max_inline_data: sizes.max_inline, ..request.cap };
        let create = uapi::qp::Create {
            qp_type: request.qp_type,
            user_handle: request.user_handle,
            cap: QpCap {
                max_send_wr: cap.max_send_wr,
                max_recv_wr: cap.max_recv_wr,
                max_send_sge: cap.max_send_sge,
                max_recv_sge: cap.max_recv_sge,
                max_inline_data: cap.max_inline_data,
            },
            create_flags: if request.sq_sig_all { uapi::qp::CREATE_SQ_SIG_ALL } else { 0 },
            pd: request.pd,
            srq: request.srq,
            send_cq: request.send_cq,
            recv_cq: request.recv_cq,
            event_fd: device.events.fd(),
            ..Default::default()
        };
        let mut resp = wire::CreateQpResp::default();
        let made =
            uapi::qp::create(device.fd, &create, Udata::both(&command, &mut resp)).step("create the QP")?;
        let built = (|| {
            let register = match register {
                Some(register) => register,
                None => self.uars.chosen(resp.bfreg_index).step("find the doorbell that the kernel chose")?,
            };
            let named = Arc::get_mut(&mut owner).ok_or(Error::new("name the queues", Errno::EINVAL))?;
            named.qpn = made.qp_num;
            if !self.by_uidx() {
                named.key = Key::qp(made.qp_num);
            }
            if let Some(srq) = attached.srq {
                named.receives = Receives::Shared(srq.inner.clone());
            }
            let shape = send::Shape {
                transport,
                sq_sig_all: request.sq_sig_all,
                atomics: self.atomics,
                prefer_bf: self.env.prefer_bf,
                qpn: made.qp_num,
                max_sge: request.cap.max_send_sge,
                max_inline: sizes.max_inline,
                max_post: sizes.max_post,
            };
            Ok((shape, register))
        })();
        let (shape, register) =
            built.inspect_err(|_: &Error| undo(uapi::qp::destroy(device.fd, made.handle)))?;
        if let Some(cq) = attached.recv_cq {
            cq.lock().attach(&owner, Role::RECEIVES);
        }
        if let Some(cq) = attached.send_cq {
            cq.lock().attach(&owner, Role::SENDS);
        }
        let rq = matches!(owner.receives, Receives::Own(_))
            .then(|| SpinLock::with(request.locking, RecvQueue::new(sizes.max_recv_sge(), owner.clone())));
        request.cap = ibv_qp_cap {
            max_send_wr: sizes.max_post,
            max_recv_wr: sizes.rq_count,
            max_send_sge: request.cap.max_send_sge,
            max_recv_sge: sizes.max_recv_sge(),
            max_inline_data: sizes.max_inline,
        };
        let shares_doorbell = register.register.is_shared();
        let object = Qp {
            sq: SpinLock::with(request.locking, SendQueue::new(shape, owner.clone(), Some(register))),
            rq,
            owner,
            cap: request.cap,
            set_ece: AtomicU32::new(0),
            ece: AtomicU32::new(resp.ece_options),
            shares_doorbell,
        };
        Ok((Created { handle: made.handle, object }, made.qp_num))
    }

    fn opened_qp(&self) -> Result<Qp, Errno> {
        self.receiver(Key::user_index(wire::UIDX_NONE))
    }

    fn qp_entered(&self, qp: &Qp, state: u32, attached: &Attached<'_, Mlx5>) {
        let (send, receives) = (&qp.owner.send, &qp.owner.receives);
        match state {
            IBV_QPS_RESET => {
                each_cq(attached, |cq| cq.clean(&qp.owner));
                if let Some(send) = send {
                    let mut sq = qp.sq.lock();
                    send.gate.set(0);
                    send.reset();
                    sq.reset();
                }
                if let (Receives::Own(ring), Some(rq)) = (receives, &qp.rq) {
                    let mut rq = rq.lock();
                    ring.gate.set(0);
                    ring.reset();
                    rq.reset();
                }
            }
            IBV_QPS_INIT => {
                if let Receives::Own(ring) = receives {
                    ring.gate.set(ring.count());
                }
            }
            IBV_QPS_RTS => {
                if let Some(send) = send {
                    send.gate.set(qp.cap.max_send_wr);
                }
            }
            _ => {}
        }
    }

    fn outstanding(&self, qp: &Qp, attached: &Attached<'_, Mlx5>) -> Vec<Outstanding> {
        let mut found = qp.outstanding();
        if let (Some(cq), Some(ring)) = (attached.send_cq, &qp.owner.send)
            && let Some(counter) = cq.lock().last_success(&qp.owner)
        {
            let executed = ring.covered(counter);
            for wr in found.iter_mut().take(executed) {
                wr.fate = Fate::Executed;
            }
        }
        found
    }

    fn qp_destroyed(&self, qp: &Qp, attached: &Attached<'_, Mlx5>) {
        each_cq(attached, |cq| cq.detach(&qp.owner));
        if let Some(parts) = qp.owner.parts.as_ref().filter(|_| qp.owner.serves_again()) {
            self.queues.give_back((parts.sizes, qp.owner.clone()), parts.memory.len());
        }
    }

    fn qp_cap(&self, qp: &Qp, cap: ibv_qp_cap) -> ibv_qp_cap {
        // The kernel does not know what fits into the send queue.
        ibv_qp_cap {
            max_send_wr: qp.cap.max_send_wr,
            max_send_sge: qp.cap.max_send_sge,
            max_inline_data: qp.cap.max_inline_data,
            ..cap
        }
    }

    fn set_ece(&self, qp: &Qp, vendor_id: u32, options: u32) -> Result<(), Errno> {
        if vendor_id != VENDOR_ID {
            return Err(Errno::EINVAL);
        }
        if self.resp.comp_mask & wire::RESP_MASK_ECE == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        // ORDER: Relaxed: the application orders this and the modify.
        qp.set_ece.store(options, Ordering::Relaxed);
        // ORDER: Relaxed, as above.
        qp.ece.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn query_ece(&self, qp: &Qp) -> Result<(u32, u32), Errno> {
        // ORDER: Relaxed, as in `set_ece`.
        Ok((VENDOR_ID, qp.ece.load(Ordering::Relaxed)))
    }

    fn modify_qp(
        &self,
        device: &Device,
        qp: &Qp,
        command: &ModifyQp,
        rate_limit: Option<u32>,
    ) -> Result<(), Errno> {
        // ORDER: Relaxed, as in `set_ece`.
        let ece_options = qp.set_ece.load(Ordering::Relaxed);
        if rate_limit.is_none() && ece_options == 0 {
            return uapi::qp::modify(device.fd, command, Udata::none());
        }
        let command = ExModifyQp { base: *command, rate_limit: rate_limit.unwrap_or(0), reserved: 0 };
        let driver = wire::ModifyQp { ece_options, ..Default::default() };
        let mut resp = wire::ModifyQpResp::default();
        uapi::qp::modify_ex(device.fd, &command, Udata::both(&driver, &mut resp))?;
        if ece_options != 0 {
            // ORDER: Relaxed, as in `set_ece`.
            qp.set_ece.store(0, Ordering::Relaxed);
            // ORDER: Relaxed, as above.
            qp.ece.store(resp.ece_options, Ordering::Relaxed);
        }
        Ok(())
    }

    fn create_ah(
        &self,
        device: &Device,
        pd: Handle,
        user_handle: u64,
        attr: &AhAttr,
    ) -> Result<Created<Ah>, Error> {
        let port = usize::from(attr.port_num).checked_sub(1).and_then(|at| self.ports.get(at));
        let port = port.ok_or(Error::new("check the port", Errno::EINVAL))?;
        if port.0 && self.resp.cmds_supp_uhw & wire::UHW_CREATE_AH == 0 {
            return Err(Error::new("resolve the address: the kernel cannot", Errno::EOPNOTSUPP));
        }
        Ah::create(device, pd, user_handle, attr, *port)
    }

    fn ah_is_in_kernel(ah: &Ah) -> bool {
        ah.kernel
    }

    fn fw_ver(raw: u64) -> String {
        format!("{}.{}.{:04}", (raw >> 32) & 0xffff, (raw >> 16) & 0xffff, raw & 0xffff)
    }
}
