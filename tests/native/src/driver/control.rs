//! Faults, on whose word whatever: the kernel's part here, devices and wire in `vhca`.
//!
//! A line is a command for a device (`dN` before it names which, else it is d0), or `at TRIGGER: COMMAND`. Beside what
//! `vhca` knows (`die`, `silence`, `wire cut`, `qp N error`, ...: see `tests/vhca/src/fault.rs`) there are
//!
//! ```text
//! fatal [lost|twice]      the driver finds the device in error: DEVICE_FATAL (element 1), commands fail or are faked,
//!                         nobody can open it; `lost` without the event, `twice` with two
//! remove [lost|twice]     the driver lets go of the device: its node goes, all objects are destroyed, DEVICE_FATAL (element
//!                         0), completion channels end, pages are swapped; `lost` and `twice` as above
//! kill                    die, fatal, remove
//! return                  the device is there again
//! return other            another device is there in its place: the same name, another GUID
//! refuse async|channel [N|but N]
//!                         the commands that make such an event file fail with EPROTONOSUPPORT: each, the next N, or all but
//!                         the next N
//! allow                   they do not any more
//! ```

use super::{Driver, with};
use crate::Errno;
use crate::uapi::event;

/// What a command answers, in words; or why it was refused.
pub(crate) type Answer = Result<String, String>;

/// How often an event comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times(usize);

impl Times {
    fn parse(words: &[&str]) -> Result<Times, String> {
        match words {
            [] => Ok(Times(1)),
            ["lost"] => Ok(Times(0)),
            ["twice"] => Ok(Times(2)),
            _ => Err(format!("'{}' is neither 'lost' nor 'twice'", words.join(" "))),
        }
    }
}

/// Which of the commands that make an event file of a kind are answered: `granted` of them, then `refused` not, then all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    granted: u32,
    refused: u32,
}

impl Refusal {
    fn parse(words: &[&str]) -> Result<Refusal, String> {
        let number = |word: &str| word.parse().map_err(|_| format!("'{word}' is no number"));
        match words {
            [] => Ok(Refusal { granted: 0, refused: u32::MAX }),
            ["but", granted] => Ok(Refusal { granted: number(granted)?, refused: u32::MAX }),
            [refused] => Ok(Refusal { granted: 0, refused: number(refused)? }),
            _ => Err(format!("'{}' is neither 'N' nor 'but N'", words.join(" "))),
        }
    }

    /// One more is asked for.
    pub(super) fn ask(&mut self) -> Result<(), Errno> {
        if self.granted > 0 {
            self.granted -= 1;
            return Ok(());
        }
        if self.refused == 0 {
            return Ok(());
        }
        self.refused -= 1;
        Err(Errno(libc::EPROTONOSUPPORT))
    }
}

/// A removal that waits for commands to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leave(Times);

/// Runs a command.
pub(crate) fn control(line: &str) -> Answer {
    with(|driver| driver.control(line))
}

impl Driver {
    pub(crate) fn control(&mut self, line: &str) -> Answer {
        let line = line.trim();
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let named =
            words.first().and_then(|word| word.strip_prefix('d')).and_then(|number| number.parse().ok());
        let device = named.unwrap_or(0);
        if named.is_some() {
            words.remove(0);
        }
        let known = self.devices.get(device).is_some();
        match words.as_slice() {
            ["fatal" | "remove" | "kill" | "return", ..] if !known => {
                return Err(format!("there is no d{device}"));
            }
            ["fatal", times @ ..] => {
                let times = Times::parse(times)?;
                self.host.note_fault(device, line);
                self.fatal(device, times);
            }
            ["remove", times @ ..] => {
                let times = Times::parse(times)?;
                self.host.note_fault(device, line);
                self.remove(device, times);
            }
            ["kill"] => {
                self.host.command(&format!("d{device} die"))?;
                self.fatal(device, Times(1));
                self.remove(device, Times(1));
            }
            ["refuse", "async", which @ ..] => self.refusals.asyncs = Refusal::parse(which)?,
            ["refuse", "channel", which @ ..] => self.refusals.channels = Refusal::parse(which)?,
            ["allow"] => self.refusals = super::Refusals::default(),
            ["return"] => self.bring_back(device, false)?,
            ["return", "other"] => self.bring_back(device, true)?,
            _ => {
                let answer = self.host.command(line)?;
                self.host.flush_journal();
                super::CHANGED.notify_all();
                return Ok(answer);
            }
        }
        self.host.flush_journal();
        super::CHANGED.notify_all();
        Ok(String::new())
    }

    /// The driver finds the device in error.
    fn fatal(&mut self, device: usize, Times(times): Times) {
        const EARLY: u64 = 1;
        let Some(state) = self.devices.get_mut(device).filter(|state| state.present) else { return };
        state.in_error = true;
        (0..times).for_each(|_| self.device_event(device, EARLY, event::DEVICE_FATAL));
    }

    /// The driver lets go of the device, once no command hangs in it.
    fn remove(&mut self, device: usize, times: Times) {
        let Some(state) = self.devices.get_mut(device).filter(|state| state.present) else { return };
        // The node goes first, whatever is still under way.
        state.present = false;
        state.leaving = Some(Leave(times));
        super::show(self);
        self.leave_when_idle();
    }

    /// Does the removals that waited.
    pub(super) fn leave_when_idle(&mut self) {
        for device in 0..self.devices.len() {
            let Some(state) = self.devices.get_mut(device).filter(|state| state.hanging == 0) else {
                continue;
            };
            if let Some(Leave(times)) = state.leaving.take() {
                self.disassociate(device, times);
            }
        }
    }

    /// Takes the device away from everybody, in the kernel's order: one context after the other, in each the newest object
    /// first, and the pages last.
    fn disassociate(&mut self, device: usize, Times(times): Times) {
        let of_device = |context: &super::Context| context.device == device && !context.gone;
        let ids = self.contexts.iter().filter(|(_, context)| of_device(context)).map(|(id, _)| *id);
        for id in ids.collect::<Vec<_>>() {
            self.destroy_all(id, times);
            if let Some(context) = self.contexts.get_mut(&id) {
                context.gone = true;
            }
            self.swap_pages(id);
        }
        let of = |key: &(usize, u32)| key.0 != device;
        self.by_cqn.retain(|key, _| of(key));
        self.by_qpn.retain(|key, _| of(key));
        self.by_srqn.retain(|key, _| of(key));
        // What the device still has is nobody's.
        self.host.stop(device);
    }

    /// The device, or another in its place, is found.
    fn bring_back(&mut self, device: usize, other: bool) -> Result<(), String> {
        if self.devices.get(device).is_some_and(|state| state.present || state.leaving.is_some()) {
            return Err(format!("d{device} is still there"));
        }
        self.host.command(&format!("d{device} return"))?;
        if other {
            let state = self.devices.get_mut(device).ok_or("no such device")?;
            state.guid += OTHER;
            let guid = state.guid;
            self.host.command(&format!("d{device} guid {guid:#x}"))?;
        }
        self.host.start(device);
        self.register(device);
        Ok(())
    }
}

/// How far the GUIDs of a device and of the one that takes its place are apart.
const OTHER: u64 = 0x100;
