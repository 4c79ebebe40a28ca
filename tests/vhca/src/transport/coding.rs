//! Messages and answers as bytes, for peers in another process.

use super::{Body, Datagram, Message, Reply};
use crate::objects::cq::Syndrome;
use crate::wqe::{Atomic, Remote, Route};

const SEND: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const ATOMIC: u8 = 3;

/// Puts values one after the other.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn word(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn option(&mut self, value: Option<u32>) {
        self.byte(u8::from(value.is_some()));
        self.word(value.unwrap_or(0));
    }

    fn remote(&mut self, remote: Remote) {
        self.long(remote.address);
        self.word(remote.key);
    }
}

/// Takes values in the same order; `None` where they end.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn half(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        self.byte().map(|byte| byte != 0)
    }

    fn option(&mut self) -> Option<Option<u32>> {
        let (there, value) = (self.flag()?, self.word()?);
        Some(there.then_some(value))
    }

    fn remote(&mut self) -> Option<Remote> {
        Some(Remote { address: self.long()?, key: self.word()? })
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.0.extend(self.source_lid.to_le_bytes());
        to.word(self.source_qpn);
        to.0.extend(self.destination_lid.to_le_bytes());
        to.word(self.destination_qpn);
        to.option(self.srqn);
        to.byte(u8::from(self.solicited));
        match &self.body {
            Body::Send { data, immediate, invalidate, datagram } => {
                to.byte(SEND);
                to.option(*immediate);
                to.option(*invalidate);
                to.byte(u8::from(datagram.is_some()));
                if let Some(datagram) = datagram {
                    to.word(datagram.qkey);
                    to.byte(datagram.sl);
                    to.0.extend(datagram.source_gid);
                    to.byte(u8::from(datagram.multicast));
                    to.byte(u8::from(datagram.route.is_some()));
                    if let Some(route) = datagram.route {
                        to.0.extend([route.traffic_class, route.hop_limit, route.source_index]);
                        to.word(route.flow_label);
                        to.0.extend(route.gid);
                    }
                }
                to.0.extend(data);
            }
            Body::Write { remote, data, immediate } => {
                to.byte(WRITE);
                to.remote(*remote);
                to.option(*immediate);
                to.0.extend(data);
            }
            Body::Read { remote, len } => {
                to.byte(READ);
                to.remote(*remote);
                to.long(*len);
            }
            Body::Atomic { remote, atomic } => {
                to.byte(ATOMIC);
                to.remote(*remote);
                let (kind, first, second) = match atomic {
                    Atomic::CompareSwap { swap, compare } => (0, *swap, *compare),
                    Atomic::FetchAdd(add) => (1, *add, 0),
                };
                to.byte(kind);
                to.long(first);
                to.long(second);
            }
        }
        to.0
    }

    /// `None`: these bytes are no message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let mut from = Reader(bytes);
        Some(Message {
            source_lid: from.half()?,
            source_qpn: from.word()?,
            destination_lid: from.half()?,
            destination_qpn: from.word()?,
            srqn: from.option()?,
            solicited: from.flag()?,
            body: body(&mut from)?,
        })
    }
}

fn body(from: &mut Reader<'_>) -> Option<Body> {
    Some(match from.byte()? {
        SEND => {
            let (immediate, invalidate) = (from.option()?, from.option()?);
            let datagram = if from.flag()? { Some(datagram(from)?) } else { None };
            Body::Send { data: from.rest(), immediate, invalidate, datagram }
        }
        WRITE => {
            let (remote, immediate) = (from.remote()?, from.option()?);
            Body::Write { remote, data: from.rest(), immediate }
        }
        READ => Body::Read { remote: from.remote()?, len: from.long()? },
        ATOMIC => {
            let (remote, kind, first, second) = (from.remote()?, from.byte()?, from.long()?, from.long()?);
            let atomic = match kind {
                0 => Atomic::CompareSwap { swap: first, compare: second },
                1 => Atomic::FetchAdd(first),
                _ => return None,
            };
            Body::Atomic { remote, atomic }
        }
        _ => return None,
    })
}

fn datagram(from: &mut Reader<'_>) -> Option<Datagram> {
    let (qkey, sl, source_gid, multicast) = (from.word()?, from.byte()?, from.array()?, from.flag()?);
    let route = if from.flag()? {
        let [traffic_class, hop_limit, source_index] = from.array()?;
        Some(Route { traffic_class, hop_limit, source_index, flow_label: from.word()?, gid: from.array()? })
    } else {
        None
    };
    Some(Datagram { qkey, sl, route, source_gid, multicast })
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Reply::Done(data) => {
                to.byte(0);
                to.0.extend(data);
            }
            Reply::NotReady(delay) => {
                to.byte(1);
                to.long(*delay);
            }
            Reply::Refused(syndrome) => {
                to.byte(2);
                to.0.extend(syndrome.name().as_bytes());
            }
            // Nobody answers for somebody else.
            Reply::Silence | Reply::Awaited => to.byte(3),
        }
        to.0
    }

    /// Bytes that are no answer are silence.
    pub(crate) fn decode(bytes: &[u8]) -> Reply {
        let mut from = Reader(bytes);
        let reply = match from.byte() {
            Some(0) => Some(Reply::Done(from.rest())),
            Some(1) => from.long().map(Reply::NotReady),
            Some(2) => std::str::from_utf8(from.0).ok().and_then(Syndrome::parse).map(Reply::Refused),
            _ => None,
        };
        reply.unwrap_or(Reply::Silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: Body) -> Message {
        Message {
            source_lid: 1,
            source_qpn: 0x1234,
            destination_lid: 2,
            destination_qpn: 0xff_ffff,
            srqn: Some(7),
            solicited: true,
            body,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let remote = Remote { address: u64::MAX - 5, key: 0x0102_0304 };
        let route = Route {
            traffic_class: 1,
            hop_limit: 64,
            source_index: 3,
            flow_label: 0xabcde,
            gid: std::array::from_fn(|at| at as u8),
        };
        let datagram = Datagram { qkey: 5, sl: 2, route: Some(route), source_gid: [9; 16], multicast: true };
        let bodies = [
            Body::Send {
                data: vec![1, 2, 3],
                immediate: Some(4),
                invalidate: None,
                datagram: Some(datagram),
            },
            Body::Send { data: Vec::new(), immediate: None, invalidate: Some(8), datagram: None },
            Body::Write { remote, data: vec![7; 100], immediate: Some(0) },
            Body::Read { remote, len: 1 << 30 },
            Body::Atomic { remote, atomic: Atomic::CompareSwap { swap: 1, compare: 2 } },
            Body::Atomic { remote, atomic: Atomic::FetchAdd(u64::MAX) },
        ];
        for body in bodies {
            let message = message(body);
            let bytes = message.encode();
            let read = Message::decode(&bytes).unwrap();
            assert_eq!(format!("{read:?}"), format!("{message:?}"));
            let head = bytes.len().min(30);
            assert!((0..head).all(|len| len > 22 || Message::decode(&bytes[..len]).is_none()));
        }
        let replies = [
            Reply::Done(vec![1, 2]),
            Reply::Done(Vec::new()),
            Reply::NotReady(655_360_000),
            Reply::Refused(Syndrome::RemoteAccess),
            Reply::Silence,
        ];
        for reply in replies {
            assert_eq!(Reply::decode(&reply.encode()), reply);
        }
        assert_eq!(Reply::decode(&[]), Reply::Silence);
    }
}
