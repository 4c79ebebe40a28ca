//! Completion queues and completions.

use super::Buffer;

/// Kinds of completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Requester = 0x0,
    ReceivedWriteImmediate = 0x1,
    ReceivedSend = 0x2,
    ReceivedSendImmediate = 0x3,
    ReceivedSendInvalidate = 0x4,
    Resized = 0x5,
    RequesterError = 0xd,
    ResponderError = 0xe,
}

/// What went wrong, as a completion says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Syndrome {
    LocalLength = 0x01,
    LocalOperation = 0x02,
    LocalProtection = 0x04,
    Flushed = 0x05,
    WindowBind = 0x06,
    LocalAccess = 0x11,
    RemoteInvalidRequest = 0x12,
    RemoteAccess = 0x13,
    RemoteOperation = 0x14,
    RetriesExceeded = 0x15,
    RnrRetriesExceeded = 0x16,
}

impl Syndrome {
    /// The syndrome that a command of the control socket names.
    pub(crate) fn parse(name: &str) -> Option<Syndrome> {
        use Syndrome::*;
        let all = [
            LocalLength,
            LocalOperation,
            LocalProtection,
            Flushed,
            WindowBind,
            LocalAccess,
            RemoteInvalidRequest,
            RemoteAccess,
            RemoteOperation,
            RetriesExceeded,
            RnrRetriesExceeded,
        ];
        all.into_iter().find(|syndrome| syndrome.name() == name)
    }

    /// Its name in the journal and on the control socket.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Syndrome::LocalLength => "local-length",
            Syndrome::LocalOperation => "local-operation",
            Syndrome::LocalProtection => "local-protection",
            Syndrome::Flushed => "flushed",
            Syndrome::WindowBind => "window-bind",
            Syndrome::LocalAccess => "local-access",
            Syndrome::RemoteInvalidRequest => "remote-invalid-request",
            Syndrome::RemoteAccess => "remote-access",
            Syndrome::RemoteOperation => "remote-operation",
            Syndrome::RetriesExceeded => "retries-exceeded",
            Syndrome::RnrRetriesExceeded => "rnr-retries-exceeded",
        }
    }

    /// The vendor's own code, as tools print it for real devices.
    fn vendor(self) -> u8 {
        match self {
            Syndrome::Flushed => 0xf9,
            Syndrome::RetriesExceeded => 0x81,
            Syndrome::RnrRetriesExceeded => 0x97,
            Syndrome::RemoteAccess => 0x88,
            Syndrome::RemoteInvalidRequest => 0x8a,
            Syndrome::RemoteOperation => 0x89,
            Syndrome::LocalProtection => 0x51,
            _ => 0x50,
        }
    }
}

/// A completion, before it takes its place in a queue.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) kind: Kind,
    pub(crate) qpn: u32,
    /// The owner's index of the queue pair or shared receive queue, or the number of the latter.
    pub(crate) srqn_uidx: u32,
    pub(crate) counter: u16,
    /// The send queue's opcode that completes.
    pub(crate) send_opcode: u8,
    pub(crate) length: u32,
    /// Immediate data, invalidated key or P_Key index.
    pub(crate) immediate: u32,
    pub(crate) source_lid: u16,
    /// Global route flag, service level and source queue pair of a datagram.
    pub(crate) flags_rqpn: u32,
    pub(crate) path_bits: u8,
    pub(crate) solicited: bool,
    pub(crate) syndrome: Option<Syndrome>,
    /// Data that is scattered to the completion itself.
    pub(crate) inline: Option<Vec<u8>>,
    pub(crate) timestamp: u64,
}

impl Completion {
    pub(crate) fn new(kind: Kind, qpn: u32, srqn_uidx: u32, counter: u16) -> Completion {
        Completion {
            kind,
            qpn,
            srqn_uidx,
            counter,
            send_opcode: 0,
            length: 0,
            immediate: 0,
            source_lid: 0,
            flags_rqpn: 0,
            path_bits: 0,
            solicited: false,
            syndrome: None,
            inline: None,
            timestamp: 0,
        }
    }

    /// A completion in error.
    pub(crate) fn error(
        kind: Kind,
        qpn: u32,
        srqn_uidx: u32,
        counter: u16,
        syndrome: Syndrome,
    ) -> Completion {
        Completion { syndrome: Some(syndrome), ..Completion::new(kind, qpn, srqn_uidx, counter) }
    }

    /// The bytes of an entry of `size` (64 or 128); the last one holds the ownership bit.
    pub(crate) fn encode(&self, size: usize, owner: u8) -> Vec<u8> {
        let mut entry = vec![0; size];
        let mut format = 0;
        if let Some(data) = &self.inline {
            format = if data.len() <= 32 && size == 64 { 0x4 } else { 0x8 };
            crate::prm::put(&mut entry, 0, data);
        }
        let Some(tail) = entry.get_mut(size.saturating_sub(64)..) else { return entry };
        let mut put = |at: usize, bytes: &[u8]| crate::prm::put(tail, at, bytes);
        put(32, &self.srqn_uidx.to_be_bytes());
        put(56, &(u32::from(self.send_opcode) << 24 | self.qpn & 0xff_ffff).to_be_bytes());
        put(60, &self.counter.to_be_bytes());
        if let Some(syndrome) = self.syndrome {
            put(54, &[syndrome.vendor(), syndrome as u8]);
        } else {
            if self.inline.is_none() || format == 0x8 {
                put(17, &[self.path_bits]);
                put(22, &self.source_lid.to_be_bytes());
                put(24, &self.flags_rqpn.to_be_bytes());
            }
            put(36, &self.immediate.to_be_bytes());
            put(44, &self.length.to_be_bytes());
            put(48, &self.timestamp.to_be_bytes());
        }
        put(63, &[(self.kind as u8) << 4 | format | u8::from(self.solicited) << 1 | owner]);
        entry
    }
}

/// A request for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arm {
    pub(crate) solicited_only: bool,
    sequence: u8,
}

/// A completion queue.
#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) buffer: Buffer,
    pub(crate) log_size: u32,
    pub(crate) entry: usize,
    pub(crate) eqn: u32,
    pub(crate) uar: u32,
    /// Guest address of the doorbell record: consumer index, then the arm word.
    pub(crate) record: u64,
    pub(crate) ignore_overrun: bool,
    /// Completions before an event, and the longest wait for them in microseconds; 0 turns moderation off.
    pub(crate) moderation: (u32, u64),
    pub(crate) producer: u32,
    pub(crate) error: bool,
    pub(crate) context: Vec<u8>,
    armed: Option<Arm>,
    /// The arm word as last looked at.
    pub(crate) seen: u32,
    fired: Option<u8>,
    /// One past the last completion that a solicited-only request counts.
    solicited: u32,
    /// Completions and time since which an event is held back.
    held: u32,
    pub(crate) held_until: Option<u64>,
}

/// What no arm word is: their highest bits are 0.
pub(crate) const UNARMED: u32 = u32::MAX;

/// Counters of a completion queue have 24 bits where they are exchanged.
const INDEX: u32 = 0xff_ffff;

impl Cq {
    pub(crate) fn new(buffer: Buffer, log_size: u32, entry: usize, context: Vec<u8>) -> Cq {
        Cq {
            buffer,
            log_size,
            entry,
            eqn: 0,
            uar: 0,
            record: 0,
            ignore_overrun: false,
            moderation: (0, 0),
            producer: 0,
            error: false,
            context,
            armed: None,
            seen: 0,
            fired: None,
            solicited: 0,
            held: 0,
            held_until: None,
        }
    }

    /// Is there no room for one more, when the owner has consumed up to `consumer`?
    pub(crate) fn is_full(&self, consumer: u32) -> bool {
        self.waiting(consumer) >= 1 << self.log_size
    }

    /// Completions that the owner, who has consumed up to `consumer`, has not consumed yet.
    pub(crate) fn waiting(&self, consumer: u32) -> u32 {
        self.producer.wrapping_sub(consumer) & INDEX
    }

    /// Where the next completion goes and its ownership bit. Counts it.
    pub(crate) fn advance(&mut self) -> (Option<u64>, u8) {
        let slot = u64::from(self.producer & ((1 << self.log_size) - 1));
        let owner = u8::from(self.producer >> self.log_size & 1 == 1);
        self.producer = self.producer.wrapping_add(1);
        let entry = u64::try_from(self.entry).unwrap_or(64);
        (self.buffer.address(slot * entry), owner)
    }

    /// Takes an arm word. `false`: it repeats one that has had its event.
    pub(crate) fn arm(&mut self, word: u32) -> bool {
        let arm =
            Arm { solicited_only: word & 1 << 24 != 0, sequence: u8::try_from(word >> 28 & 3).unwrap_or(0) };
        if self.fired == Some(arm.sequence) {
            return false;
        }
        self.armed = Some(arm);
        true
    }

    /// Is an event due at once, because completions came after those that the arm word knows of?
    pub(crate) fn is_late(&self, word: u32) -> bool {
        let since = |index: u32| index.wrapping_sub(word) & INDEX;
        match self.armed {
            Some(Arm { solicited_only: true, .. }) => (1..1 << 23).contains(&since(self.solicited)),
            Some(_) => since(self.producer) != 0,
            None => false,
        }
    }

    /// Counts a completion just written. `true`: its event is due now; else [`Cq::held_until`] may say when.
    pub(crate) fn completed(&mut self, solicited: bool, now: u64) -> bool {
        if solicited {
            self.solicited = self.producer;
        }
        match self.armed {
            Some(arm) if solicited || !arm.solicited_only => {}
            _ => return false,
        }
        let (count, period) = self.moderation;
        if count == 0 || period == 0 {
            return true;
        }
        self.held += 1;
        if self.held >= count {
            return true;
        }
        self.held_until.get_or_insert(now + period * 1000);
        false
    }

    /// The event goes out: the request for it is spent.
    pub(crate) fn fire(&mut self) {
        self.fired = self.armed.take().map(|arm| arm.sequence);
        self.held = 0;
        self.held_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cq() -> Cq {
        Cq::new(Buffer::new(vec![0x1000], 0, 0), 2, 64, Vec::new())
    }

    #[test]
    fn ownership_flips_with_each_round() {
        let mut cq = cq();
        let owners: Vec<u8> = (0..9).map(|_| cq.advance().1).collect();
        assert_eq!(owners, [0, 0, 0, 0, 1, 1, 1, 1, 0]);
        assert!(cq.is_full(5) && !cq.is_full(6));
    }

    #[test]
    fn one_event_for_each_sequence_number() {
        let mut cq = cq();
        assert!(!cq.completed(true, 0), "not armed");
        cq.advance();
        assert!(cq.arm(0) && cq.is_late(0), "a completion that the owner has not seen");
        cq.fire();
        assert!(!cq.arm(0), "the same again");
        assert!(cq.arm(1 << 28 | 1) && !cq.is_late(1));
        assert!(cq.completed(false, 0));
    }

    #[test]
    fn solicited_only_waits_for_its_kind() {
        let mut cq = cq();
        assert!(cq.arm(1 << 24));
        cq.advance();
        assert!(!cq.completed(false, 0) && !cq.is_late(0));
        cq.advance();
        assert!(cq.completed(true, 0) && cq.is_late(1) && !cq.is_late(2));
    }

    #[test]
    fn moderation_holds_an_event_back() {
        let mut cq = cq();
        cq.moderation = (2, 10);
        assert!(cq.arm(0));
        assert!(!cq.completed(false, 500));
        assert_eq!(cq.held_until, Some(10_500));
        assert!(cq.completed(false, 600));
    }

    #[test]
    fn bytes_of_a_completion() {
        let mut completion = Completion::new(Kind::ReceivedSendImmediate, 0x123456, 0x77, 0xabcd);
        completion.inline = Some(vec![9; 40]);
        (completion.immediate, completion.length, completion.solicited) = (5, 40, true);
        let entry = completion.encode(128, 1);
        assert_eq!((entry[0], entry[39], entry[40]), (9, 9, 0));
        assert_eq!(entry[127], 3 << 4 | 0x8 | 2 | 1);
        assert_eq!(entry[64 + 56..64 + 62], [0, 0x12, 0x34, 0x56, 0xab, 0xcd]);
    }
}
