//! Every kernel command on a real soft-RoCE device, ending with a message that it sends to itself.
//!
//! Not part of `cargo test`: it needs a kernel with an rxe device, as the guests have. Without one it says so and ends with
//! status 77. What a kernel cannot do must be refused in the way that kernel refuses it, so the outcome is known for each.
#![allow(unsafe_code, reason = "reads and writes queues that the kernel maps, and memory that it registers")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program: it talks, and where something is wrong it ends"
)]

use holdfast::error::Errno;
use holdfast::uapi::event::{AsyncEvent, Element, EventType};
use holdfast::uapi::sys::{self, Map, OwnedFd, Prot};
use holdfast::uapi::wire::{AhAttr, FlowAttr, GidEntry, GlobalRoute, ModifyQp, QpCap, QpDest, Sge, Wc};
use holdfast::uapi::{
    CmdFd, DriverId, Handle, Udata, ah, counters, cq, device, dm, event, flow, is_unsupported, mr, mw, pd,
    qp, rwq_ind_table, rxe, srq, wq, xrcd,
};
use std::ffi::CString;
use std::fmt::Debug;
use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What a test ends with where it cannot run.
const NO_DEVICE: u8 = 77;

/// `IBV_ACCESS_LOCAL_WRITE` to `IBV_ACCESS_REMOTE_ATOMIC`.
const ACCESS: u32 = 0xf;
/// `IBV_ACCESS_ON_DEMAND`.
const ON_DEMAND: u32 = 1 << 6;
/// `IBV_QPT_RC`.
const RC: u32 = 2;
/// `IBV_QPT_UD`.
const UD: u32 = 4;

/// Says what was done, and what came of it.
fn say<T: Debug>(what: &str, outcome: &T) {
    println!("{what:<34} {outcome:?}");
}

/// `outcome`, which must be a success.
#[track_caller]
fn must<T: Debug>(what: &str, outcome: Result<T, Errno>) -> T {
    say(what, &outcome);
    outcome.unwrap_or_else(|errno| panic!("{what}: {errno}"))
}

/// `outcome`, which must be the failure `errno`.
#[track_caller]
fn must_not<T: Debug>(what: &str, errno: Errno, outcome: Result<T, Errno>) {
    say(what, &outcome);
    assert_eq!(outcome.err(), Some(errno), "{what}");
}

/// `outcome`, which must say that kernel or driver do not have it.
#[track_caller]
fn must_lack<T: Debug>(what: &str, outcome: Result<T, Errno>) {
    say(what, &outcome);
    assert!(outcome.is_err_and(is_unsupported), "{what}");
}

/// The kernel's release, as `(major, minor)`.
fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The character device of an rxe device, if there is one.
fn device_path() -> Option<CString> {
    let mut devices: Vec<_> = fs::read_dir("/sys/class/infiniband_verbs").ok()?.flatten().collect();
    devices.sort_by_key(fs::DirEntry::file_name);
    let rxe = devices.into_iter().find(|device| {
        fs::read_to_string(device.path().join("ibdev")).is_ok_and(|name| name.starts_with("rxe"))
    })?;
    CString::new(format!("/dev/infiniband/{}", rxe.file_name().to_str()?)).ok()
}

/// A queue that rxe mapped.
struct Queue {
    map: Map,
    elem_size: usize,
    mask: u32,
}

impl Queue {
    fn new(cmd: CmdFd, what: &str, mi: rxe::MmInfo) -> Queue {
        assert!(mi.size as usize > rxe::QUEUE_DATA, "{what}: {mi:?}");
        let map = must(what, sys::map_device(cmd.fd, mi.size as usize, Prot::ReadWrite, mi.offset));
        let again = sys::map_device(cmd.fd, mi.size as usize, Prot::ReadWrite, mi.offset);
        assert_eq!(again.unwrap_err(), Errno::EINVAL, "an offset serves once");
        let queue = Queue { map, elem_size: 0, mask: 0 };
        let elem_size = 1 << queue.index(rxe::LOG2_ELEM_SIZE).load(Ordering::Relaxed);
        let mask = queue.index(rxe::INDEX_MASK).load(Ordering::Relaxed);
        assert!((mask + 1).is_power_of_two());
        assert!(rxe::QUEUE_DATA + elem_size * (mask as usize + 1) <= queue.map.len());
        Queue { elem_size, mask, ..queue }
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= self.map.len());
        // SAFETY: within the mapping, which is page-aligned, and `offset` is a multiple of 4; shared as an atomic only.
        unsafe { AtomicU32::from_ptr(self.map.as_ptr().as_ptr().add(offset).cast()) }
    }

    fn slot(&self, index: u32) -> *mut u8 {
        let at = rxe::QUEUE_DATA + self.elem_size * (index & self.mask) as usize;
        // SAFETY: within the mapping, by the check in `new`.
        unsafe { self.map.as_ptr().as_ptr().add(at) }
    }

    /// Appends an element.
    fn push(&self, element: &[u8]) {
        assert!(element.len() <= self.elem_size);
        let producer = self.index(rxe::PRODUCER_INDEX).load(Ordering::Relaxed);
        // SAFETY: the slot is ours until the index below moves, and has room.
        unsafe { core::ptr::copy_nonoverlapping(element.as_ptr(), self.slot(producer), element.len()) };
        self.index(rxe::PRODUCER_INDEX).store((producer + 1) & self.mask, Ordering::Release);
    }

    /// Takes the oldest element, if there is one.
    fn pop<T: FromBytes>(&self) -> Option<T> {
        let consumer = self.index(rxe::CONSUMER_INDEX).load(Ordering::Relaxed);
        if self.index(rxe::PRODUCER_INDEX).load(Ordering::Acquire) == consumer {
            return None;
        }
        // SAFETY: the kernel is done with the slot, and it is as large as the completion.
        let bytes = unsafe { core::slice::from_raw_parts(self.slot(consumer), size_of::<T>()) };
        let element = T::read_from_bytes(bytes).ok();
        self.index(rxe::CONSUMER_INDEX).store((consumer + 1) & self.mask, Ordering::Release);
        element
    }

    /// Takes the oldest element, waiting for one.
    fn wait<T: FromBytes>(&self, what: &str) -> T {
        for _ in 0..1000 {
            if let Some(element) = self.pop() {
                return element;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{what}: nothing came in 10 s")
    }
}

/// A whole queue element: `wqe`, then its `sges`.
fn element<T: IntoBytes + Immutable>(wqe: &T, sges: &[rxe::SgeRaw]) -> Vec<u8> {
    let mut bytes = wqe.as_bytes().to_vec();
    bytes.extend_from_slice(sges.as_bytes());
    bytes
}

fn dma(sges: &[rxe::SgeRaw]) -> rxe::DmaInfo {
    let length = sges.iter().map(|sge| sge.length).sum();
    let num_sge = u32::try_from(sges.len()).unwrap();
    rxe::DmaInfo { length, resid: length, num_sge, ..rxe::DmaInfo::default() }
}

fn main() -> ExitCode {
    let Some(path) = device_path() else {
        eprintln!(
            "uapi_live: no rxe device here, nothing was tested.\nRun it in a guest, or make one: modprobe rdma_rxe; \
             rdma link add rxe0 type rxe netdev ETH"
        );
        return ExitCode::from(NO_DEVICE);
    };
    let file = sys::open(&path, libc::O_RDWR).unwrap_or_else(|errno| panic!("open {path:?}: {errno}"));
    println!("device {path:?} on Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    let cmd = CmdFd::new(file.as_raw(), DriverId::RXE);
    let kernel = release();

    let (async_fd, gid) = context(cmd);
    let pd = must("alloc_pd", pd::alloc(cmd, Udata::none()));
    memory(cmd, pd, kernel);
    windows(cmd, pd, kernel);
    completion_queue(cmd, async_fd.as_raw());
    shared_receive_queue(cmd, pd, async_fd.as_raw(), &gid);
    address_handles(cmd, pd, &gid, kernel);
    groups(cmd, pd);
    message(cmd, pd, async_fd.as_raw(), &gid);
    lacking(cmd, pd);
    must("dealloc_pd", pd::dealloc(cmd, pd));
    must_not("dealloc_pd again", Errno::ENOENT, pd::dealloc(cmd, pd));
    println!("uapi_live: all commands behave");
    ExitCode::SUCCESS
}

fn context(cmd: CmdFd) -> (OwnedFd, GidEntry) {
    let other = CmdFd { driver_id: DriverId::MLX5, ..cmd };
    must_not("get_context, other driver", Errno::EINVAL, device::get_context(other, Udata::none()));
    must_not("query_port before get_context", Errno::EINVAL, device::query_port(cmd, 1));
    let context = must("get_context", device::get_context(cmd, Udata::none()));
    assert!(context.num_comp_vectors > 0);
    assert_ne!(context.core_support & device::CORE_SUPPORT_OPTIONAL_MR_ACCESS, 0);
    must_not("get_context again", Errno::EINVAL, device::get_context(cmd, Udata::none()));
    must_lack("query_context", device::query_context(cmd, &mut []));

    let first = must("alloc_async_fd", event::alloc_async_fd(cmd));
    let second = must("alloc_async_fd, a second", event::alloc_async_fd(cmd));
    let channel = must("create_comp_channel", event::create_comp_channel(cmd));
    for fd in [&first, &second, &channel] {
        let flags = sys::status_flags(fd.as_raw()).unwrap();
        sys::set_status_flags(fd.as_raw(), flags | libc::O_NONBLOCK).unwrap();
    }
    must_not("read_async_event", Errno::EAGAIN, event::read_async_event(second.as_raw()));
    must_not("read_comp_event", Errno::EAGAIN, event::read_comp_event(channel.as_raw()));

    let base = must("query_device", device::query_device(cmd));
    let ex = must("query_device_ex", device::query_device_ex(cmd, Udata::none()));
    assert_eq!(ex.base, base);
    assert!(base.max_qp > 0 && base.max_cqe > 0 && base.phys_port_cnt == 1);
    let port = must("query_port", device::query_port(cmd, 1));
    assert_eq!((port.legacy_resp.state, port.legacy_resp.link_layer), (4, 2), "active, Ethernet");
    must_not("query_port, none such", Errno::EINVAL, device::query_port(cmd, 9));

    let mut entries = [GidEntry::default(); 64];
    let n = must("query_gid_table", device::query_gid_table(cmd, &mut entries));
    assert!(n > 0);
    for entry in &entries[..n] {
        assert_eq!(device::query_gid_entry(cmd, entry.port_num, entry.gid_index), Ok(*entry));
    }
    say("query_gid_entry", &entries[0]);
    must_not("query_gid_table, no room", Errno::EINVAL, device::query_gid_table(cmd, &mut []));
    must_not("query_gid_entry, none such", Errno::EINVAL, device::query_gid_entry(cmd, 1, 60_000));
    // The one that carries IPv4, if any: it needs no scope.
    let gid = entries[..n].iter().find(|entry| entry.gid[10..12] == [0xff, 0xff]).unwrap_or(&entries[0]);
    (first, *gid)
}

fn memory(cmd: CmdFd, pd: Handle, kernel: (u32, u32)) {
    let map = sys::map_memory(0x4000).unwrap();
    let start = map.as_ptr().as_ptr().expose_provenance() as u64;
    let reg = mr::Reg { pd, start, length: 0x4000, hca_va: start, access_flags: ACCESS };
    let region = must("reg_mr", mr::reg(cmd, &reg, Udata::none()));
    assert_ne!((region.lkey, region.rkey), (0, 0));
    let info = must("query_mr", mr::query(cmd, region.handle));
    let expected = mr::Info { lkey: region.lkey, rkey: region.rkey, length: 0x4000, iova: start };
    assert_eq!(info, expected);
    must_not("dealloc_pd, in use", Errno::EBUSY, pd::dealloc(cmd, pd));
    let other = must("alloc_pd", pd::alloc(cmd, Udata::none()));
    let to = mr::Reg { pd: other, access_flags: 1, ..reg };
    if kernel >= (6, 12) {
        // IBV_REREG_MR_CHANGE_PD | IBV_REREG_MR_CHANGE_ACCESS
        must("rereg_mr", mr::rereg(cmd, region.handle, 2 | 4, &to, Udata::none()));
        must_not("dealloc_pd, MR moved there", Errno::EBUSY, pd::dealloc(cmd, other));
        must_lack("rereg_mr, other addresses", mr::rereg(cmd, region.handle, 1, &to, Udata::none()));
    } else {
        must_lack("rereg_mr", mr::rereg(cmd, region.handle, 2 | 4, &to, Udata::none()));
    }
    must("dereg_mr", mr::dereg(cmd, region.handle));
    must_not("dereg_mr again", Errno::ENOENT, mr::dereg(cmd, region.handle));
    must("dealloc_pd", pd::dealloc(cmd, other));
    let askew = mr::Reg { hca_va: start + 1, ..reg };
    must_not("reg_mr, askew", Errno::EINVAL, mr::reg(cmd, &askew, Udata::none()));

    let dmabuf = mr::RegDmabuf { pd, offset: 0, length: 0x1000, iova: 0, fd: cmd.fd, access_flags: 1 };
    must_lack("reg_dmabuf_mr", mr::reg_dmabuf(cmd, &dmabuf, Udata::none()));
    must_lack("reg_dm_mr, alloc_dm", dm::alloc(cmd, 64, 6, Udata::none()));

    let ex = device::query_device_ex(cmd, Udata::none()).unwrap();
    if ex.odp_caps.general_caps == 0 {
        let sge = Sge { addr: start, length: 0x1000, lkey: 1 };
        must_lack("advise_mr", mr::advise(cmd, pd, 0, 1, &[sge]));
        assert!(kernel < (7, 0), "rxe of 7.2 can page on demand");
    } else {
        let odp = mr::Reg { access_flags: ACCESS | ON_DEMAND, ..reg };
        let region = must("reg_mr, on demand", mr::reg(cmd, &odp, Udata::none()));
        let sges = [
            Sge { addr: start, length: 0x1000, lkey: region.lkey },
            Sge { addr: start + 0x2000, length: 0x1000, lkey: region.lkey },
        ];
        must("advise_mr", mr::advise(cmd, pd, 1, 1, &sges));
        must_not("advise_mr, of nothing", Errno::EINVAL, mr::advise(cmd, pd, 1, 1, &[]));
        must("dereg_mr", mr::dereg(cmd, region.handle));
    }
}

fn windows(cmd: CmdFd, pd: Handle, kernel: (u32, u32)) {
    for mw_type in [1, 2] {
        let what = format!("alloc_mw, type {mw_type}");
        let window = mw::alloc(cmd, pd, mw_type, Udata::none());
        if kernel < (6, 1) {
            must_lack(&what, window);
            continue;
        }
        let (handle, rkey) = must(&what, window);
        assert_ne!(rkey, 0);
        must("dealloc_mw", mw::dealloc(cmd, handle));
    }
    let none_such = mw::dealloc(cmd, Handle(12345));
    if kernel < (6, 1) {
        must_lack("dealloc_mw", none_such);
    } else {
        must_not("dealloc_mw, none such", Errno::ENOENT, none_such);
    }
}

fn completion_queue(cmd: CmdFd, async_fd: i32) {
    let channel = must("create_comp_channel", event::create_comp_channel(cmd));
    let create = cq::Create {
        cqe: 10,
        user_handle: 0xc0ffee,
        comp_channel: Some(channel.as_raw()),
        event_fd: Some(async_fd),
        ..cq::Create::default()
    };
    let mut resp = rxe::CreateCqResp::default();
    let made = must("create_cq", cq::create(cmd, &create, Udata::output(&mut resp)));
    assert!(made.cqe >= 10);
    let queue = Queue::new(cmd, "map the CQ", resp.mi);
    assert!(queue.mask >= 10 && queue.elem_size >= size_of::<Wc>());
    must("req_notify_cq", cq::req_notify(cmd, made.handle, false));
    must_lack("modify_cq", cq::modify(cmd, made.handle, 1, 1));
    let mut resized = rxe::ResizeCqResp::default();
    let cqe = must("resize_cq", cq::resize(cmd, made.handle, 100, Udata::output(&mut resized)));
    assert!(cqe >= 100);
    assert!(Queue::new(cmd, "map the resized CQ", resized.mi).mask >= 100);
    let events = must("destroy_cq", cq::destroy(cmd, made.handle));
    assert_eq!((events.comp_events_reported, events.async_events_reported), (0, 0));
    must_not("destroy_cq again", Errno::ENOENT, cq::destroy(cmd, made.handle));

    let plain = cq::Create { cqe: 1, ..cq::Create::default() };
    must_not("create_cq, no room for an answer", Errno::EINVAL, cq::create(cmd, &plain, Udata::none()));
    let huge = cq::Create { cqe: u32::MAX, ..plain };
    must_not("create_cq, too large", Errno::EINVAL, cq::create(cmd, &huge, Udata::output(&mut resp)));
    let nowhere = cq::Create { comp_channel: Some(cmd.fd), ..plain };
    must_not("create_cq, no channel", Errno::EBADF, cq::create(cmd, &nowhere, Udata::output(&mut resp)));
}

/// A CQ and its queue.
fn make_cq(cmd: CmdFd, create: &cq::Create) -> (Handle, Queue) {
    let mut resp = rxe::CreateCqResp::default();
    let made = cq::create(cmd, create, Udata::output(&mut resp)).unwrap();
    (made.handle, Queue::new(cmd, "map a CQ", resp.mi))
}

/// A QP and its two queues; the receive queue only where it has one.
fn make_qp(cmd: CmdFd, create: &qp::Create) -> (qp::Qp, Queue, Option<Queue>) {
    let mut resp = rxe::CreateQpResp::default();
    let made = must("create_qp", qp::create(cmd, create, Udata::output(&mut resp)));
    let sq = Queue::new(cmd, "map the send queue", resp.sq_mi);
    let rq = create.srq.is_none().then(|| Queue::new(cmd, "map the receive queue", resp.rq_mi));
    (made, sq, rq)
}

/// A message buffer: its memory, its region.
fn make_mr(cmd: CmdFd, pd: Handle) -> (Map, mr::Mr, u64) {
    let map = sys::map_memory(4096).unwrap();
    let start = map.as_ptr().as_ptr().expose_provenance() as u64;
    let reg = mr::Reg { pd, start, length: 4096, hca_va: start, access_flags: ACCESS };
    let region = mr::reg(cmd, &reg, Udata::none()).unwrap();
    (map, region, start)
}

/// Takes a connected QP from RESET to RTS, towards itself.
fn connect_to_itself(cmd: CmdFd, made: &qp::Qp, gid: &GidEntry) {
    let dest = QpDest {
        dgid: gid.gid,
        sgid_index: u8::try_from(gid.gid_index).unwrap(),
        hop_limit: 64,
        is_global: 1,
        port_num: 1,
        ..QpDest::default()
    };
    let base = ModifyQp { qp_handle: made.handle.0, ..ModifyQp::default() };
    // IBV_QP_STATE 1, ACCESS_FLAGS 8, PKEY_INDEX 16, PORT 32
    let init =
        ModifyQp { attr_mask: 1 | 8 | 16 | 32, qp_state: 1, port_num: 1, qp_access_flags: ACCESS, ..base };
    must("modify_qp to INIT", qp::modify(cmd, &init, Udata::none()));
    // AV 128, PATH_MTU 256, RQ_PSN 4096, MIN_RNR_TIMER 32768, MAX_DEST_RD_ATOMIC 131072, DEST_QPN 1048576
    let rtr = ModifyQp {
        attr_mask: 1 | 128 | 256 | 4096 | 0x8000 | 0x2_0000 | 0x10_0000,
        qp_state: 2,
        dest,
        path_mtu: 3,
        max_dest_rd_atomic: 1,
        min_rnr_timer: 12,
        dest_qp_num: made.qp_num,
        ..base
    };
    must("modify_qp to RTR", qp::modify(cmd, &rtr, Udata::none()));
    // TIMEOUT 512, RETRY_CNT 1024, RNR_RETRY 2048, MAX_QP_RD_ATOMIC 8192, SQ_PSN 65536
    let rts = ModifyQp {
        attr_mask: 1 | 512 | 1024 | 2048 | 0x2000 | 0x1_0000,
        qp_state: 3,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 1,
        ..base
    };
    must("modify_qp to RTS", qp::modify(cmd, &rts, Udata::none()));
}

/// Posts a signalled send of `sges` and tells the kernel.
fn send(cmd: CmdFd, qp: Handle, sq: &Queue, wr_id: u64, sges: &[rxe::SgeRaw]) -> Result<(), Errno> {
    // IBV_WR_SEND, IBV_SEND_SIGNALED
    let wr = rxe::SendWr { wr_id, opcode: 2, send_flags: 2, ..rxe::SendWr::default() };
    let wqe = rxe::SendWqe { wr, dma: dma(sges), ..rxe::SendWqe::default() };
    sq.push(&element(&wqe, sges));
    qp::post_send_kick(cmd, qp)
}

fn receive(queue: &Queue, wr_id: u64, sges: &[rxe::SgeRaw]) {
    let wqe = rxe::RecvWqe { wr_id, dma: dma(sges), ..rxe::RecvWqe::default() };
    queue.push(&element(&wqe, sges));
}

fn shared_receive_queue(cmd: CmdFd, pd: Handle, async_fd: i32, gid: &GidEntry) {
    let create = srq::Create {
        pd,
        srq_type: srq::Type::Basic,
        user_handle: 0x5109,
        max_wr: 10,
        max_sge: 2,
        srq_limit: 0,
        event_fd: Some(async_fd),
    };
    let mut resp = rxe::CreateSrqResp::default();
    let made = must("create_srq", srq::create(cmd, &create, Udata::output(&mut resp)));
    assert!(made.max_wr >= 10 && made.max_sge >= 2);
    drop(Queue::new(cmd, "map the SRQ", resp.mi));
    // rxe moves the queue only when max_wr changes, and then writes where to `mi`. IBV_SRQ_MAX_WR 1, IBV_SRQ_LIMIT 2
    let mut mi = rxe::MmInfo::default();
    let cmd_mi = rxe::ModifySrqCmd { mmap_info_addr: (&raw mut mi).expose_provenance() as u64 };
    must("modify_srq, limit", srq::modify(cmd, made.handle, 2, 0, 2, Udata::input(&cmd_mi)));
    let attr = must("query_srq", srq::query(cmd, made.handle));
    // Creation tells what was asked for, the query what there is.
    assert!(attr.max_wr >= made.max_wr);
    assert_eq!(attr.srq_limit, 2);
    must("modify_srq, size", srq::modify(cmd, made.handle, 1, 50, 0, Udata::input(&cmd_mi)));
    // SAFETY: `mi` is a local; the kernel wrote to it behind the compiler's back.
    let queue = Queue::new(cmd, "map the resized SRQ", unsafe { (&raw const mi).read_volatile() });
    assert!(queue.mask >= 50);
    assert!(must("query_srq", srq::query(cmd, made.handle)).max_wr >= 50);
    // The limit went with the resize on some kernels.
    must("modify_srq, limit", srq::modify(cmd, made.handle, 2, 0, 2, Udata::input(&cmd_mi)));

    let (cq, completions) = make_cq(cmd, &cq::Create { cqe: 10, ..cq::Create::default() });
    let cap = QpCap { max_send_wr: 4, max_send_sge: 1, ..QpCap::default() };
    let create = qp::Create {
        qp_type: RC,
        cap,
        pd: Some(pd),
        srq: Some(made.handle),
        send_cq: Some(cq),
        recv_cq: Some(cq),
        ..qp::Create::default()
    };
    let (qp, sq, _) = make_qp(cmd, &create);
    must_not("destroy_srq, in use", Errno::EBUSY, srq::destroy(cmd, made.handle));
    connect_to_itself(cmd, &qp, gid);
    let (_memory, region, start) = make_mr(cmd, pd);
    let sge = |offset: u64| rxe::SgeRaw { addr: start + offset, length: 16, lkey: region.lkey };
    receive(&queue, 1, &[sge(0)]);
    receive(&queue, 2, &[sge(16)]);
    must("post_send", send(cmd, qp.handle, &sq, 3, &[sge(32)]));
    let statuses = [0, 1].map(|_| completions.wait::<Wc>("a completion through the SRQ").status);
    assert_eq!(statuses, [0, 0]);
    // One of two receives is left, below the limit of two.
    let mut fds = [libc::pollfd { fd: async_fd, events: libc::POLLIN, revents: 0 }];
    assert_eq!(sys::poll(&mut fds, 10_000), Ok(1));
    let desc = must("read_async_event", event::read_async_event(async_fd));
    let event = AsyncEvent::try_from(desc).unwrap();
    let expected = AsyncEvent { event_type: EventType::SRQ_LIMIT_REACHED, element: Element::Object(0x5109) };
    assert_eq!(event, expected);
    must("destroy_qp", qp::destroy(cmd, qp.handle));
    must("dereg_mr", mr::dereg(cmd, region.handle));
    must("destroy_cq", cq::destroy(cmd, cq));
    assert_eq!(must("destroy_srq, one event read", srq::destroy(cmd, made.handle)), 1);
}

fn address_handles(cmd: CmdFd, pd: Handle, gid: &GidEntry, kernel: (u32, u32)) {
    let grh = GlobalRoute {
        dgid: gid.gid,
        sgid_index: u8::try_from(gid.gid_index).unwrap(),
        hop_limit: 64,
        ..GlobalRoute::default()
    };
    let attr = AhAttr { grh, is_global: 1, port_num: 1, ..AhAttr::default() };
    let mut resp = rxe::CreateAhResp { ah_num: 9, reserved: 9 };
    let handle = must("create_ah", ah::create(cmd, pd, 0, &attr, Udata::output(&mut resp)));
    say("  its number", &resp);
    assert_eq!(resp.ah_num != 0, kernel >= (6, 1), "5.10 has no AH numbers, and leaves 0");
    must("destroy_ah", ah::destroy(cmd, handle));
    let nowhere = AhAttr { port_num: 9, ..attr };
    must_not("create_ah, no port", Errno::EINVAL, ah::create(cmd, pd, 0, &nowhere, Udata::none()));
}

fn groups(cmd: CmdFd, pd: Handle) {
    let (cq, _completions) = make_cq(cmd, &cq::Create { cqe: 4, ..cq::Create::default() });
    let cap = QpCap { max_send_wr: 4, max_recv_wr: 4, max_send_sge: 1, max_recv_sge: 1, max_inline_data: 0 };
    let create = qp::Create {
        qp_type: UD,
        cap,
        pd: Some(pd),
        send_cq: Some(cq),
        recv_cq: Some(cq),
        ..qp::Create::default()
    };
    let (made, ..) = make_qp(cmd, &create);
    let mut gid = [0; 16];
    gid[..2].copy_from_slice(&[0xff, 0x0e]);
    gid[15] = 7;
    must("attach_mcast", qp::attach_mcast(cmd, made.handle, gid, 0xc001));
    must_not("destroy_qp, in a group", Errno::EBUSY, qp::destroy(cmd, made.handle));
    must("detach_mcast", qp::detach_mcast(cmd, made.handle, gid, 0xc001));
    must("destroy_qp", qp::destroy(cmd, made.handle));
    must("destroy_cq", cq::destroy(cmd, cq));
}

fn message(cmd: CmdFd, pd: Handle, async_fd: i32, gid: &GidEntry) {
    let channel = must("create_comp_channel", event::create_comp_channel(cmd));
    let create = cq::Create {
        cqe: 10,
        user_handle: 0xc0ffee,
        comp_channel: Some(channel.as_raw()),
        event_fd: Some(async_fd),
        ..cq::Create::default()
    };
    let (cq, completions) = make_cq(cmd, &create);
    let cap = QpCap { max_send_wr: 4, max_recv_wr: 4, max_send_sge: 2, max_recv_sge: 2, max_inline_data: 16 };
    let create = qp::Create {
        qp_type: RC,
        user_handle: 0x4209,
        cap,
        create_flags: qp::CREATE_SQ_SIG_ALL,
        pd: Some(pd),
        send_cq: Some(cq),
        recv_cq: Some(cq),
        event_fd: Some(async_fd),
        ..qp::Create::default()
    };
    let (made, sq, rq) = make_qp(cmd, &create);
    let rq = rq.unwrap();
    assert!(made.cap.max_send_wr >= 4 && made.cap.max_inline_data >= 16);
    let attr = must("query_qp", qp::query(cmd, made.handle, 1));
    assert_eq!((attr.qp_state, attr.sq_sig_all), (0, 1));
    connect_to_itself(cmd, &made, gid);
    let attr = must("query_qp", qp::query(cmd, made.handle, 1));
    assert_eq!((attr.qp_state, attr.dest_qp_num, attr.dest.dgid), (3, made.qp_num, gid.gid));
    must("post_send of nothing", qp::post_send_kick(cmd, made.handle));
    say("post_send, no such QP", &qp::post_send_kick(cmd, Handle(12345)));
    assert!(qp::post_send_kick(cmd, Handle(12345)).is_err());

    let (memory, region, start) = make_mr(cmd, pd);
    let text = *b"a message from the queue pair to itself";
    // SAFETY: 4096 bytes are mapped there, and nobody else knows of them yet.
    unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), memory.as_ptr().as_ptr(), text.len()) };
    let sge = |offset: u64, length: usize| rxe::SgeRaw {
        addr: start + offset,
        length: u32::try_from(length).unwrap(),
        lkey: region.lkey,
    };
    must("req_notify_cq", cq::req_notify(cmd, cq, false));
    receive(&rq, 11, &[sge(1024, text.len())]);
    must("post_send of a message", send(cmd, made.handle, &sq, 22, &[sge(0, 10), sge(10, text.len() - 10)]));
    let mut fds = [libc::pollfd { fd: channel.as_raw(), events: libc::POLLIN, revents: 0 }];
    assert_eq!(sys::poll(&mut fds, 10_000), Ok(1));
    assert_eq!(must("read_comp_event", event::read_comp_event(channel.as_raw())), 0xc0ffee);
    let mut came: Vec<Wc> = vec![completions.wait("the first completion"), completions.wait("the second")];
    came.sort_by_key(|wc| wc.wr_id);
    say("completions", &came);
    assert_eq!(came.iter().map(|wc| (wc.wr_id, wc.status)).collect::<Vec<_>>(), [(11, 0), (22, 0)]);
    assert_eq!((came[0].byte_len as usize, came[0].qp_num), (text.len(), made.qp_num));
    // SAFETY: within the mapping; the completion says that the kernel is done with it.
    let arrived = unsafe { core::slice::from_raw_parts(memory.as_ptr().as_ptr().add(1024), text.len()) };
    assert_eq!(arrived, text);

    // In error, what is posted comes back flushed.
    let err = ModifyQp { qp_handle: made.handle.0, attr_mask: 1, qp_state: 6, ..ModifyQp::default() };
    must("modify_qp to ERR", qp::modify(cmd, &err, Udata::none()));
    must("post_send in ERR", send(cmd, made.handle, &sq, 33, &[sge(0, 10)]));
    let wc = completions.wait::<Wc>("a flushed completion");
    assert_eq!((wc.wr_id, wc.status), (33, 5));
    must_not("destroy_cq, in use", Errno::EBUSY, cq::destroy(cmd, cq));
    assert_eq!(must("destroy_qp", qp::destroy(cmd, made.handle)), 0);
    must("dereg_mr", mr::dereg(cmd, region.handle));
    assert_eq!(must("destroy_cq, one event read", cq::destroy(cmd, cq)).comp_events_reported, 1);
}

/// What rxe has on no kernel: it must be said as such.
fn lacking(cmd: CmdFd, pd: Handle) {
    must_lack("open_xrcd", xrcd::open(cmd, None, 0o100, Udata::none()));
    let (cq, _completions) = make_cq(cmd, &cq::Create { cqe: 4, ..cq::Create::default() });
    let create = wq::Create {
        pd,
        cq,
        wq_type: 0,
        user_handle: 0,
        max_wr: 1,
        max_sge: 1,
        create_flags: 0,
        event_fd: None,
    };
    must_lack("create_wq", wq::create(cmd, &create, Udata::none()));
    must("destroy_cq", cq::destroy(cmd, cq));
    must_lack("create_rwq_ind_table", rwq_ind_table::create(cmd, &[Handle(0)], Udata::none()));
    must_lack("create_flow", flow::create(cmd, Handle(0), &FlowAttr::default(), &[], Udata::none()));
    must_lack("create_counters", counters::create(cmd, Udata::none()));
    let opened = qp::open(cmd, Handle(12345), 0, 1, 10, Udata::none());
    say("open_qp", &opened);
    assert!(opened.is_err());
}
