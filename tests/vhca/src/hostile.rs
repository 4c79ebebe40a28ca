//! A device with a driver's worth of objects and no guest around it: what a hostile guest could write to it, tests and
//! fuzz targets can.

use std::io;

use crate::device::BarMode;
use crate::journal::Journal;
use crate::memory::{self, PAGE};
use crate::objects::FIRST_UAR;
use crate::objects::qp::State;
use crate::pci::Identity;
use crate::prm::layouts::*;
use crate::prm::{Field, be32, get32, put, set};
use crate::world::World;
use crate::wqe::opcode;

/// Bytes of the guest's memory, which begins at address 0.
pub const MEMORY: u64 = 4 << 20;
/// Where in it the data of the memory key are, and how long.
pub const DATA: u64 = 0x10_0000;
/// The length of that data.
pub const DATA_LEN: u64 = 0x1_0000;

const EVENTS: u64 = 0x1_0000;
const COMPLETIONS: u64 = 0x1_1000;
const QUEUES: u64 = 0x2_0000;
const SHARED: u64 = 0x4_0000;
const RECORDS: u64 = 0x3_0000;
const CQ_RECORD: u64 = RECORDS + 0x40;
const SRQ_RECORD: u64 = RECORDS + 0x80;
const LOG_BLOCKS: u64 = 6;
const LOG_RECEIVES: u64 = 4;
const RECEIVE_BYTES: u64 = 64;
const LOG_COMPLETIONS: u64 = 6;

/// Codes of services.
const CONNECTION: u64 = 0;
const DATAGRAMS: u64 = 2;
/// The Q_Key of queue pairs here.
pub const QKEY: u32 = 0x1234;

/// A device in the hands of a driver.
#[derive(Debug)]
pub struct Bed {
    world: World,
    /// The reliable connection.
    pub qpn: u32,
    /// The completion queue of all.
    pub cqn: u32,
    /// The key of the data.
    pub key: u32,
    /// The shared receive queue, which has no work request.
    pub srqn: u32,
    eqn: u32,
    uar: u32,
    pd: u32,
    ends: [End; 2],
    on: usize,
}

/// Where an end of the connection is with its queues.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    posted: u16,
    received: u16,
    consumed: u32,
    /// Events read so far.
    events: u32,
    /// The other end's address.
    peer: u16,
}

fn command(opcode: u16, len: usize, fields: &[(Field, u64)]) -> Vec<u8> {
    let mut input = vec![0; len];
    put(&mut input, 0, &opcode.to_be_bytes());
    fields.iter().for_each(|(field, value)| set(&mut input, *field, *value));
    input
}

fn with_pages(mut input: Vec<u8>, first: u64, count: u64) -> Vec<u8> {
    (0..count).for_each(|page| input.extend((first + page * 4096).to_be_bytes()));
    input
}

fn create_eq() -> Vec<u8> {
    let size = eqc::LOG_EQ_SIZE.at(create_eq_in::EQ_CONTEXT_ENTRY);
    let all = (Field::new(create_eq_in::EVENT_BITMASK.byte() * 8, 64), 0x1f_ffff);
    with_pages(command(op::CREATE_EQ, create_eq_in::BYTES, &[(size, 6), all]), EVENTS, 1)
}

fn create_cq(eqn: u32, uar: u32) -> Vec<u8> {
    let of = |field: Field| field.at(create_cq_in::CQ_CONTEXT);
    let fields = [
        (of(cqc::LOG_CQ_SIZE), LOG_COMPLETIONS),
        (of(cqc::C_EQN_OR_APU_ELEMENT), u64::from(eqn)),
        (of(cqc::UAR_PAGE), u64::from(uar)),
        (of(cqc::DBR_ADDR), CQ_RECORD),
    ];
    with_pages(command(op::CREATE_CQ, create_cq_in::BYTES, &fields), COMPLETIONS, 1)
}

fn create_mkey(pd: u32) -> Vec<u8> {
    let of = |field: Field| field.at(create_mkey_in::MEMORY_KEY_MKEY_ENTRY);
    let pages = DATA_LEN / 4096;
    let fields = [
        (of(mkc::ACCESS_MODE_1_0), 1),
        (of(mkc::UMR_EN), 1),
        (of(mkc::LR), 1),
        (of(mkc::LW), 1),
        (of(mkc::RR), 1),
        (of(mkc::RW), 1),
        (of(mkc::A), 1),
        (of(mkc::QPN), 0xff_ffff),
        (of(mkc::PD), u64::from(pd)),
        (of(mkc::START_ADDR), DATA),
        (of(mkc::LEN), DATA_LEN),
        (of(mkc::LOG_PAGE_SIZE), 12),
        (create_mkey_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, pages / 2),
    ];
    with_pages(command(op::CREATE_MKEY, create_mkey_in::BYTES, &fields), DATA, pages)
}

fn create_rmp(pd: u32) -> Vec<u8> {
    let of = |field: Field| field.at(rmpc::WQ).at(create_rmp_in::CTX);
    let fields = [
        (of(wq::PD), u64::from(pd)),
        (of(wq::DBR_ADDR), SRQ_RECORD),
        (of(wq::LOG_WQ_STRIDE), 6),
        (of(wq::LOG_WQ_SZ), 4),
    ];
    let len = create_rmp_in::CTX.byte() + rmpc::WQ.byte() + wq::PAS.byte();
    with_pages(command(op::CREATE_RMP, len.max(create_rmp_in::BYTES), &fields), SHARED, 1)
}

fn create_qp(service: u64, pd: u32, cqn: u32, uar: u32) -> Vec<u8> {
    let of = |field: Field| field.at(create_qp_in::QPC);
    let fields = [
        (of(qpc::ST), service),
        (of(qpc::PD), u64::from(pd)),
        (of(qpc::UAR_PAGE), u64::from(uar)),
        (of(qpc::CQN_SND), u64::from(cqn)),
        (of(qpc::CQN_RCV), u64::from(cqn)),
        (of(qpc::USER_INDEX), 0xff_ffff),
        (of(qpc::DBR_ADDR), RECORDS),
        (of(qpc::LOG_RQ_SIZE), LOG_RECEIVES),
        (of(qpc::LOG_RQ_STRIDE), 2),
        (of(qpc::LOG_SQ_SIZE), LOG_BLOCKS),
    ];
    with_pages(command(op::CREATE_QP, create_qp_in::BYTES, &fields), QUEUES, 2)
}

/// The transition to a state, of a reliable connection with a queue pair of the same number.
fn modify(opcode: u16, qpn: u32, peer: u16) -> Vec<u8> {
    let of = |field: Field| field.at(rst2init_qp_in::QPC);
    let path = |field: Field| of(field.at(qpc::PRIMARY_ADDRESS_PATH));
    let fields = [
        (rst2init_qp_in::QPN, u64::from(qpn)),
        (rst2init_qp_in::OPT_PARAM_MASK, 0b1110),
        (of(qpc::RRE), 1),
        (of(qpc::RWE), 1),
        (of(qpc::RAE), 1),
        (of(qpc::Q_KEY), u64::from(QKEY)),
        (of(qpc::MTU), 3),
        (of(qpc::REMOTE_QPN), u64::from(qpn)),
        (of(qpc::MIN_RNR_NAK), 1),
        (of(qpc::RETRY_COUNT), 1),
        (of(qpc::RNR_RETRY), 1),
        (path(ads::RLID), u64::from(peer)),
        (path(ads::ACK_TIMEOUT), 1),
    ];
    command(opcode, rst2init_qp_in::BYTES, &fields)
}

impl Bed {
    /// A started device with an event queue, a completion queue, a memory key, a shared receive queue and a reliable
    /// connection to itself.
    ///
    /// # Errors
    /// Those of memory, and a command that is refused.
    pub fn new() -> io::Result<Bed> {
        let mut bed = Bed::empty();
        bed.add(CONNECTION, 1)?;
        Ok(bed)
    }

    /// As [`Bed::new`], with a queue pair for datagrams in place of the connection.
    ///
    /// # Errors
    /// As [`Bed::new`].
    pub fn datagrams() -> io::Result<Bed> {
        let mut bed = Bed::empty();
        bed.add(DATAGRAMS, 1)?;
        Ok(bed)
    }

    /// Two such devices, each with its own memory, whose connections are to each other.
    ///
    /// # Errors
    /// As [`Bed::new`].
    pub fn pair() -> io::Result<Bed> {
        let mut bed = Bed::empty();
        bed.add(CONNECTION, 2)?;
        bed.add(CONNECTION, 1)?;
        bed.on(0);
        Ok(bed)
    }

    fn empty() -> Bed {
        let world = World::new(Journal::default());
        Bed {
            world,
            qpn: 0,
            cqn: 0,
            key: 0,
            srqn: 0,
            eqn: 0,
            uar: 0,
            pd: 0,
            ends: [End::default(); 2],
            on: 0,
        }
    }

    /// Adds a device. The numbers of its objects are the same for each.
    fn add(&mut self, service: u64, peer: u16) -> io::Result<()> {
        self.on = self.world.add(Identity::Physical, BarMode::Trapped)?;
        self.end().peer = peer;
        if let Some(device) = self.world.devices.get_mut(self.on) {
            device.memory.map(0, MEMORY, &memory::anonymous(MEMORY)?, 0)?;
            device.config.write(4, &[0x06, 0]);
        }
        self.create(&command(op::INIT_HCA, 16, &[]))?;
        self.uar = self.create(&command(op::ALLOC_UAR, 16, &[]))?;
        self.pd = self.create(&command(op::ALLOC_PD, 16, &[]))?;
        self.eqn = self.create(&create_eq())?;
        self.cqn = self.create(&create_cq(self.eqn, self.uar))?;
        self.key = self.create(&create_mkey(self.pd))? << 8;
        self.srqn = self.create(&create_rmp(self.pd))?;
        self.qpn = self.create(&create_qp(service, self.pd, self.cqn, self.uar))?;
        self.connect()
    }

    /// Takes a device for what follows.
    pub fn on(&mut self, device: usize) {
        self.on = device.min(self.ends.len() - 1);
    }

    fn end(&mut self) -> &mut End {
        let [first, second] = &mut self.ends;
        if self.on == 0 { first } else { second }
    }

    fn at(&self) -> End {
        let [first, second] = self.ends;
        if self.on == 0 { first } else { second }
    }

    /// Runs a command that has to succeed; the number that it answers with.
    fn create(&mut self, input: &[u8]) -> io::Result<u32> {
        let output = self.command(input, 16);
        match output.first() {
            Some(0) => Ok(be32(&output, 8) & 0xff_ffff),
            status => Err(io::Error::other(format!("command {:#x}: {status:?}", be32(input, 0) >> 16))),
        }
    }

    /// Brings the queue pair from wherever it is to where it sends.
    ///
    /// # Errors
    /// A command that is refused.
    pub fn connect(&mut self) -> io::Result<()> {
        let reset = command(op::TO_RST_QP, 16, &[(rst2init_qp_in::QPN, u64::from(self.qpn))]);
        self.create(&reset)?;
        (self.end().posted, self.end().received) = (0, 0);
        self.write(RECORDS, &[0; 8]);
        for opcode in [op::RST2INIT_QP, op::INIT2RTR_QP, op::RTR2RTS_QP] {
            self.create(&modify(opcode, self.qpn, self.at().peer))?;
        }
        Ok(())
    }

    /// Attaches the queue pair to a multicast group.
    ///
    /// # Errors
    /// A command that is refused.
    pub fn join(&mut self, gid: [u8; 16]) -> io::Result<()> {
        let mut input = command(
            op::ATTACH_TO_MCG,
            attach_to_mcg_in::BYTES,
            &[(attach_to_mcg_in::QPN, u64::from(self.qpn))],
        );
        put(&mut input, attach_to_mcg_in::MULTICAST_GID.byte(), &gid);
        self.create(&input).map(drop)
    }

    /// Asks for an event when the shared receive queue has fewer work requests than `limit`.
    ///
    /// # Errors
    /// A command that is refused.
    pub fn arm(&mut self, limit: u16) -> io::Result<()> {
        let fields = [(arm_rq_in::SRQ_NUMBER, u64::from(self.srqn)), (arm_rq_in::LWM, u64::from(limit))];
        let mut input = command(op::ARM_RQ, arm_rq_in::BYTES, &fields);
        set(&mut input, arm_rq_in::OP_MOD, 1);
        self.create(&input).map(drop)
    }

    /// Executes a command as the driver would give it.
    pub fn command(&mut self, input: &[u8], output_len: usize) -> Vec<u8> {
        let env = &mut self.world.env;
        self.world
            .devices
            .get_mut(self.on)
            .map_or(Vec::new(), |device| device.execute(env, input, output_len))
    }

    /// Sound commands, one of each kind, for mutation.
    #[must_use]
    pub fn commands(&self) -> Vec<Vec<u8>> {
        let (pd, cqn, uar, qpn) = (self.pd, self.cqn, self.uar, self.qpn);
        let mut all = vec![
            create_eq(),
            create_cq(1, uar),
            create_mkey(pd),
            create_rmp(pd),
            create_qp(CONNECTION, pd, cqn, uar),
            create_qp(DATAGRAMS, pd, cqn, uar),
            command(op::MODIFY_CQ, modify_cq_in::BYTES + 8, &[(modify_cq_in::CQN, u64::from(cqn))]),
        ];
        for opcode in [op::RST2INIT_QP, op::INIT2RTR_QP, op::RTR2RTS_QP, op::RTS2RTS_QP] {
            all.push(modify(opcode, qpn, self.at().peer));
        }
        for (opcode, _) in OPCODES {
            all.push(command(*opcode, 272, &[(rst2init_qp_in::QPN, u64::from(qpn))]));
        }
        all
    }

    /// Sound work requests, one of each kind, for mutation.
    #[must_use]
    pub fn requests(&self) -> Vec<Vec<u8>> {
        let remote = [&DATA.to_be_bytes()[..], &self.key.to_be_bytes(), &[0; 4]].concat();
        let piece =
            [&64u32.to_be_bytes()[..], &self.key.to_be_bytes(), &(DATA + 0x100).to_be_bytes()].concat();
        let short =
            [&8u32.to_be_bytes()[..], &self.key.to_be_bytes(), &(DATA + 0x100).to_be_bytes()].concat();
        let inline = [&0x8000_000cu32.to_be_bytes()[..], b"twelve bytes"].concat();
        let operands = [1u64.to_be_bytes(), 0u64.to_be_bytes()].concat();
        let registration = vec![0; 48 + 64 + 64];
        let with = |code: u8, parts: &[&[u8]]| self.request(code, &parts.concat());
        vec![
            with(opcode::NOP, &[]),
            with(opcode::SEND, &[&piece, &inline]),
            with(opcode::SEND_IMMEDIATE, &[&piece]),
            with(opcode::SEND_INVALIDATE, &[&piece]),
            with(opcode::WRITE, &[&remote, &piece, &piece]),
            with(opcode::WRITE_IMMEDIATE, &[&remote, &inline]),
            with(opcode::READ, &[&remote, &piece]),
            with(opcode::COMPARE_SWAP, &[&remote, &operands, &short]),
            with(opcode::FETCH_ADD, &[&remote, &operands, &short]),
            with(opcode::UMR, &[&registration]),
        ]
    }

    /// A work request of the queue pair: a control segment, signaled, and what follows it.
    #[must_use]
    pub fn request(&self, code: u8, rest: &[u8]) -> Vec<u8> {
        let ds = u32::try_from(1 + rest.len().div_ceil(16)).unwrap_or(0x3f);
        let mut bytes = Vec::new();
        bytes.extend((u32::from(self.at().posted) << 8 | u32::from(code)).to_be_bytes());
        bytes.extend((self.qpn << 8 | ds).to_be_bytes());
        bytes.extend([0, 0, 0, 0x08, 0, 0, 0, 0]);
        bytes.extend_from_slice(rest);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        bytes
    }

    /// Posts a receive of one piece.
    pub fn post_receive(&mut self, address: u64, len: u32) {
        let slot = u64::from(self.at().received) % (1 << LOG_RECEIVES) * RECEIVE_BYTES;
        let piece = [&len.to_be_bytes()[..], &self.key.to_be_bytes(), &address.to_be_bytes()].concat();
        let end = [&[0; 4][..], &0x100u32.to_be_bytes(), &[0; 8]].concat();
        self.write(QUEUES + slot, &[piece, end].concat());
        let received = self.at().received.wrapping_add(1);
        self.end().received = received;
        self.write(RECORDS, &u32::from(received).to_be_bytes());
    }

    /// Posts a work request, rings for it and lets the device work.
    pub fn post(&mut self, request: &[u8]) {
        let receives = RECEIVE_BYTES << LOG_RECEIVES;
        let mut blocks = 0u16;
        for block in request.chunks(64) {
            let slot = u64::from(self.at().posted.wrapping_add(blocks)) % (1 << LOG_BLOCKS) * 64;
            self.write(QUEUES + receives + slot, block);
            blocks += 1;
        }
        let posted = self.at().posted.wrapping_add(blocks);
        self.end().posted = posted;
        self.write(RECORDS + 4, &u32::from(posted).to_be_bytes());
        let doorbell = request.get(..request.len().min(8)).unwrap_or(&[]).to_vec();
        self.store(0x800, &doorbell);
        self.work();
    }

    /// Stores to the doorbell page.
    pub fn store(&mut self, at: usize, bytes: &[u8]) {
        let page = usize::try_from(self.uar.max(FIRST_UAR)).unwrap_or(0);
        self.world.store(self.on, page * PAGE + at, bytes);
    }

    /// Lets the device work until it has nothing to do, and a little time pass.
    pub fn work(&mut self) {
        for _ in 0..8 {
            self.world.env.now += 1_000_000;
            (0..self.ends.len()).for_each(|device| {
                self.world.run_queues(device);
            });
        }
    }

    /// Completions written since the last call: opcode and syndrome (0 in success) of each. The queue is as good as consumed.
    pub fn completions(&mut self) -> Vec<(u8, u8)> {
        const FIRST_ERROR: u32 = 0xd;
        let produced = self.world.devices.get(self.on).and_then(|device| device.objects.cqs.get(self.cqn));
        let produced = produced.map_or(0, |cq| cq.producer);
        let mut list = Vec::new();
        let mut consumed = self.at().consumed;
        while consumed != produced {
            let mut entry = [0; 64];
            self.read(COMPLETIONS + u64::from(consumed) % (1 << LOG_COMPLETIONS) * 64, &mut entry);
            let kind = get32(&entry, Field::new(504, 4));
            // In a successful completion these are bits of the time.
            list.push((kind, if kind < FIRST_ERROR { 0 } else { get32(&entry, Field::new(440, 8)) }));
            consumed = consumed.wrapping_add(1);
        }
        self.end().consumed = consumed;
        self.write(CQ_RECORD, &(consumed & 0xff_ffff).to_be_bytes());
        let byte = |value: u32| u8::try_from(value).unwrap_or(0);
        list.into_iter().map(|(kind, syndrome)| (byte(kind), byte(syndrome))).collect()
    }

    /// Events raised since the last call: type, subtype, and the number of the queue that it is about (0: of the port).
    pub fn events(&mut self) -> Vec<(u8, u8, u32)> {
        const PORT_CHANGE: u8 = 0x09;
        const CQ_ERROR: u8 = 0x04;
        let produced = self.world.devices.get(self.on).and_then(|device| device.objects.eqs.get(self.eqn));
        let produced = produced.map_or(0, |queue| queue.producer);
        let mut list = Vec::new();
        for index in self.at().events..produced {
            let mut entry = [0; 64];
            self.read(EVENTS + u64::from(index) % 64 * 64, &mut entry);
            let [_, event, _, subtype, ..] = entry;
            let number = match event {
                PORT_CHANGE => 0,
                CQ_ERROR => be32(&entry, 32),
                _ => be32(&entry, 56),
            };
            list.push((event, subtype, number));
        }
        self.end().events = produced;
        list
    }

    /// Does the queue pair still send?
    #[must_use]
    pub fn sends(&self) -> bool {
        let qp = self.world.devices.get(self.on).and_then(|device| device.objects.qps.get(self.qpn));
        qp.is_some_and(|qp| qp.state == State::ReadyToSend)
    }

    /// Reads the guest's memory.
    pub fn read(&self, address: u64, to: &mut [u8]) {
        let read = self.world.devices.get(self.on).map(|device| device.memory.read(address, to));
        debug_assert_eq!(read, Some(Ok(())));
    }

    /// Writes the guest's memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let written = self.world.devices.get(self.on).map(|device| device.memory.write(address, bytes));
        debug_assert_eq!(written, Some(Ok(())));
    }

    /// Runs a command of the control socket.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn control(&mut self, line: &str) -> Result<String, String> {
        self.world.command(line)
    }
}
