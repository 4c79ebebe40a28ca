//! Doorbell pages: stores that ring send queues, arm completion queues and bring work requests by BlueFlame.
//!
//! A send doorbell is the first eight bytes of the work request's control segment. If more bytes follow, they are a
//! copy of the work request; it must be the one in the ring, and any difference is a finding. Only the drivers' test of
//! write combining puts a flag in the copy that the ring does not have, on requests that do nothing (NOP): there the
//! copy's flag counts.

use crate::device::{BarMode, Device, Env};
use crate::memory::PAGE;
use crate::objects::FIRST_UAR;
use crate::objects::qp::State;
use crate::prm::{be32, put};
use crate::script::rings;
use crate::wqe::{BLOCK, Control, opcode};

/// Offsets in a page.
const ARM_CQ: usize = 0x20;
const BLUE_FLAME: usize = 0x800;
/// Distance of one register from the next, and so the most that a copy brings.
const REGISTER: usize = 0x100;

/// A work request that comes by BlueFlame.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) qpn: u32,
    pub(crate) index: u16,
    uar: u32,
    at: usize,
    bytes: Vec<u8>,
    /// The request as the ring had it before it could be executed and its slot used again.
    ring: Vec<u8>,
    /// When to wait no longer for more of it.
    deadline: u64,
}

/// How long a copy may take after its first bytes.
const COPY_TIME: u64 = 200_000;
/// Copies that are remembered.
const COPIES: usize = 16;

fn page_offset(uar: u32, at: usize) -> usize {
    usize::try_from(uar).unwrap_or(0) * PAGE + at
}

impl Device {
    /// Is this the page of a live doorbell page?
    pub(crate) fn has_doorbell_page(&self, page: usize) -> bool {
        u32::try_from(page).is_ok_and(|uar| uar >= FIRST_UAR && self.objects.uars.contains(uar))
    }

    /// Takes what was stored in polled pages since the last time: page, offset, value.
    pub(crate) fn poll_doorbells(&self) -> Vec<(u32, usize, u64)> {
        let mut stores = Vec::new();
        if self.mode == BarMode::Trapped {
            return stores;
        }
        for uar in self.objects.uars.iter() {
            for at in std::iter::once(ARM_CQ).chain((BLUE_FLAME..PAGE).step_by(REGISTER)) {
                let value = self.doorbells.take(page_offset(uar, at));
                if value != 0 {
                    stores.push((uar, at, value));
                }
            }
        }
        stores
    }

    /// Acts on a store.
    pub(crate) fn store(&mut self, env: &mut Env, uar: u32, at: usize, bytes: &[u8]) {
        if !self.has_bus() {
            return;
        }
        if rings(at) && bytes.len() >= 8 {
            self.ring(env, uar, at, bytes);
        } else if at > BLUE_FLAME {
            self.continue_copy(env, uar, at, bytes);
        } else if at == ARM_CQ && bytes.len() >= 8 {
            self.arm(env, uar, be32(bytes, 4) & 0xff_ffff, be32(bytes, 0));
            if self.mode == BarMode::Mapped {
                self.arm_overwritten(env, uar);
            }
        }
    }

    fn ring(&mut self, env: &mut Env, uar: u32, at: usize, bytes: &[u8]) {
        let control = Control::read(bytes);
        let qpn = control.qpn;
        match self.objects.qps.get(qpn) {
            // The driver has taken the queue pair from a program that does not know it yet.
            Some(qp) if qp.state == State::Reset => return self.forget_copy(uar, at),
            Some(qp) if qp.cached.uar == uar && qp.send.is_some() => {}
            Some(_) => {
                return self
                    .finding(env, format_args!("doorbell of qp {qpn} in page {uar}, which is not its own"));
            }
            None => return self.forget_copy(uar, at),
        }
        if self.mode == BarMode::Trapped || control.opcode == opcode::NOP {
            // What an earlier store began in this register is overwritten.
            self.copies.retain(|copy| (copy.uar, copy.at) != (uar, at) || copy.bytes.len() > 8);
            if self.copies.len() >= COPIES {
                self.copies.pop_front();
            }
            let deadline = env.now + COPY_TIME;
            let ring = self.ring_bytes(qpn, control.index, usize::from(control.ds) * 16).unwrap_or_default();
            self.copies.push_back(Copy {
                qpn,
                index: control.index,
                uar,
                at,
                bytes: bytes.to_vec(),
                ring,
                deadline,
            });
        }
        self.announce(qpn);
        let trapped = self.mode == BarMode::Trapped;
        let Some(queue) = self.objects.qps.get_mut(qpn).and_then(|qp| qp.send.as_mut()) else { return };
        let announced = control.index.wrapping_add(control.blocks());
        queue.announced = announced;
        if trapped && queue.producer.wrapping_sub(announced) < 1 << 15 {
            // The record may be further on already; each store is still to come in its turn.
            queue.producer = announced;
        } else if trapped {
            self.finding(
                env,
                format_args!("doorbell of qp {qpn} for {announced} came before the doorbell record"),
            );
        }
        if !trapped {
            // Doorbells of other queue pairs in this page may have been overwritten before they were seen.
            let others: Vec<u32> =
                self.objects.qps.iter().filter(|(_, qp)| qp.cached.uar == uar).map(|(qpn, _)| qpn).collect();
            others.into_iter().for_each(|qpn| self.announce(qpn));
        }
    }

    /// What was stored in a register before is no longer what a store to it continues.
    fn forget_copy(&mut self, uar: u32, at: usize) {
        self.copies.retain(|copy| (copy.uar, copy.at) != (uar, at));
    }

    /// Looks at the doorbell record of a send queue.
    fn announce(&mut self, qpn: u32) {
        let Some(qp) = self.objects.qps.get_mut(qpn) else { return };
        let Some(queue) = &mut qp.send else { return };
        let Ok(posted) = self.memory.word(qp.cached.record + 4) else { return };
        let posted = u16::try_from(posted & 0xffff).unwrap_or(0);
        if posted.wrapping_sub(queue.consumer) <= 1 << queue.log_blocks {
            queue.producer = posted;
            self.ready.insert(qpn);
        }
    }

    fn continue_copy(&mut self, env: &mut Env, uar: u32, at: usize, bytes: &[u8]) {
        // Stores of several processors to their registers may come by turns. A register whose doorbell was for nothing
        // that exists has no copy.
        let register = at - at % REGISTER;
        let Some(copy) = self.copies.iter_mut().rev().find(|copy| (copy.uar, copy.at) == (uar, register))
        else {
            return;
        };
        if copy.at + copy.bytes.len() != at || copy.bytes.len() + bytes.len() > REGISTER {
            return self.finding(env, format_args!("store to page {uar} at {at:#x} continues nothing"));
        }
        copy.bytes.extend_from_slice(bytes);
        let (control, len) = (Control::read(&copy.bytes), copy.ring.len());
        // Copies come in whole blocks; the first bytes alone are an ordinary doorbell.
        let complete = copy.bytes.len() == len.next_multiple_of(BLOCK);
        if control.opcode != opcode::NOP && complete && copy.bytes.get(..len) != Some(&copy.ring) {
            let (qpn, index) = (copy.qpn, copy.index);
            self.finding(env, format_args!("BlueFlame of qp {qpn} index {index} differs from the ring"));
        }
    }

    /// `len` bytes of a send queue, from a block on.
    pub(crate) fn ring_bytes(&self, qpn: u32, index: u16, len: usize) -> Option<Vec<u8>> {
        let queue = self.objects.qps.get(qpn)?.send.as_ref()?;
        let mut bytes = vec![0; len.next_multiple_of(BLOCK)];
        for (block, part) in (0u16..).zip(bytes.chunks_mut(BLOCK)) {
            self.memory.read(queue.address(index.wrapping_add(block))?, part).ok()?;
        }
        bytes.truncate(len);
        Some(bytes)
    }

    /// For a NOP at `index`: does a copy ask for a completion? `Err`: that will be known at that time.
    pub(crate) fn copy_signals(&mut self, env: &Env, qpn: u32, index: u16) -> Result<bool, u64> {
        let mode = self.mode;
        let Some(copy) = self.copies.iter_mut().find(|copy| copy.qpn == qpn && copy.index == index) else {
            return Ok(false);
        };
        if copy.bytes.len() < 16 && env.now < copy.deadline {
            return Err(copy.deadline);
        }
        if copy.bytes.len() < 16 && mode == BarMode::Mapped {
            let mut bytes = [0; 16];
            self.doorbells.read(page_offset(copy.uar, copy.at), &mut bytes);
            put(&mut bytes, 0, copy.bytes.get(..8).unwrap_or(&[]));
            copy.bytes = bytes.to_vec();
        }
        Ok(Control::read(&copy.bytes).signaled)
    }

    fn arm(&mut self, env: &mut Env, uar: u32, cqn: u32, word: u32) {
        let Some(cq) = self.objects.cqs.get_mut(cqn) else { return };
        if cq.uar != uar {
            return self.finding(env, format_args!("cq {cqn} armed in page {uar}, which is not its own"));
        }
        cq.seen = word;
        if cq.arm(word) && cq.is_late(word) {
            self.completion_event(env, cqn);
        }
    }

    /// Arms what the records say was armed in this page while another store hid it.
    fn arm_overwritten(&mut self, env: &mut Env, uar: u32) {
        let mut changed = Vec::new();
        for (cqn, cq) in self.objects.cqs.iter().filter(|(_, cq)| cq.uar == uar) {
            match self.memory.word(cq.record + 4) {
                Ok(word) if word != cq.seen => changed.push((cqn, word)),
                _ => {}
            }
        }
        changed.into_iter().for_each(|(cqn, word)| self.arm(env, uar, cqn, word));
    }

    /// Raises the events that moderation held back until now; says when the next one is due.
    pub(crate) fn moderate(&mut self, env: &mut Env) -> Option<u64> {
        let held = self.objects.cqs.iter().filter_map(|(cqn, cq)| cq.held_until.map(|until| (cqn, until)));
        let (due, later): (Vec<_>, Vec<_>) = held.partition(|(_, until)| *until <= env.now);
        due.into_iter().for_each(|(cqn, _)| self.completion_event(env, cqn));
        later.into_iter().map(|(_, until)| until).min()
    }
}
