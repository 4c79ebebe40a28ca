//! The wire between processes: each has a socket with an abstract name, which says its place, and connects to those whose
//! queue pairs it has messages for. A place becomes free when its process ends, however that is.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vhca::Outgoing;

use crate::driver::QPS;
use crate::next;

/// Places on a wire.
const SLOTS: u32 = 512;
/// How long a place where nobody was is not asked again for a group's messages.
const ABSENCE: Duration = Duration::from_millis(200);

/// What is read at once.
const PIECE: usize = 1 << 16;

const REQUEST: u8 = 0;
const REPLY: u8 = 1;
const CONTROL: u8 = 2;
const ANSWER: u8 = 3;

/// Who waits for an answer: device, queue pair, and the answer's name.
type Waiting = (usize, u32, u64);

/// A connection.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    waiting: Vec<Waiting>,
    broken: bool,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A message, and where its answer goes.
    Request { from: usize, waiting: Option<Waiting>, bytes: Vec<u8> },
    /// An answer; `None`: there will be none.
    Reply { waiting: Waiting, bytes: Option<Vec<u8>> },
    /// A command, and where its answer goes.
    Control { from: usize, line: String },
}

/// This process's place.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    pub(crate) slot: u32,
    listener: UnixListener,
    /// Connections that we made, by place.
    outgoing: HashMap<u32, Peer>,
    /// Connections that others made, by number.
    incoming: HashMap<usize, Peer>,
    last: usize,
    absent: HashMap<u32, Instant>,
    buffer: Vec<u8>,
}

/// The address of a place.
fn address(name: &str, slot: u32) -> io::Result<SocketAddr> {
    // The user's number, so that users do not meet by chance.
    let user = next::user();
    SocketAddr::from_abstract_name(format!("holdfast-sim/{user}/{name}/{slot}"))
}

fn frame(kind: u8, waiting: Option<Waiting>, bytes: &[u8]) -> Vec<u8> {
    let (device, qpn, name) = waiting.unwrap_or_default();
    let mut frame = Vec::with_capacity(HEADER + bytes.len());
    frame.extend((bytes.len() as u32).to_le_bytes());
    frame.extend([kind, u8::from(waiting.is_some()), device as u8, 0]);
    frame.extend(qpn.to_le_bytes());
    frame.extend(name.to_le_bytes());
    frame.extend(bytes);
    frame
}

const HEADER: usize = 20;

impl Peer {
    fn new(stream: UnixStream) -> io::Result<Peer> {
        stream.set_nonblocking(true)?;
        if next::peer_user(stream.as_raw_fd()) != Some(next::user()) {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "another user's process"));
        }
        Ok(Peer { stream, received: Vec::new(), unsent: Vec::new(), waiting: Vec::new(), broken: false })
    }

    fn send(&mut self, frame: &[u8]) {
        self.unsent.extend(frame);
        self.flush();
    }

    fn flush(&mut self) {
        let mut sent = 0;
        while let Some(rest) = self.unsent.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        self.unsent.drain(..sent);
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => self.broken = true,
                Ok(count) => {
                    self.received.extend_from_slice(buffer.get(..count).unwrap_or(&[]));
                    if count == buffer.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.broken = true,
            }
            break;
        }
    }

    /// Takes the frames that are whole: kind, who waits, and the rest.
    fn frames(&mut self) -> Vec<(u8, Option<Waiting>, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some((header, rest)) =
            self.received.get(at..).and_then(|bytes| bytes.split_first_chunk::<HEADER>())
        {
            let [a, b, c, d, kind, waits, device, _, q0, q1, q2, q3, n @ ..] = *header;
            let len = u32::from_le_bytes([a, b, c, d]) as usize;
            let Some(bytes) = rest.get(..len) else { break };
            let waiting = (usize::from(device), u32::from_le_bytes([q0, q1, q2, q3]), u64::from_le_bytes(n));
            frames.push((kind, (waits != 0).then_some(waiting), bytes.to_vec()));
            at += HEADER + len;
        }
        self.received.drain(..at);
        frames
    }
}

impl Net {
    /// Takes the first free place on a wire.
    pub(crate) fn join(name: &str) -> io::Result<Net> {
        for slot in 0..SLOTS {
            match UnixListener::bind_addr(&address(name, slot)?) {
                Ok(listener) => {
                    listener.set_nonblocking(true)?;
                    return Ok(Net {
                        name: name.to_owned(),
                        slot,
                        listener,
                        outgoing: HashMap::new(),
                        incoming: HashMap::new(),
                        last: 0,
                        absent: HashMap::new(),
                        buffer: vec![0; PIECE],
                    });
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("all places on the wire are taken"))
    }

    fn peer(&mut self, slot: u32) -> Option<&mut Peer> {
        if slot == self.slot || slot >= SLOTS {
            return None;
        }
        if !self.outgoing.contains_key(&slot) {
            let stream = UnixStream::connect_addr(&address(&self.name, slot).ok()?).ok()?;
            self.outgoing.insert(slot, Peer::new(stream).ok()?);
        }
        self.outgoing.get_mut(&slot)
    }

    /// Sends a message. `false`: there is nobody, and no answer will come.
    pub(crate) fn send(&mut self, message: &Outgoing) -> bool {
        let waiting = message.awaited.map(|(qpn, name)| (message.device, qpn, name));
        let frame = frame(REQUEST, waiting, &message.bytes);
        let Some(qpn) = message.to else {
            self.send_to_all(&frame);
            return true;
        };
        let Some(peer) = self.peer(qpn / QPS) else { return false };
        peer.waiting.extend(waiting);
        peer.send(&frame);
        true
    }

    fn send_to_all(&mut self, frame: &[u8]) {
        let now = Instant::now();
        for slot in 0..SLOTS {
            if self.absent.get(&slot).is_some_and(|until| now < *until) {
                continue;
            }
            match self.peer(slot) {
                Some(peer) => peer.send(frame),
                None => drop(self.absent.insert(slot, now + ABSENCE)),
            }
        }
    }

    /// Answers a message.
    pub(crate) fn reply(&mut self, to: usize, waiting: Waiting, bytes: &[u8]) {
        if let Some(peer) = self.incoming.get_mut(&to) {
            peer.send(&frame(REPLY, Some(waiting), bytes));
        }
    }

    /// Answers a command.
    pub(crate) fn answer(&mut self, to: usize, answer: &Result<String, String>) {
        let (good, text) = match answer {
            Ok(text) => (1, text),
            Err(text) => (0, text),
        };
        if let Some(peer) = self.incoming.get_mut(&to) {
            peer.send(&frame(ANSWER, None, &[&[good], text.as_bytes()].concat()));
        }
    }

    /// Takes what came in.
    pub(crate) fn receive(&mut self) -> Vec<Arrival> {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(peer) = Peer::new(stream) {
                self.last += 1;
                self.incoming.insert(self.last, peer);
            }
        }
        let mut arrivals = Vec::new();
        for (number, peer) in &mut self.incoming {
            peer.fill(&mut self.buffer);
            for (kind, waiting, bytes) in peer.frames() {
                match kind {
                    REQUEST => arrivals.push(Arrival::Request { from: *number, waiting, bytes }),
                    CONTROL => {
                        let line = String::from_utf8_lossy(&bytes).into_owned();
                        arrivals.push(Arrival::Control { from: *number, line });
                    }
                    _ => peer.broken = true,
                }
            }
        }
        for peer in self.outgoing.values_mut() {
            peer.fill(&mut self.buffer);
            for (kind, waiting, bytes) in peer.frames() {
                match waiting {
                    Some(waiting) if kind == REPLY => {
                        peer.waiting.retain(|known| *known != waiting);
                        arrivals.push(Arrival::Reply { waiting, bytes: Some(bytes) });
                    }
                    _ => peer.broken = true,
                }
            }
        }
        for peer in self.outgoing.values_mut().filter(|peer| peer.broken) {
            let lost = peer.waiting.drain(..).map(|waiting| Arrival::Reply { waiting, bytes: None });
            arrivals.extend(lost);
        }
        self.outgoing.retain(|_, peer| !peer.broken);
        self.incoming.retain(|_, peer| !peer.broken);
        arrivals
    }

    /// Waits until something comes in, or can go out that could not, at most so long; says whether something did.
    pub(crate) fn wait(&mut self, pause: Duration) -> bool {
        let mut fds = vec![libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        for peer in self.incoming.values().chain(self.outgoing.values()) {
            let events = if peer.unsent.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT };
            fds.push(libc::pollfd { fd: peer.stream.as_raw_fd(), events, revents: 0 });
        }
        let ready = next::wait(&mut fds, pause);
        if !ready {
            return false;
        }
        self.incoming.values_mut().chain(self.outgoing.values_mut()).for_each(Peer::flush);
        true
    }
}
