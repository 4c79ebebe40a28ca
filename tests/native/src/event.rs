//! Event files: the async event file of a context, and completion channels.
//!
//! The program holds one end of a pair of datagram sockets, so that poll, select and epoll work on a descriptor that the
//! system knows, whatever the program does with it. The queue itself is memory: `read` is taken over, takes an event from
//! there, and waits in the system's own `read` where there is none, so that whoever looks for threads that wait there, and
//! interrupts them, finds them as with a kernel. A byte lies in the program's socket as long as the queue has something
//! (POLLIN), and one more is sent for each reader that shall wake up: the system wakes one at a time.
//!
//! When the device goes, a completion channel shows POLLERR for good, and nothing else: our end, which holds a datagram that
//! nobody reads, is disconnected, and the system then reports a connection reset to the program's. What is reset is reported
//! once by `read`, which is why no reader may be left in the system at that moment, and none goes there later.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::{Errno, next};

/// How long a reader may take to leave the system before another byte is sent.
const ONE_BY_ONE: Duration = Duration::from_millis(1);

/// What a file gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `struct ib_uverbs_async_event_desc`.
    Async,
    /// `struct ib_uverbs_comp_event_desc`.
    Completion,
}

/// Events of an object that were read, which it reports when it is destroyed.
pub(crate) type Counter = Arc<AtomicU32>;

/// An event that waits.
#[derive(Debug)]
struct Event {
    bytes: Vec<u8>,
    counter: Option<Counter>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Event>,
    /// Bytes that lie in the program's socket.
    bytes: usize,
    /// The device is gone (completion channels).
    closed: bool,
    /// Readers that are, or are about to be, in the system.
    readers: usize,
}

/// What a `read` gave.
#[derive(Debug)]
pub(crate) enum Taken {
    /// An event's bytes, for the program's buffer.
    Event(Vec<u8>),
    /// So many bytes of another file are in the buffer.
    Other(usize),
}

/// An event file.
#[derive(Debug)]
pub(crate) struct EventFile {
    kind: Kind,
    /// Our end.
    socket: OwnedFd,
    /// A descriptor of our own for the program's end.
    program: OwnedFd,
    state: Mutex<State>,
    left: Condvar,
}

impl EventFile {
    /// A new file, and the program's descriptor of it.
    pub(crate) fn new(kind: Kind) -> Result<(Arc<EventFile>, OwnedFd), Errno> {
        let (theirs, socket) = next::socket_pair()?;
        let program = next::duplicate(theirs.as_raw_fd())?;
        next::send_byte(program.as_raw_fd())?;
        let state = Mutex::new(State::default());
        Ok((Arc::new(EventFile { kind, socket, program, state, left: Condvar::new() }), theirs))
    }

    /// Queues an event; `counter` is counted when it is read.
    pub(crate) fn push(&self, bytes: &[u8], counter: Option<Counter>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.queue.push_back(Event { bytes: bytes.to_vec(), counter });
        if state.bytes == 0 || state.readers > 0 {
            self.show(&mut state);
        }
    }

    /// Takes the events away that count on `counter`: their object is gone.
    pub(crate) fn forget(&self, counter: &Counter) {
        let mut state = self.state.lock();
        state.queue.retain(|event| !event.counter.as_ref().is_some_and(|other| Arc::ptr_eq(other, counter)));
        self.hide_if_empty(&mut state);
    }

    fn show(&self, state: &mut State) {
        // A socket that is full shows enough.
        if next::send_byte(self.socket.as_raw_fd()).is_ok() {
            state.bytes += 1;
        }
    }

    /// `read(2)` by the program with `room` bytes. `wait` is the system's own `read` of the same number into the same buffer: it
    /// takes a byte of this file, or, where the number names another file by now, what that has.
    pub(crate) fn read(
        &self,
        room: usize,
        mut wait: impl FnMut() -> Result<usize, Errno>,
    ) -> Result<Taken, Errno> {
        loop {
            let mut state = self.state.lock();
            if let Some(event) = state.queue.front() {
                if event.bytes.len() > room {
                    self.show_rest(&mut state);
                    return Err(Errno(libc::EINVAL));
                }
                let event = state.queue.pop_front();
                self.show_rest(&mut state);
                if let Some(counter) = event.as_ref().and_then(|event| event.counter.as_ref()) {
                    // ORDER: a statistic of its own; the objects' lock orders it with their end.
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(Taken::Event(event.map(|event| event.bytes).unwrap_or_default()));
            }
            if state.closed {
                return Err(Errno(libc::EIO));
            }
            // A byte without an event: its object was destroyed while it waited.
            self.show_rest(&mut state);
            state.readers += 1;
            drop(state);
            let waited = wait();
            let mut state = self.state.lock();
            state.readers -= 1;
            self.left.notify_all();
            match waited {
                Ok(1) => state.bytes = state.bytes.saturating_sub(1),
                Ok(len) => return Ok(Taken::Other(len)),
                Err(errno) if state.queue.is_empty() && !state.closed => return Err(errno),
                Err(_) => {}
            }
        }
    }

    /// The device is gone: what waits is forgotten, readers get `EIO`, and poll POLLERR, from now on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        if self.kind != Kind::Completion || state.closed {
            return;
        }
        state.closed = true;
        state.queue.clear();
        while state.readers > 0 {
            self.show(&mut state);
            self.left.wait_for(&mut state, ONE_BY_ONE);
        }
        self.hide_if_empty(&mut state);
        next::disconnect(self.socket.as_raw_fd());
    }

    /// The program's socket shows what is queued, and that there is more for other readers.
    fn show_rest(&self, state: &mut State) {
        self.hide_if_empty(state);
        if !state.queue.is_empty() && (state.bytes == 0 || state.readers > 0) {
            self.show(state);
        }
    }

    /// Takes the bytes from the program's socket if nothing is queued.
    fn hide_if_empty(&self, state: &mut State) {
        while state.bytes > 0 && state.queue.is_empty() {
            next::take_byte(self.program.as_raw_fd());
            state.bytes -= 1;
        }
    }
}
