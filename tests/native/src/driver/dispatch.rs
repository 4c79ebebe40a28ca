//! Events of the device, on their way to the event files.

use std::sync::Weak;

use vhca::prm::be32;
use vhca::{EventType, Raised};

use super::{ContextId, Driver, Object};
use crate::event::Counter;
use crate::event::EventFile;
use crate::uapi::event;

/// `struct ib_uverbs_async_event_desc`.
fn description(element: u64, kind: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(element.to_ne_bytes()).for_each(|(to, from)| *to = from);
    bytes.iter_mut().skip(8).zip(kind.to_ne_bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// The final event: its element is no port.
pub(super) const FINAL_FATAL: [u8; 16] =
    [0, 0, 0, 0, 0, 0, 0, 0, event::DEVICE_FATAL as u8, 0, 0, 0, 0, 0, 0, 0];

/// Events of an object that goes are not read any more.
pub(super) fn forget_events(object: &Object) {
    match object {
        Object::Cq(cq) => drop(cq.end()),
        Object::Qp(qp) => drop(qp.affiliated.end()),
        Object::Shared(shared) => drop(shared.affiliated.end()),
        Object::Srq(srq) => drop(srq.affiliated.end()),
        _ => {}
    }
}

fn push(file: &Weak<EventFile>, bytes: &[u8], counter: &Counter) {
    if let Some(file) = file.upgrade() {
        file.push(bytes, Some(counter.clone()));
    }
}

impl Driver {
    pub(super) fn dispatch(&mut self, device: usize, raised: &Raised) {
        let number = be32(&raised.data, 24) & 0xff_ffff;
        match raised.event {
            EventType::Completion => self.completed(device, number),
            EventType::CqError => self.cq_event(device, be32(&raised.data, 0) & 0xff_ffff),
            EventType::CommunicationEstablished => self.qp_event(device, number, event::COMM_EST),
            EventType::SendQueueDrained => self.qp_event(device, number, event::SQ_DRAINED),
            EventType::WqCatastrophe => self.qp_event(device, number, event::QP_FATAL),
            EventType::InvalidRequest => self.qp_event(device, number, event::QP_REQ_ERR),
            EventType::AccessViolation => self.qp_event(device, number, event::QP_ACCESS_ERR),
            EventType::LastWqeReached => self.qp_event(device, number, event::QP_LAST_WQE_REACHED),
            EventType::SrqLimit => self.srq_event(device, number, event::SRQ_LIMIT_REACHED),
            EventType::SrqCatastrophe => self.srq_event(device, number, event::SRQ_ERR),
            EventType::PortChange => self.port_changed(device, raised.subtype),
            // Commands are not answered by events here.
            EventType::CommandDone => {}
        }
    }

    fn object(&self, at: Option<&(ContextId, u32)>) -> Option<&Object> {
        let (id, handle) = at?;
        self.contexts.get(id)?.objects.get(*handle)
    }

    fn completed(&self, device: usize, number: u32) {
        if let Some(Object::Cq(cq)) = self.object(self.by_cqn.get(&(device, number)))
            && let Some(channel) = &cq.channel
        {
            push(channel, &cq.affiliated.user_handle.to_ne_bytes(), &cq.completions);
        }
    }

    fn cq_event(&self, device: usize, number: u32) {
        if let Some(Object::Cq(cq)) = self.object(self.by_cqn.get(&(device, number))) {
            let affiliated = &cq.affiliated;
            let bytes = description(affiliated.user_handle, event::CQ_ERR);
            push(&affiliated.file, &bytes, &affiliated.reported);
        }
    }

    fn qp_event(&self, device: usize, number: u32, kind: u32) {
        if let Some(Object::Qp(qp)) = self.object(self.by_qpn.get(&(device, number))) {
            let affiliated = &qp.affiliated;
            push(&affiliated.file, &description(affiliated.user_handle, kind), &affiliated.reported);
        }
        // Whoever opened it once more hears of it, too.
        let contexts = self.contexts.values().filter(|context| context.device == device && !context.gone);
        for object in contexts.flat_map(|context| context.objects.values()) {
            if let Object::Shared(shared) = object
                && shared.number == number
            {
                let affiliated = &shared.affiliated;
                push(&affiliated.file, &description(affiliated.user_handle, kind), &affiliated.reported);
            }
        }
    }

    fn srq_event(&self, device: usize, number: u32, kind: u32) {
        if let Some(Object::Srq(srq)) = self.object(self.by_srqn.get(&(device, number))) {
            let affiliated = &srq.affiliated;
            push(&affiliated.file, &description(affiliated.user_handle, kind), &affiliated.reported);
        }
    }

    fn port_changed(&mut self, device: usize, change: u8) {
        const PORT: u64 = 1;
        let kind = match change {
            1 => event::PORT_ERR,
            4 => event::PORT_ACTIVE,
            6 => event::LID_CHANGE,
            // The kernel reads the table of GIDs anew, and tells nobody.
            _ => return super::show(self),
        };
        super::show(self);
        self.device_event(device, PORT, kind);
    }

    /// An event for every async event file of a device.
    pub(super) fn device_event(&self, device: usize, element: u64, kind: u32) {
        let bytes = description(element, kind);
        for context in self.contexts.values().filter(|context| context.device == device && !context.gone) {
            context.asyncs().for_each(|file| file.push(&bytes, None));
        }
    }
}
