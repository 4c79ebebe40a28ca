//! One device: its tables, its memory, and how it speaks to its driver by completions, events and interrupts.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

use crate::doorbell::Copy;
use crate::fault::Faults;
use crate::firmware::Firmware;
use crate::journal::{Journal, Record};
use crate::memory::{DoorbellPages, GuestMemory, PAGE, Unmapped};
use crate::objects::Objects;
use crate::objects::cq::{Completion, Kind};
use crate::objects::eq::{self, EventType, PortChange};
use crate::objects::qp::{Qp, Receive, State};
use crate::pci::{ConfigSpace, DEVICE_MEMORY_START, Identity, VECTORS};
use crate::prm::put;
use crate::script::Triggers;

/// How a guest's stores to doorbell pages come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarMode {
    /// Plain stores to shared memory, which is polled: fast, and only the last of several stores to a register shows.
    Mapped,
    /// Every store is a message, in order.
    Trapped,
}

/// What all devices share: the clock and the journal.
#[derive(Debug)]
pub(crate) struct Env {
    /// Nanoseconds since start.
    pub(crate) now: u64,
    pub(crate) journal: Journal,
    pub(crate) triggers: Triggers,
}

impl Env {
    /// Something happened: writes it down, and lets the script's triggers see it.
    pub(crate) fn record(&mut self, device: usize, record: &Record<'_>) {
        self.triggers.observe(device, record);
        self.journal.write(self.now, device, record);
    }
}

/// Where a port is on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub(crate) guid: u64,
    pub(crate) lid: u16,
    pub(crate) up: bool,
}

impl Port {
    /// The port's first GID.
    pub(crate) fn gid(self) -> [u8; 16] {
        let mut gid = [0; 16];
        put(&mut gid, 0, &0xfe80_0000_0000_0000u64.to_be_bytes());
        put(&mut gid, 8, &self.guid.to_be_bytes());
        gid
    }
}

/// A device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) index: usize,
    pub(crate) identity: Identity,
    pub(crate) mode: BarMode,
    pub(crate) port: Port,
    pub(crate) config: ConfigSpace,
    pub(crate) memory: GuestMemory,
    pub(crate) doorbells: Arc<DoorbellPages>,
    pub(crate) interrupts: Vec<Option<File>>,
    pub(crate) firmware: Firmware,
    pub(crate) objects: Objects,
    pub(crate) faults: Faults,
    /// Queue pairs that may have something to do.
    pub(crate) ready: BTreeSet<u32>,
    /// Work requests that stores to BlueFlame registers brought, or are bringing.
    pub(crate) copies: VecDeque<Copy>,
    /// Numbers that its queue pairs may have.
    pub(crate) qps: Range<u32>,
    /// Events of a device whose driver takes them from here, not from queues in its memory.
    pub(crate) raised: Option<Vec<Raised>>,
}

/// An event, as its entry in a queue would have it.
#[derive(Clone, Debug)]
pub struct Raised {
    /// The event queue.
    pub eqn: u32,
    /// What it is about.
    pub event: EventType,
    /// More of that.
    pub subtype: u8,
    /// The data, from byte 32 of the entry on.
    pub data: Vec<u8>,
}

/// Queue pair numbers, where no other device shares the space.
const QPS: Range<u32> = 0x40..1 << 18;

/// Doorbell pages of the BAR.
fn doorbell_pages() -> u32 {
    u32::try_from(DEVICE_MEMORY_START).unwrap_or(0) / u32::try_from(PAGE).unwrap_or(1)
}

impl Device {
    pub(crate) fn new(
        index: usize,
        identity: Identity,
        mode: BarMode,
        doorbells: Arc<DoorbellPages>,
    ) -> Device {
        let number = u16::try_from(index).unwrap_or(0) + 1;
        Device {
            index,
            identity,
            mode,
            port: Port { guid: 0x0002_c903_00fa_ce00 + u64::from(number), lid: number, up: true },
            config: ConfigSpace::new(identity),
            memory: GuestMemory::default(),
            doorbells,
            interrupts: (0..VECTORS).map(|_| None).collect(),
            firmware: Firmware::default(),
            objects: Objects::new(doorbell_pages(), &QPS),
            qps: QPS,
            faults: Faults::default(),
            ready: BTreeSet::new(),
            copies: VecDeque::new(),
            raised: None,
        }
    }

    /// Forgets all that the driver made, as a reset of the function does.
    pub(crate) fn reset(&mut self) {
        self.firmware = Firmware::default();
        self.forget_objects();
        self.faults.reset();
    }

    pub(crate) fn forget_objects(&mut self) {
        self.objects = Objects::new(doorbell_pages(), &self.qps);
        self.ready.clear();
        self.copies.clear();
    }

    /// May the device reach the guest's memory at all?
    pub(crate) fn has_bus(&self) -> bool {
        (self.raised.is_some() || self.config.is_bus_master()) && !self.faults.is_cut_off()
    }

    /// Notes what should not happen: a run with findings fails.
    pub(crate) fn finding(&self, env: &mut Env, what: std::fmt::Arguments<'_>) {
        env.record(self.index, &Record::Finding(what));
    }

    /// Says that guest memory was not there.
    pub(crate) fn missed(&self, env: &mut Env, what: &str, Unmapped(address): Unmapped) {
        self.finding(env, format_args!("{what} at {address:#x}: no such memory"));
    }

    /// Writes an event and interrupts.
    pub(crate) fn event_to(&mut self, env: &mut Env, eqn: u32, event: EventType, subtype: u8, data: &[u8]) {
        if !self.has_bus() {
            return;
        }
        let Some(queue) = self.objects.eqs.get_mut(eqn) else { return };
        if let Some(raised) = &mut self.raised {
            raised.push(Raised { eqn, event, subtype, data: data.to_vec() });
            env.record(self.index, &Record::Event { eqn, event, subtype, data });
            return;
        }
        let (address, owner) = queue.advance();
        let vector = queue.vector;
        let mut entry = [0; eq::ENTRY];
        put(&mut entry, 1, &[event as u8]);
        put(&mut entry, 3, &[subtype]);
        put(&mut entry, 32, data);
        put(&mut entry, 63, &[owner]);
        let written = match address {
            Some(address) => self.memory.publish(address, &entry),
            None => Err(Unmapped(0)),
        };
        env.record(self.index, &Record::Event { eqn, event, subtype, data });
        if let Err(unmapped) = written {
            return self.missed(env, "event", unmapped);
        }
        if let Some(Some(interrupt)) = self.interrupts.get(vector) {
            // A full counter means that an interrupt is pending already.
            let _ = (&*interrupt).write_all(&1u64.to_ne_bytes());
        }
    }

    /// Raises an event in the queue that asked for its type.
    pub(crate) fn event(&mut self, env: &mut Env, event: EventType, subtype: u8, data: &[u8]) {
        let eqn = self.objects.eqs.iter().find(|(_, queue)| queue.wants(event)).map(|(eqn, _)| eqn);
        if let Some(eqn) = eqn {
            self.event_to(env, eqn, event, subtype, data);
        }
    }

    /// An event of a queue pair or shared receive queue.
    pub(crate) fn queue_event(&mut self, env: &mut Env, event: EventType, number: u32) {
        let mut data = [0; 28];
        let kind = u8::from(matches!(event, EventType::SrqLimit | EventType::SrqCatastrophe));
        put(&mut data, 20, &[kind]);
        put(&mut data, 24, &number.to_be_bytes());
        self.event(env, event, 0, &data);
    }

    /// A change of the port.
    pub(crate) fn port_event(&mut self, env: &mut Env, change: PortChange) {
        let mut data = [0; 28];
        put(&mut data, 8, &[1 << 4]);
        self.event(env, EventType::PortChange, change as u8, &data);
    }

    /// Puts a completion into a queue. `false`: there was no room, and the queue is now in error.
    pub(crate) fn complete(&mut self, env: &mut Env, cqn: u32, completion: &Completion) -> bool {
        if !self.has_bus() || self.faults.silent {
            return true;
        }
        let Some(cq) = self.objects.cqs.get_mut(cqn) else { return true };
        if cq.error {
            return false;
        }
        let consumer = self.memory.word(cq.record).unwrap_or(0);
        if !cq.ignore_overrun && cq.is_full(consumer) {
            self.fail_cq(env, cqn);
            return false;
        }
        let index = cq.producer;
        let (address, owner) = cq.advance();
        let entry = Completion { timestamp: ticks(env.now), ..completion.clone() }.encode(cq.entry, owner);
        let written = match address {
            Some(address) => self.memory.publish(address, &entry),
            None => Err(Unmapped(0)),
        };
        env.record(self.index, &Record::Completion { cqn, index, completion });
        let solicited = completion.solicited || completion.syndrome.is_some();
        let due = completion.kind != Kind::Resized && cq.completed(solicited, env.now);
        if let Err(unmapped) = written {
            self.missed(env, "completion", unmapped);
        }
        if due {
            self.completion_event(env, cqn);
        }
        true
    }

    /// The event that a completion queue was armed for.
    pub(crate) fn completion_event(&mut self, env: &mut Env, cqn: u32) {
        let Some(cq) = self.objects.cqs.get_mut(cqn) else { return };
        cq.fire();
        let eqn = cq.eqn;
        let mut data = [0; 28];
        put(&mut data, 24, &cqn.to_be_bytes());
        self.event_to(env, eqn, EventType::Completion, 0, &data);
    }

    /// Puts a completion queue in error.
    pub(crate) fn fail_cq(&mut self, env: &mut Env, cqn: u32) {
        const OVERRUN: u8 = 1;
        let Some(cq) = self.objects.cqs.get_mut(cqn) else { return };
        cq.error = true;
        let mut data = [0; 28];
        put(&mut data, 0, &cqn.to_be_bytes());
        put(&mut data, 11, &[OVERRUN]);
        self.event(env, EventType::CqError, 0, &data);
    }

    /// Puts a queue pair in error and lets it flush.
    pub(crate) fn fail_qp(&mut self, env: &mut Env, qpn: u32, cause: Option<EventType>) {
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return };
        if matches!(qp.state, State::Error | State::Reset) {
            return;
        }
        qp.set_state(State::Error);
        self.ready.insert(qpn);
        if let Some(cause) = cause {
            self.queue_event(env, cause, qpn);
        }
        self.last_wqe(env, qpn);
    }

    /// A queue pair in error takes no more from its shared receive queue: says so.
    pub(crate) fn last_wqe(&mut self, env: &mut Env, qpn: u32) {
        let shared = |qp: &Qp| matches!(qp.receive, Receive::Shared(_));
        if self.objects.qps.get(qpn).is_some_and(shared) {
            self.queue_event(env, EventType::LastWqeReached, qpn);
        }
    }
}

/// The device's free-running clock (156.25 MHz) at a time in nanoseconds.
pub(crate) fn ticks(now: u64) -> u64 {
    u64::try_from(u128::from(now) * 15_625 / 100_000).unwrap_or(u64::MAX)
}
