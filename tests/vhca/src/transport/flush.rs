//! Queue pairs in error: what was posted completes, flushed, up to the doorbell records.

use super::Progress;
use crate::device::{Device, Env};
use crate::journal::Record;
use crate::objects::cq::{Completion, Kind, Syndrome};
use crate::objects::qp::{Receive, State};
use crate::wqe::{BLOCK, Control};

/// How often a queue pair in error looks for receives posted since: there is no doorbell for them.
const LOOK_AGAIN: u64 = 1_000_000;

impl Device {
    /// Flushes both queues of a queue pair in error, or the send queue of one whose send queue is.
    pub(crate) fn flush(&mut self, env: &mut Env, qpn: u32) -> Progress {
        self.flush_sends(env, qpn);
        let Some(qp) = self.objects.qps.get(qpn) else { return Progress::Idle };
        if qp.state != State::Error || !matches!(qp.receive, Receive::Own { .. }) {
            return Progress::Idle;
        }
        while let Some(received) = self.take_receive(env, qpn, None) {
            self.fail_receive(env, qpn, &received, Syndrome::Flushed);
        }
        Progress::Until(env.now + LOOK_AGAIN)
    }

    fn flush_sends(&mut self, env: &mut Env, qpn: u32) {
        let uidx = self.owner_index(qpn);
        let Some(record) = self.objects.qps.get(qpn).map(|qp| qp.cached.record) else { return };
        // The record counts, not the doorbell: what was posted up to it is owed a completion.
        let Ok(posted) = self.memory.word(record + 4) else { return };
        let posted = u16::try_from(posted & 0xffff).unwrap_or(0);
        loop {
            let Some(queue) = self.objects.qps.get_mut(qpn).and_then(|qp| qp.send.as_mut()) else { return };
            let (index, cqn) = (queue.consumer, queue.cqn);
            queue.producer = posted;
            if queue.is_empty() || posted.wrapping_sub(index) > 1 << queue.log_blocks {
                return;
            }
            let mut head = [0; BLOCK];
            let read = queue.address(index).map(|address| self.memory.read(address, &mut head));
            if !matches!(read, Some(Ok(()))) {
                return;
            }
            let control = Control::read(&head);
            queue.consumer = index.wrapping_add(control.blocks());
            if posted.wrapping_sub(queue.consumer) > posted.wrapping_sub(index) {
                queue.consumer = posted;
            }
            let outcome = Syndrome::Flushed.name();
            env.record(self.index, &Record::Refused { qpn, index, opcode: control.opcode, outcome });
            let mut completion = Completion::error(Kind::RequesterError, qpn, uidx, index, Syndrome::Flushed);
            completion.send_opcode = control.opcode;
            self.complete(env, cqn, &completion);
        }
    }
}
