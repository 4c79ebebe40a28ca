//! The command queue: descriptors of 64 bytes, with mailboxes of 512 bytes for what does not fit.

use crate::device::{Device, Env};
use crate::memory::Unmapped;
use crate::objects::eq::EventType;
use crate::prm::{self, be16, be32, be64, put};

/// Log of a descriptor's size, and log of how many the queue has.
pub(super) const LOG_STRIDE: u32 = 6;
pub(super) const LOG_COMMANDS: u32 = 5;

const DESCRIPTOR: usize = 64;
const INLINE: usize = 16;
const BLOCK: usize = 576;
const BLOCK_DATA: usize = 512;
const NEXT: usize = 560;
const NUMBER: usize = 568;
const TOKEN: usize = 573;
/// The longest input or output that is taken.
const LONGEST: usize = 1 << 20;

/// Why a descriptor could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Delivery {
    Token = 0x2,
    BlockNumber = 0x3,
    OutPointer = 0x4,
    InPointer = 0x5,
    InLength = 0x7,
    OutLength = 0x8,
    Descriptor = 0x10,
}

/// A descriptor, as the driver filled it.
struct Descriptor {
    input: Vec<u8>,
    output_len: usize,
    output_block: u64,
    token: u8,
}

fn read_descriptor(device: &Device, bytes: &[u8; DESCRIPTOR]) -> Result<Descriptor, Delivery> {
    const PCI: u8 = 0x7;
    let (kind, token) = (bytes.first().copied(), bytes.get(60).copied().unwrap_or(0));
    let owner = bytes.get(63).copied().unwrap_or(0);
    if kind != Some(PCI) || owner & 1 == 0 {
        return Err(Delivery::Descriptor);
    }
    let length = |at| usize::try_from(be32(bytes, at)).ok().filter(|len| *len <= LONGEST);
    let input_len = length(4).filter(|len| *len >= 4).ok_or(Delivery::InLength)?;
    let output_len = length(56).ok_or(Delivery::OutLength)?;
    let mut input = bytes.get(16..16 + INLINE).map(<[u8]>::to_vec).unwrap_or_default();
    let (mut block, mut number) = (be64(bytes, 8), 0u32);
    while input.len() < input_len {
        let data = read_block(device, block, number, token, Delivery::InPointer)?;
        input.extend_from_slice(data.get(..BLOCK_DATA).unwrap_or(&[]));
        block = be64(&data, NEXT);
        number += 1;
    }
    input.truncate(input_len);
    Ok(Descriptor { input, output_len, output_block: be64(bytes, 48), token })
}

fn read_block(
    device: &Device,
    at: u64,
    number: u32,
    token: u8,
    pointer: Delivery,
) -> Result<[u8; BLOCK], Delivery> {
    let mut block = [0; BLOCK];
    device.memory.read(at, &mut block).map_err(|Unmapped(_)| pointer)?;
    if be32(&block, NUMBER) != number {
        return Err(Delivery::BlockNumber);
    }
    if block.get(TOKEN).copied() != Some(token) {
        return Err(Delivery::Token);
    }
    Ok(block)
}

fn write_output(
    device: &Device,
    descriptor: u64,
    command: &Descriptor,
    output: &[u8],
) -> Result<(), Delivery> {
    let unmapped = |Unmapped(_)| Delivery::OutPointer;
    let mut first = [0; INLINE];
    put(&mut first, 0, output.get(..INLINE.min(output.len())).unwrap_or(&[]));
    device.memory.write(descriptor + 32, &first).map_err(unmapped)?;
    let rest = output.get(INLINE..command.output_len.max(INLINE).min(output.len())).unwrap_or(&[]);
    let mut block = command.output_block;
    for (number, data) in rest.chunks(BLOCK_DATA).enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let links = read_block(device, block, number, command.token, Delivery::OutPointer)?;
        device.memory.write(block, data).map_err(unmapped)?;
        block = be64(&links, NEXT);
    }
    Ok(())
}

impl Device {
    /// The driver rang for the commands in the slots of `vector`.
    pub(crate) fn command_doorbell(&mut self, env: &mut Env, vector: u32) {
        for slot in (0..32).filter(|slot| vector >> slot & 1 == 1) {
            self.serve_command(env, slot, false);
        }
    }

    /// Serves the commands that a fault held back.
    pub(crate) fn release_commands(&mut self, env: &mut Env) {
        for slot in std::mem::take(&mut self.firmware.held) {
            self.serve_command(env, slot, true);
        }
    }

    fn serve_command(&mut self, env: &mut Env, slot: u32, released: bool) {
        if !self.has_bus() || self.firmware.queue == 0 {
            return;
        }
        let address = self.firmware.queue + (u64::from(slot) << LOG_STRIDE);
        let mut bytes = [0; DESCRIPTOR];
        if let Err(unmapped) = self.memory.read(address, &mut bytes) {
            return self.missed(env, "command descriptor", unmapped);
        }
        let command = match read_descriptor(self, &bytes) {
            Ok(command) => command,
            Err(delivery) => return self.deliver(env, slot, address, Some(delivery), false),
        };
        if !released && self.faults.holds_command(prm::opcode_name(be16(&command.input, 0))) {
            self.firmware.held.push(slot);
            return;
        }
        let by_event = self.command_events();
        let output = self.execute(env, &command.input, command.output_len);
        if !self.has_bus() {
            return;
        }
        let delivery = write_output(self, address, &command, &output).err();
        self.deliver(env, slot, address, delivery, by_event && self.command_events());
    }

    /// Hands a descriptor back to the driver.
    fn deliver(
        &mut self,
        env: &mut Env,
        slot: u32,
        address: u64,
        delivery: Option<Delivery>,
        by_event: bool,
    ) {
        let status = delivery.map_or(0, |delivery| (delivery as u8) << 1);
        if let Some(delivery) = delivery {
            self.finding(env, format_args!("command descriptor {slot}: {delivery:?}"));
        }
        if let Err(unmapped) = self.memory.publish(address + 63, &[status]) {
            return self.missed(env, "command descriptor", unmapped);
        }
        if by_event {
            self.event(env, EventType::CommandDone, 0, &(1u32 << slot).to_be_bytes());
        }
    }

    /// Does the driver want an event for each command?
    fn command_events(&self) -> bool {
        self.objects.eqs.iter().any(|(_, queue)| queue.wants(EventType::CommandDone))
    }
}
