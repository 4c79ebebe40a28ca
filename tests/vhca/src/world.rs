//! The devices of a process, the wire that joins them, and the loop that drives them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::{BarMode, Device, Env};
use crate::journal::{Journal, Record};
use crate::memory::{DoorbellPages, GuestMemory, OWN, PAGE, ProcessMemory};
use crate::pci::{BAR_LEN, DEVICE_MEMORY_LEN, DEVICE_MEMORY_START, Identity};
use crate::script::Triggers;
use crate::transport::{Outgoing, Progress, Wire};

/// Everything, behind one lock.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) devices: Vec<Device>,
    pub(crate) wire: Wire,
    pub(crate) env: Env,
    start: Instant,
    /// When something was last done.
    active: u64,
    /// Messages for other processes, where there are any.
    pub(crate) beyond: Option<Vec<Outgoing>>,
    /// Messages that left this process so far.
    pub(crate) posted: u64,
    /// Commands that triggers made due, where somebody else runs them. While there are any, nothing is executed.
    pub(crate) outside: Option<Vec<String>>,
}

/// Work requests that a queue pair may execute before another has its turn.
const TURN: usize = 32;
/// How often doorbell pages are polled while there is traffic, and when there is none.
const BUSY: Duration = Duration::from_micros(10);
const QUIET: Duration = Duration::from_micros(300);
/// How long after the last traffic it counts as quiet.
const CALM: u64 = 2_000_000;

impl World {
    pub(crate) fn new(journal: Journal) -> World {
        World {
            devices: Vec::new(),
            wire: Wire::default(),
            env: Env { now: 0, journal, triggers: Triggers::default() },
            start: Instant::now(),
            active: 0,
            beyond: None,
            posted: 0,
            outside: None,
        }
    }

    /// Adds a device that a guest's memory will be mapped to. Its number.
    pub(crate) fn add(&mut self, identity: Identity, mode: BarMode) -> std::io::Result<usize> {
        let mut memory = GuestMemory::default();
        let doorbells = DoorbellPages::new(usize::try_from(BAR_LEN).unwrap_or(0))?;
        memory.map(OWN, DEVICE_MEMORY_LEN, doorbells.file(), DEVICE_MEMORY_START)?;
        Ok(self.add_with(identity, mode, doorbells, memory))
    }

    /// Adds a device of this process, which has no memory of its own. Its number.
    pub(crate) fn add_hosted(&mut self) -> std::io::Result<usize> {
        let doorbells = DoorbellPages::new(usize::try_from(BAR_LEN).unwrap_or(0))?;
        let memory = GuestMemory::Process(ProcessMemory::new());
        Ok(self.add_with(Identity::Physical, BarMode::Mapped, doorbells, memory))
    }

    fn add_with(
        &mut self,
        identity: Identity,
        mode: BarMode,
        doorbells: DoorbellPages,
        memory: GuestMemory,
    ) -> usize {
        let index = self.devices.len();
        self.devices.push(Device { memory, ..Device::new(index, identity, mode, Arc::new(doorbells)) });
        index
    }

    /// Sets the clock to now.
    pub(crate) fn tick(&mut self) {
        self.env.now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    }

    /// A store to a doorbell page of a device.
    pub(crate) fn store(&mut self, device: usize, offset: usize, bytes: &[u8]) {
        let (page, at) = (offset / PAGE, offset % PAGE);
        let uar = u32::try_from(page).unwrap_or(0);
        self.active = self.env.now;
        self.env.record(device, &Record::Store { uar, at, bytes });
        self.run_triggered();
        if let Some(target) = self.devices.get_mut(device).filter(|target| target.has_doorbell_page(page)) {
            target.store(&mut self.env, uar, at, bytes);
        }
    }

    /// Polls doorbell pages, executes what can be executed, and says how long nothing will be due.
    pub(crate) fn run(&mut self) -> Duration {
        self.tick();
        let mut next = self.env.triggers.tick(self.env.now).unwrap_or(u64::MAX);
        self.run_triggered();
        let mut mapped = false;
        for device in 0..self.devices.len() {
            let Some(target) = self.devices.get_mut(device) else { continue };
            mapped |= target.mode == BarMode::Mapped && target.objects.uars.iter().next().is_some();
            next = next.min(target.moderate(&mut self.env).unwrap_or(u64::MAX));
            for (uar, at, value) in target.poll_doorbells() {
                let offset = usize::try_from(uar).unwrap_or(0) * PAGE + at;
                self.store(device, offset, &value.to_be_bytes());
            }
            next = next.min(self.run_queues(device));
        }
        let pause = if self.env.now.saturating_sub(self.active) < CALM { BUSY } else { QUIET };
        let until = Duration::from_nanos(next.saturating_sub(self.env.now));
        if mapped { until.min(pause) } else { until.min(Duration::from_millis(50)) }
    }

    /// Gives each ready queue pair of a device its turn; says when one of them is due again.
    pub(crate) fn run_queues(&mut self, device: usize) -> u64 {
        let mut next = u64::MAX;
        let Some(target) = self.devices.get_mut(device) else { return next };
        for qpn in std::mem::take(&mut target.ready) {
            let mut progress = Progress::Again;
            for _ in 0..TURN {
                if progress != Progress::Again || self.is_halted() {
                    break;
                }
                progress = self.step(device, qpn);
                self.run_triggered();
            }
            let due = match progress {
                Progress::Idle => continue,
                Progress::Again => {
                    self.active = self.env.now;
                    self.env.now
                }
                Progress::Until(time) => time,
            };
            next = next.min(due);
            if let Some(target) = self.devices.get_mut(device) {
                target.ready.insert(qpn);
            }
        }
        next
    }

    /// Does somebody have to run commands before anything else may happen?
    pub(crate) fn is_halted(&self) -> bool {
        self.outside.as_ref().is_some_and(|commands| !commands.is_empty())
    }

    /// Runs the commands that triggers made due.
    pub(crate) fn run_triggered(&mut self) {
        if let Some(outside) = &mut self.outside {
            outside.append(&mut self.env.triggers.take_due());
            return;
        }
        for command in self.env.triggers.take_due() {
            if let Err(error) = self.command(&command) {
                self.env.record(0, &Record::Finding(format_args!("script: '{command}': {error}")));
            }
        }
    }
}
