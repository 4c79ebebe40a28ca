//! The transport: from a doorbell to the peer's memory and back to a completion.
//!
//! A work request becomes one [`Message`], whatever its length; the wire carries it to the device that has its
//! destination, and brings the [`Reply`] back. `requester` is the sending side, `responder` the receiving one,
//! `receives` the queues that messages are received from, `flush` what happens to a queue pair in error, and `coding` the
//! form in which messages leave this process.

use crate::objects::cq::Syndrome;
use crate::wqe::{Atomic, Remote, Route};

mod coding;
mod flush;
mod receives;
mod requester;
mod responder;
mod wire;

pub(crate) use requester::Progress;
pub(crate) use wire::Wire;

/// A message for a queue pair that is not of this process.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The device that sends it.
    pub device: usize,
    /// The queue pair that it is for; `None`: those of a multicast group.
    pub to: Option<u32>,
    /// The queue pair that waits for the answer, and what names the answer; `None`: nobody waits.
    pub awaited: Option<(u32, u64)>,
    /// The message.
    pub bytes: Vec<u8>,
}

/// What a datagram says of its way.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) qkey: u32,
    pub(crate) sl: u8,
    pub(crate) route: Option<Route>,
    pub(crate) source_gid: [u8; 16],
    /// Every queue pair of the group gets it.
    pub(crate) multicast: bool,
}

/// What a message does at its destination.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Send { data: Vec<u8>, immediate: Option<u32>, invalidate: Option<u32>, datagram: Option<Datagram> },
    Write { remote: Remote, data: Vec<u8>, immediate: Option<u32> },
    Read { remote: Remote, len: u64 },
    Atomic { remote: Remote, atomic: Atomic },
}

/// A work request on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) source_lid: u16,
    pub(crate) source_qpn: u32,
    pub(crate) destination_lid: u16,
    pub(crate) destination_qpn: u32,
    /// The shared receive queue to use (XRC only).
    pub(crate) srqn: Option<u32>,
    pub(crate) solicited: bool,
    pub(crate) body: Body,
}

impl Message {
    /// Is it for all queue pairs of a group?
    pub(crate) fn is_multicast(&self) -> bool {
        matches!(&self.body, Body::Send { datagram: Some(Datagram { multicast: true, .. }), .. })
    }
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It was done; these are the bytes that a read or an atomic brings.
    Done(Vec<u8>),
    /// No receive is posted: try again after so many nanoseconds.
    NotReady(u64),
    /// It was refused.
    Refused(Syndrome),
    /// Nothing.
    Silence,
    /// It is under way to another process, and the answer will come.
    Awaited,
}
