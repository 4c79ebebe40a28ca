//! The queues against a device of our own: what a post leaves in memory and on the doorbell page, what a poll makes of
//! entries, and what both do when the device writes nonsense.
#![allow(unsafe_code, reason = "plays the device's side of memory that it shares")]

use core::mem::MaybeUninit;
use std::collections::VecDeque;
use std::sync::mpsc;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::send::single;
use super::*;
use crate::abi::wr::{InlineData, UserBytes};
use crate::family::{
    Arm as _, CompletionQueue as _, EventFile, Head, Look, SendBuilder as _, SendOp, SharedReceiveQueue as _,
};
use crate::ha::ledger::Fate;
use crate::ha::life::Sign;
use crate::sync::Locking;
use crate::uapi::ids;
use crate::uapi::sys::twin::{Ioctl, Kernel};

#[cfg(not(loom))]
mod contract;
#[cfg(loom)]
mod models;
#[cfg(not(loom))]
mod polls;

const FD: CmdFd = CmdFd::new(7, DriverId::MLX5);
/// The numbers of the one QP, CQ and page kinds of these tests.
const QPN: u32 = 0xab_cdef;
const CQN: u32 = 0x42;
const NC_PAGE: u32 = 33;
const BF_PAGE: u32 = 35;
/// BlueFlame registers are 512 bytes, two halves of 256.
const HALF: usize = 256;

fn resp() -> wire::AllocUcontextResp {
    wire::AllocUcontextResp {
        qp_tab_size: 1 << 17,
        bf_reg_size: 512,
        cache_line_size: 64,
        max_sq_desc_sz: 1024,
        max_rq_desc_sz: 512,
        max_send_wqebb: 32768,
        max_recv_wr: 32768,
        max_srq_recv_wr: 32767,
        num_ports: 1,
        response_length: 72,
        cqe_version: 1,
        log_uar_size: 12,
        num_uars_per_page: 1,
        ..Default::default()
    }
}

/// The device's side: plain memory at addresses that the kernel was told.
#[derive(Clone, Copy)]
struct Memory {
    base: usize,
}

impl Memory {
    fn at(address: u64) -> Memory {
        Memory { base: address as usize }
    }

    fn ptr(self, offset: usize) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.base + offset)
    }

    fn bytes(self, offset: usize, len: usize) -> Vec<u8> {
        // SAFETY: within a queue, a record or a page that the test's objects keep.
        (0..len).map(|at| unsafe { self.ptr(offset + at).read_volatile() }).collect()
    }

    fn write(self, offset: usize, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: as above.
            unsafe { self.ptr(offset + at).write_volatile(*byte) };
        }
    }

    fn be32(self, offset: usize) -> u32 {
        u32::from_be_bytes(self.bytes(offset, 4).try_into().unwrap())
    }
}

/// Answers the ioctls that making objects takes, and tells where their memory is.
struct World {
    kernel: Kernel,
    family: Mlx5,
    device: Device,
    /// The page of CQ doorbells, and BlueFlame pages as they are mapped.
    nc: Memory,
    bf: mpsc::Receiver<Memory>,
    /// Of QPs made from now on.
    locking: Locking,
}

fn page(kernel: &Kernel, offset: u64) -> mpsc::Receiver<Memory> {
    let (tell, told) = mpsc::channel();
    kernel.mmap(FD.fd, offset, move |memory| {
        tell.send(Memory { base: memory.as_mut_ptr().expose_provenance() }).unwrap();
        Ok(())
    });
    told
}

fn answer_uar(io: &mut Ioctl<'_>, page_id: u32) {
    io.set_handle(ids::UAR_OBJ_ALLOC_HANDLE, u64::from(page_id));
    io.answer(ids::UAR_OBJ_ALLOC_MMAP_OFFSET, &(u64::from(page_id) << 12));
    io.answer(ids::UAR_OBJ_ALLOC_MMAP_LENGTH, &4096_u32);
    io.answer(ids::UAR_OBJ_ALLOC_PAGE_ID, &page_id);
}

fn env() -> Env {
    Env::read(|_| None).unwrap()
}

/// A context whose memory queues really is memory: anonymous mappings are the system's.
fn world(resp: wire::AllocUcontextResp, env: Env) -> World {
    let kernel = Kernel::scripted();
    kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
        assert_eq!(io.constant(ids::UAR_OBJ_ALLOC_TYPE), wire::UAR_ALLOC_TYPE_NC);
        answer_uar(io, NC_PAGE);
        Ok(())
    });
    let nc = page(&kernel, u64::from(NC_PAGE) << 12);
    kernel.command(ids::write::QUERY_DEVICE, |io| {
        io.answer(ids::CORE_OUT, &uapi::wire::QueryDeviceResp { atomic_cap: 1, ..Default::default() });
        Ok(())
    });
    kernel.ioctl(ids::QUERY_PORT, |_| Ok(()));
    let context = uapi::device::Context { num_comp_vectors: 1, core_support: 0 };
    let opened = Mlx5::new(FD, ForkRanges::default(), (context, resp), env).unwrap();
    let device = Device { fd: FD, ibdev: "mlx5_0".into(), events: EventFile::new(9), life: Arc::default() };
    let (_, bf) = mpsc::channel();
    World { kernel, family: opened.family, device, nc: nc.recv().unwrap(), bf, locking: Locking::YES }
}

impl World {
    /// The device was taken away, and the gates are closed.
    fn gone(&self) {
        self.device.life.note(Sign::Early);
        self.device.life.note(Sign::Final);
    }

    fn plain() -> World {
        world(resp(), env())
    }

    fn cq(&mut self, cqe: u32, wc_flags: u64) -> TestCq {
        let (tell, told) = mpsc::channel();
        self.kernel.ioctl(ids::CQ_CREATE, move |io| {
            let command: wire::CreateCq = io.read(ids::UHW_IN);
            assert_eq!(command.uar_page_index, NC_PAGE as u16);
            assert_eq!(command.flags, wire::CREATE_CQ_FLAGS_UAR_PAGE_INDEX);
            tell.send((command.buf_addr, command.db_addr, command.cqe_size)).unwrap();
            io.set_handle(ids::CREATE_CQ_HANDLE, 3);
            io.answer(ids::UHW_OUT, &wire::CreateCqResp { cqn: CQN, reserved: 0 });
            io.answer(ids::CREATE_CQ_RESP_CQE, &cqe);
            Ok(())
        });
        let request = CqRequest { cqe, wc_flags, flags: 0, channel: None, comp_vector: 0, user_handle: 0 };
        let created = self.family.create_cq(&self.device, &request).unwrap();
        let (buf, db, size) = told.recv().unwrap();
        TestCq {
            cq: SpinLock::new(created.queue),
            arm: created.arm,
            buf: Memory::at(buf),
            db: Memory::at(db),
            entries: created.cqe + 1,
            size: size as usize,
            produced: 0,
        }
    }

    fn qp(&mut self, cq: &TestCq, qp_type: u32, cap: ibv_qp_cap, srq: Option<&Srq>) -> TestQp {
        self.qp_with(cq, qp_type, cap, srq, &Pd::default(), true)
    }

    fn qp_with(
        &mut self,
        cq: &TestCq,
        qp_type: u32,
        cap: ibv_qp_cap,
        srq: Option<&Srq>,
        pd: &Pd,
        new_page: bool,
    ) -> TestQp {
        if new_page {
            self.kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
                assert_eq!(io.constant(ids::UAR_OBJ_ALLOC_TYPE), wire::UAR_ALLOC_TYPE_BF);
                answer_uar(io, BF_PAGE);
                Ok(())
            });
            self.bf = page(&self.kernel, u64::from(BF_PAGE) << 12);
        }
        let (tell, told) = mpsc::channel();
        self.kernel.ioctl(ids::QP_CREATE, move |io| {
            let command: wire::CreateQp = io.read(ids::UHW_IN);
            tell.send(command).unwrap();
            io.set_handle(ids::CREATE_QP_HANDLE, 5);
            io.answer(ids::CREATE_QP_RESP_QP_NUM, &QPN);
            io.answer(ids::UHW_OUT, &wire::CreateQpResp::default());
            Ok(())
        });
        let mut request = QpRequest {
            qp_type,
            pd: Some(Handle(1)),
            xrcd: None,
            send_cq: Some(Handle(3)),
            recv_cq: Some(Handle(3)),
            srq: srq.map(|_| Handle(4)),
            cap,
            sq_sig_all: false,
            send_ops: None,
            locking: self.locking,
            user_handle: 0,
        };
        let attached = Attached { pd: Some(pd), send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq };
        let (created, _) = self.family.create_qp(&self.device, &mut request, &attached).unwrap();
        let command = told.recv().unwrap();
        let qp = created.object;
        // Whatever its queues were before.
        assert!(qp.owner.send.as_ref().is_none_or(|send| send.gate.limit() == 0), "it takes nothing yet");
        assert!(!matches!(&qp.owner.receives, Receives::Own(ring) if ring.gate.limit() != 0));
        for state in [IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS] {
            self.family.qp_entered(&qp, state, &attached);
        }
        let sq = if command.rq_wqe_count == 0 {
            0
        } else {
            (command.rq_wqe_count as usize) << command.rq_wqe_shift
        };
        TestQp {
            qp,
            command,
            cap: request.cap,
            rq: Memory::at(command.buf_addr),
            sq: Memory::at(command.buf_addr + sq as u64),
            db: Memory::at(command.db_addr),
        }
    }

    fn srq(&mut self, max_wr: u32, max_sge: u32) -> (Srq, Memory, Memory) {
        self.srq_with(max_wr, max_sge, Locking::YES)
    }

    fn srq_with(&mut self, max_wr: u32, max_sge: u32, locking: Locking) -> (Srq, Memory, Memory) {
        let (tell, told) = mpsc::channel();
        self.kernel.ioctl(ids::SRQ_CREATE, move |io| {
            let command: wire::CreateSrq = io.read(ids::UHW_IN);
            tell.send(command).unwrap();
            io.set_handle(ids::CREATE_SRQ_HANDLE, 4);
            io.answer(ids::UHW_OUT, &wire::CreateSrqResp { srqn: 0x77, reserved: 0 });
            Ok(())
        });
        let mut request =
            SrqRequest { pd: Handle(1), xrc: None, locking, max_wr, max_sge, srq_limit: 0, user_handle: 0 };
        let (created, number) = self.family.create_srq(&self.device, &mut request, None).unwrap();
        assert_eq!(number, 0x77);
        let command = told.recv().unwrap();
        (created.object, Memory::at(command.buf_addr), Memory::at(command.db_addr))
    }
}

struct TestCq {
    cq: SpinLock<Cq>,
    arm: Arm,
    buf: Memory,
    db: Memory,
    entries: u32,
    size: usize,
    produced: u32,
}

/// An entry as the device writes it.
#[derive(Clone, Copy)]
struct Entry([u8; 64]);

impl Entry {
    fn new(op: u32, uidx: u32, counter: u16) -> Entry {
        let mut bytes = [0; 64];
        bytes[32..36].copy_from_slice(&uidx.to_be_bytes());
        bytes[56..60].copy_from_slice(&QPN.to_be_bytes());
        bytes[60..62].copy_from_slice(&counter.to_be_bytes());
        bytes[63] = (op << 4) as u8;
        Entry(bytes)
    }

    fn sent(uidx: u32, counter: u16, code: u8) -> Entry {
        Entry::new(cqe::opcode::REQ, uidx, counter).put(56, &[code])
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Entry {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

impl TestCq {
    fn complete(&mut self, entry: Entry) {
        let place = (self.produced & (self.entries - 1)) as usize * self.size + self.size - 64;
        let lap = u8::from(self.produced & self.entries != 0);
        let mut bytes = entry.0;
        bytes[63] |= lap;
        self.buf.write(place, &bytes);
        self.produced += 1;
    }

    fn poll(&self, room: usize) -> Result<Vec<ibv_wc>, Errno> {
        let mut out = vec![MaybeUninit::uninit(); room];
        let polled = self.cq.lock().poll(&mut out)?;
        // SAFETY: poll says that it wrote these.
        Ok(out[..polled as usize].iter().map(|wc| unsafe { wc.assume_init() }).collect())
    }

    fn ids(&self, room: usize) -> Vec<u64> {
        self.poll(room).unwrap().iter().map(|wc| wc.wr_id).collect()
    }
}

struct TestQp {
    qp: Qp,
    command: wire::CreateQp,
    cap: ibv_qp_cap,
    rq: Memory,
    sq: Memory,
    db: Memory,
}

const CAP: ibv_qp_cap =
    ibv_qp_cap { max_send_wr: 4, max_recv_wr: 4, max_send_sge: 2, max_recv_sge: 2, max_inline_data: 60 };
const SGE: ibv_sge = ibv_sge { addr: 0x1122_3344_5566_7788, length: 0x100, lkey: 0xa0b0_c0d0 };

#[derive(Clone, Copy)]
struct Known(&'static Ah);

impl<'a> Objects<'a, Ah> for Known {
    fn ah(self, ah: *mut ibv_ah) -> Option<&'a Ah> {
        (!ah.is_null()).then_some(self.0)
    }
    fn mw(self, mw: *mut ibv_mw) -> Option<(u32, u32)> {
        (!mw.is_null()).then_some((0x100, IBV_MW_TYPE_2))
    }
    fn mr_lkey(self, mr: *mut ibv_mr) -> Option<u32> {
        (!mr.is_null()).then_some(0x200)
    }
}

static THE_AH: Ah =
    Ah { units: [[0, u64::from_ne_bytes([0, 0, 0, 0, 1, 2, 3, 4])], [2, 3], [4, 5]], kernel: false };

fn send(wr_id: u64, opcode: u32, sges: &mut [ibv_sge]) -> ibv_send_wr {
    ibv_send_wr {
        wr_id,
        opcode,
        sg_list: sges.as_mut_ptr(),
        num_sge: sges.len() as i32,
        send_flags: IBV_SEND_SIGNALED,
        ..ibv_send_wr::zeroed()
    }
}

fn post(qp: &Qp, wrs: &mut [ibv_send_wr]) -> Result<(), (usize, Errno)> {
    let (base, count) = (wrs.as_mut_ptr(), wrs.len());
    for (at, wr) in wrs.iter_mut().enumerate() {
        wr.next = if at + 1 < count { base.wrapping_add(at + 1) } else { core::ptr::null_mut() };
    }
    // SAFETY: a valid list that outlives the call.
    let list = unsafe { SendWrs::from_ptr(base) };
    qp.post_send(list, Known(&THE_AH)).map_err(|refused| {
        // SAFETY: both within `wrs`.
        (unsafe { refused.wr.offset_from(base) } as usize, refused.errno)
    })
}

fn recv_list(wrs: &mut [ibv_recv_wr]) -> RecvWrs<'_> {
    let (base, count) = (wrs.as_mut_ptr(), wrs.len());
    for (at, wr) in wrs.iter_mut().enumerate() {
        wr.next = if at + 1 < count { base.wrapping_add(at + 1) } else { core::ptr::null_mut() };
    }
    // SAFETY: a valid list that outlives the view.
    unsafe { RecvWrs::from_ptr(base) }
}

fn recv(wr_id: u64, sges: &mut [ibv_sge]) -> ibv_recv_wr {
    ibv_recv_wr { wr_id, sg_list: sges.as_mut_ptr(), num_sge: sges.len() as i32, next: core::ptr::null_mut() }
}

/// Bytes of an uneven number of hex digits, spaces between them left out.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|two| (two[0] << 4 | two[1]) as u8).collect()
}

#[test]
fn a_write_is_a_wqe_a_record_and_a_burst() {
    let mut world = World::plain();
    let cq = world.cq(7, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let bf = world.bf.recv().unwrap();
    assert_eq!((qp.command.sq_wqe_count, qp.command.rq_wqe_count, qp.command.rq_wqe_shift), (16, 4, 5));
    assert_eq!(qp.command.flags, wire::QP_FLAG_SCATTER_CQE | wire::QP_FLAG_UAR_PAGE_INDEX);
    assert_eq!(qp.command.bfreg_index, BF_PAGE);
    let mut wr = send(1, IBV_WR_RDMA_WRITE, &mut []);
    let mut sges = [SGE, ibv_sge { length: 0, ..SGE }];
    (wr.sg_list, wr.num_sge) = (sges.as_mut_ptr(), 2);
    wr.wr.rdma = ibv_send_wr_rdma { remote_addr: 0x0102_0304_0506_0708, rkey: 0x0a0b_0c0d };
    post(&qp.qp, &mut [wr]).unwrap();
    let expected = hex("00000008 abcdef03 00000008 00000000  0102030405060708 0a0b0c0d 00000000 \
         00000100 a0b0c0d0 1122334455667788  00000000 00000000 00000000 00000000");
    assert_eq!(qp.sq.bytes(0, 64), expected, "the entry of no length is left out");
    assert_eq!(qp.db.be32(4), 1);
    assert_eq!(bf.bytes(0x800, 64), expected);
    // The other half next, and the doorbell alone for a list.
    let mut list = [send(2, IBV_WR_SEND, &mut []), send(3, IBV_WR_SEND, &mut [])];
    list[1].send_flags = IBV_SEND_FENCE | IBV_SEND_SOLICITED;
    post(&qp.qp, &mut list).unwrap();
    assert_eq!(qp.sq.bytes(64, 16), hex("0000010a abcdef01 00000008 00000000"));
    assert_eq!(qp.sq.bytes(128, 16), hex("0000020a abcdef01 00000082 00000000"));
    assert_eq!(bf.bytes(0x800 + HALF, 16), hex("0000020a abcdef01 00000000 00000000"));
    assert_eq!(qp.db.be32(4), 3);
}

#[test]
fn inline_data_begin_behind_four_bytes_and_wrap() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 16, ..CAP }, None);
    assert_eq!((qp.command.sq_wqe_count, qp.cap.max_inline_data), (64, 60));
    let text = *b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX";
    let sge = |at: usize, len: u32| ibv_sge {
        addr: text.as_ptr().expose_provenance() as u64 + at as u64,
        length: len,
        lkey: 0,
    };
    let mut sges = [sge(0, 5), sge(5, 15)];
    let mut wr = send(9, IBV_WR_SEND_WITH_IMM, &mut sges);
    wr.send_flags = IBV_SEND_INLINE;
    wr.imm_data = 0x0102_0304_u32.to_be();
    post(&qp.qp, &mut [wr]).unwrap();
    assert_eq!(qp.sq.bytes(0, 20), hex("0000000b abcdef03 00000000 01020304 80000014"));
    assert_eq!(qp.sq.bytes(20, 20), text[..20]);
    // 62 blocks of nothing, then a message over the end.
    let mut block = 1_u16;
    let mut queued = VecDeque::from([0_u16]);
    let mut cq = cq;
    while block < 63 {
        while let Some(counter) = queued.pop_front() {
            cq.complete(Entry::sent(0, counter, opcode_send()));
        }
        cq.ids(16);
        post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).unwrap();
        queued.push_back(block);
        block += 1;
    }
    let mut sges = [sge(0, 60)];
    let mut wr = send(10, IBV_WR_SEND, &mut sges);
    wr.send_flags = IBV_SEND_INLINE;
    post(&qp.qp, &mut [wr]).unwrap();
    assert_eq!(qp.sq.bytes(63 * 64, 20), hex("00003f0a abcdef05 00000000 00000000 8000003c"));
    assert_eq!(qp.sq.bytes(63 * 64 + 20, 44), text[..44]);
    assert_eq!(qp.sq.bytes(0, 16), text[44..]);
    let mut sges = [sge(0, 40), sge(0, 21)];
    let mut wr = send(11, IBV_WR_SEND, &mut sges);
    wr.send_flags = IBV_SEND_INLINE;
    assert_eq!(post(&qp.qp, &mut [wr]), Err((0, Errno::ENOMEM)), "a byte too many");
}

fn opcode_send() -> u8 {
    wqe::opcode::SEND
}

#[test]
fn each_operation_has_its_segments() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 16, ..CAP }, None);
    let mut sges = [SGE];
    let mut atomic = send(1, IBV_WR_ATOMIC_CMP_AND_SWP, &mut sges);
    atomic.wr.atomic = ibv_send_wr_atomic { remote_addr: 0x10, compare_add: 0x20, swap: 0x30, rkey: 0x40 };
    let add = ibv_send_wr { opcode: IBV_WR_ATOMIC_FETCH_AND_ADD, ..atomic };
    let mut bind = send(3, IBV_WR_BIND_MW, &mut []);
    let bind_info = ibv_mw_bind_info {
        mr: core::ptr::dangling_mut(),
        addr: 0x5000,
        length: 0x100,
        mw_access_flags: IBV_ACCESS_REMOTE_READ,
    };
    bind.tail.bind_mw = ibv_send_wr_bind_mw { mw: core::ptr::dangling_mut(), rkey: 0x101, bind_info };
    let mut inv = send(4, IBV_WR_LOCAL_INV, &mut []);
    inv.imm_data = 0x0102_0304;
    let after = send(5, IBV_WR_SEND_WITH_INV, &mut []);
    post(&qp.qp, &mut [atomic, add, bind, inv, after]).unwrap();
    assert_eq!(
        qp.sq.bytes(0, 64),
        hex("00000011 abcdef04 00000008 00000000 0000000000000010 00000040 00000000 \
             0000000000000030 0000000000000020 00000008 a0b0c0d0 1122334455667788")
    );
    assert_eq!(
        qp.sq.bytes(64, 48),
        hex("00000112 abcdef04 00000008 00000000 0000000000000010 00000040 00000000 \
             0000000000000020 0000000000000000")
    );
    assert_eq!(qp.sq.bytes(128, 16), hex("00000225 abcdef0c 00000008 00000100"));
    assert_eq!(qp.sq.bytes(128 + 16 + 48, 8), hex("00001000 abcdef01"));
    // What follows a bind waits for it, and only that.
    assert_eq!(qp.sq.bytes(128 + 3 * 64, 16), hex("00000525 abcdef08 00000028 01020304"));
    assert_eq!(qp.sq.bytes(128 + 5 * 64, 16), hex("00000701 abcdef01 00000028 00000000"));
    post(&qp.qp, &mut [send(6, IBV_WR_SEND, &mut [])]).unwrap();
    assert_eq!(qp.sq.bytes(128 + 6 * 64, 16), hex("0000080a abcdef01 00000008 00000000"));
    // What each was, the completion tells.
    let mut cq = cq;
    for (counter, code) in [(0, 0x11), (1, 0x12), (2, 0x25), (5, 0x25), (7, 0x01)] {
        cq.complete(Entry::sent(0, counter, code));
    }
    let seen: Vec<_> = cq.poll(8).unwrap().iter().map(|wc| (wc.wr_id, wc.opcode)).collect();
    assert_eq!(
        seen,
        [
            (1, IBV_WC_COMP_SWAP),
            (1, IBV_WC_FETCH_ADD),
            (3, IBV_WC_BIND_MW),
            (4, IBV_WC_LOCAL_INV),
            (5, IBV_WC_SEND)
        ]
    );
}

#[test]
fn a_datagram_has_its_address_and_takes_sends_only() {
    let mut world = World::plain();
    let cq = world.cq(7, 0);
    let qp = world.qp(&cq, IBV_QPT_UD, CAP, None);
    let mut wr = send(1, IBV_WR_SEND, &mut []);
    let mut sges = [SGE];
    (wr.sg_list, wr.num_sge) = (sges.as_mut_ptr(), 1);
    wr.wr.ud =
        ibv_send_wr_ud { ah: core::ptr::dangling_mut(), remote_qpn: 0x12_3456, remote_qkey: 0x1111_2222 };
    post(&qp.qp, &mut [wr]).unwrap();
    let mut expected = hex("0000000a abcdef05 00000008 00000000 11112222 00000000 80123456 01020304");
    for word in [2_u64, 3, 4, 5] {
        expected.extend(word.to_ne_bytes());
    }
    assert_eq!(qp.sq.bytes(0, 64), expected);
    assert_eq!(qp.sq.bytes(64, 16), hex("00000100 a0b0c0d0 1122334455667788"));
    wr.wr.ud.ah = core::ptr::null_mut();
    assert_eq!(post(&qp.qp, &mut [wr]), Err((0, Errno::EINVAL)));
    for opcode in [IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WR_LOCAL_INV, 99] {
        wr.wr.ud.ah = core::ptr::dangling_mut();
        wr.opcode = opcode;
        assert_eq!(post(&qp.qp, &mut [wr]), Err((0, Errno::EINVAL)), "{opcode}");
    }
}

#[test]
fn builders_make_what_posts_make_and_all_or_nothing() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let (old, new) = (
        world.qp(&cq, IBV_QPT_RC, CAP, None),
        World::qp_with(&mut world, &cq, IBV_QPT_RC, CAP, None, &Pd::default(), false),
    );
    let mut sges = [SGE];
    let mut wr = send(1, IBV_WR_RDMA_WRITE_WITH_IMM, &mut sges);
    wr.imm_data = 0x0102_0304_u32.to_be();
    wr.wr.rdma = ibv_send_wr_rdma { remote_addr: 0x10, rkey: 0x20 };
    let mut text = *b"holdfast";
    let mut inline = [ibv_sge { addr: text.as_mut_ptr().expose_provenance() as u64, length: 8, lkey: 0 }];
    let mut second = send(2, IBV_WR_SEND, &mut inline);
    second.send_flags = IBV_SEND_INLINE | IBV_SEND_SOLICITED;
    post(&old.qp, &mut [wr, second]).unwrap();
    let mut sq = new.qp.send_queue().lock();
    sq.start();
    let op = SendOp::WriteImm { rkey: 0x20, remote_addr: 0x10, imm_data: wr.imm_data };
    sq.operation(1, IBV_SEND_SIGNALED, op);
    sq.set_sge(SGE);
    sq.operation(2, IBV_SEND_SOLICITED, SendOp::Send);
    sq.set_inline_data(&InlineData::one(UserBytes::from_slice(b"holdfast")));
    assert_eq!(new.db.be32(4), 0, "nothing is shown before it is complete");
    assert_eq!(sq.complete(), Ok(false));
    assert_eq!((new.db.be32(4), old.db.be32(4)), (2, 2));
    // The uneven tail of inline data is whatever was there.
    assert_eq!(new.sq.bytes(0, 64 + 28), old.sq.bytes(0, 64 + 28));
    sq.start();
    sq.operation(3, 0, SendOp::Send);
    sq.set_sge_list(&[SGE; 3]);
    sq.set_sge(SGE);
    assert_eq!(sq.complete(), Err(Errno::ENOMEM), "the first error is kept");
    sq.start();
    sq.set_sge(SGE);
    assert_eq!(sq.complete(), Err(Errno::EINVAL), "nothing to set it on");
    sq.start();
    sq.operation(4, 0, SendOp::Send);
    sq.abort();
    sq.start();
    assert_eq!(sq.complete(), Ok(false));
    assert_eq!(new.db.be32(4), 2);
    sq.start();
    for id in 0..5 {
        sq.operation(id, 0, SendOp::Send);
    }
    assert_eq!(sq.complete(), Err(Errno::ENOMEM), "two are outstanding, four fit");
    drop(sq);
    assert_eq!(new.qp.outstanding().len(), 2);
}

#[test]
fn datagram_builders_take_their_setters_in_any_order() {
    let mut world = World::plain();
    let cq = world.cq(7, 0);
    let qp = world.qp(&cq, IBV_QPT_UD, CAP, None);
    let mut sq = qp.qp.send_queue().lock();
    for (at, address_first) in [(0, true), (2, false)] {
        sq.start();
        sq.operation(1, IBV_SEND_SIGNALED, SendOp::Send);
        if address_first {
            Qp::set_ud_addr(&mut sq, &THE_AH, 5, 6);
            sq.set_sge(SGE);
        } else {
            sq.set_sge(SGE);
            Qp::set_ud_addr(&mut sq, &THE_AH, 5, 6);
        }
        assert_eq!(sq.complete(), Ok(false));
        assert_eq!(qp.sq.bytes(at * 64 + 16, 12), hex("00000006 00000000 80000005"));
        assert_eq!(qp.sq.bytes(at * 64 + 64, 16), hex("00000100 a0b0c0d0 1122334455667788"));
    }
    sq.start();
    sq.operation(1, 0, SendOp::Send);
    sq.set_xrc_srqn(1);
    assert_eq!(sq.complete(), Err(Errno::EINVAL));
}

#[test]
fn a_queue_is_full_at_its_limit_and_completions_make_room() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let mut list: Vec<ibv_send_wr> = (0..5).map(|id| send(id, IBV_WR_SEND, &mut [])).collect();
    assert_eq!(post(&qp.qp, &mut list), Err((4, Errno::ENOMEM)));
    assert_eq!(qp.qp.outstanding().iter().map(|wr| wr.wr_id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // One completion retires all before it.
    cq.complete(Entry::sent(0, 2, opcode_send()));
    assert_eq!(cq.ids(4), [2]);
    assert_eq!(qp.qp.outstanding(), [Outstanding { wr_id: 3, opcode: IBV_WC_SEND, fate: Fate::Unknown }]);
    assert_eq!(post(&qp.qp, &mut list), Err((3, Errno::ENOMEM)));
    assert_eq!(cq.cq.lock().outstanding().len(), 4);
}

#[test]
fn nothing_is_taken_outside_of_its_states() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let attached = || Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: None };
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(2, &mut [])])).unwrap();
    world.family.qp_entered(&qp.qp, IBV_QPS_ERR, &attached());
    assert_eq!(post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]), Ok(()), "it will complete with an error");
    world.family.qp_entered(&qp.qp, IBV_QPS_RESET, &attached());
    assert_eq!((qp.db.be32(0), qp.db.be32(4), qp.qp.outstanding()), (0, 0, vec![]));
    assert_eq!(post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]), Err((0, Errno::ENOMEM)));
    assert!(qp.qp.post_recv(recv_list(&mut [recv(2, &mut [])])).is_err());
    let mut sq = qp.qp.send_queue().lock();
    sq.start();
    sq.operation(1, 0, SendOp::Send);
    assert_eq!(sq.complete(), Err(Errno::EINVAL));
    drop(sq);
    for state in [IBV_QPS_INIT, IBV_QPS_RTR] {
        world.family.qp_entered(&qp.qp, state, &attached());
        qp.qp.post_recv(recv_list(&mut [recv(2, &mut [])])).unwrap();
        assert!(post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).is_err());
    }
    world.family.qp_entered(&qp.qp, IBV_QPS_RTS, &attached());
    post(&qp.qp, &mut [send(3, IBV_WR_SEND, &mut [])]).unwrap();
    assert_eq!(qp.sq.bytes(0, 4), hex("0000000a"), "from the start again");
}

#[test]
fn receives_are_written_once_and_complete_in_order() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let mut sges = [SGE, ibv_sge { length: 0, ..SGE }];
    qp.qp.post_recv(recv_list(&mut [recv(1, &mut sges), recv(2, &mut [])])).unwrap();
    assert_eq!(
        qp.rq.bytes(0, 64),
        hex("00000100 a0b0c0d0 1122334455667788 00000000 00000100 0000000000000000 \
             00000000 00000100 0000000000000000 00000000 00000000 0000000000000000")
    );
    assert_eq!(qp.db.be32(0), 2);
    let mut list: Vec<ibv_recv_wr> = (3..6).map(|id| recv(id, &mut [])).collect();
    let refused = qp.qp.post_recv(recv_list(&mut list)).unwrap_err();
    assert_eq!(refused.errno, Errno::ENOMEM);
    // The first three, with what each message carries.
    let entry = |op, counter| {
        Entry::new(op, 0, counter)
            .put(44, &7_u32.to_be_bytes())
            .put(22, &[0x12, 0x34])
            .put(24, &[0x15, 0, 0, 9])
            .put(17, &[0xff])
            .put(36, &[1, 2, 3, 4])
    };
    cq.complete(entry(cqe::opcode::RESP_SEND, 0));
    cq.complete(entry(cqe::opcode::RESP_SEND_IMM, 1));
    cq.complete(entry(cqe::opcode::RESP_SEND_INV, 2));
    cq.complete(entry(cqe::opcode::RESP_WR_IMM, 3));
    let wcs = cq.poll(8).unwrap();
    let ids: Vec<u64> = wcs.iter().map(|wc| wc.wr_id).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    assert!(wcs.iter().all(|wc| (wc.byte_len, wc.qp_num, wc.src_qp, wc.slid) == (7, QPN, 9, 0x1234)));
    assert!(wcs.iter().all(|wc| (wc.sl, wc.dlid_path_bits) == (5, 0x7f)));
    let kinds: Vec<_> = wcs.iter().map(|wc| (wc.opcode, wc.wc_flags, wc.imm_data)).collect();
    let imm = u32::from_ne_bytes([1, 2, 3, 4]);
    assert_eq!(
        kinds,
        [
            (IBV_WC_RECV, IBV_WC_GRH, 0),
            (IBV_WC_RECV, IBV_WC_GRH | IBV_WC_WITH_IMM, imm),
            (IBV_WC_RECV, IBV_WC_GRH | IBV_WC_WITH_INV, 0x0102_0304),
            (IBV_WC_RECV_RDMA_WITH_IMM, IBV_WC_GRH | IBV_WC_WITH_IMM, imm),
        ]
    );
    assert_eq!(cq.db.be32(0), 4);
}

#[test]
fn small_messages_come_inside_of_the_entry() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let mut buffer = [0_u8; 16];
    let mut sges = [ibv_sge { addr: buffer.as_mut_ptr().expose_provenance() as u64, length: 16, lkey: 1 }];
    qp.qp.post_recv(recv_list(&mut [recv(1, &mut sges), recv(2, &mut sges)])).unwrap();
    let inside = Entry::new(cqe::opcode::RESP_SEND, 0, 0).put(0, b"holdfast");
    let inside = |len: u32, counter: u16| {
        let entry = inside.put(44, &len.to_be_bytes()).put(60, &counter.to_be_bytes());
        entry.put(63, &[entry.0[63] | 4])
    };
    cq.complete(inside(8, 0));
    cq.complete(inside(17, 1));
    let wcs = cq.poll(4).unwrap();
    assert_eq!((wcs[0].status, &buffer[..8]), (IBV_WC_SUCCESS, &b"holdfast"[..]));
    assert_eq!(wcs[1].status, IBV_WC_LOC_LEN_ERR, "longer than its buffer");
}

/// The answer of a read or an atomic, inside of its entry, goes where the WQE says: behind what each has in front of its data.
#[test]
fn small_answers_come_inside_of_the_entry() {
    for qp_type in [IBV_QPT_RC, IBV_QPT_XRC_SEND] {
        let mut world = World::plain();
        let mut cq = world.cq(63, 0);
        let qp = world.qp(&cq, qp_type, ibv_qp_cap { max_recv_wr: 0, max_recv_sge: 0, ..CAP }, None);
        for (opcode, code, wc) in [
            (IBV_WR_RDMA_READ, wqe::opcode::RDMA_READ, IBV_WC_RDMA_READ),
            (IBV_WR_ATOMIC_FETCH_AND_ADD, wqe::opcode::ATOMIC_FA, IBV_WC_FETCH_ADD),
            (IBV_WR_ATOMIC_CMP_AND_SWP, wqe::opcode::ATOMIC_CS, IBV_WC_COMP_SWAP),
        ] {
            let mut buffer = [0_u8; 9];
            let address = buffer.as_mut_ptr().expose_provenance() as u64;
            let mut sges = [ibv_sge { addr: address, length: 8, lkey: 1 }];
            let mut wr = send(3, opcode, &mut sges);
            // Taken for a data segment, what is in front of the data names bytes where nothing is.
            wr.wr.atomic =
                ibv_send_wr_atomic { remote_addr: 1 << 40, compare_add: 1 << 40, swap: 1 << 40, rkey: 0x20 };
            let counter = qp.db.be32(4) as u16;
            post(&qp.qp, &mut [wr]).unwrap();
            let entry = Entry::sent(0, counter, code).put(0, b"readdata").put(44, &8_u32.to_be_bytes());
            cq.complete(entry.put(63, &[4]));
            let wcs = cq.poll(4).unwrap();
            assert_eq!((wcs[0].status, wcs[0].opcode), (IBV_WC_SUCCESS, wc), "type {qp_type}");
            assert_eq!(&buffer, b"readdata\0", "type {qp_type}, operation {opcode}");
        }
    }
}

#[test]
fn a_failure_has_its_status_and_the_vendors_word() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut []), send(2, IBV_WR_SEND, &mut [])]).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(3, &mut [])])).unwrap();
    cq.complete(Entry::new(cqe::opcode::REQ_ERR, 0, 0).put(54, &[0x88, 0x15]));
    cq.complete(Entry::new(cqe::opcode::REQ_ERR, 0, 1).put(54, &[0xf9, 0x05]));
    cq.complete(Entry::new(cqe::opcode::RESP_ERR, 0, 0).put(54, &[1, 0xee]));
    let seen: Vec<_> = cq.poll(8).unwrap().iter().map(|wc| (wc.wr_id, wc.status, wc.vendor_err)).collect();
    assert_eq!(
        seen,
        [(1, IBV_WC_RETRY_EXC_ERR, 0x88), (2, IBV_WC_WR_FLUSH_ERR, 0xf9), (3, IBV_WC_GENERAL_ERR, 1)]
    );
}

#[test]
fn entries_that_speak_of_nothing_are_not_given_on() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 16, ..CAP }, None);
    let bad = [
        Entry::sent(9, 0, opcode_send()),
        Entry::sent(0, 7, opcode_send()),
        Entry::new(11, 0, 0),
        Entry::new(cqe::opcode::RESP_SEND, 0, 0),
        Entry::new(cqe::opcode::RESP_SEND, 0xff_ffff, 0),
    ];
    for (at, entry) in bad.into_iter().enumerate() {
        if at == 2 {
            post(&qp.qp, &mut [send(50, IBV_WR_SEND, &mut [])]).unwrap();
        }
        cq.complete(entry);
        assert_eq!(cq.poll(4).unwrap_err(), Errno::EIO, "entry {at}");
        assert!(cq.poll(4).unwrap().is_empty());
    }
    post(&qp.qp, &mut [send(51, IBV_WR_SEND, &mut [])]).unwrap();
    cq.complete(Entry::sent(0, 1, opcode_send()));
    cq.complete(Entry::sent(0, 1, opcode_send()));
    cq.complete(Entry::sent(0, 0, opcode_send()));
    assert_eq!(cq.ids(8), [51], "neither twice nor backwards");
    assert_eq!(cq.db.be32(0), 8);
    // What a send was, its post noted; the entry is not asked.
    post(&qp.qp, &mut [send(52, IBV_WR_SEND, &mut [])]).unwrap();
    cq.complete(Entry::sent(0, 2, 0x3f));
    let wcs = cq.poll(8).unwrap();
    assert_eq!((wcs[0].wr_id, wcs[0].opcode, wcs[0].status), (52, IBV_WC_SEND, IBV_WC_SUCCESS));
}

#[test]
fn the_owner_bit_of_another_lap_is_not_believed() {
    let mut world = World::plain();
    let mut cq = world.cq(1, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 16, ..CAP }, None);
    assert_eq!(cq.entries, 2);
    for lap in 0..6_u16 {
        assert!(cq.poll(4).unwrap().is_empty());
        post(&qp.qp, &mut [send(u64::from(lap), IBV_WR_SEND, &mut [])]).unwrap();
        cq.complete(Entry::sent(0, lap, opcode_send()));
        assert_eq!(cq.ids(4), [u64::from(lap)]);
    }
}

#[test]
fn the_extended_interface_reads_the_entry_itself() {
    let mut world = World::plain();
    let mut cq = world.cq(63, u64::from(IBV_WC_EX_WITH_COMPLETION_TIMESTAMP));
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    assert_eq!(cq.cq.lock().start(), Err(Errno::ENOENT));
    post(&qp.qp, &mut [send(1, IBV_WR_RDMA_READ, &mut []), send(2, IBV_WR_LOCAL_INV, &mut [])]).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(3, &mut [])])).unwrap();
    cq.complete(
        Entry::sent(0, 0, wqe::opcode::RDMA_READ)
            .put(44, &77_u32.to_be_bytes())
            .put(48, &99_u64.to_be_bytes()),
    );
    cq.complete(Entry::sent(0, 1, wqe::opcode::UMR));
    cq.complete(Entry::new(cqe::opcode::RESP_ERR, 0, 0).put(54, &[0x42, 0x05]));
    let mut queue = cq.cq.lock();
    assert_eq!(queue.start().unwrap().wr_id, 1);
    assert_eq!((queue.opcode(), queue.byte_len(), queue.completion_ts()), (IBV_WC_RDMA_READ, 77, 99));
    assert_eq!((queue.qp_num(), queue.wc_flags(), queue.vendor_err()), (QPN, 0, 0));
    assert_eq!(queue.next().unwrap().wr_id, 2);
    assert_eq!(queue.opcode(), IBV_WC_LOCAL_INV);
    let head = queue.next().unwrap();
    assert_eq!((head.wr_id, head.status, queue.vendor_err()), (3, IBV_WC_WR_FLUSH_ERR, 0x42));
    assert_eq!(cq.db.be32(0), 0, "the device is told at the end");
    assert_eq!(queue.next(), Err(Errno::ENOENT));
    assert_eq!(queue.vendor_err(), 0x42, "the last one stays readable");
    queue.end();
    assert_eq!(cq.db.be32(0), 3);
}

#[test]
fn arming_counts_events_along_and_needs_no_lock() {
    let mut world = World::plain();
    let mut cq = world.cq(7, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).unwrap();
    cq.complete(Entry::sent(0, 0, opcode_send()));
    cq.ids(1);
    let held = cq.cq.lock();
    cq.arm.arm(FD, Handle(3), false).unwrap();
    assert_eq!(cq.db.be32(4), 1);
    assert_eq!(world.nc.bytes(0x20, 8), hex("00000001 00000042"));
    cq.arm.event();
    cq.arm.arm(FD, Handle(3), true).unwrap();
    assert_eq!(world.nc.bytes(0x20, 8), hex("11000001 00000042"));
    drop(held);
}

#[test]
fn a_shared_receive_queue_goes_around_in_any_order() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let (srq, buf, db) = world.srq(3, 1);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, Some(&srq));
    assert!(qp.qp.post_recv(recv_list(&mut [recv(1, &mut [])])).is_err());
    let mut sges = [SGE];
    let mut list: Vec<ibv_recv_wr> = (1..5).map(|id| recv(id, &mut sges)).collect();
    let refused = srq.post_recv(recv_list(&mut list)).unwrap_err();
    assert_eq!((refused.errno, db.be32(0)), (Errno::ENOMEM, 3));
    assert_eq!(
        buf.bytes(0, 32),
        hex("00000001 00000000 0000000000000000 00000100 a0b0c0d0 1122334455667788")
    );
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 2));
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 0));
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 0));
    assert_eq!(cq.ids(4), [3, 1], "not twice");
    assert_eq!(srq.outstanding(), [Outstanding { wr_id: 2, opcode: IBV_WC_RECV, fate: Fate::Unknown }]);
    let mut list: Vec<ibv_recv_wr> = (11..13).map(|id| recv(id, &mut sges)).collect();
    srq.post_recv(recv_list(&mut list)).unwrap();
    // Place 3 was the free one, then came 2.
    assert_eq!(srq.outstanding().iter().map(|wr| wr.wr_id).collect::<Vec<_>>(), [2, 12, 11]);
    // A missing page: posted once more, and nobody hears of it.
    cq.complete(Entry::new(cqe::opcode::RESP_ERR, 0, 1).put(54, &[0x93, 0x22]));
    assert!(cq.poll(4).unwrap().is_empty());
    assert_eq!((db.be32(0), srq.outstanding().len()), (6, 3));
    // What completed stands behind what was the last free one, in the device's list too, and entries where they were.
    let entry = "00000100 a0b0c0d0 1122334455667788";
    assert_eq!(buf.bytes(96, 32), hex(&format!("00000002 00000000 0000000000000000 {entry}")));
    assert_eq!(buf.bytes(64, 32), hex(&format!("00000000 00000000 0000000000000000 {entry}")));
}

#[test]
fn usual_receives_of_an_srq_are_posted_as_all_others_until_it_is_full_or_closed() {
    for max_sge in [1, 2] {
        let mut world = World::plain();
        // SAFETY: this thread alone uses it.
        let (srq, buf, db) = world.srq_with(3, max_sge, unsafe { Locking::no() });
        let mut sges = [SGE];
        let mut other = [recv(9, &mut [])];
        assert!(!srq.post_usual_recv(recv_list(&mut other).only().unwrap()), "no entry");
        let mut one = [recv(1, &mut sges)];
        assert!(srq.post_usual_recv(recv_list(&mut one).only().unwrap()));
        assert!(srq.post_usual_recvs(recv_list(&mut [recv(2, &mut sges), recv(3, &mut sges)])));
        assert!(!srq.post_usual_recv(recv_list(&mut one).only().unwrap()), "full");
        assert!(!srq.post_usual_recvs(recv_list(&mut one)), "full");
        assert_eq!(db.be32(0), 3);
        let end = if max_sge > 1 { "00000000 00000100 0000000000000000" } else { "" };
        for (at, next) in [1, 2, 3].into_iter().enumerate() {
            let wqe = hex(&format!(
                "0000{next:04x} 00000000 0000000000000000 00000100 a0b0c0d0 1122334455667788 {end}"
            ));
            let stride = 32 * max_sge as usize;
            assert_eq!(buf.bytes(at * stride, wqe.len()), wqe);
        }
        let outstanding = |srq: &Srq| srq.outstanding().iter().map(|wr| wr.wr_id).collect::<Vec<_>>();
        assert_eq!(outstanding(&srq), [1, 2, 3]);
        assert_eq!([0, 2, 2, 3, 4].map(|at| srq.inner.complete(at)), [Some(1), Some(3), None, None, None]);
        srq.close();
        assert!(!srq.post_usual_recv(recv_list(&mut one).only().unwrap()));
        assert!(!srq.post_usual_recvs(recv_list(&mut one)));
        assert_eq!((db.be32(0), outstanding(&srq)), (3, vec![2]));
    }
}

#[test]
fn a_destroyed_qp_leaves_no_entry_behind() {
    let mut world = World::plain();
    let mut cq = world.cq(7, 0);
    let (srq, _, _) = world.srq(7, 1);
    let first = world.qp(&cq, IBV_QPT_RC, CAP, Some(&srq));
    let second = world.qp_with(&cq, IBV_QPT_RC, CAP, None, &Pd::default(), false);
    assert_eq!((first.command.uidx, second.command.uidx), (0, 1));
    let mut list: Vec<ibv_recv_wr> = (1..4).map(|id| recv(id, &mut [])).collect();
    srq.post_recv(recv_list(&mut list)).unwrap();
    let mut sends: Vec<_> = (10..14).map(|id| send(id, IBV_WR_SEND, &mut [])).collect();
    post(&second.qp, &mut sends).unwrap();
    post(&first.qp, &mut sends).unwrap();
    // Six before, so that the entries lie around the end of the ring.
    for counter in 0..4 {
        cq.complete(Entry::sent(0, counter, opcode_send()));
        if counter < 2 {
            cq.complete(Entry::sent(1, counter, opcode_send()));
        }
    }
    assert_eq!(cq.ids(8).len(), 6);
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 1));
    cq.complete(Entry::sent(1, 2, opcode_send()));
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 0));
    cq.complete(Entry::sent(1, 3, opcode_send()));
    let attached =
        Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: Some(&srq) };
    world.family.qp_destroyed(&first.qp, &attached);
    drop(first);
    assert_eq!(cq.ids(8), [12, 13]);
    assert_eq!(srq.outstanding().len(), 1, "the receives are free again");
    assert_eq!(cq.db.be32(0), 10);
    // The next QP gets the number.
    let third = world.qp_with(&cq, IBV_QPT_RC, CAP, None, &Pd::default(), false);
    assert_eq!(third.command.uidx, 0);
    assert!(cq.cq.lock().outstanding().is_empty());
}

#[test]
fn a_resized_cq_keeps_what_was_not_polled() {
    let mut world = World::plain();
    let mut cq = world.cq(3, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 16, ..CAP }, None);
    let mut sends: Vec<_> = (0..8).map(|id| send(id, IBV_WR_SEND, &mut [])).collect();
    post(&qp.qp, &mut sends).unwrap();
    for counter in 0..3 {
        cq.complete(Entry::sent(0, counter, opcode_send()));
    }
    assert_eq!(cq.ids(2), [0, 1]);
    cq.complete(Entry::sent(0, 3, opcode_send()));
    cq.complete(Entry::new(cqe::opcode::RESIZE_CQ, 0, 0));
    let (tell, told) = mpsc::channel();
    world.kernel.command(ids::write::RESIZE_CQ, move |io| {
        tell.send(io.read::<wire::ResizeCq>(ids::UHW_IN)).unwrap();
        io.answer(ids::CORE_OUT, &uapi::wire::ResizeCqResp { cqe: 15, ..Default::default() });
        Ok(())
    });
    let cqe = world.family.resize_cq(&world.device, &mut cq.cq.lock(), Handle(3), 9);
    assert_eq!(cqe, Ok(15));
    cq.buf = Memory::at(told.recv().unwrap().buf_addr);
    cq.entries = 16;
    for counter in 4..8 {
        cq.complete(Entry::sent(0, counter, opcode_send()));
    }
    assert_eq!(cq.ids(16), [2, 3, 4, 5, 6, 7]);
    assert_eq!(world.family.resize_cq(&world.device, &mut cq.cq.lock(), Handle(3), 12), Ok(15), "no change");
}

#[test]
fn the_parts_of_a_destroyed_cq_serve_as_new() {
    let mut world = World::plain();
    let mut cq = world.cq(3, 0);
    let (buf, db) = (cq.buf.base, cq.db.base);
    let mut new_page = true;
    for round in 0..3 {
        let qp = world.qp_with(&cq, IBV_QPT_RC, CAP, None, &Pd::default(), new_page);
        new_page = false;
        assert!(
            matches!(cq.arm.look(true), Look::Nothing) && cq.ids(4).is_empty(),
            "what the last one left is not for this one"
        );
        assert_eq!((cq.db.be32(0), cq.db.be32(4)), (0, 0));
        post(&qp.qp, &mut [send(10 + round, IBV_WR_SEND, &mut []), send(20 + round, IBV_WR_SEND, &mut [])])
            .unwrap();
        cq.complete(Entry::sent(0, 0, opcode_send()));
        assert_eq!(cq.ids(4), [10 + round]);
        cq.arm.event();
        cq.arm.arm(FD, Handle(3), false).unwrap();
        assert_eq!((cq.db.be32(0), cq.db.be32(4)), (1, 1 << 28 | 1));
        // One that nobody polls, and an entry of nobody's.
        cq.complete(Entry::sent(0, 1, opcode_send()));
        cq.complete(Entry::sent(9, 0, opcode_send()));
        let attached = Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: None };
        world.family.qp_destroyed(&qp.qp, &attached);
        drop(qp);
        world.family.cq_destroyed(cq.cq.into_inner(), cq.arm);
        assert_eq!(world.family.kits.count(), 1);
        // Of another size is made anew.
        let other = world.cq(7, 0);
        assert_eq!(world.family.kits.count(), 1);
        assert_ne!(other.db.base, db);
        cq = world.cq(3, 0);
        assert_eq!((world.family.kits.count(), cq.buf.base, cq.db.base), (0, buf, db));
    }
    for _ in 0..2 {
        // As many as there are, and no more than are kept.
        let cqs: Vec<TestCq> = (0..70).map(|_| world.cq(3, 0)).collect();
        cqs.into_iter().for_each(|cq| world.family.cq_destroyed(cq.cq.into_inner(), cq.arm));
        assert_eq!(world.family.kits.count(), 64);
    }
}

#[test]
fn the_queues_of_a_destroyed_qp_serve_as_new() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let parts = |qp: &TestQp| (qp.command.buf_addr, qp.command.db_addr, qp.command.uidx);
    let mut first = None;
    for (round, qp_type) in (0..).zip([IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_RC]) {
        let qp = world.qp_with(&cq, qp_type, CAP, None, &Pd::default(), round == 0);
        assert_eq!(world.family.queues.count(), 0);
        assert_eq!(*first.get_or_insert(parts(&qp)), parts(&qp));
        assert_eq!((qp.db.be32(0), qp.db.be32(4), qp.qp.outstanding()), (0, 0, vec![]));
        assert!(!qp.qp.owner.checks_sums());
        // One less than the last one had, which is not for this one.
        for id in round..3 {
            post(&qp.qp, &mut [send(10 + id, IBV_WR_SEND, &mut [])]).unwrap();
            qp.qp.post_recv(recv_list(&mut [recv(20 + id, &mut [])])).unwrap();
        }
        assert_eq!(
            (qp.db.be32(0), qp.db.be32(4), qp.sq.bytes(0, 4)),
            (3 - round as u32, 3 - round as u32, hex("0000000a"))
        );
        cq.complete(Entry::sent(0, 3 - round as u16, opcode_send()));
        assert_ne!(cq.poll(4).map(|polled| polled.len()), Ok(1));
        cq.complete(Entry::sent(0, 0, opcode_send()));
        cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 0));
        assert_eq!(cq.ids(4), [10 + round, 20 + round]);
        // One that nobody polls, and others that never complete.
        cq.complete(Entry::sent(0, 1, opcode_send()));
        // ORDER: Relaxed: one thread.
        qp.qp.owner.csum.store(true, Ordering::Relaxed);
        let attached = Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: None };
        world.family.qp_destroyed(&qp.qp, &attached);
        assert_eq!(world.family.queues.count(), 1);
        drop(qp);
        // Of other sizes are made anew.
        let cap = ibv_qp_cap { max_recv_wr: 8, ..CAP };
        let other = world.qp_with(&cq, IBV_QPT_RC, cap, None, &Pd::default(), false);
        assert_eq!(world.family.queues.count(), 1);
        assert_ne!(parts(&other).0, first.unwrap().0);
        assert_ne!(parts(&other).1, first.unwrap().1);
        assert_ne!(parts(&other).2, first.unwrap().2);
        cq.cq.lock().detach(&other.qp.owner);
    }
}

#[test]
fn a_qp_that_is_still_there_or_has_an_srq_or_is_of_a_device_that_is_gone_leaves_no_queues() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let attached = || Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: None };
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    world.family.qp_destroyed(&qp.qp, &attached());
    let other = world.qp_with(&cq, IBV_QPT_RC, CAP, None, &Pd::default(), false);
    assert_ne!(qp.command.buf_addr, other.command.buf_addr);
    assert_eq!(world.family.queues.count(), 0);
    let (srq, ..) = world.srq(4, 1);
    let with_srq = world.qp(&cq, IBV_QPT_RC, CAP, Some(&srq));
    world.family.qp_destroyed(&with_srq.qp, &attached());
    assert_eq!(world.family.queues.count(), 0);
    world.gone();
    world.family.qp_destroyed(&other.qp, &attached());
    assert_eq!(world.family.queues.count(), 0);
}

#[test]
fn a_cq_that_was_resized_or_of_a_device_that_is_gone_leaves_no_parts() {
    let mut world = World::plain();
    let mut cq = world.cq(3, 0);
    cq.complete(Entry::new(cqe::opcode::RESIZE_CQ, 0, 0));
    world.kernel.command(ids::write::RESIZE_CQ, |io| {
        io.answer(ids::CORE_OUT, &uapi::wire::ResizeCqResp { cqe: 15, ..Default::default() });
        Ok(())
    });
    assert_eq!(world.family.resize_cq(&world.device, &mut cq.cq.lock(), Handle(3), 9), Ok(15));
    let other = world.cq(3, 0);
    world.family.cq_destroyed(cq.cq.into_inner(), cq.arm);
    assert_eq!(world.family.kits.count(), 0);
    world.gone();
    world.family.cq_destroyed(other.cq.into_inner(), other.arm);
    assert_eq!(world.family.kits.count(), 0);
}

#[test]
fn doorbells_are_rung_as_the_environment_says() {
    for (bf_reg_size, shut_up_bf, prefer_bf, burst) in [
        (512, false, true, true),
        (512, false, false, false),
        (512, true, true, false),
        (0, false, true, false),
    ] {
        let resp = wire::AllocUcontextResp { bf_reg_size, ..resp() };
        let mut world = world(resp, Env { shut_up_bf, prefer_bf, ..env() });
        let cq = world.cq(7, 0);
        let plain = shut_up_bf || bf_reg_size == 0;
        let qp = world.qp_with(&cq, IBV_QPT_RC, CAP, None, &Pd::default(), !plain);
        assert_eq!(qp.command.bfreg_index, if plain { NC_PAGE } else { BF_PAGE });
        let register = if plain { world.nc } else { world.bf.recv().unwrap() };
        let mut sges = [SGE];
        for turn in 0..2 {
            post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut sges)]).unwrap();
            let half = if plain { 0 } else { turn * HALF };
            let seen = register.bytes(0x800 + half, 64);
            assert_eq!(seen[..8], qp.sq.bytes(turn * 64, 8)[..]);
            let expected = if burst { qp.sq.bytes(turn * 64 + 16, 16) } else { vec![0; 16] };
            assert_eq!(seen[16..32], expected[..], "{bf_reg_size} {shut_up_bf} {prefer_bf}");
        }
    }
}

/// Posts `wr` to both by the way of single posts and by that of all: the same has to be in both queues, and in their registers.
fn post_both<const OPCODE: u32>(
    (old, new, bf): (&TestQp, &TestQp, Memory),
    turn: usize,
    mut wr: ibv_send_wr,
) -> Posted {
    wr.opcode = OPCODE;
    // SAFETY: a valid request that outlives its use.
    let one = unsafe { SendWrs::from_ptr(&raw mut wr) }.only().unwrap();
    let (data, own) = (single(one).unwrap(), op::of(OPCODE).units() as usize * 16);
    let len = match data {
        Single::Entry(_) => own + 16,
        Single::Entries(_) => own + 32,
        Single::Inline(bytes) | Single::Long(bytes) => own + 4 + bytes.len(),
    };
    let before = (old.db.be32(4), new.db.be32(4));
    let posted = new.qp.sq.lock().post_single::<OPCODE>(one, data);
    if posted != Posted::Told {
        assert_eq!(new.db.be32(4), before.1);
        return posted;
    }
    post(&old.qp, &mut [wr]).unwrap();
    assert_eq!(old.db.be32(4), new.db.be32(4));
    let seen = |qp: &TestQp| qp.sq.bytes(before.0 as usize * 64, len);
    assert_eq!(seen(old), seen(new), "opcode {OPCODE}, {data:?}");
    let register = |at: usize| bf.bytes(at + turn % 2 * HALF, len);
    assert_eq!((register(0x800), register(0xa00)), (seen(old), seen(new)));
    posted
}

#[test]
fn a_single_post_leaves_what_any_post_does() {
    let mut world = world(resp(), env());
    let cq = world.cq(255, 0);
    let cap = ibv_qp_cap { max_send_wr: 64, ..CAP };
    let old = world.qp(&cq, IBV_QPT_RC, cap, None);
    let bf = world.bf.recv().unwrap();
    let new = World::qp_with(&mut world, &cq, IBV_QPT_RC, cap, None, &Pd::default(), false);
    let queues = (&old, &new, bf);
    let bytes: Vec<u8> = (1..=255).collect();
    let mut sges = [SGE];
    let mut atomic = send(1, 0, &mut sges);
    atomic.wr.atomic = ibv_send_wr_atomic { remote_addr: 0x10, compare_add: 0x20, swap: 0x30, rkey: 0x40 };
    assert_eq!(post_both::<IBV_WR_ATOMIC_CMP_AND_SWP>(queues, 0, atomic), Posted::Told);
    assert_eq!(post_both::<IBV_WR_ATOMIC_FETCH_AND_ADD>(queues, 1, atomic), Posted::Told);
    let mut turn = 2;
    let mut each = |wr: ibv_send_wr, expected: Posted| {
        let inlined = wr.send_flags & IBV_SEND_INLINE != 0;
        let mut next = || {
            turn += usize::from(expected == Posted::Told);
            turn - 1
        };
        assert_eq!(post_both::<IBV_WR_RDMA_WRITE>(queues, next(), wr), expected);
        assert_eq!(post_both::<IBV_WR_SEND_WITH_IMM>(queues, next(), wr), expected);
        if !inlined {
            assert_eq!(post_both::<IBV_WR_RDMA_WRITE_WITH_IMM>(queues, next(), wr), expected);
            assert_eq!(post_both::<IBV_WR_SEND>(queues, next(), wr), expected);
            assert_eq!(post_both::<IBV_WR_RDMA_READ>(queues, next(), wr), expected);
        }
    };
    let wr = |sges: &mut [ibv_sge], send_flags: u32| {
        let mut wr = send(9, 0, sges);
        (wr.send_flags, wr.imm_data) = (send_flags, 0x0102_0304);
        wr.wr.rdma = ibv_send_wr_rdma { remote_addr: 0x1020_3040, rkey: 0x5060 };
        wr
    };
    for flags in [0, IBV_SEND_SIGNALED, IBV_SEND_FENCE | IBV_SEND_SOLICITED] {
        each(wr(&mut [SGE], flags), Posted::Told);
        each(wr(&mut [SGE, ibv_sge { lkey: 7, ..SGE }], flags), Posted::Told);
    }
    each(wr(&mut [ibv_sge { length: 0, ..SGE }], 0), Posted::Not);
    each(wr(&mut [SGE, ibv_sge { length: 0, ..SGE }], 0), Posted::Not);
    let most = new.cap.max_inline_data;
    for length in [1, 3, 4, 7, 8, 12, 13, 28, 29, 44, most] {
        let addr = bytes.as_ptr().expose_provenance() as u64;
        each(wr(&mut [ibv_sge { addr, length, lkey: 0 }], IBV_SEND_INLINE), Posted::Told);
    }
    each(wr(&mut [ibv_sge { addr: 1, length: most + 1, lkey: 0 }], IBV_SEND_INLINE), Posted::Not);
    // Behind a closed gate.
    new.qp.close();
    each(wr(&mut [SGE], 0), Posted::Not);
    each(wr(&mut [SGE; 2], 0), Posted::Not);
}

/// Builds one work request by what is usual, as far as that takes it, and on another queue by what takes all: the same has to be in both
/// queues, and in their registers. `data`: an entry, or so many bytes of inline data.
fn build_both((old, new, bf): (&TestQp, &TestQp, Memory), turn: usize, op: SendOp, data: Option<usize>) {
    let bytes: Vec<u8> = (1..=255).collect();
    let (inline, flags) = (|len| UserBytes::from_slice(&bytes[..len]), turn as u32 & 7);
    let before = old.db.be32(4) as usize;
    let mut sq = new.qp.send_queue().lock();
    sq.start();
    assert!(sq.usual_operation(turn as u64, flags, op));
    match data {
        None => assert!(sq.set_usual_sge(SGE)),
        Some(len) => {
            assert_eq!(sq.set_usual_inline_data(inline(len)), (1..=12).contains(&len));
            if !(1..=12).contains(&len) {
                assert_eq!(sq.set_most_inline_data(inline(len)), len != 0);
            }
        }
    }
    // What is left open here, one without data, is no usual one's to complete.
    let usual = sq.complete_usual() || sq.complete_most();
    assert_eq!(usual, data != Some(0));
    assert_eq!(if usual { Ok(false) } else { sq.complete() }, Ok(false));
    drop(sq);
    let mut sq = old.qp.send_queue().lock();
    sq.start();
    sq.operation(turn as u64, flags, op);
    match data {
        None => sq.set_sge(SGE),
        Some(len) => sq.set_inline_data(&InlineData::one(inline(len))),
    }
    assert_eq!(sq.complete(), Ok(false));
    drop(sq);
    assert_eq!(old.db.be32(4), new.db.be32(4));
    let at = before * 64;
    // Behind the data is whatever was there.
    let units = old.sq.be32(at + 4) as usize & 0x3f;
    let len = units * 16 - data.map_or(0, |len| (len + 4).next_multiple_of(16) - (len + 4)) % 12;
    let seen = |qp: &TestQp| qp.sq.bytes(at, len);
    assert_eq!(seen(old), seen(new), "{op:?}, {data:?}");
    let register =
        |at: usize| bf.bytes(at + turn % 2 * HALF, if matches!(data, Some(1..)) { len } else { 8 });
    assert_eq!(register(0x800), register(0xa00), "{op:?}, {data:?}");
}

#[test]
fn what_is_usual_is_built_as_all_is() {
    // BlueFlame for inline data only.
    let mut world = world(resp(), Env { prefer_bf: false, ..env() });
    let cq = world.cq(255, 0);
    let cap = ibv_qp_cap { max_send_wr: 128, ..CAP };
    let old = world.qp(&cq, IBV_QPT_RC, cap, None);
    let bf = world.bf.recv().unwrap();
    let new = World::qp_with(&mut world, &cq, IBV_QPT_RC, cap, None, &Pd::default(), false);
    let (rkey, remote_addr) = (0x5060, 0x1020_3040);
    let ops = [
        SendOp::Send,
        SendOp::SendImm { imm_data: 7 },
        SendOp::SendInv { invalidate_rkey: 8 },
        SendOp::Write { rkey, remote_addr },
        SendOp::WriteImm { rkey, remote_addr, imm_data: 9 },
        SendOp::Read { rkey, remote_addr },
        SendOp::CmpSwp { rkey, remote_addr, compare: 1, swap: 2 },
        SendOp::FetchAdd { rkey, remote_addr, add: 3 },
    ];
    let mut turn = 0;
    for op in ops {
        let most = new.cap.max_inline_data as usize;
        for data in [None, Some(0), Some(1), Some(8), Some(12), Some(13), Some(28), Some(44), Some(most)] {
            build_both((&old, &new, bf), turn, op, data);
            turn += 1;
        }
    }
    assert_eq!((old.qp.outstanding().len(), new.qp.outstanding().len()), (turn, turn));
}

#[test]
fn what_waits_for_an_invalidation_is_remembered_through_builds_and_forgotten_with_them() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 32, ..CAP }, None);
    let invalidate = SendOp::LocalInv { invalidate_rkey: 8 };
    let mut sq = qp.qp.send_queue().lock();
    let complete = |sq: &mut SendQueue| {
        assert!(sq.complete_usual() || sq.complete_most() || sq.complete() == Ok(false));
    };
    // Whether the next send waits, by the flags of its WQE.
    let waits = |sq: &mut SendQueue| {
        let at = qp.db.be32(4) as usize;
        sq.start();
        sq.operation(1, 0, SendOp::Send);
        sq.set_sge(SGE);
        complete(sq);
        qp.sq.be32(at * 64 + 8) & 0xe0 != 0
    };
    let invalidates = |sq: &mut SendQueue| {
        sq.start();
        sq.operation(2, 0, invalidate);
        complete(sq);
    };
    let gives_up = |sq: &mut SendQueue| {
        sq.start();
        sq.operation(3, 0, invalidate);
        sq.abort();
    };
    gives_up(&mut sq);
    assert!(!waits(&mut sq), "there was no invalidation");
    invalidates(&mut sq);
    sq.start();
    sq.abort();
    assert!(waits(&mut sq));
    assert!(!waits(&mut sq));
    invalidates(&mut sq);
    // Takes the wait, and gives it back.
    sq.start();
    sq.operation(1, 0, SendOp::Send);
    sq.abort();
    assert!(waits(&mut sq));
    invalidates(&mut sq);
    assert!(waits(&mut sq));
    invalidates(&mut sq);
    sq.start();
    sq.abort();
    assert!(waits(&mut sq), "what the build before the last one began with is forgotten");
    invalidates(&mut sq);
    assert!(waits(&mut sq));
    sq.start();
    sq.abort();
    assert!(!waits(&mut sq), "the same, of one that was completed as usual");
}

#[test]
fn a_register_that_others_ring_too_is_told_of_a_post_in_its_turn() {
    let mut world = world(resp(), Env { total_uuars: 2, low_lat_uuars: 0, ..env() });
    let cq = world.cq(7, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let bf = world.bf.recv().unwrap();
    let mut sges = [SGE];
    let mut wr = send(1, IBV_WR_SEND, &mut sges);
    // SAFETY: a valid request that outlives its use.
    let one = unsafe { SendWrs::from_ptr(&raw mut wr) }.only().unwrap();
    let mut sq = qp.qp.sq.lock();
    // Nobody owns the register's lock yet: it takes a call.
    let Posted::Untold { last, burst } = sq.post_single::<IBV_WR_SEND>(one, single(one).unwrap()) else {
        panic!("told")
    };
    assert_eq!((last, burst, qp.db.be32(4)), (0, 2, 0));
    sq.tell(last, burst);
    drop(sq);
    assert_eq!(qp.db.be32(4), 1);
    assert_eq!(bf.bytes(0x800, 32), qp.sq.bytes(0, 32));
}

#[test]
fn behind_a_closed_register_all_is_kept() {
    let mut world = world(resp(), Env { total_uuars: 2, low_lat_uuars: 0, ..env() });
    let cq = world.cq(31, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 16, ..CAP }, None);
    let bf = world.bf.recv().unwrap();
    assert!(qp.qp.shares_doorbell());
    let mut sges = [SGE];
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut sges)]).unwrap();
    let told = || (qp.db.be32(4), bf.bytes(0x800, 1024));
    let before = told();
    assert_eq!(before.0, 1);
    world.device.life.note(Sign::Early);
    world.family.close_doorbells();
    assert!(world.family.is_quiet() && qp.qp.is_quiet());
    // While its own gate is open still, and behind it.
    for first in [2, 7] {
        post(&qp.qp, &mut [send(first, IBV_WR_SEND, &mut sges)]).unwrap();
        let mut again = [SGE];
        let mut list = [send(first + 1, IBV_WR_SEND, &mut sges), send(first + 2, IBV_WR_SEND, &mut again)];
        post(&qp.qp, &mut list).unwrap();
        let mut sq = qp.qp.sq.lock();
        sq.start();
        sq.operation(first + 3, IBV_SEND_SIGNALED, SendOp::Send);
        sq.set_sge(SGE);
        assert!(!sq.complete_usual());
        assert_eq!(sq.complete(), Ok(false));
        let mut wr = send(first + 4, IBV_WR_SEND, &mut sges);
        // SAFETY: a valid request that outlives its use.
        let one = unsafe { SendWrs::from_ptr(&raw mut wr) }.only().unwrap();
        match sq.post_single::<IBV_WR_SEND>(one, single(one).unwrap()) {
            Posted::Untold { last, burst } => sq.tell(last, burst),
            Posted::Not => {
                drop(sq);
                post(&qp.qp, &mut [wr]).unwrap();
            }
            Posted::Told => panic!("told"),
        }
        assert_eq!(told(), before, "the device hears of it");
        qp.qp.close();
    }
    world.device.life.note(Sign::Final);
    assert_eq!(cq.ids(16), (1..=11).collect::<Vec<_>>());
}

#[test]
fn a_machine_without_write_combining_rings_plain_doorbells() {
    let world = World::plain();
    world.kernel.ioctl(ids::UAR_OBJ_ALLOC, |_| Err(Errno::EOPNOTSUPP));
    let register = world.family.register(None);
    assert_eq!(register.unwrap().unwrap().register.place, Place::Page(NC_PAGE));
}

#[test]
fn registers_are_a_qps_own_then_shared_then_used_again() {
    let world = world(resp(), Env { total_uuars: 6, low_lat_uuars: 4, ..env() });
    for _ in 0..2 {
        world.kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
            answer_uar(io, BF_PAGE);
            Ok(())
        });
        world.kernel.mmap(FD.fd, u64::from(BF_PAGE) << 12, |_| Ok(()));
    }
    let own: Vec<_> = (0..4).map(|_| world.family.register(None).unwrap().unwrap()).collect();
    for (at, register) in own.iter().enumerate() {
        assert!(own.iter().skip(at + 1).all(|other| !Arc::ptr_eq(&register.register, &other.register)));
    }
    world.kernel.ioctl(ids::UAR_OBJ_ALLOC, |_| Err(Errno::ENOMEM));
    let without = world.family.register(None).unwrap().unwrap();
    assert_eq!(without.register.place, Place::Page(NC_PAGE), "none left: a plain doorbell");
    let first = own.first().unwrap().register.clone();
    drop(own);
    let again: Vec<_> = (0..4).map(|_| world.family.register(None).unwrap().unwrap()).collect();
    assert!(again.iter().any(|register| Arc::ptr_eq(&register.register, &first)));
    world.kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
        answer_uar(io, BF_PAGE + 1);
        Ok(())
    });
    world.kernel.mmap(FD.fd, u64::from(BF_PAGE + 1) << 12, |_| Ok(()));
    let td = world.family.alloc_td(&world.device).unwrap();
    let pd = world.family.parent_domain(&Pd::default(), Some(&td));
    assert!(world.family.is_single_threaded(Some(&pd)) && !world.family.is_single_threaded(None));
    let register = world.family.register(Some(&pd)).unwrap().unwrap();
    assert!(Arc::ptr_eq(&register.register, &td.register.register));
}

#[test]
fn a_kernel_that_chooses_registers_names_one_that_there_is() {
    let kernel = Kernel::scripted();
    let resp = wire::AllocUcontextResp { tot_bfregs: 4, ..resp() };
    for index in 0..2 {
        kernel.mmap(FD.fd, wire::mmap_offset(wire::MMAP_REGULAR_PAGE, index, 4096), |_| Ok(()));
    }
    let env = Env { total_uuars: 4, low_lat_uuars: 1, ..env() };
    let uars = Uars::new(FD, &resp, &env).unwrap();
    assert!(uars.kernel_chooses() && uars.cq.page_id.is_none());
    assert_eq!(uars.chosen(0).unwrap().register.half(), 0);
    assert_eq!(uars.chosen(7).unwrap().register.half(), 256);
    assert_eq!(uars.chosen(8).unwrap_err(), Errno::EPROTO);
}

#[test]
fn a_context_that_cannot_be_is_refused() {
    let ask = |answer: wire::AllocUcontextResp| {
        let kernel = Kernel::scripted();
        kernel.ioctl(ids::GET_CONTEXT, move |io| {
            let req: wire::AllocUcontextReq = io.read(ids::UHW_IN);
            assert_eq!((req.max_cqe_version, req.lib_caps), (1, 3));
            io.answer(ids::GET_CONTEXT_NUM_COMP_VECTORS, &1_u32);
            io.answer(ids::GET_CONTEXT_CORE_SUPPORT, &0_u64);
            io.output(ids::UHW_OUT, answer.as_bytes());
            Ok(())
        });
        let req = wire::AllocUcontextReq { max_cqe_version: 1, lib_caps: 3, ..Default::default() };
        wire::alloc_ucontext(FD, &req).map(drop)
    };
    assert_eq!(ask(resp()), Ok(()));
    for nonsense in [
        wire::AllocUcontextResp { response_length: 8, ..resp() },
        wire::AllocUcontextResp { response_length: 4096, ..resp() },
        wire::AllocUcontextResp { bf_reg_size: 100, ..resp() },
        wire::AllocUcontextResp { bf_reg_size: 1 << 20, ..resp() },
        wire::AllocUcontextResp { log_uar_size: 63, ..resp() },
        wire::AllocUcontextResp { max_send_wqebb: 0, ..resp() },
        wire::AllocUcontextResp { max_recv_wr: u32::MAX, ..resp() },
        wire::AllocUcontextResp { max_sq_desc_sz: 0, ..resp() },
        wire::AllocUcontextResp { cqe_version: 2, ..resp() },
        wire::AllocUcontextResp { tot_bfregs: u32::MAX, ..resp() },
    ] {
        assert_eq!(ask(nonsense), Err(Errno::EPROTO), "{nonsense:?}");
    }
}

#[test]
fn an_older_kernel_is_asked_for_less() {
    let kernel = Kernel::scripted();
    for len in [32, 24, 16] {
        kernel.ioctl(ids::GET_CONTEXT, move |io| {
            assert_eq!(io.len(ids::UHW_IN.0), len);
            Err(if len == 16 { Errno::EAGAIN } else { Errno::EOPNOTSUPP })
        });
    }
    assert_eq!(wire::alloc_ucontext(FD, &Default::default()), Err(Errno::EAGAIN));
}

#[test]
fn version_0_finds_queues_by_number() {
    let mut world = world(wire::AllocUcontextResp { cqe_version: 0, ..resp() }, env());
    let mut cq = world.cq(7, 0);
    let (srq, _, _) = world.srq(3, 1);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, Some(&srq));
    assert_eq!(qp.command.uidx, wire::UIDX_NONE);
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).unwrap();
    srq.post_recv(recv_list(&mut [recv(2, &mut [])])).unwrap();
    cq.complete(Entry::sent(0, 0, opcode_send()));
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0x77, 0));
    assert_eq!(cq.ids(4), [1, 2]);
}

proptest! {
    #[test]
    fn any_order_of_posts_and_completions_gives_each_once(
        steps in prop::collection::vec((0_u8..3, 1_usize..6, any::<bool>()), 1..120),
    ) {
        let mut world = World::plain();
        let mut cq = world.cq(63, 0);
        let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 8, ..CAP }, None);
        let limit = qp.cap.max_send_wr as usize;
        let mut sges = [SGE; 2];
        let (mut next, mut block) = (0_u64, 0_u16);
        // Posted and not completed; completed and not polled.
        let (mut posted, mut owed) = (VecDeque::new(), VecDeque::new());
        let mut retired = 0_u64;
        for (what, count, large) in steps {
            match what {
                0 => for _ in 0..count {
                    let opcode = if large { IBV_WR_ATOMIC_CMP_AND_SWP } else { IBV_WR_SEND };
                    let result = post(&qp.qp, &mut [send(next, opcode, &mut sges)]);
                    let full = (next - retired) as usize == limit;
                    prop_assert_eq!(result, if full { Err((0, Errno::ENOMEM)) } else { Ok(()) });
                    if !full {
                        posted.push_back((next, block));
                        (next, block) = (next + 1, block.wrapping_add(if large { 2 } else { 1 }));
                    }
                },
                1 => {
                    // The device completes the last of some.
                    let last = posted.drain(..count.min(posted.len())).next_back();
                    if let Some((id, counter)) = last {
                        cq.complete(Entry::sent(0, counter, opcode_send()));
                        owed.push_back(id);
                    }
                },
                _ => for id in cq.ids(count) {
                    prop_assert_eq!(Some(id), owed.pop_front());
                    retired = id + 1;
                },
            }
            let outstanding: Vec<u64> = qp.qp.outstanding().iter().map(|wr| wr.wr_id).collect();
            prop_assert_eq!(outstanding, (retired..next).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_cq_of_any_bytes_is_polled_to_an_end(data in prop::collection::vec(any::<u8>(), 4..4096)) {
        fuzz::fuzz_cq(&data);
    }

    #[test]
    fn a_decoder_reads_what_was_posted(data in prop::collection::vec(any::<u8>(), 8..512)) {
        fuzz::fuzz_wqe(&data);
    }
}

// What is owed when the device is gone.

fn opcodes(wcs: &[ibv_wc]) -> Vec<(u64, u32, u32)> {
    wcs.iter().map(|wc| (wc.wr_id, wc.status, wc.opcode)).collect()
}

const FLUSHED: u32 = IBV_WC_WR_FLUSH_ERR;

#[test]
fn what_really_completed_comes_first_and_the_rest_is_flushed_once_in_order() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 8, ..CAP }, None);
    let mut sges = [SGE];
    let mut list = [
        send(1, IBV_WR_SEND, &mut []),
        send(2, IBV_WR_RDMA_READ, &mut []),
        send(3, IBV_WR_RDMA_WRITE, &mut sges),
        send(4, IBV_WR_LOCAL_INV, &mut []),
    ];
    list[3].send_flags = 0;
    post(&qp.qp, &mut list).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(10, &mut []), recv(11, &mut [])])).unwrap();
    let (sent, received) = (qp.db.be32(4), qp.db.be32(0));

    qp.qp.close();
    assert!(qp.qp.is_quiet());
    world.device.life.note(Sign::Early);
    // Posts are kept, and the device does not hear of them.
    post(&qp.qp, &mut [send(5, IBV_WR_SEND, &mut [])]).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(12, &mut [])])).unwrap();
    assert_eq!((qp.db.be32(4), qp.db.be32(0)), (sent, received));
    assert_eq!(cq.ids(16), [0; 0], "nothing is flushed while the device may still write");
    let wr_ids = |qp: &TestQp| qp.qp.outstanding().iter().map(|wr| wr.wr_id).collect::<Vec<_>>();
    assert_eq!(wr_ids(&qp), [1, 2, 3, 4, 5, 10, 11, 12]);

    // The second send really completed, and with it the first.
    cq.complete(Entry::sent(0, 1, wqe::opcode::RDMA_READ));
    world.gone();
    assert_eq!(opcodes(&cq.poll(16).unwrap()), [(2, IBV_WC_SUCCESS, IBV_WC_RDMA_READ)]);
    let flushed = cq.poll(4).unwrap();
    assert_eq!(
        opcodes(&flushed),
        [
            (3, FLUSHED, IBV_WC_RDMA_WRITE),
            (4, FLUSHED, IBV_WC_LOCAL_INV),
            (5, FLUSHED, IBV_WC_SEND),
            (10, FLUSHED, IBV_WC_RECV)
        ]
    );
    assert!(flushed.iter().all(|wc| wc.qp_num == QPN && wc.vendor_err == 0xf9));
    assert_eq!(cq.ids(16), [11, 12]);
    assert_eq!(cq.ids(16), [0; 0]);
    // What the device writes now is not looked at.
    cq.complete(Entry::sent(0, 0, opcode_send()));
    assert_eq!(cq.ids(16), [0; 0]);
    // Posts go on being taken, up to what the queue holds, and end the same way.
    let mut many: Vec<ibv_send_wr> = (20..29).map(|id| send(id, IBV_WR_SEND, &mut [])).collect();
    assert_eq!(post(&qp.qp, &mut many), Err((8, Errno::ENOMEM)));
    assert_eq!(cq.ids(16), (20..28).collect::<Vec<_>>());
    assert_eq!((qp.db.be32(4), qp.db.be32(0)), (sent, received));
}

#[test]
fn the_extended_interface_flushes_the_same() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let mut sq = qp.qp.send_queue().lock();
    sq.start();
    sq.operation(1, 0, SendOp::Read { rkey: 1, remote_addr: 2 });
    sq.set_sge(SGE);
    assert_eq!(sq.complete(), Ok(false));
    drop(sq);
    qp.qp.close();
    let mut sq = qp.qp.send_queue().lock();
    sq.start();
    sq.operation(2, 0, SendOp::Send);
    sq.set_sge(SGE);
    assert_eq!(sq.complete(), Ok(false), "kept");
    drop(sq);
    qp.qp.post_recv(recv_list(&mut [recv(3, &mut [])])).unwrap();
    world.gone();
    assert!(cq.cq.lock().is_pending());
    let mut queue = cq.cq.lock();
    assert_eq!(queue.start(), Ok(Head { wr_id: 1, status: FLUSHED }));
    assert_eq!((queue.opcode(), queue.qp_num(), queue.vendor_err()), (IBV_WC_RDMA_READ, QPN, 0xf9));
    assert_eq!(queue.next(), Ok(Head { wr_id: 2, status: FLUSHED }));
    assert_eq!((queue.opcode(), queue.wc_flags(), queue.imm_data()), (IBV_WC_SEND, 0, 0));
    assert_eq!(queue.next(), Ok(Head { wr_id: 3, status: FLUSHED }));
    assert_eq!(queue.opcode(), IBV_WC_RECV);
    assert_eq!(queue.next(), Err(Errno::ENOENT));
    queue.end();
    assert_eq!(queue.start(), Err(Errno::ENOENT));
    assert!(!queue.is_pending());
}

#[test]
fn sends_and_receives_are_flushed_to_their_own_queues() {
    let mut world = World::plain();
    let (sends, receives) = (world.cq(63, 0), world.cq(63, 0));
    let qp = world.qp(&receives, IBV_QPT_RC, CAP, None);
    // As if it had been created with two.
    receives.cq.lock().detach(&qp.qp.owner);
    receives.cq.lock().attach(&qp.qp.owner, Role::RECEIVES);
    sends.cq.lock().attach(&qp.qp.owner, Role::SENDS);
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(2, &mut [])])).unwrap();
    qp.qp.close();
    world.gone();
    assert_eq!((receives.ids(4), sends.ids(4)), (vec![2], vec![1]));
}

#[test]
fn receives_of_an_srq_stay_and_it_goes_on_taking_them_silently() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let (srq, _, db) = world.srq(4, 1);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, Some(&srq));
    srq.post_recv(recv_list(&mut [recv(1, &mut [])])).unwrap();
    post(&qp.qp, &mut [send(2, IBV_WR_SEND, &mut [])]).unwrap();
    qp.qp.close();
    srq.close();
    assert!(srq.is_quiet());
    world.gone();
    srq.post_recv(recv_list(&mut [recv(3, &mut [])])).unwrap();
    assert_eq!(db.be32(0), 1);
    assert_eq!(cq.ids(4), [2]);
    assert_eq!(srq.outstanding().len(), 2);
}

#[test]
fn a_reset_forgets_what_was_kept_and_a_closed_queue_stays_closed() {
    let mut world = World::plain();
    let cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    let attached = Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: None };
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut [])]).unwrap();
    let record = qp.db.be32(4);
    qp.qp.close();
    world.gone();
    post(&qp.qp, &mut [send(2, IBV_WR_SEND, &mut [])]).unwrap();
    for state in [IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTS] {
        world.family.qp_entered(&qp.qp, state, &attached);
    }
    assert_eq!(cq.ids(4), [0; 0]);
    post(&qp.qp, &mut [send(3, IBV_WR_SEND, &mut [])]).unwrap();
    assert_eq!(cq.ids(4), [3]);
    assert_eq!(qp.db.be32(4), record, "the device is told nothing");
}

#[test]
fn what_can_be_known_of_outstanding_work_is_told() {
    let mut world = World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, ibv_qp_cap { max_send_wr: 8, ..CAP }, None);
    let mut list: Vec<ibv_send_wr> = (1..5).map(|id| send(id, IBV_WR_SEND, &mut [])).collect();
    post(&qp.qp, &mut list).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(10, &mut [])])).unwrap();
    qp.qp.close();
    post(&qp.qp, &mut [send(5, IBV_WR_SEND, &mut [])]).unwrap();
    qp.qp.post_recv(recv_list(&mut [recv(11, &mut [])])).unwrap();
    // The second one's completion was not polled.
    cq.complete(Entry::sent(0, 1, opcode_send()));
    let attached = Attached::<Mlx5> { pd: None, send_cq: Some(&cq.cq), recv_cq: Some(&cq.cq), srq: None };
    let fates = |world: &World| {
        let list = world.family.outstanding(&qp.qp, &attached);
        list.iter().map(|wr| (wr.wr_id, wr.fate)).collect::<Vec<_>>()
    };
    use Fate::{Executed, NotExecuted, Unknown};
    let known = [(1, Executed), (2, Executed), (3, Unknown), (4, Unknown), (5, NotExecuted)];
    assert_eq!(fates(&world), [&known[..], &[(10, Unknown), (11, NotExecuted)]].concat());
    world.gone();
    assert_eq!(cq.ids(16), [2]);
    assert_eq!(fates(&world), [&known[2..], &[(10, Unknown), (11, NotExecuted)]].concat());
    assert_eq!(cq.ids(16), [3, 4, 5, 10, 11]);
    assert_eq!(fates(&world), []);
}

#[test]
fn a_context_with_static_doorbells_is_not_shared() {
    for tot_bfregs in [0, 16] {
        let kernel = Kernel::scripted();
        kernel.ioctl(ids::QUERY_CONTEXT, move |io| {
            io.answer(ids::QUERY_CONTEXT_NUM_COMP_VECTORS, &2_u32);
            io.answer(ids::QUERY_CONTEXT_CORE_SUPPORT, &0_u64);
            io.answer(ids::QUERY_CONTEXT_RESP_UCTX, &wire::AllocUcontextResp { tot_bfregs, ..resp() });
            Ok(())
        });
        if tot_bfregs == 0 {
            kernel.ioctl(ids::UAR_OBJ_ALLOC, |io| {
                answer_uar(io, NC_PAGE);
                Ok(())
            });
            kernel.mmap(FD.fd, u64::from(NC_PAGE) << 12, |_| Ok(()));
            kernel.command(ids::write::QUERY_DEVICE, |_| Err(Errno::EIO));
            kernel.ioctl(ids::QUERY_PORT, |_| Ok(()));
        }
        match Mlx5::import(FD, ForkRanges::default()) {
            Ok(opened) => assert_eq!((tot_bfregs, opened.num_comp_vectors), (0, 2)),
            Err(error) => assert_eq!((tot_bfregs, error.errno), (16, Errno::EINVAL)),
        }
    }
}
