//! Queue pairs: state, queues and the context that the driver reads back.

use super::Buffer;
use crate::prm::layouts::{ads, qpc};
use crate::prm::{self, Field, get, get32};
use crate::wqe::Service;

/// States of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Reset = 0,
    Init = 1,
    ReadyToReceive = 2,
    ReadyToSend = 3,
    SendError = 4,
    Drained = 5,
    Error = 6,
}

impl State {
    /// Its name in the journal.
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Reset => "reset",
            State::Init => "init",
            State::ReadyToReceive => "rtr",
            State::ReadyToSend => "rts",
            State::SendError => "sqe",
            State::Drained => "sqd",
            State::Error => "error",
        }
    }
}

/// Queue pairs that carry management datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    SubnetManagement,
    GeneralServices,
}

/// A send queue.
#[derive(Debug)]
pub(crate) struct SendQueue {
    pub(crate) buffer: Buffer,
    pub(crate) log_blocks: u32,
    pub(crate) cqn: u32,
    /// Blocks executed, and blocks that a doorbell has announced.
    pub(crate) consumer: u16,
    pub(crate) producer: u16,
    /// One past the block of the last work request that a doorbell named.
    pub(crate) announced: u16,
    /// Not before this time; `u64::MAX`: not until something changes.
    pub(crate) wait_until: u64,
    /// Tries left of the request at the head, and those left of a receiver that is not ready.
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    /// The request at the head is on a slow wire.
    pub(crate) under_way: bool,
    /// It was executed by the peer, but the answer was lost: executing it again is a duplicate.
    pub(crate) answer: Option<crate::transport::Reply>,
    /// It is under way to another process: what the answer will be named by, and the answer once it is there.
    pub(crate) awaited: Option<u64>,
    pub(crate) came: Option<crate::transport::Reply>,
}

impl SendQueue {
    pub(crate) fn new(buffer: Buffer, log_blocks: u32, cqn: u32) -> SendQueue {
        SendQueue {
            buffer,
            log_blocks,
            cqn,
            consumer: 0,
            producer: 0,
            announced: 0,
            wait_until: 0,
            retries: 0,
            rnr_retries: 0,
            under_way: false,
            answer: None,
            awaited: None,
            came: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.consumer == self.producer
    }

    /// Guest address of a block.
    pub(crate) fn address(&self, block: u16) -> Option<u64> {
        self.buffer.address((u64::from(block) & ((1 << self.log_blocks) - 1)) * 64)
    }
}

/// Where a queue pair's receives come from.
#[derive(Debug)]
pub(crate) enum Receive {
    None,
    Own { buffer: Buffer, log_size: u32, log_stride: u32, consumer: u16 },
    Shared(u32),
}

/// A queue pair, or a send queue on its own.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) service: Service,
    pub(crate) special: Option<Special>,
    pub(crate) state: State,
    pub(crate) send: Option<SendQueue>,
    pub(crate) receive: Receive,
    /// The context, as commands read and write it.
    pub(crate) context: Vec<u8>,
    pub(crate) pages: Vec<u8>,
    pub(crate) cached: Cached,
    /// The first message came in.
    pub(crate) established: bool,
    /// A request for the event of a drained send queue.
    pub(crate) draining: bool,
}

/// What the data path needs of the context at each message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cached {
    pub(crate) pd: u32,
    pub(crate) uar: u32,
    pub(crate) uidx: u32,
    pub(crate) record: u64,
    pub(crate) receive_cqn: u32,
    pub(crate) remote_qpn: u32,
    pub(crate) remote_lid: u16,
    pub(crate) mtu: u32,
    pub(crate) xrcd: u32,
    pub(crate) qkey: u32,
    pub(crate) source_qpn: u32,
    pub(crate) remote_read: bool,
    pub(crate) remote_write: bool,
    pub(crate) remote_atomic: bool,
    /// Data of up to so many bytes goes to the completion: of responses, and of receives.
    pub(crate) inline_response: usize,
    pub(crate) inline_receive: usize,
}

/// Fields that a transition takes from the command's context, whatever its mask says.
const PATH: Field = qpc::PRIMARY_ADDRESS_PATH;
const TO_INIT: &[Field] = &[
    qpc::PM_STATE,
    qpc::Q_KEY,
    qpc::RRE,
    qpc::RWE,
    qpc::RAE,
    qpc::ATOMIC_MODE,
    ads::PKEY_INDEX.at(PATH),
    ads::VHCA_PORT_NUM.at(PATH),
];
const TO_RTR: &[Field] = &[
    qpc::MTU,
    qpc::LOG_MSG_MAX,
    qpc::REMOTE_QPN,
    qpc::LOG_RRA_MAX,
    qpc::MIN_RNR_NAK,
    qpc::NEXT_RCV_PSN,
    ads::GRH.at(PATH),
    ads::MLID.at(PATH),
    ads::RLID.at(PATH),
    ads::SRC_ADDR_INDEX.at(PATH),
    ads::STAT_RATE.at(PATH),
    ads::HOP_LIMIT.at(PATH),
    ads::TCLASS.at(PATH),
    ads::FLOW_LABEL.at(PATH),
    ads::RGID_RIP.at(PATH),
    ads::SL.at(PATH),
];
const TO_RTS: &[Field] =
    &[qpc::LOG_SRA_MAX, qpc::RETRY_COUNT, qpc::RNR_RETRY, qpc::NEXT_SEND_PSN, ads::ACK_TIMEOUT.at(PATH)];

/// Bits of a transition's mask, and the fields that each stands for.
const OPTIONAL: &[(u64, &[Field])] = &[
    (1 << 1, &[qpc::RRE]),
    (1 << 2, &[qpc::RAE, qpc::ATOMIC_MODE]),
    (1 << 3, &[qpc::RWE]),
    (1 << 4, &[ads::PKEY_INDEX.at(PATH)]),
    (1 << 5, &[qpc::Q_KEY]),
    (1 << 6, &[qpc::MIN_RNR_NAK]),
    (1 << 7, &[PATH]),
    (1 << 8, &[qpc::LOG_SRA_MAX]),
    (1 << 9, &[qpc::LOG_RRA_MAX]),
    (1 << 10, &[qpc::PM_STATE]),
    (1 << 12, &[qpc::RETRY_COUNT]),
    (1 << 13, &[qpc::RNR_RETRY]),
    (1 << 14, &[ads::ACK_TIMEOUT.at(PATH)]),
    (1 << 25, &[qpc::COUNTER_SET_ID]),
];

impl Qp {
    pub(crate) fn new(service: Service, context: Vec<u8>) -> Qp {
        let mut qp = Qp {
            service,
            special: None,
            state: State::Reset,
            send: None,
            receive: Receive::None,
            context,
            pages: Vec::new(),
            cached: Cached::default(),
            established: false,
            draining: false,
        };
        qp.refresh();
        qp
    }

    /// Takes over what a transition to `state` brings.
    pub(crate) fn transition(&mut self, state: State, mask: u64, context: &[u8]) {
        let required: &[Field] = match (self.state, state) {
            (State::Reset, State::Init) => TO_INIT,
            (State::Init, State::ReadyToReceive) => TO_RTR,
            (State::ReadyToReceive, State::ReadyToSend) => TO_RTS,
            _ => &[],
        };
        let optional =
            OPTIONAL.iter().filter(|(bit, _)| mask & bit != 0).flat_map(|(_, fields)| fields.iter());
        for field in required.iter().chain(optional) {
            prm::copy(context, &mut self.context, *field);
        }
        self.set_state(state);
        self.refresh();
    }

    /// Changes the state and nothing else, but for a reset, which empties the queues.
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
        prm::set(&mut self.context, qpc::STATE, state as u64);
        match (state, &mut self.send) {
            (State::Reset, send) => {
                if let Some(queue) = send.as_mut() {
                    *queue = SendQueue::new(queue.buffer.clone(), queue.log_blocks, queue.cqn);
                }
                if let Receive::Own { consumer, .. } = &mut self.receive {
                    *consumer = 0;
                }
                self.established = false;
                self.draining = false;
            }
            (_, Some(queue)) => queue.wait_until = 0,
            _ => {}
        }
        self.rewind();
    }

    /// Gives the request at the head of the send queue all its tries.
    pub(crate) fn rewind(&mut self) {
        let retries = u8::try_from(get(&self.context, qpc::RETRY_COUNT)).unwrap_or(7);
        let rnr_retries = u8::try_from(get(&self.context, qpc::RNR_RETRY)).unwrap_or(7);
        if let Some(queue) = &mut self.send {
            queue.retries = retries;
            queue.rnr_retries = rnr_retries;
            queue.under_way = false;
            queue.answer = None;
            queue.awaited = None;
            queue.came = None;
        }
    }

    fn refresh(&mut self) {
        let context = &self.context;
        let inline = |field| match get(context, field) & 0x3 {
            1 => 32,
            2 => 64,
            _ => 0,
        };
        let deth = get32(context, qpc::DETH_SQPN);
        self.cached = Cached {
            pd: get32(context, qpc::PD),
            uar: get32(context, qpc::UAR_PAGE),
            uidx: get32(context, qpc::USER_INDEX),
            record: get(context, qpc::DBR_ADDR),
            receive_cqn: get32(context, qpc::CQN_RCV),
            remote_qpn: get32(context, qpc::REMOTE_QPN),
            remote_lid: u16::try_from(get(context, ads::RLID.at(PATH))).unwrap_or(0),
            mtu: 128 << get32(context, qpc::MTU).clamp(1, 5),
            xrcd: get32(context, qpc::XRCD),
            qkey: get32(context, qpc::Q_KEY),
            source_qpn: deth,
            remote_read: prm::flag(context, qpc::RRE),
            remote_write: prm::flag(context, qpc::RWE),
            remote_atomic: prm::flag(context, qpc::RAE),
            inline_response: inline(qpc::CS_REQ),
            inline_receive: inline(qpc::CS_RES),
        };
    }

    /// Nanoseconds until an unanswered request is sent again; `None`: never.
    pub(crate) fn ack_timeout(&self) -> Option<u64> {
        match get(&self.context, ads::ACK_TIMEOUT.at(PATH)) {
            0 => None,
            exponent => Some(4096 << exponent),
        }
    }

    /// Nanoseconds that a sender shall wait when no receive is posted here.
    pub(crate) fn rnr_delay(&self) -> u64 {
        /// The IB specification's table of RNR timers, in units of 10 microseconds.
        const TIMERS: [u64; 32] = [
            65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536,
            2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
        ];
        let code = usize::try_from(get(&self.context, qpc::MIN_RNR_NAK)).unwrap_or(0);
        TIMERS.get(code).copied().unwrap_or(1) * 10_000
    }

    /// Counts the packets of a message in the sequence number that `field` holds.
    pub(crate) fn count_packets(&mut self, field: Field, len: u64) {
        let packets = len.div_ceil(u64::from(self.cached.mtu)).max(1);
        let next = get(&self.context, field).wrapping_add(packets) & 0xff_ffff;
        prm::set(&mut self.context, field, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_takes_what_it_needs_and_what_the_mask_says() {
        let mut qp = Qp::new(Service::Rc, vec![0; qpc::BYTES]);
        let mut given = vec![0; qpc::BYTES];
        for (field, value) in [(qpc::RRE, 1), (qpc::RWE, 1), (qpc::REMOTE_QPN, 9), (ads::RLID.at(PATH), 3)] {
            prm::set(&mut given, field, value);
        }
        qp.transition(State::Init, 0, &given);
        assert_eq!((qp.cached.remote_read, qp.cached.remote_write, qp.cached.remote_qpn), (true, true, 0));
        let mut given = given.clone();
        prm::set(&mut given, qpc::RRE, 0);
        prm::set(&mut given, qpc::RWE, 0);
        qp.transition(State::ReadyToReceive, 1 << 1, &given);
        assert_eq!((qp.cached.remote_read, qp.cached.remote_write), (false, true));
        assert_eq!((qp.cached.remote_qpn, qp.cached.remote_lid), (9, 3));
        assert_eq!(get(&qp.context, qpc::STATE), 2);
    }
}
