//! The sending side: executes the work requests of a send queue, in order.

use super::wire::Fate;
use super::{Body, Datagram, Message, Outgoing, Reply};
use crate::device::{Device, Env};
use crate::journal::Record;
use crate::memory::Unmapped;
use crate::objects::cq::{Completion, Kind, Syndrome};
use crate::objects::eq::EventType;
use crate::objects::mkey::{Access, Asker};
use crate::objects::qp::{Qp, State};
use crate::prm::layouts::qpc;
use crate::world::World;
use crate::wqe::{self, Address, BLOCK, Control, Data, Malformed, Operation, Registration, Request, Service};

/// What a queue pair has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing, until a doorbell or a command.
    Idle,
    /// More, at once.
    Again,
    /// More, at that time.
    Until(u64),
}

/// The longest message.
const LONGEST: u64 = 1 << 30;
/// Datagrams are no longer than the wire's largest packet.
const LONGEST_DATAGRAM: u64 = 4096;
/// LIDs from here on are of multicast groups.
const MULTICAST_LID: u16 = 0xc000;
/// A wait that only a change of the wire or the queue pair ends.
const FOREVER: u64 = u64::MAX;

/// What the head of a send queue is.
enum Head {
    None,
    Wait(u64),
    Request(Box<Request>),
    Malformed(Control, Syndrome),
}

impl World {
    /// Executes at most one work request of a queue pair.
    pub(crate) fn step(&mut self, device: usize, qpn: u32) -> Progress {
        let Some(sender) = self.devices.get_mut(device) else { return Progress::Idle };
        let env = &mut self.env;
        if !sender.has_bus() || !sender.faults.data_path() {
            return Progress::Until(FOREVER);
        }
        let request = match sender.head(env, qpn) {
            Head::None => return Progress::Idle,
            Head::Wait(until) => return Progress::Until(until),
            Head::Malformed(control, syndrome) => {
                sender.refuse(env, qpn, &control, syndrome);
                return Progress::Again;
            }
            Head::Request(request) => request,
        };
        if self.wire.delay > 0 && sender.leaves(qpn, &request) && sender.depart(qpn) {
            return Progress::Until(env.now + self.wire.delay);
        }
        let outcome = match (sender.take_answer(qpn), &request.operation) {
            (Some(answer), _) => Ok(answer),
            (None, Operation::Nop) => Ok(Reply::Done(Vec::new())),
            (None, Operation::Register(change)) => {
                sender.register(qpn, change).map(|()| Reply::Done(Vec::new()))
            }
            _ => sender.message(qpn, &request).map(|message| self.carry(device, qpn, message)),
        };
        let Some(sender) = self.devices.get_mut(device) else { return Progress::Idle };
        let env = &mut self.env;
        if !sender.has_bus() || !sender.faults.data_path() {
            return Progress::Until(FOREVER);
        }
        match outcome {
            Err(syndrome) => sender.fail(env, qpn, &request, syndrome),
            Ok(reply) => sender.answer(env, qpn, &request, reply),
        }
    }

    /// Takes a message to its destination and brings the answer back.
    fn carry(&mut self, from: usize, qpn: u32, message: Message) -> Reply {
        let local_lid = self.devices.get(from).map(|device| (device.port.lid, device.port.up));
        let send =
            self.devices.get_mut(from).and_then(|device| device.objects.qps.get_mut(qpn)?.send.as_mut());
        if let Some(answer) = send.and_then(|queue| queue.answer.take()) {
            // A duplicate: the responder has done it, and says so again.
            return match self.wire.fate(false) {
                Fate::Arrives => answer,
                _ => {
                    self.keep_answer(from, qpn, answer);
                    Reply::Silence
                }
            };
        }
        let multicast = message.is_multicast();
        let local = local_lid.is_some_and(|(lid, _)| lid == message.destination_lid);
        if local_lid.is_none_or(|(_, up)| !up) {
            return Reply::Silence;
        }
        let fate = self.wire.fate(local);
        if fate == Fate::Lost {
            return Reply::Silence;
        }
        let mut reply = Reply::Silence;
        if self.leaves_process(&message, multicast) {
            reply = self.post(from, qpn, &message, multicast);
        }
        for device in &mut self.devices {
            if multicast || device.port.lid == message.destination_lid && reply == Reply::Silence {
                reply = device.receive(&mut self.env, &message);
            }
        }
        if fate == Fate::AnswerLost {
            if matches!(reply, Reply::Done(_)) {
                self.keep_answer(from, qpn, reply);
            }
            return Reply::Silence;
        }
        reply
    }

    /// Is a message for a queue pair that another process has?
    fn leaves_process(&self, message: &Message, multicast: bool) -> bool {
        let here = |device: &Device| {
            device.port.lid == message.destination_lid
                && device.objects.qps.get(message.destination_qpn).is_some()
        };
        self.beyond.is_some() && (multicast || !self.devices.iter().any(here))
    }

    /// Hands a message to whoever carries it to other processes.
    fn post(&mut self, device: usize, qpn: u32, message: &Message, multicast: bool) -> Reply {
        let Some(beyond) = &mut self.beyond else { return Reply::Silence };
        self.posted += 1;
        let name = self.posted;
        let qp = self.devices.get_mut(device).and_then(|device| device.objects.qps.get_mut(qpn));
        let reliable = |qp: &&mut Qp| matches!(qp.service, Service::Rc | Service::XrcInitiator);
        let queue = qp.filter(reliable).and_then(|qp| qp.send.as_mut());
        let to = (!multicast).then_some(message.destination_qpn);
        let mut outgoing = Outgoing { device, to, awaited: None, bytes: message.encode() };
        let reply = match queue {
            None => Reply::Silence,
            Some(queue) => {
                queue.awaited = Some(name);
                outgoing.awaited = Some((qpn, name));
                Reply::Awaited
            }
        };
        beyond.push(outgoing);
        reply
    }

    /// The answer to a message that left the process, or `Silence` if nobody was there. One that nobody waits for any more
    /// is forgotten.
    pub(crate) fn answered(&mut self, device: usize, qpn: u32, name: u64, reply: Reply) {
        let Some(device) = self.devices.get_mut(device) else { return };
        let Some(queue) = device.objects.qps.get_mut(qpn).and_then(|qp| qp.send.as_mut()) else { return };
        if queue.awaited == Some(name) {
            queue.awaited = None;
            queue.came = Some(reply);
            queue.wait_until = 0;
            device.ready.insert(qpn);
        }
    }

    fn keep_answer(&mut self, device: usize, qpn: u32, answer: Reply) {
        let qp = self.devices.get_mut(device).and_then(|device| device.objects.qps.get_mut(qpn));
        if let Some(queue) = qp.and_then(|qp| qp.send.as_mut()) {
            queue.answer = Some(answer);
        }
    }
}

impl Device {
    /// Looks at the head of a send queue, flushing it if the queue pair is in error.
    fn head(&mut self, env: &mut Env, qpn: u32) -> Head {
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return Head::None };
        let (service, state) = (qp.service, qp.state);
        match state {
            State::ReadyToSend => {}
            State::Drained => {
                if std::mem::take(&mut qp.draining) {
                    self.queue_event(env, EventType::SendQueueDrained, qpn);
                }
                return Head::None;
            }
            State::Error | State::SendError => {
                return match self.flush(env, qpn) {
                    Progress::Until(until) => Head::Wait(until),
                    _ => Head::None,
                };
            }
            _ => return Head::None,
        }
        let Some(queue) = &mut qp.send else { return Head::None };
        if queue.is_empty() {
            return Head::None;
        }
        if queue.wait_until > env.now {
            return Head::Wait(queue.wait_until);
        }
        let (index, announced) = (queue.consumer, queue.announced);
        let mut head = [0; BLOCK];
        let read =
            queue.address(index).ok_or(Unmapped(0)).and_then(|address| self.memory.read(address, &mut head));
        if let Err(unmapped) = read {
            self.missed(env, "work request", unmapped);
            return Head::Malformed(Control { index, ..Control::read(&head) }, Syndrome::LocalOperation);
        }
        let control = Control::read(&head);
        let len = usize::from(control.ds) * 16;
        let bytes =
            if len <= BLOCK { head.to_vec() } else { self.ring_bytes(qpn, index, len).unwrap_or_default() };
        // What an undead device reads may be no queue any more, and nobody's fault.
        if (control.qpn != qpn || control.index != index) && !self.faults.is_undead() {
            self.finding(env, format_args!("qp {qpn} index {index}: the control segment names {control:?}"));
        }
        match wqe::decode(service, &bytes) {
            Ok(mut request) => {
                if request.operation == Operation::Nop && !request.control.signaled {
                    if index.wrapping_sub(announced) < 1 << 15 {
                        return Head::None;
                    }
                    match self.copy_signals(env, qpn, index) {
                        Ok(signals) => request.control.signaled |= signals,
                        Err(until) => return Head::Wait(until),
                    }
                }
                request.control.index = index;
                Head::Request(Box::new(request))
            }
            Err(Malformed::Opcode | Malformed::Segments | Malformed::InlineResponse) => {
                Head::Malformed(Control { index, ..control }, Syndrome::LocalOperation)
            }
        }
    }

    /// Takes the answer that came from another process for the request at the head.
    fn take_answer(&mut self, qpn: u32) -> Option<Reply> {
        self.objects.qps.get_mut(qpn)?.send.as_mut()?.came.take()
    }

    /// Does a request go out on the wire, rather than to the device itself?
    fn leaves(&self, qpn: u32, request: &Request) -> bool {
        let lid = match &request.operation {
            Operation::Nop | Operation::Register(_) => return false,
            Operation::Send { address: Some(address), .. } => Some(address.lid),
            _ => self.objects.qps.get(qpn).map(|qp| qp.cached.remote_lid),
        };
        lid != Some(self.port.lid)
    }

    /// Puts the head on a slow wire. `false`: it has been on its way already.
    fn depart(&mut self, qpn: u32) -> bool {
        let queue = self.objects.qps.get_mut(qpn).and_then(|qp| qp.send.as_mut());
        queue.is_some_and(|queue| !std::mem::replace(&mut queue.under_way, true))
    }

    /// The message that a request sends.
    fn message(&mut self, qpn: u32, request: &Request) -> Result<Message, Syndrome> {
        let qp = self.objects.qps.get(qpn).ok_or(Syndrome::LocalOperation)?;
        let asker = Asker { pd: qp.cached.pd, qpn };
        let gather = || self.gather(&request.data, asker);
        let (mut lid, mut destination) = (qp.cached.remote_lid, qp.cached.remote_qpn);
        let body = match &request.operation {
            Operation::Send { immediate, invalidate, address } => {
                let data = gather()?;
                let datagram = match address {
                    None => None,
                    Some(address) => {
                        if u64::try_from(data.len()).unwrap_or(u64::MAX) > LONGEST_DATAGRAM {
                            return Err(Syndrome::LocalLength);
                        }
                        (lid, destination) = (address.lid, address.qpn);
                        Some(self.datagram(qp, address))
                    }
                };
                Body::Send { data, immediate: *immediate, invalidate: *invalidate, datagram }
            }
            Operation::Write { remote, immediate } => {
                Body::Write { remote: *remote, data: gather()?, immediate: *immediate }
            }
            Operation::Read(remote) => Body::Read { remote: *remote, len: total(&request.data)? },
            Operation::Atomic { remote, atomic } => Body::Atomic { remote: *remote, atomic: *atomic },
            Operation::Nop | Operation::Register(_) => return Err(Syndrome::LocalOperation),
        };
        let source_qpn = match qp.special {
            Some(_) => u32::from(qp.special == Some(crate::objects::qp::Special::GeneralServices)),
            None if qp.cached.source_qpn != 0 => qp.cached.source_qpn,
            None => qpn,
        };
        Ok(Message {
            source_lid: self.port.lid,
            source_qpn,
            destination_lid: lid,
            destination_qpn: destination,
            srqn: request.srqn,
            solicited: request.control.solicited,
            body,
        })
    }

    fn datagram(&self, qp: &Qp, address: &Address) -> Datagram {
        const OWN_QKEY: u32 = 1 << 31;
        Datagram {
            qkey: if address.qkey & OWN_QKEY != 0 { qp.cached.qkey } else { address.qkey },
            sl: address.sl,
            route: address.route,
            source_gid: self.port.gid(),
            multicast: (MULTICAST_LID..0xffff).contains(&address.lid),
        }
    }

    fn gather(&self, list: &[Data], asker: Asker) -> Result<Vec<u8>, Syndrome> {
        let mut data = Vec::with_capacity(usize::try_from(total(list)?).unwrap_or(0));
        for piece in list {
            match piece {
                Data::Inline(bytes) => data.extend_from_slice(bytes),
                Data::Memory(sge) => self
                    .read_under(
                        sge.key,
                        sge.address,
                        u64::from(sge.length),
                        Access::LocalRead,
                        asker,
                        &mut data,
                    )
                    .ok_or(Syndrome::LocalProtection)?,
            }
        }
        Ok(data)
    }

    /// Changes a memory key.
    fn register(&mut self, qpn: u32, change: &Registration) -> Result<(), Syndrome> {
        let qp = self.objects.qps.get(qpn).ok_or(Syndrome::LocalOperation)?;
        let (pd, trusted) = (qp.cached.pd, qp.service == Service::Registration);
        let entries = match &change.translation {
            Data::Inline(bytes) => bytes.clone(),
            Data::Memory(sge) => {
                let key = self.objects.mkeys.get(sge.key >> 8).ok_or(Syndrome::LocalProtection)?;
                let asker = Asker { pd: if trusted { key.pd() } else { pd }, qpn };
                let mut bytes = Vec::new();
                let len = u64::try_from(change.translation_bytes).unwrap_or(0).min(u64::from(sge.length));
                self.read_under(sge.key, sge.address, len, Access::LocalRead, asker, &mut bytes)
                    .ok_or(Syndrome::LocalProtection)?;
                bytes
            }
        };
        let key = self.objects.mkeys.get_mut(change.key >> 8).ok_or(Syndrome::WindowBind)?;
        if !trusted && key.pd() != pd {
            return Err(Syndrome::WindowBind);
        }
        key.change(change, &entries, qpn).ok_or(Syndrome::WindowBind)
    }

    /// Ends the request at the head by what came back.
    fn answer(&mut self, env: &mut Env, qpn: u32, request: &Request, reply: Reply) -> Progress {
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return Progress::Idle };
        let reliable = matches!(qp.service, Service::Rc | Service::XrcInitiator);
        match reply {
            Reply::Done(data) => match self.place_response(qpn, request, &data) {
                Ok(inline) => self.succeed(env, qpn, request, data.len(), inline),
                Err(syndrome) => self.fail(env, qpn, request, syndrome),
            },
            // Nobody tells an unreliable sender.
            _ if !reliable => self.succeed(env, qpn, request, 0, None),
            Reply::Refused(syndrome) => self.fail(env, qpn, request, syndrome),
            Reply::NotReady(delay) => self.try_again(env, qpn, request, Some(delay)),
            Reply::Awaited => {
                if let Some(queue) = &mut qp.send {
                    queue.wait_until = FOREVER;
                }
                Progress::Until(FOREVER)
            }
            Reply::Silence => self.try_again(env, qpn, request, None),
        }
    }

    /// Waits for another try, if one is left: for a receiver that is not ready, or after silence.
    fn try_again(&mut self, env: &mut Env, qpn: u32, request: &Request, not_ready: Option<u64>) -> Progress {
        const ALWAYS: u8 = 7;
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return Progress::Idle };
        let delay = not_ready.unwrap_or_else(|| qp.ack_timeout().unwrap_or(FOREVER));
        let Some(queue) = &mut qp.send else { return Progress::Idle };
        let (left, syndrome) = match not_ready {
            Some(_) => (&mut queue.rnr_retries, Syndrome::RnrRetriesExceeded),
            None => (&mut queue.retries, Syndrome::RetriesExceeded),
        };
        let endless = not_ready.is_some() && *left == ALWAYS;
        if *left == 0 {
            return self.fail(env, qpn, request, syndrome);
        }
        if !endless {
            *left -= 1;
        }
        queue.wait_until = env.now.saturating_add(delay);
        queue.under_way = false;
        Progress::Until(queue.wait_until)
    }

    /// Puts what came back where the request wants it: into the completion, if that is how the queue pair is set.
    fn place_response(&self, qpn: u32, request: &Request, data: &[u8]) -> Result<Option<Vec<u8>>, Syndrome> {
        let Some(qp) = self.objects.qps.get(qpn) else { return Ok(None) };
        if data.is_empty() {
            return Ok(None);
        }
        if data.len() <= qp.cached.inline_response && request.control.signaled {
            return Ok(Some(data.to_vec()));
        }
        let list: Vec<_> = request
            .data
            .iter()
            .filter_map(|piece| match piece {
                Data::Memory(sge) => Some(*sge),
                Data::Inline(_) => None,
            })
            .collect();
        self.scatter(&list, 0, data, Asker { pd: qp.cached.pd, qpn })?;
        Ok(None)
    }

    fn succeed(
        &mut self,
        env: &mut Env,
        qpn: u32,
        request: &Request,
        len: usize,
        inline: Option<Vec<u8>>,
    ) -> Progress {
        let index = request.control.index;
        env.record(self.index, &Record::Executed { qpn, index, request, outcome: "done" });
        if let Some(qp) = self.objects.qps.get_mut(qpn) {
            let sent = total(&request.data).unwrap_or(0);
            qp.count_packets(qpc::NEXT_SEND_PSN, sent);
        }
        let Some(cqn) = self.consume(qpn, &request.control) else { return Progress::Idle };
        if request.control.signaled {
            let mut completion = Completion::new(Kind::Requester, qpn, self.owner_index(qpn), index);
            completion.send_opcode = request.control.opcode;
            completion.length = u32::try_from(len).unwrap_or(u32::MAX);
            completion.inline = inline;
            if !self.complete(env, cqn, &completion) {
                self.fail_qp(env, qpn, Some(EventType::WqCatastrophe));
            }
        }
        Progress::Again
    }

    fn fail(&mut self, env: &mut Env, qpn: u32, request: &Request, syndrome: Syndrome) -> Progress {
        let outcome = syndrome.name();
        env.record(self.index, &Record::Executed { qpn, index: request.control.index, request, outcome });
        self.complete_in_error(env, qpn, &request.control, syndrome);
        Progress::Again
    }

    fn refuse(&mut self, env: &mut Env, qpn: u32, control: &Control, syndrome: Syndrome) {
        let (index, opcode, outcome) = (control.index, control.opcode, syndrome.name());
        env.record(self.index, &Record::Refused { qpn, index, opcode, outcome });
        self.complete_in_error(env, qpn, control, syndrome);
    }

    /// Ends the request at the head with a completion in error, which is also the end of the queue.
    pub(crate) fn complete_in_error(
        &mut self,
        env: &mut Env,
        qpn: u32,
        control: &Control,
        syndrome: Syndrome,
    ) {
        let uidx = self.owner_index(qpn);
        let Some(cqn) = self.consume(qpn, control) else { return };
        let mut completion = Completion::error(Kind::RequesterError, qpn, uidx, control.index, syndrome);
        completion.send_opcode = control.opcode;
        self.complete(env, cqn, &completion);
        match self.objects.qps.get_mut(qpn) {
            Some(qp) if matches!(qp.service, Service::Uc | Service::Ud) => {
                qp.set_state(State::SendError);
                self.ready.insert(qpn);
            }
            _ => self.fail_qp(env, qpn, None),
        }
    }

    /// Moves past a request; says where its completion goes.
    fn consume(&mut self, qpn: u32, control: &Control) -> Option<u32> {
        let qp = self.objects.qps.get_mut(qpn)?;
        let queue = qp.send.as_mut()?;
        queue.consumer = control.index.wrapping_add(control.blocks());
        let cqn = queue.cqn;
        qp.rewind();
        Some(cqn)
    }
}

/// Bytes of all pieces.
fn total(list: &[Data]) -> Result<u64, Syndrome> {
    let sum = list.iter().map(|piece| match piece {
        Data::Memory(sge) => u64::from(sge.length),
        Data::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
    });
    Some(sum.sum()).filter(|sum| *sum <= LONGEST).ok_or(Syndrome::LocalLength)
}
