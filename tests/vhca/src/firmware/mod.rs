//! The firmware: the initialization segment, the command interface and the commands.
//!
//! `segment` is what the driver reads and writes in the first page of the BAR; `interface` takes commands from the
//! queue in guest memory and puts the answers back; the other modules hold the commands, each a row of a table.

use std::fmt::Write as _;

use crate::device::{Device, Env};
use crate::journal::Record;
use crate::prm::layouts::op;
use crate::prm::{self, Field, Status, be16, get32, put};

mod capabilities;
mod device_memory;
mod general;
mod interface;
mod keys;
mod queue_pairs;
mod queues;
mod segment;
mod shared_receives;
mod vport;

/// The firmware's own state; a reset makes a new one.
#[derive(Debug)]
pub(crate) struct Firmware {
    /// Guest address of the command queue.
    pub(crate) queue: u64,
    /// State of the driver's interface: 0 full, 1 disabled, 7 reset asked for.
    interface: u32,
    /// Health counter.
    health: u32,
    /// Pages that the driver lent to the device.
    pages: Vec<u64>,
    capabilities: Vec<u8>,
    atomic_capabilities: Vec<u8>,
    issi: u64,
    initialized: bool,
    /// Slots whose command is held back by a fault.
    held: Vec<u32>,
    /// Opcodes that were refused as unknown, for one note each.
    unknown: Vec<u16>,
}

impl Default for Firmware {
    fn default() -> Firmware {
        Firmware {
            queue: 0,
            interface: segment::DISABLED,
            health: 0,
            pages: Vec::new(),
            capabilities: capabilities::general(),
            atomic_capabilities: capabilities::atomic(),
            issi: 0,
            initialized: false,
            held: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

/// What a command changes and answers.
pub(crate) struct Call<'a> {
    pub(crate) device: &'a mut Device,
    pub(crate) env: &'a mut Env,
    pub(crate) input: &'a [u8],
    pub(crate) output: &'a mut [u8],
    /// What the journal says of it beside its name.
    pub(crate) detail: String,
}

impl Call<'_> {
    fn get(&self, field: Field) -> u32 {
        get32(self.input, field)
    }

    fn set(&mut self, field: Field, value: impl Into<u64>) {
        prm::set(self.output, field, value.into());
    }

    fn modifier(&self) -> u16 {
        be16(self.input, 6)
    }

    /// Answers with a number, and notes it.
    fn answer(&mut self, field: Field, number: Option<u32>) -> Outcome {
        let number = number.ok_or(Status::NoResources)?;
        self.set(field, number);
        self.note(format_args!("-> {number:#x}"));
        Ok(())
    }

    /// Notes the words of a doorbell record, as they are when their queue goes.
    fn note_record(&mut self, record: u64, names: &[&str]) {
        // A process may have taken the memory away by then, and of what free(3) unmaps nobody tells.
        if matches!(self.device.memory, crate::memory::GuestMemory::Process(_)) {
            return;
        }
        for (at, name) in (0..).step_by(4).zip(names) {
            if let Ok(word) = self.device.memory.word(record + at) {
                self.note(format_args!(" {name}={word:#x}"));
            }
        }
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.detail.write_fmt(what);
    }
}

pub(crate) type Outcome = Result<(), Status>;

/// One command: its opcode, the least lengths of input and output, and what it does.
pub(crate) struct Command {
    opcode: u16,
    input: usize,
    output: usize,
    run: fn(&mut Call<'_>) -> Outcome,
}

impl Command {
    const fn new(opcode: u16, input: usize, output: usize, run: fn(&mut Call<'_>) -> Outcome) -> Command {
        Command { opcode, input, output, run }
    }
}

/// The shortest answer: status and syndrome.
const SHORT: usize = 8;
/// The usual least length of input and output.
const PLAIN: usize = 16;

fn find(opcode: u16) -> Option<&'static Command> {
    let tables = [
        general::TABLE,
        vport::TABLE,
        keys::TABLE,
        device_memory::TABLE,
        queues::TABLE,
        queue_pairs::TABLE,
        shared_receives::TABLE,
    ];
    tables.into_iter().flatten().find(|command| command.opcode == opcode)
}

/// Commands that need no initialized device.
fn before_init(opcode: u16) -> bool {
    matches!(
        opcode,
        op::ENABLE_HCA
            | op::DISABLE_HCA
            | op::QUERY_ISSI
            | op::SET_ISSI
            | op::QUERY_PAGES
            | op::MANAGE_PAGES
            | op::ACCESS_REG
            | op::QUERY_HCA_CAP
            | op::SET_HCA_CAP
            | op::INIT_HCA
            | op::QUERY_ADAPTER
            | op::NOP
    )
}

impl Device {
    /// Executes one command; the answer has `output_len` bytes at most and always says how it went.
    pub(crate) fn execute(&mut self, env: &mut Env, input: &[u8], output_len: usize) -> Vec<u8> {
        const LONGEST: usize = 1 << 20;
        let mut output = vec![0; output_len.clamp(SHORT, LONGEST)];
        let opcode = be16(input, 0);
        let (name, modifier) = (prm::opcode_name(opcode), be16(input, 6));
        let mut detail = String::new();
        let outcome = match (find(opcode), self.faults.command_status(name)) {
            (_, Some(status)) => Err(status),
            (None, None) => {
                if !self.firmware.unknown.contains(&opcode) {
                    self.firmware.unknown.push(opcode);
                    detail.push_str("unknown");
                }
                Err(Status::BadOpcode)
            }
            (Some(command), None) => {
                if input.len() < command.input {
                    Err(Status::BadInputLength)
                } else if output.len() < command.output {
                    Err(Status::BadOutputLength)
                } else if !self.firmware.initialized && !before_init(opcode) {
                    Err(Status::BadSystemState)
                } else {
                    let mut call = Call { device: self, env, input, output: &mut output, detail };
                    let outcome = (command.run)(&mut call);
                    detail = call.detail;
                    outcome
                }
            }
        };
        let status = outcome.err().map_or(0, |status| status as u8);
        if status != 0 {
            const SYNDROME: u32 = 0x00ab_0000;
            output.fill(0);
            put(&mut output, 0, &[status]);
            put(&mut output, 4, &(SYNDROME | u32::from(opcode)).to_be_bytes());
        }
        env.record(self.index, &Record::Command { opcode, name, modifier, status, detail: &detail });
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn status(device: &mut Device, env: &mut Env, input: &[u8], output_len: usize) -> u8 {
        device.execute(env, input, output_len)[0]
    }

    #[test]
    fn lengths_opcodes_and_order_are_checked() {
        let (mut device, mut env) = testing::device();
        let command = |opcode: u16| [&opcode.to_be_bytes()[..], &[0; 14]].concat();
        let run = |device: &mut Device, env: &mut Env, opcode| status(device, env, &command(opcode), 16);
        assert_eq!(run(&mut device, &mut env, 0x0fff), Status::BadOpcode as u8);
        assert_eq!(run(&mut device, &mut env, op::ALLOC_PD), Status::BadSystemState as u8);
        assert_eq!(status(&mut device, &mut env, &[0x01], 16), Status::BadOpcode as u8);
        assert_eq!(
            status(&mut device, &mut env, &command(op::INIT_HCA)[..8], 16),
            Status::BadInputLength as u8
        );
        assert_eq!(run(&mut device, &mut env, op::INIT_HCA), 0);
        assert_eq!(run(&mut device, &mut env, op::ALLOC_PD), 0);
        assert_eq!(status(&mut device, &mut env, &command(op::ALLOC_PD), 0), Status::BadOutputLength as u8);
        assert_eq!(run(&mut device, &mut env, op::CREATE_QP), Status::BadInputLength as u8);
        assert_eq!(run(&mut device, &mut env, op::TEARDOWN_HCA), 0);
        assert_eq!(run(&mut device, &mut env, op::ALLOC_PD), Status::BadSystemState as u8);
    }
}
