//! soft-RoCE: the kernel's rdma_rxe driver, whose queues are memory shared with the driver (`<rdma/rdma_user_rxe.h>`).
//!
//! A post writes elements and the producer's index; sends are then kicked by one system call per list. A poll reads the
//! CQ's elements. Everything else is a uverbs command. The mapped queues stay valid whatever happens to the device.

mod ah;
mod cq;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod owed;
mod recv;
mod send;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::abi::host::ForkRanges;
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{
    self, Attached, CqRequest, Created, CreatedCq, Device, DriverCaps, Family, Opened, QpRequest, SrqRequest,
    Verbs,
};
use crate::ha::life::Life;
use crate::hw::shared_queue::{Geometry, SharedQueue, Slot};
use crate::log;
use crate::sync::SpinLock;
use crate::uapi::sys::{self, Prot};
use crate::uapi::wire::{AhAttr, ExModifyQp, ExQueryDeviceResp, ModifyQp, QpCap};
use crate::uapi::{self, CmdFd, DriverId, Handle, Udata, rxe as wire};

pub use ah::Ah;
pub use cq::Cq;
use owed::Owed;
pub use recv::Srq;
pub use send::Qp;

/// How long a queue's lock is waited for when the device is gone: the application may hold it for as long as it likes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The header of every mapped queue.
const GEOMETRY: Geometry = Geometry {
    log2_elem_size: wire::LOG2_ELEM_SIZE,
    index_mask: wire::INDEX_MASK,
    producer_index: wire::PRODUCER_INDEX,
    consumer_index: wire::CONSUMER_INDEX,
    data: wire::QUEUE_DATA,
};

/// Copies a scatter/gather list to `at` bytes in a WQE; gives the bytes of all entries. A sum over 2^32 - 1, which no message
/// can have, is `EINVAL`.
#[inline(always)]
fn put_sges(slot: &Slot<'_>, at: usize, sges: &[ibv_sge]) -> Result<u32, Errno> {
    let (mut at, mut length) = (at, 0_u64);
    for sge in sges {
        slot.put(at, sge)?;
        at += size_of::<ibv_sge>();
        length += u64::from(sge.length);
    }
    u32::try_from(length).map_err(|_| Errno::EINVAL)
}

/// Maps the queue that the kernel just made for `info`: the offset works once.
fn map_queue(fd: CmdFd, info: wire::MmInfo, elem_size: usize) -> Result<SharedQueue, Errno> {
    let map = sys::map_device(fd.fd, info.size as usize, Prot::ReadWrite, info.offset)?;
    SharedQueue::open(map, GEOMETRY, elem_size)
}

/// Takes back what a create made before it failed. The error that is reported is the create's.
fn undo<T>(destroyed: Result<T, Errno>) {
    if let Err(errno) = destroyed {
        log::warn!("an object of a failed create stays in the kernel until the context is closed: {errno}");
    }
}

/// The queues of `qp`, each with the CQ that it completes to.
fn completing<'a>(
    qp: &'a Qp,
    attached: &Attached<'a, Rxe>,
) -> impl Iterator<Item = (&'a SpinLock<Cq>, &'a Arc<Owed>)> {
    let queue = |cq: Option<&'a SpinLock<Cq>>, owed| cq.map(|cq| (cq, owed));
    queue(attached.send_cq, &qp.sends).into_iter().chain(queue(attached.recv_cq, &qp.receives))
}

/// `IB_DEVICE_*` bits of `device_cap_flags_ex` that name builders.
const CAP_FLUSH_GLOBAL: u64 = 1 << 38;
const CAP_FLUSH_PERSISTENT: u64 = 1 << 39;
const CAP_ATOMIC_WRITE: u64 = 1 << 40;

/// Arms a CQ by a command: the queue itself has no place for it.
#[derive(Debug)]
pub struct Arm {
    life: Arc<Life>,
}

impl family::Arm for Arm {
    type At<'a> = ();

    fn arm(&self, fd: CmdFd, handle: Handle, solicited_only: bool) -> Result<(), Errno> {
        uapi::cq::req_notify(fd, handle, solicited_only)
    }

    fn life(&self) -> &Life {
        &self.life
    }

    fn event(&self) {}
}

/// soft-RoCE.
#[derive(Debug)]
pub struct Rxe {
    /// `device_cap_flags_ex`, once somebody asked.
    caps: OnceLock<u64>,
}

impl Rxe {
    fn caps(&self, device: &Device) -> u64 {
        *self.caps.get_or_init(|| {
            uapi::device::query_device_ex(device.fd, Udata::none()).map_or(0, |resp| resp.device_cap_flags_ex)
        })
    }
}

impl Family for Rxe {
    const NAME: &'static str = "rxe";
    const DRIVER_ID: u32 = DriverId::RXE.0;
    const WC_FLAGS: u64 = (IBV_WC_EX_WITH_BYTE_LEN
        | IBV_WC_EX_WITH_IMM
        | IBV_WC_EX_WITH_QP_NUM
        | IBV_WC_EX_WITH_SRC_QP
        | IBV_WC_EX_WITH_SLID
        | IBV_WC_EX_WITH_SL
        | IBV_WC_EX_WITH_DLID_PATH_BITS) as u64;
    const CQ_COMP_MASK: u32 = IBV_CQ_INIT_ATTR_MASK_FLAGS;
    // A hint that one thread polls; the lock costs too little beside rxe's system calls to make a second path.
    const CQ_FLAGS: u32 = IBV_CREATE_CQ_ATTR_SINGLE_THREADED;
    const QP_TYPES: &'static [u32] = &[IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD];
    const WAITS_FOR_USERS: bool = true;
    const VERBS: Verbs = Verbs::empty();
    type Cq = Cq;
    type Arm = Arm;
    type Pd = ();
    type Td = ();
    type Qp = Qp;
    type Srq = Srq;
    type Ah = Ah;

    // The queues are the kernel's memory, which a fork leaves as it is.
    fn open(fd: CmdFd, _fork: ForkRanges) -> Result<Opened<Rxe>, Error> {
        let context = uapi::device::get_context(fd, Udata::none()).step("get the context")?;
        Ok(Opened {
            family: Rxe { caps: OnceLock::new() },
            num_comp_vectors: context.num_comp_vectors,
            core_support: context.core_support,
        })
    }

    fn query_device_ex(&self, device: &Device) -> Result<(ExQueryDeviceResp, DriverCaps), Errno> {
        uapi::device::query_device_ex(device.fd, Udata::none()).map(|resp| (resp, DriverCaps::default()))
    }

    fn alloc_pd(&self, device: &Device) -> Result<Created<()>, Error> {
        let handle = uapi::pd::alloc(device.fd, Udata::none()).step("allocate the PD")?;
        Ok(Created { handle, object: () })
    }

    fn parent_domain(&self, (): &(), _td: Option<&()>) {}

    // The lock costs too little beside rxe's system calls to go without.
    fn is_single_threaded(&self, _pd: Option<&()>) -> bool {
        false
    }

    fn alloc_td(&self, _device: &Device) -> Result<(), Error> {
        Err(Error::new("allocate a thread domain", Errno::EOPNOTSUPP))
    }

    fn create_cq(&self, device: &Device, request: &CqRequest) -> Result<CreatedCq<Rxe>, Error> {
        let create = uapi::cq::Create {
            cqe: request.cqe,
            user_handle: request.user_handle,
            comp_channel: request.channel,
            comp_vector: request.comp_vector,
            flags: 0,
            event_fd: device.events.fd(),
        };
        let mut resp = wire::CreateCqResp::default();
        let made = uapi::cq::create(device.fd, &create, Udata::output(&mut resp)).step("create the CQ")?;
        let object = Cq::map(device.fd, resp.mi, device.life.clone())
            .inspect_err(|_| undo(uapi::cq::destroy(device.fd, made.handle)))?;
        Ok(CreatedCq {
            handle: made.handle,
            queue: object,
            arm: Arm { life: device.life.clone() },
            cqe: made.cqe,
        })
    }

    fn resize_cq(&self, device: &Device, cq: &mut Cq, handle: Handle, cqe: u32) -> Result<u32, Error> {
        let mut resp = wire::ResizeCqResp::default();
        let cqe = uapi::cq::resize(device.fd, handle, cqe, Udata::output(&mut resp)).step("resize the CQ")?;
        cq.replace(device.fd, resp.mi)?;
        Ok(cqe)
    }

    fn create_srq(
        &self,
        device: &Device,
        request: &mut SrqRequest,
        _cq: Option<&SpinLock<Cq>>,
    ) -> Result<(Created<Srq>, u32), Error> {
        if request.xrc.is_some() {
            return Err(Error::new("check the SRQ's type", Errno::EOPNOTSUPP));
        }
        let create = uapi::srq::Create {
            pd: request.pd,
            srq_type: uapi::srq::Type::Basic,
            user_handle: request.user_handle,
            max_wr: request.max_wr,
            max_sge: request.max_sge,
            srq_limit: request.srq_limit,
            event_fd: device.events.fd(),
        };
        let mut resp = wire::CreateSrqResp::default();
        let made = uapi::srq::create(device.fd, &create, Udata::output(&mut resp)).step("create the SRQ")?;
        let rq = recv::RecvQueue::map(device.fd, resp.mi, made.max_sge)
            .inspect_err(|_| undo(uapi::srq::destroy(device.fd, made.handle)))?;
        (request.max_wr, request.max_sge) = (made.max_wr, made.max_sge);
        Ok((Created { handle: made.handle, object: Srq::new(rq, device.life.clone()) }, resp.srq_num))
    }

    fn srq_destroyed(&self, _srq: &Srq, _cq: Option<&SpinLock<Cq>>) {}

    fn modify_srq(
        &self,
        device: &Device,
        srq: &Srq,
        handle: Handle,
        max_wr: u32,
        srq_limit: u32,
        mask: u32,
    ) -> Result<(), Error> {
        let mut rq = srq.rq.lock();
        let mut resized = wire::MmInfo::default();
        // The kernel writes a new queue's place there, and wants the address whatever the change.
        let command = wire::ModifySrqCmd { mmap_info_addr: (&raw mut resized).expose_provenance() as u64 };
        uapi::srq::modify(device.fd, handle, mask, max_wr, srq_limit, Udata::input(&command))
            .step("modify the SRQ")?;
        if mask & IBV_SRQ_MAX_WR == 0 {
            return Ok(());
        }
        rq.replace(device.fd, resized)
    }

    fn send_ops(&self, device: &Device, qp_type: u32) -> u64 {
        let mut flags = send::builders(qp_type);
        if qp_type == IBV_QPT_RC {
            let caps = self.caps(device);
            if caps & (CAP_FLUSH_GLOBAL | CAP_FLUSH_PERSISTENT) != 0 {
                flags |= u64::from(IBV_QP_EX_WITH_FLUSH);
            }
            if caps & CAP_ATOMIC_WRITE != 0 {
                flags |= u64::from(IBV_QP_EX_WITH_ATOMIC_WRITE);
            }
        }
        flags
    }

    fn create_qp(
        &self,
        device: &Device,
        request: &mut QpRequest,
        attached: &Attached<'_, Rxe>,
    ) -> Result<(Created<Qp>, u32), Error> {
        let cap = request.cap;
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
        let made = uapi::qp::create(device.fd, &create, Udata::output(&mut resp)).step("create the QP")?;
        let cap = ibv_qp_cap {
            max_send_wr: made.cap.max_send_wr,
            max_recv_wr: made.cap.max_recv_wr,
            max_send_sge: made.cap.max_send_sge,
            max_recv_sge: made.cap.max_recv_sge,
            max_inline_data: made.cap.max_inline_data,
        };
        let object = Qp::map(device.fd, (made.handle, made.qp_num), request, &cap, &resp, &device.life)
            .inspect_err(|_| undo(uapi::qp::destroy(device.fd, made.handle)))?;
        if let Some(cq) = attached.send_cq {
            cq.lock().add(&object.sends);
        }
        if let Some(cq) = attached.recv_cq.filter(|_| request.srq.is_none()) {
            cq.lock().add(&object.receives);
        }
        request.cap = cap;
        Ok((Created { handle: made.handle, object }, made.qp_num))
    }

    fn qp_entered(&self, qp: &Qp, state: u32, attached: &Attached<'_, Rxe>) {
        qp.entered(state);
        if state == IBV_QPS_RESET {
            for (cq, owed) in completing(qp, attached) {
                let _cq = cq.lock();
                owed.forget();
            }
        }
    }

    fn qp_destroyed(&self, qp: &Qp, attached: &Attached<'_, Rxe>) {
        for (cq, owed) in completing(qp, attached) {
            cq.lock().remove(owed);
        }
    }

    fn qp_cap(&self, _qp: &Qp, cap: ibv_qp_cap) -> ibv_qp_cap {
        cap
    }

    fn modify_qp(
        &self,
        device: &Device,
        _qp: &Qp,
        command: &ModifyQp,
        rate_limit: Option<u32>,
    ) -> Result<(), Errno> {
        match rate_limit {
            Some(rate_limit) => {
                let command = ExModifyQp { base: *command, rate_limit, reserved: 0 };
                uapi::qp::modify_ex(device.fd, &command, Udata::none())
            }
            None => uapi::qp::modify(device.fd, command, Udata::none()),
        }
    }

    fn create_ah(
        &self,
        device: &Device,
        pd: Handle,
        user_handle: u64,
        attr: &AhAttr,
    ) -> Result<Created<Ah>, Error> {
        let mut resp = wire::CreateAhResp::default();
        let handle = uapi::ah::create(device.fd, pd, user_handle, attr, Udata::output(&mut resp))
            .step("create the address handle")?;
        let object =
            Ah::new(device, resp.ah_num, attr).inspect_err(|_| undo(uapi::ah::destroy(device.fd, handle)))?;
        Ok(Created { handle, object })
    }

    fn fw_ver(raw: u64) -> String {
        format!("{}.{}.{}", (raw >> 32) & 0xffff, (raw >> 16) & 0xffff, raw & 0xffff)
    }
}
