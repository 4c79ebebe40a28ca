//! Multicast groups.

use vhca::prm::layouts::{attach_to_mcg_in, op};

use super::firmware::Command;
use super::{ContextId, Driver};
use crate::Errno;
use crate::attrs::Write;
use crate::uapi::{Multicast, qp_type};

impl Driver {
    fn group(&mut self, opcode: u16, number: u32, gid: &[u8; 16]) -> Command {
        let mut command = Command::new(opcode, attach_to_mcg_in::BYTES);
        command.set(attach_to_mcg_in::QPN, number);
        command.bytes(attach_to_mcg_in::MULTICAST_GID.byte(), gid);
        command
    }

    pub(super) fn attach(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        const FIRST_LID: u16 = 0xc000;
        let request: Multicast = call.input();
        let device = self.device_of(id)?;
        let qp = self.qp(id, request.qp_handle)?;
        let (number, group) = (qp.number, (request.gid, request.mlid));
        if qp.groups.contains(&group) {
            return Ok(());
        }
        if qp.kind != qp_type::UD
            || request.gid.first() != Some(&0xff)
            || !(FIRST_LID..0xffff).contains(&request.mlid)
        {
            return Err(Errno(libc::EINVAL));
        }
        let command = self.group(op::ATTACH_TO_MCG, number, &request.gid);
        self.execute(device, &command, 16)?;
        self.qp(id, request.qp_handle)?.groups.push(group);
        Ok(())
    }

    pub(super) fn detach(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        let request: Multicast = call.input();
        let device = self.device_of(id)?;
        let qp = self.qp(id, request.qp_handle)?;
        let (number, group) = (qp.number, (request.gid, request.mlid));
        let at = qp.groups.iter().position(|known| *known == group).ok_or(Errno(libc::EINVAL))?;
        let command = self.group(op::DETACH_FROM_MCG, number, &request.gid);
        self.execute(device, &command, 16)?;
        self.qp(id, request.qp_handle)?.groups.remove(at);
        Ok(())
    }
}
