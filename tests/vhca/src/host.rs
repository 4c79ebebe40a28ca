//! Devices without a guest: their driver is in the same process, and so is the memory that they reach.
//!
//! The driver gives commands to [`Host::execute`], in the same form as through a command queue; takes events from
//! [`Host::events`]; and has [`Host::run`] called, by a thread or whenever it likes.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;

use crate::device::Raised;
use crate::journal::{Journal, Record};
use crate::memory::{GuestMemory, ProcessMemory};
use crate::prm::layouts::op;
use crate::transport::{Message, Outgoing, Reply};
use crate::world::World;

/// The devices of this process.
#[derive(Debug)]
pub struct Host {
    world: World,
}

impl Host {
    /// No devices yet. Without a path, no journal is written.
    ///
    /// # Errors
    /// Those of the journal's file.
    pub fn new(journal: Option<&Path>) -> io::Result<Host> {
        let journal = match journal {
            Some(path) => Journal::create(path)?,
            None => Journal::default(),
        };
        let mut world = World::new(journal);
        world.outside = Some(Vec::new());
        Ok(Host { world })
    }

    /// Messages for queue pairs that this process does not have leave it: [`Host::outgoing`].
    pub fn join(&mut self) {
        self.world.beyond.get_or_insert_default();
    }

    /// Adds a device, ready for commands, whose queue pairs have numbers in `qps`. Its number.
    ///
    /// # Errors
    /// Those of making its doorbell pages.
    pub fn add(&mut self, qps: Range<u32>) -> io::Result<usize> {
        let index = self.world.add_hosted()?;
        if let Some(device) = self.world.devices.get_mut(index) {
            device.qps = qps;
            device.raised = Some(Vec::new());
        }
        self.start(index);
        Ok(index)
    }

    /// Brings a device that was reset up, as a driver does when it finds it. Everything in it is gone.
    pub fn start(&mut self, device: usize) {
        self.stop(device);
        // The first doorbell page is the driver's own.
        for opcode in [op::ENABLE_HCA, op::INIT_HCA, op::ALLOC_UAR] {
            let mut input = opcode.to_be_bytes().to_vec();
            input.resize(16, 0);
            self.execute(device, &input, 16);
        }
    }

    /// Takes a device's driver away: all that was made in it is gone, and it touches no memory.
    pub fn stop(&mut self, device: usize) {
        if let Some(target) = self.world.devices.get_mut(device) {
            target.forget_objects();
            target.memory = GuestMemory::Process(ProcessMemory::new());
            target.raised = Some(Vec::new());
        }
    }

    /// Executes a command. The answer's first byte is its status, 0 for success.
    pub fn execute(&mut self, device: usize, input: &[u8], output_len: usize) -> Vec<u8> {
        self.world.tick();
        let World { devices, env, .. } = &mut self.world;
        let output = devices.get_mut(device).map(|device| device.execute(env, input, output_len));
        self.world.run_triggered();
        output.unwrap_or_else(|| vec![0xff; output_len])
    }

    /// Does the function answer at all?
    #[must_use]
    pub fn is_there(&self, device: usize) -> bool {
        self.world.devices.get(device).is_some_and(|device| !device.faults.dead)
    }

    /// Is a command of this name one that is not answered?
    #[must_use]
    pub fn hangs(&self, device: usize, opcode: u16) -> bool {
        let name = crate::prm::opcode_name(opcode);
        self.world.devices.get(device).is_some_and(|device| device.faults.holds_command(name))
    }

    /// Takes the events raised since the last time.
    pub fn events(&mut self, device: usize) -> Vec<Raised> {
        let raised = self.world.devices.get_mut(device).and_then(|device| device.raised.as_mut());
        raised.map(std::mem::take).unwrap_or_default()
    }

    /// Looks at doorbell pages and executes what there is to execute. Says how long nothing will be due.
    pub fn run(&mut self) -> Duration {
        if self.world.is_halted() { Duration::ZERO } else { self.world.run() }
    }

    /// Runs one command of the language of faults, on devices and wire.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn command(&mut self, line: &str) -> Result<String, String> {
        self.world.tick();
        self.world.command(line)
    }

    /// Takes the commands that triggers made due. Until they are taken, nothing is executed.
    pub fn due(&mut self) -> Vec<String> {
        self.world.outside.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Writes down a fault that happened elsewhere than in devices and wire.
    pub fn note_fault(&mut self, device: usize, what: &str) {
        self.world.tick();
        self.world.env.record(device, &Record::Fault(what));
    }

    /// Makes the journal on disk complete.
    pub fn flush_journal(&mut self) {
        self.world.env.journal.flush();
    }

    /// The file of a device's doorbell pages: page N of it is the doorbell page of that number.
    #[must_use]
    pub fn doorbell_file(&self, device: usize) -> Option<RawFd> {
        self.world.devices.get(device).map(|device| device.doorbells.fd())
    }

    /// GUID and LID of a device's port, and whether it is up.
    #[must_use]
    pub fn port(&self, device: usize) -> Option<(u64, u16, bool)> {
        self.world.devices.get(device).map(|device| (device.port.guid, device.port.lid, device.port.up))
    }

    /// The device's clock.
    #[must_use]
    pub fn clock(&mut self) -> u64 {
        self.world.tick();
        crate::device::ticks(self.world.env.now)
    }

    /// Lets a device touch a range of this process's memory as it is, because it holds a queue or a doorbell record.
    ///
    /// # Safety
    /// The range stays mapped, readable and writable, until it is unpinned or forgotten, or the device is started anew.
    #[allow(unsafe_code, reason = "the caller promises what only it can know of its memory")]
    pub unsafe fn pin(&mut self, device: usize, start: u64, len: u64) {
        if let Some(GuestMemory::Process(memory)) =
            self.world.devices.get_mut(device).map(|device| &mut device.memory)
        {
            // SAFETY: the caller's contract.
            unsafe { memory.pin(start, len) };
        }
    }

    /// Takes back one [`Host::pin`] of the same range.
    pub fn unpin(&mut self, device: usize, start: u64, len: u64) {
        if let Some(GuestMemory::Process(memory)) =
            self.world.devices.get_mut(device).map(|device| &mut device.memory)
        {
            memory.unpin(start, len);
        }
    }

    /// Takes back every pin of a range, of every device: the process unmaps it.
    pub fn forget(&mut self, start: u64, len: u64) {
        for device in &mut self.world.devices {
            if let GuestMemory::Process(memory) = &mut device.memory {
                memory.forget(start, len);
            }
        }
    }

    /// Takes the messages for other processes.
    pub fn outgoing(&mut self) -> Vec<Outgoing> {
        self.world.beyond.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A message from another process: the answer to it, or `None` if these bytes are none.
    pub fn deliver(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let message = Message::decode(bytes)?;
        self.world.tick();
        let mut reply = Reply::Silence;
        let World { devices, env, .. } = &mut self.world;
        for device in devices {
            if message.is_multicast() || device.port.lid == message.destination_lid {
                reply = device.receive(env, &message);
            }
        }
        self.world.run_triggered();
        Some(reply.encode())
    }

    /// The answer to a message that left; `None`: nobody took it.
    pub fn answered(&mut self, device: usize, qpn: u32, name: u64, bytes: Option<&[u8]>) {
        let reply = bytes.map_or(Reply::Silence, Reply::decode);
        self.world.answered(device, qpn, name, reply);
    }
}
