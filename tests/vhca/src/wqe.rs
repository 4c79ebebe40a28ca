//! Work requests as the device finds them in a send queue, decoded.
//!
//! [`decode`] is a total function of the bytes: a guest may have put anything there. What it refuses is a local
//! error of the queue pair. It knows nothing of queues, keys or memory.

use crate::prm::{be16, be32, be64};

/// Bytes in a basic block of a send queue.
pub(crate) const BLOCK: usize = 64;
/// The longest work request: 63 units of 16 bytes.
pub const MAX_BYTES: usize = 63 * 16;

const INLINE: u32 = 0x8000_0000;
const EXTENDED_AV: u32 = 0x8000_0000;

/// Bits of a registration's mask.
pub(crate) mod mask {
    pub(crate) const LENGTH: u64 = 1 << 0;
    pub(crate) const LOG_PAGE_SIZE: u64 = 1 << 1;
    pub(crate) const START_ADDRESS: u64 = 1 << 6;
    pub(crate) const PD: u64 = 1 << 7;
    pub(crate) const QPN: u64 = 1 << 14;
    pub(crate) const ACCESS: u64 = 0x1f << 17;
    pub(crate) const FREE: u64 = 1 << 29;
}

/// The bytes of the key context in a registration that no field tells, and the mask's bits without which the device does not
/// read them; none: it never does, or a field tells them (queue pair and key, whose low byte is what the driver happened to
/// give out; start address).
const CONTEXT: &[(u64, usize, usize)] = &[
    (mask::FREE, 0, 1),
    (0, 1, 1),
    (mask::ACCESS, 2, 1),
    (0, 3, 9),
    (mask::PD, 12, 4),
    (0, 16, 8),
    (mask::LENGTH, 24, 8),
    (0, 32, 27),
    (mask::LOG_PAGE_SIZE, 59, 1),
    (0, 60, 4),
];

/// The service a queue pair gives, which says what segments its work requests have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram, with the special queue pairs 0 and 1.
    Ud,
    /// The sending half of an extended reliable connection.
    XrcInitiator,
    /// The receiving half of an extended reliable connection: it sends nothing.
    XrcTarget,
    /// The driver's queue for memory registration by work request.
    Registration,
    /// A bare send queue, which the driver uses for its write-combining test.
    SendQueue,
}

/// The first 16 bytes of a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// What is asked for.
    pub opcode: u8,
    /// Modifies the opcode.
    pub modifier: u8,
    /// The index of the work request's first block.
    pub index: u16,
    /// The queue it was posted to.
    pub qpn: u32,
    /// Length in units of 16 bytes.
    pub ds: u8,
    /// A completion is to be written on success.
    pub signaled: bool,
    /// The receiver's completion is solicited.
    pub solicited: bool,
    /// Fence bits.
    pub fence: u8,
    /// Immediate data, key to invalidate, or key to change.
    pub immediate: u32,
}

impl Control {
    /// Reads a control segment.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Control {
        let (first, second) = (be32(bytes, 0), be32(bytes, 4));
        let flags = byte(bytes, 11);
        Control {
            opcode: low(first),
            modifier: low(first >> 24),
            index: be16(bytes, 1),
            qpn: second >> 8,
            ds: low(second) & 0x3f,
            signaled: flags & 0x0c >= 0x08,
            solicited: flags & 0x02 != 0,
            fence: flags >> 5,
            immediate: be32(bytes, 12),
        }
    }

    /// The number of 64-byte blocks that the work request takes.
    #[must_use]
    pub fn blocks(&self) -> u16 {
        u16::from(self.ds).div_ceil(4).max(1)
    }
}

/// An address with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Virtual address.
    pub address: u64,
    /// Remote key.
    pub key: u32,
}

/// One piece of a scatter/gather list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sge {
    /// Virtual address.
    pub address: u64,
    /// Local key.
    pub key: u32,
    /// Length in bytes.
    pub length: u32,
}

/// What a work request sends: pieces of memory, or bytes that it brings itself, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Pieces of memory.
    Memory(Sge),
    /// Bytes in the work request.
    Inline(Vec<u8>),
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Q_Key, or with its top bit set the sending queue pair's own.
    pub qkey: u32,
    /// Destination queue pair.
    pub qpn: u32,
    /// Destination LID.
    pub lid: u16,
    /// Service level.
    pub sl: u8,
    /// Source path bits.
    pub path_bits: u8,
    /// Global route, if there is one: flow label and traffic class word, hop limit, source index, destination GID.
    pub route: Option<Route>,
}

/// A global route header's worth of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Traffic class.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Index of the source GID.
    pub source_index: u8,
    /// Flow label.
    pub flow_label: u32,
    /// Destination GID.
    pub gid: [u8; 16],
}

/// How an atomic operation changes its eight bytes (as the device's byte order has them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    /// Put `swap` there if it is `compare`.
    CompareSwap {
        /// The new value.
        swap: u64,
        /// The expected value.
        compare: u64,
    },
    /// Add.
    FetchAdd(u64),
}

/// A change of a memory key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The key to change, as the owner knows it before.
    pub key: u32,
    /// Check and translation flags.
    pub flags: u8,
    /// Number of translation bytes.
    pub translation_bytes: usize,
    /// Where in the translation they go, in bytes.
    pub translation_offset: usize,
    /// Which fields of the context change.
    pub mask: u64,
    /// The memory key context.
    pub context: Vec<u8>,
    /// Translation entries in the work request, or a piece of memory that holds them.
    pub translation: Data,
}

/// What a work request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing, and a completion.
    Nop,
    /// A message to the peer's receive queue.
    Send {
        /// Immediate data.
        immediate: Option<u32>,
        /// Key for the peer to invalidate.
        invalidate: Option<u32>,
        /// Datagram address.
        address: Option<Address>,
    },
    /// A write into the peer's memory, with an immediate perhaps.
    Write {
        /// Where.
        remote: Remote,
        /// Immediate data.
        immediate: Option<u32>,
    },
    /// A read of the peer's memory.
    Read(Remote),
    /// An atomic operation on the peer's memory.
    Atomic {
        /// Where.
        remote: Remote,
        /// What.
        atomic: Atomic,
    },
    /// A memory registration, bind or invalidation.
    Register(Box<Registration>),
}

/// A decoded work request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The control segment.
    pub control: Control,
    /// The shared receive queue to use at the peer (XRC only).
    pub srqn: Option<u32>,
    /// What to do.
    pub operation: Operation,
    /// The data to send, or where to put what comes back.
    pub data: Vec<Data>,
    /// The work request's bytes, zeroed where the other fields tell them or where nobody reads them.
    pub rest: Vec<u8>,
}

/// Why a work request cannot be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The opcode is unknown, or this service does not have it.
    Opcode,
    /// The segments do not fit the length.
    Segments,
    /// Inline data where data comes back.
    InlineResponse,
}

/// Opcodes of the send queue.
pub mod opcode {
    #![allow(missing_docs, reason = "the names say it")]
    pub const NOP: u8 = 0x00;
    pub const SEND_INVALIDATE: u8 = 0x01;
    pub const WRITE: u8 = 0x08;
    pub const WRITE_IMMEDIATE: u8 = 0x09;
    pub const SEND: u8 = 0x0a;
    pub const SEND_IMMEDIATE: u8 = 0x0b;
    pub const READ: u8 = 0x10;
    pub const COMPARE_SWAP: u8 = 0x11;
    pub const FETCH_ADD: u8 = 0x12;
    pub const UMR: u8 = 0x25;
}

/// The name of an opcode in the journal.
#[must_use]
pub fn opcode_name(code: u8) -> &'static str {
    match code {
        opcode::NOP => "nop",
        opcode::SEND_INVALIDATE => "send_inv",
        opcode::WRITE => "write",
        opcode::WRITE_IMMEDIATE => "write_imm",
        opcode::SEND => "send",
        opcode::SEND_IMMEDIATE => "send_imm",
        opcode::READ => "read",
        opcode::COMPARE_SWAP => "cas",
        opcode::FETCH_ADD => "faa",
        opcode::UMR => "umr",
        _ => "unknown",
    }
}

/// Decodes a work request of a queue pair with the given service.
///
/// # Errors
/// Says why the bytes are no work request that this service executes.
pub fn decode(service: Service, bytes: &[u8]) -> Result<Request, Malformed> {
    let control = Control::read(bytes);
    let bytes = bytes.get(..usize::from(control.ds) * 16).ok_or(Malformed::Segments)?;
    let mut rest = Segments { bytes, at: 0, rest: bytes.to_vec() };
    rest.take(16)?;
    // All but the modifier, the flags and what no request has; an immediate is told, or read by nobody.
    rest.told(1, 7);
    rest.told(12, 4);
    if !allows(service, control.opcode) {
        return Err(Malformed::Opcode);
    }
    let mut srqn = None;
    if service == Service::XrcInitiator && control.opcode != opcode::NOP && control.opcode != opcode::UMR {
        srqn = Some(be32(rest.take(16)?, 0) & 0xff_ffff);
        rest.told(16, 16);
    }
    let mut responds = false;
    let operation = match control.opcode {
        opcode::NOP => {
            let rest = rest.rest;
            return Ok(Request { control, srqn, operation: Operation::Nop, data: Vec::new(), rest });
        }
        opcode::SEND | opcode::SEND_IMMEDIATE | opcode::SEND_INVALIDATE => Operation::Send {
            immediate: (control.opcode == opcode::SEND_IMMEDIATE).then_some(control.immediate),
            invalidate: (control.opcode == opcode::SEND_INVALIDATE).then_some(control.immediate),
            address: if service == Service::Ud { Some(rest.address()?) } else { None },
        },
        opcode::WRITE | opcode::WRITE_IMMEDIATE => Operation::Write {
            remote: rest.remote()?,
            immediate: (control.opcode == opcode::WRITE_IMMEDIATE).then_some(control.immediate),
        },
        opcode::READ => {
            responds = true;
            Operation::Read(rest.remote()?)
        }
        opcode::COMPARE_SWAP | opcode::FETCH_ADD => {
            responds = true;
            let remote = rest.remote()?;
            let operands = rest.take(16)?;
            let (first, compare) = (be64(operands, 0), be64(operands, 8));
            let atomic = if control.opcode == opcode::FETCH_ADD {
                rest.told(rest.at - 8, 8);
                Atomic::FetchAdd(first)
            } else {
                Atomic::CompareSwap { swap: first, compare }
            };
            Operation::Atomic { remote, atomic }
        }
        _ => Operation::Register(Box::new(rest.registration(control.immediate)?)),
    };
    let data = if matches!(operation, Operation::Register(_)) { Vec::new() } else { rest.data()? };
    if responds && data.iter().any(|piece| matches!(piece, Data::Inline(_))) {
        return Err(Malformed::InlineResponse);
    }
    Ok(Request { control, srqn, operation, data, rest: rest.rest })
}

fn allows(service: Service, code: u8) -> bool {
    let message = matches!(code, opcode::NOP | opcode::SEND | opcode::SEND_IMMEDIATE);
    let write = matches!(code, opcode::WRITE | opcode::WRITE_IMMEDIATE);
    match service {
        Service::Rc | Service::XrcInitiator => {
            let response = matches!(code, opcode::READ | opcode::COMPARE_SWAP | opcode::FETCH_ADD);
            message || write || response || matches!(code, opcode::SEND_INVALIDATE | opcode::UMR)
        }
        Service::Uc => message || write || matches!(code, opcode::SEND_INVALIDATE | opcode::UMR),
        Service::Ud => message,
        Service::Registration => matches!(code, opcode::NOP | opcode::UMR),
        Service::SendQueue => code == opcode::NOP,
        Service::XrcTarget => false,
    }
}

/// Pieces of a receive work request: those that follow are unused once one has the key that ends the list.
#[must_use]
pub fn receive_list(bytes: &[u8], terminator: u32) -> Vec<Sge> {
    let list = bytes.chunks_exact(16).map(sge);
    list.take_while(|sge| sge.key != terminator).filter(|sge| sge.length != 0).collect()
}

fn sge(segment: &[u8]) -> Sge {
    Sge { length: be32(segment, 0) & !INLINE, key: be32(segment, 4), address: be64(segment, 8) }
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn low(value: u32) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(0)
}

/// The segments not yet read.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
    /// See [`Request::rest`].
    rest: Vec<u8>,
}

impl<'a> Segments<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let segment = self.bytes.get(self.at..self.at.saturating_add(len)).ok_or(Malformed::Segments)?;
        self.at += len;
        Ok(segment)
    }

    /// These bytes are told by a field, or read by nobody.
    fn told(&mut self, at: usize, len: usize) {
        if let Some(bytes) = self.rest.get_mut(at..at.saturating_add(len)) {
            bytes.fill(0);
        }
    }

    fn remote(&mut self) -> Result<Remote, Malformed> {
        let segment = self.take(16)?;
        self.told(self.at - 16, 12);
        Ok(Remote { address: be64(segment, 0), key: be32(segment, 8) })
    }

    fn address(&mut self) -> Result<Address, Malformed> {
        let base = self.take(16)?;
        self.told(self.at - 16, 4);
        self.told(self.at - 7, 3);
        let destination = be32(base, 8);
        let route = if destination & EXTENDED_AV == 0 {
            None
        } else {
            let segment = self.take(32)?;
            let word = be32(segment, 12);
            let gid = segment.get(16..32).and_then(|gid| gid.try_into().ok()).ok_or(Malformed::Segments)?;
            (word & 1 << 30 != 0).then_some(Route {
                traffic_class: byte(segment, 10),
                hop_limit: byte(segment, 11),
                source_index: low(word >> 20),
                flow_label: word & 0xf_ffff,
                gid,
            })
        };
        Ok(Address {
            qkey: be32(base, 0),
            qpn: destination & 0xff_ffff,
            sl: byte(base, 12) & 0xf,
            path_bits: byte(base, 13) & 0x7f,
            lid: be16(base, 14),
            route,
        })
    }

    fn registration(&mut self, key: u32) -> Result<Registration, Malformed> {
        const FLAG_INLINE: u8 = 1 << 7;
        let control = self.take(48)?;
        let flags = byte(control, 0);
        let translation_bytes = usize::from(be16(control, 4)) * 16;
        let translation_offset = usize::from(be16(control, 6)) * 16;
        let context = self.take(64)?.to_vec();
        let mask = be64(control, 8);
        for (bits, at, len) in CONTEXT {
            if mask & bits == 0 {
                self.told(self.at - 64 + at, *len);
            }
        }
        let translation = if flags & FLAG_INLINE != 0 {
            let bytes = self.take(self.bytes.len().saturating_sub(self.at).min(translation_bytes))?;
            self.told(self.at - bytes.len(), bytes.len());
            Data::Inline(bytes.to_vec())
        } else if translation_bytes > 0 {
            Data::Memory(sge(self.take(16)?))
        } else {
            Data::Inline(Vec::new())
        };
        Ok(Registration { key, flags, translation_bytes, translation_offset, mask, context, translation })
    }

    fn data(&mut self) -> Result<Vec<Data>, Malformed> {
        let mut list = Vec::new();
        while self.at < self.bytes.len() {
            let head = be32(self.bytes, self.at);
            if head & INLINE == 0 {
                let piece = sge(self.take(16)?);
                self.told(self.at - 16, 16);
                if piece.length != 0 {
                    list.push(Data::Memory(piece));
                }
                continue;
            }
            let len = usize::try_from(head & !INLINE).unwrap_or(usize::MAX);
            self.take(4)?;
            list.push(Data::Inline(self.take(len)?.to_vec()));
            let end = self.at.next_multiple_of(16);
            self.told(self.at, end - self.at);
            self.at = end;
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control segment: opcode, ds, completion flag.
    fn control(code: u8, ds: u8, immediate: u32) -> Vec<u8> {
        let mut bytes = vec![0, 0x12, 0x34, code, 0, 0, 0x77, ds, 0, 0, 0, 0x0a];
        bytes.extend(immediate.to_be_bytes());
        bytes
    }

    fn pointer(length: u32, key: u32, address: u64) -> Vec<u8> {
        [&length.to_be_bytes()[..], &key.to_be_bytes(), &address.to_be_bytes()].concat()
    }

    #[test]
    fn a_write_with_two_pieces_and_inline_bytes() {
        let mut bytes = control(opcode::WRITE, 7, 0);
        bytes.extend([&0xaaaa_0000u64.to_be_bytes()[..], &0x55u32.to_be_bytes(), &[0; 4]].concat());
        bytes.extend(pointer(8, 0x100, 0x1000));
        bytes.extend(pointer(16, 0x200, 0x2000));
        bytes.extend([&(INLINE | 17).to_be_bytes()[..], b"seventeen bytes..", &[0; 27]].concat());
        let request = decode(Service::Rc, &bytes).unwrap();
        assert_eq!((request.control.index, request.control.qpn, request.control.blocks()), (0x1234, 0x77, 2));
        assert!(request.control.signaled && request.control.solicited);
        let remote = Remote { address: 0xaaaa_0000, key: 0x55 };
        assert_eq!(request.operation, Operation::Write { remote, immediate: None });
        assert_eq!(request.data.len(), 3);
        assert_eq!(request.data[2], Data::Inline(b"seventeen bytes..".to_vec()));
    }

    #[test]
    fn a_datagram_short_and_long() {
        let mut short = control(opcode::SEND_IMMEDIATE, 3, 9);
        short.extend(
            [&0x1234u32.to_be_bytes()[..], &[0; 4], &5u32.to_be_bytes(), &[2, 3], &7u16.to_be_bytes()]
                .concat(),
        );
        short.extend(pointer(1, 2, 3));
        let Operation::Send { immediate, address: Some(address), .. } =
            decode(Service::Ud, &short).unwrap().operation
        else {
            panic!("no datagram")
        };
        assert_eq!(immediate, Some(9));
        assert_eq!(
            (address.qkey, address.qpn, address.lid, address.sl, address.path_bits),
            (0x1234, 5, 7, 2, 3)
        );
        short[16 + 8] = 0x80;
        assert_eq!(decode(Service::Ud, &short), Err(Malformed::Segments), "long address, short request");
    }

    #[test]
    fn what_a_service_does_not_have_is_refused() {
        let read = [control(opcode::READ, 2, 0), vec![0; 16]].concat();
        assert!(decode(Service::Rc, &read).is_ok());
        assert_eq!(decode(Service::Uc, &read), Err(Malformed::Opcode));
        assert_eq!(decode(Service::Ud, &read), Err(Malformed::Opcode));
        let inline =
            [control(opcode::READ, 3, 0), vec![0; 16], INLINE.to_be_bytes().to_vec(), vec![0; 12]].concat();
        assert_eq!(decode(Service::Rc, &inline), Err(Malformed::InlineResponse));
        assert_eq!(decode(Service::Rc, &[]), Err(Malformed::Segments));
        assert_eq!(decode(Service::Rc, &control(opcode::SEND, 63, 0)), Err(Malformed::Segments));
    }
}
