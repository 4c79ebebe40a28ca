//! Commands to the device, in its own language.

use vhca::prm::layouts::op;
use vhca::prm::{Field, Status, set};

use super::Driver;
use crate::Errno;

/// A command being put together.
#[derive(Debug)]
pub(super) struct Command(Vec<u8>);

impl Command {
    /// A command of `len` bytes, or more as fields need it.
    pub(super) fn new(opcode: u16, len: usize) -> Command {
        let mut bytes = opcode.to_be_bytes().to_vec();
        bytes.resize(len.max(16), 0);
        Command(bytes)
    }

    /// As [`Command::new`], for an object's number, where commands that name one have it.
    pub(super) fn of(opcode: u16, number: u32) -> Command {
        let mut command = Command::new(opcode, 16);
        command.set(Field::new(64, 32), u64::from(number));
        command
    }

    pub(super) fn set(&mut self, field: Field, value: impl Into<u64>) -> &mut Command {
        set(&mut self.0, field, value.into());
        self
    }

    pub(super) fn set_all(&mut self, base: Field, fields: &[(Field, u64)]) -> &mut Command {
        fields.iter().for_each(|(field, value)| set(&mut self.0, field.at(base), *value));
        self
    }

    pub(super) fn bytes(&mut self, at: usize, bytes: &[u8]) -> &mut Command {
        vhca::prm::put(&mut self.0, at, bytes);
        self
    }

    /// Appends zeroes.
    pub(super) fn pad(&mut self, len: usize) -> &mut Command {
        self.0.resize(self.0.len() + len, 0);
        self
    }

    /// Appends the pages of a buffer, cut to `at` first.
    pub(super) fn pages(&mut self, at: usize, start: u64, len: u64) -> &mut Command {
        const PAGE: u64 = 4096;
        self.0.resize(at, 0);
        let (first, end) = (start & !(PAGE - 1), start.saturating_add(len));
        let count = end.saturating_sub(first).div_ceil(PAGE);
        self.0.extend((0..count).flat_map(|page| (first + page * PAGE).to_be_bytes()));
        self
    }
}

/// What a command's status means to who asked for it, as the kernel says it.
fn errno(status: u8) -> Errno {
    let is = |known: Status| known as u8 == status;
    Errno(if is(Status::ResourceBusy) {
        libc::EBUSY
    } else if is(Status::ExceedsLimit) {
        libc::ENOMEM
    } else if is(Status::NoResources) {
        libc::EAGAIN
    } else if is(Status::InternalError)
        || is(Status::BadSystemState)
        || is(Status::BadInputLength)
        || is(Status::BadOutputLength)
    {
        libc::EIO
    } else {
        libc::EINVAL
    })
}

/// Commands that succeed without the device once it is known to be in error: whoever takes things down shall get through.
fn is_faked(opcode: u16) -> bool {
    matches!(
        opcode,
        op::DESTROY_QP
            | op::DESTROY_CQ
            | op::DESTROY_MKEY
            | op::DESTROY_RMP
            | op::DESTROY_XRC_SRQ
            | op::DEALLOC_PD
            | op::DEALLOC_UAR
            | op::DEALLOC_XRCD
            | op::DETACH_FROM_MCG
            | op::TO_ERR_QP
            | op::TO_RST_QP
    )
}

impl Driver {
    /// Has a device execute a command; the answer.
    pub(super) fn execute(
        &mut self,
        device: usize,
        command: &Command,
        output_len: usize,
    ) -> Result<Vec<u8>, Errno> {
        let bytes = &command.0;
        let opcode = vhca::prm::be16(bytes, 0);
        let state = self.devices.get(device).ok_or(Errno(libc::EIO))?;
        if state.in_error && !is_faked(opcode) {
            return Err(Errno(libc::ENOLINK));
        }
        if !state.in_error
            && !self.forcing
            && (!self.host.is_there(device) || self.host.hangs(device, opcode))
        {
            return Err(super::HANGS);
        }
        let in_error = state.in_error;
        let output = self.host.execute(device, bytes, output_len.max(16));
        match output.first() {
            Some(0) => Ok(output),
            // The object goes either way; that the device had lost it is no news.
            _ if in_error => Ok(vec![0; output_len.max(16)]),
            Some(status) => Err(errno(*status)),
            None => Err(Errno(libc::EIO)),
        }
    }

    /// As [`Driver::execute`], for a command whose answer is a number.
    pub(super) fn number(&mut self, device: usize, command: &Command, field: Field) -> Result<u32, Errno> {
        Ok(vhca::prm::get32(&self.execute(device, command, 16)?, field))
    }
}
