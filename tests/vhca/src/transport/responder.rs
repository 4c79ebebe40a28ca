//! The receiving side: what a message does to the device that it reaches.

use super::receives::Received;
use super::{Body, Datagram, Message, Reply};
use crate::device::{Device, Env};
use crate::objects::cq::{Completion, Kind, Syndrome};
use crate::objects::eq::EventType;
use crate::objects::mkey::{Access, Asker};
use crate::objects::qp::{Qp, Special, State};
use crate::objects::srq;
use crate::prm::layouts::qpc;
use crate::prm::put;
use crate::wqe::{Atomic, Remote, Service};

/// Bytes before a datagram's data: room for a global route header.
const ROUTE_HEADER: usize = 40;

impl Device {
    /// The queue pairs that a message is for: more than one only in multicast.
    fn destinations(&self, message: &Message) -> Vec<u32> {
        if let Body::Send { datagram: Some(Datagram { multicast: true, route, .. }), .. } = &message.body {
            let members = route.and_then(|route| self.objects.groups.get(&route.gid));
            return members.map(|members| members.iter().copied().collect()).unwrap_or_default();
        }
        let special = match message.destination_qpn {
            0 => Some(Special::SubnetManagement),
            1 => Some(Special::GeneralServices),
            qpn => return vec![qpn],
        };
        self.objects
            .qps
            .iter()
            .find(|(_, qp)| qp.special == special)
            .map(|(qpn, _)| qpn)
            .into_iter()
            .collect()
    }

    /// Does what a message asks for.
    pub(crate) fn receive(&mut self, env: &mut Env, message: &Message) -> Reply {
        if !self.has_bus() || !self.faults.data_path() || !self.port.up {
            return Reply::Silence;
        }
        let mut reply = Reply::Silence;
        for qpn in self.destinations(message) {
            reply = self.receive_at(env, qpn, message);
        }
        reply
    }

    fn receive_at(&mut self, env: &mut Env, qpn: u32, message: &Message) -> Reply {
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return Reply::Silence };
        if !expects(qp, message) {
            return Reply::Silence;
        }
        let connected = matches!(qp.service, Service::Rc | Service::XrcTarget);
        if connected && qp.state == State::ReadyToReceive && !qp.established {
            qp.established = true;
            self.queue_event(env, EventType::CommunicationEstablished, qpn);
        }
        let reply = self.act(env, qpn, message);
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return reply };
        match reply {
            Reply::Done(_) => {
                let len = match &message.body {
                    Body::Send { data, .. } | Body::Write { data, .. } => {
                        u64::try_from(data.len()).unwrap_or(0)
                    }
                    Body::Read { len, .. } => *len,
                    Body::Atomic { .. } => 8,
                };
                qp.count_packets(qpc::NEXT_RCV_PSN, len);
            }
            // What a reliable responder refuses is an error of its own queue pair, too.
            Reply::Refused(syndrome) if connected => {
                let cause = match syndrome {
                    Syndrome::RemoteAccess => EventType::AccessViolation,
                    Syndrome::RemoteInvalidRequest => EventType::InvalidRequest,
                    _ => EventType::WqCatastrophe,
                };
                self.fail_qp(env, qpn, Some(cause));
            }
            Reply::Refused(_) if matches!(message.body, Body::Send { .. }) => {
                self.fail_qp(env, qpn, Some(EventType::WqCatastrophe));
            }
            _ => {}
        }
        reply
    }

    fn act(&mut self, env: &mut Env, qpn: u32, message: &Message) -> Reply {
        let Some(qp) = self.objects.qps.get(qpn) else { return Reply::Silence };
        let cached = qp.cached;
        let mut asker = Asker { pd: cached.pd, qpn };
        let srq = message.srqn.and_then(|srqn| self.objects.srqs.get(srqn));
        match (qp.service, srq) {
            (Service::XrcTarget, Some(srq)) if srq.kind == srq::Kind::Xrc && srq.xrcd == cached.xrcd => {
                asker.pd = srq.pd
            }
            (Service::XrcTarget, _) => return Reply::Refused(Syndrome::RemoteInvalidRequest),
            _ => {}
        }
        match &message.body {
            Body::Send { .. } => self.receive_send(env, qpn, asker, message),
            Body::Write { remote, data, immediate } => {
                if !cached.remote_write {
                    return Reply::Refused(Syndrome::RemoteAccess);
                }
                let access = Access::RemoteWrite;
                let allowed =
                    || self.objects.mkeys.resolve(remote.key, remote.address, length(data), access, asker);
                if !data.is_empty() && allowed().is_none() {
                    return Reply::Refused(Syndrome::RemoteAccess);
                }
                match immediate {
                    Some(_) => self.receive_send(env, qpn, asker, message),
                    None => self.write(*remote, data, asker),
                }
            }
            Body::Read { remote, len } => {
                let mut data = Vec::new();
                let allowed = cached.remote_read
                    && (*len == 0
                        || self
                            .read_under(
                                remote.key,
                                remote.address,
                                *len,
                                Access::RemoteRead,
                                asker,
                                &mut data,
                            )
                            .is_some());
                if allowed { Reply::Done(data) } else { Reply::Refused(Syndrome::RemoteAccess) }
            }
            Body::Atomic { remote, atomic } => {
                if !remote.address.is_multiple_of(8) {
                    return Reply::Refused(Syndrome::RemoteInvalidRequest);
                }
                let spans = self.objects.mkeys.resolve(remote.key, remote.address, 8, Access::Atomic, asker);
                let span = spans.filter(|_| cached.remote_atomic).and_then(|spans| spans.first().copied());
                let Some(span) = span.filter(|span| span.len == 8) else {
                    return Reply::Refused(Syndrome::RemoteAccess);
                };
                let change = |old: u64| match atomic {
                    Atomic::CompareSwap { swap, compare } if old == *compare => *swap,
                    Atomic::CompareSwap { .. } => old,
                    Atomic::FetchAdd(add) => old.wrapping_add(*add),
                };
                match self.memory.update(span.address, change) {
                    Ok(old) => Reply::Done(old.to_ne_bytes().to_vec()),
                    Err(_) => Reply::Refused(Syndrome::RemoteOperation),
                }
            }
        }
    }

    fn write(&self, remote: Remote, data: &[u8], asker: Asker) -> Reply {
        if data.is_empty() {
            return Reply::Done(Vec::new());
        }
        match self.write_under(remote.key, remote.address, data, Access::RemoteWrite, asker) {
            Some(()) => Reply::Done(Vec::new()),
            None => Reply::Refused(Syndrome::RemoteAccess),
        }
    }

    /// A message that uses a receive: a send, or a write with immediate.
    fn receive_send(&mut self, env: &mut Env, qpn: u32, asker: Asker, message: &Message) -> Reply {
        let Some(qp) = self.objects.qps.get(qpn) else { return Reply::Silence };
        let (not_ready, inline) = (qp.rnr_delay(), qp.cached.inline_receive);
        let Some(received) = self.take_receive(env, qpn, message.srqn) else {
            return Reply::NotReady(not_ready);
        };
        let receiver = Asker { pd: received.pd, qpn };
        let (kind, payload): (Kind, &[u8]) = match &message.body {
            Body::Send { data, immediate: Some(_), .. } => (Kind::ReceivedSendImmediate, data),
            Body::Send { data, invalidate: Some(_), .. } => (Kind::ReceivedSendInvalidate, data),
            Body::Send { data, .. } => (Kind::ReceivedSend, data),
            Body::Write { remote, data, .. } => {
                if let Reply::Refused(syndrome) = self.write(*remote, data, asker) {
                    return Reply::Refused(syndrome);
                }
                (Kind::ReceivedWriteImmediate, &[])
            }
            _ => return Reply::Silence,
        };
        let mut completion = Completion::new(kind, qpn, received.srqn_uidx, received.index);
        let placed = match &message.body {
            Body::Send { datagram: Some(datagram), .. } => {
                completion.flags_rqpn = message.source_qpn | u32::from(datagram.sl) << 24;
                completion.source_lid = message.source_lid;
                self.place_datagram(&received, datagram, payload, receiver, &mut completion)
            }
            _ if payload.len() <= inline && !payload.is_empty() => {
                let room: u64 = received.list.iter().map(|piece| u64::from(piece.length)).sum();
                completion.inline = Some(payload.to_vec());
                if room < length(payload) { Err(Syndrome::LocalLength) } else { Ok(()) }
            }
            _ => self.scatter(&received.list, 0, payload, receiver),
        };
        let is_datagram = matches!(&message.body, Body::Send { datagram: Some(_), .. });
        let header = if is_datagram { ROUTE_HEADER } else { 0 };
        self.note_receive(env, qpn, &received, payload.len() + header);
        if let Err(syndrome) = placed {
            return self.refuse_receive(env, qpn, &received, syndrome);
        }
        let whole = match &message.body {
            Body::Write { data, .. } => data.len(),
            _ => payload.len() + header,
        };
        completion.length = u32::try_from(whole).unwrap_or(u32::MAX);
        completion.solicited = message.solicited;
        match &message.body {
            Body::Send { immediate: Some(value), .. } | Body::Write { immediate: Some(value), .. } => {
                completion.immediate = *value;
            }
            Body::Send { invalidate: Some(key), .. } => {
                if self.objects.mkeys.invalidate(*key, asker).is_none() {
                    return self.refuse_receive(env, qpn, &received, Syndrome::LocalAccess);
                }
                completion.immediate = *key;
            }
            _ => {}
        }
        if !self.complete(env, received.cqn, &completion) {
            self.fail_qp(env, qpn, Some(EventType::WqCatastrophe));
        }
        Reply::Done(Vec::new())
    }

    /// Completes a receive in error and says to the sender what that means to it.
    fn refuse_receive(&mut self, env: &mut Env, qpn: u32, received: &Received, syndrome: Syndrome) -> Reply {
        self.fail_receive(env, qpn, received, syndrome);
        Reply::Refused(match syndrome {
            Syndrome::LocalLength => Syndrome::RemoteInvalidRequest,
            Syndrome::LocalAccess => Syndrome::RemoteAccess,
            _ => Syndrome::RemoteOperation,
        })
    }

    fn place_datagram(
        &self,
        received: &Received,
        datagram: &Datagram,
        payload: &[u8],
        receiver: Asker,
        completion: &mut Completion,
    ) -> Result<(), Syndrome> {
        const ROUTED: u32 = 1 << 28;
        if let Some(route) = datagram.route {
            const NEXT_HEADER: u8 = 0x1b;
            let mut header = [0; ROUTE_HEADER];
            let first = 6 << 28 | u32::from(route.traffic_class) << 20 | route.flow_label;
            put(&mut header, 0, &first.to_be_bytes());
            put(&mut header, 4, &u16::try_from(payload.len() + 24).unwrap_or(0).to_be_bytes());
            put(&mut header, 6, &[NEXT_HEADER, route.hop_limit]);
            put(&mut header, 8, &datagram.source_gid);
            put(&mut header, 24, &route.gid);
            completion.flags_rqpn |= ROUTED;
            self.scatter(&received.list, 0, &header, receiver)?;
        }
        self.scatter(&received.list, ROUTE_HEADER, payload, receiver)
    }
}

fn length(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

/// Does the queue pair take messages from this sender?
fn expects(qp: &Qp, message: &Message) -> bool {
    let receiving =
        matches!(qp.state, State::ReadyToReceive | State::ReadyToSend | State::SendError | State::Drained);
    let from_peer = qp.cached.remote_qpn == message.source_qpn && qp.cached.remote_lid == message.source_lid;
    let datagram = match &message.body {
        Body::Send { datagram, .. } => datagram.as_ref(),
        _ => None,
    };
    receiving
        && match (qp.service, datagram) {
            (Service::Ud, Some(datagram)) => qp.special.is_some() || datagram.qkey == qp.cached.qkey,
            (Service::Rc | Service::Uc, None) => from_peer && message.srqn.is_none(),
            (Service::XrcTarget, None) => from_peer && message.srqn.is_some(),
            _ => false,
        }
}
