//! Receive work requests: taking the next one, and scattering a message to it.

use crate::device::{Device, Env};
use crate::journal::Record;
use crate::memory::Unmapped;
use crate::objects::cq::{Completion, Kind, Syndrome};
use crate::objects::eq::EventType;
use crate::objects::mkey::{Access, Asker, TERMINATE_LIST};
use crate::objects::qp::Receive;
use crate::objects::srq::Srq;
use crate::prm::be16;
use crate::wqe::{self, Sge};

/// A receive work request that was taken.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) list: Vec<Sge>,
    pub(crate) index: u16,
    pub(crate) cqn: u32,
    /// What the completion names the queue by.
    pub(crate) srqn_uidx: u32,
    pub(crate) srqn: Option<u32>,
    pub(crate) pd: u32,
}

/// Owner indices that mean: none was given.
const NO_INDEX: u32 = 0xff_ffff;

impl Device {
    /// What completions of a queue pair name it by: its owner's index, or else its shared receive queue.
    pub(crate) fn owner_index(&self, qpn: u32) -> u32 {
        let Some(qp) = self.objects.qps.get(qpn) else { return 0 };
        match (&qp.receive, qp.cached.uidx) {
            (Receive::Shared(srqn), NO_INDEX) => *srqn,
            (_, NO_INDEX) => 0,
            (_, uidx) => uidx,
        }
    }

    /// Takes the next receive for a message to `qpn`. `None`: there is none.
    pub(crate) fn take_receive(&mut self, env: &mut Env, qpn: u32, srqn: Option<u32>) -> Option<Received> {
        let srqn_uidx = self.owner_index(qpn);
        let qp = self.objects.qps.get_mut(qpn)?;
        let (cached, shared) = (qp.cached, srqn);
        match (&mut qp.receive, shared) {
            (_, Some(srqn)) => self.take_shared(env, srqn, cached.receive_cqn, None),
            (Receive::Shared(srqn), None) => {
                let srqn = *srqn;
                self.take_shared(env, srqn, cached.receive_cqn, Some(srqn_uidx))
            }
            (Receive::Own { buffer, log_size, log_stride, consumer }, None) => {
                let posted = self.memory.word(cached.record).ok()?;
                let index = *consumer;
                if u16::try_from(posted & 0xffff).ok()? == index {
                    return None;
                }
                *consumer = index.wrapping_add(1);
                let slot = u64::from(index) & ((1 << *log_size) - 1);
                let mut bytes = vec![0; 1 << *log_stride];
                let address = buffer.address(slot << *log_stride);
                let read =
                    address.ok_or(Unmapped(0)).and_then(|address| self.memory.read(address, &mut bytes));
                if let Err(unmapped) = read {
                    self.missed(env, "receive work request", unmapped);
                }
                let list = wqe::receive_list(&bytes, TERMINATE_LIST);
                Some(Received { list, index, cqn: cached.receive_cqn, srqn_uidx, srqn: None, pd: cached.pd })
            }
            (Receive::None, None) => None,
        }
    }

    fn take_shared(&mut self, env: &mut Env, srqn: u32, cqn: u32, uidx: Option<u32>) -> Option<Received> {
        let srq = self.objects.srqs.get_mut(srqn)?;
        let posted = self.memory.word(srq.record).ok()?;
        if srq.available(posted) == 0 {
            return None;
        }
        let mut bytes = vec![0; srq.stride()];
        let read = srq.address().ok_or(Unmapped(0)).and_then(|address| self.memory.read(address, &mut bytes));
        let index = srq.head;
        srq.head = be16(&bytes, 2);
        srq.consumed = srq.consumed.wrapping_add(1);
        let own_index = if srq.uidx == NO_INDEX { srqn } else { srq.uidx };
        let received = Received {
            list: wqe::receive_list(bytes.get(Srq::LINK..).unwrap_or(&[]), TERMINATE_LIST),
            index,
            cqn: if uidx.is_some() { cqn } else { srq.cqn },
            srqn_uidx: uidx.unwrap_or(own_index),
            srqn: Some(srqn),
            pd: srq.pd,
        };
        if let Err(unmapped) = read {
            self.missed(env, "shared receive work request", unmapped);
        }
        self.srq_limits(env);
        Some(received)
    }

    /// Raises the events of shared receive queues that ran below their limit.
    pub(crate) fn srq_limits(&mut self, env: &mut Env) {
        let mut low = Vec::new();
        for (number, srq) in self.objects.srqs.iter_mut() {
            let left = self.memory.word(srq.record).map_or(0, |posted| srq.available(posted));
            if srq.limit > 0 && left < srq.limit && !srq.failed {
                srq.limit = 0;
                low.push(number);
            }
        }
        for number in low {
            self.queue_event(env, EventType::SrqLimit, number);
        }
    }

    /// Puts `data` where a list of pieces says, from `skip` bytes on.
    pub(crate) fn scatter(
        &self,
        list: &[Sge],
        skip: usize,
        data: &[u8],
        asker: Asker,
    ) -> Result<(), Syndrome> {
        let mut skip = u64::try_from(skip).unwrap_or(0);
        let mut left = data;
        for piece in list {
            let size = u64::from(piece.length);
            if skip >= size {
                skip -= size;
                continue;
            }
            if left.is_empty() {
                return Ok(());
            }
            let len = usize::try_from(size - skip).unwrap_or(usize::MAX).min(left.len());
            let (now, rest) = left.split_at(len);
            self.write_under(piece.key, piece.address.wrapping_add(skip), now, Access::LocalWrite, asker)
                .ok_or(Syndrome::LocalProtection)?;
            left = rest;
            skip = 0;
        }
        if left.is_empty() { Ok(()) } else { Err(Syndrome::LocalLength) }
    }

    /// Writes under a key. `None`: the key does not allow it, or leads nowhere.
    pub(crate) fn write_under(
        &self,
        key: u32,
        address: u64,
        data: &[u8],
        access: Access,
        asker: Asker,
    ) -> Option<()> {
        let spans =
            self.objects.mkeys.resolve(key, address, u64::try_from(data.len()).ok()?, access, asker)?;
        let mut left = data;
        for span in spans {
            let (now, rest) = left.split_at_checked(usize::try_from(span.len).ok()?)?;
            self.memory.write(span.address, now).ok()?;
            left = rest;
        }
        Some(())
    }

    /// Reads under a key, appending to `to`. `None`: the key does not allow it, or leads nowhere.
    pub(crate) fn read_under(
        &self,
        key: u32,
        address: u64,
        len: u64,
        access: Access,
        asker: Asker,
        to: &mut Vec<u8>,
    ) -> Option<()> {
        for span in self.objects.mkeys.resolve(key, address, len, access, asker)? {
            let start = to.len();
            to.resize(start + usize::try_from(span.len).ok()?, 0);
            self.memory.read(span.address, to.get_mut(start..)?).ok()?;
        }
        Some(())
    }

    /// Completes a receive in error.
    pub(crate) fn fail_receive(&mut self, env: &mut Env, qpn: u32, received: &Received, syndrome: Syndrome) {
        let completion =
            Completion::error(Kind::ResponderError, qpn, received.srqn_uidx, received.index, syndrome);
        self.complete(env, received.cqn, &completion);
    }

    /// Notes that a receive was used.
    pub(crate) fn note_receive(&self, env: &mut Env, qpn: u32, received: &Received, len: usize) {
        let len = u64::try_from(len).unwrap_or(0);
        let record =
            Record::Received { qpn, srqn: received.srqn, index: received.index, len, list: &received.list };
        env.record(self.index, &record);
    }
}
