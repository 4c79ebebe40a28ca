//! Triggers: commands that wait for something to happen.
//!
//! A line of a script is a command of the control socket, or `at TRIGGER: COMMAND`, where a trigger is
//!
//! ```text
//! doorbell N [of qp Q]        the N-th store that rings a send queue
//! wqe N [of qp Q]             the N-th work request executed
//! cqe N [of cq C]             the N-th completion written
//! command N [of NAME]         the N-th command served, for example `command 3 of CREATE_QP`
//! time SECONDS                so long after now
//! ```
//!
//! each followed by `on dD` if it shall count on one device only. A trigger acts once.

use crate::journal::Record;
use crate::prm::be32;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Doorbell(Option<u32>),
    Executed(Option<u32>),
    Completion(Option<u32>),
    Command(Option<String>),
    Time,
}

/// A command that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trigger {
    event: Event,
    device: Option<usize>,
    /// Events to go; for a time, nanoseconds after now or, once set, since start.
    left: u64,
    command: String,
}

/// All commands that wait, and those whose time has come.
#[derive(Debug, Default)]
pub(crate) struct Triggers {
    waiting: Vec<Trigger>,
    due: Vec<String>,
}

/// Is a store at this offset of a doorbell page one that rings a send queue?
pub(crate) fn rings(at: usize) -> bool {
    at >= 0x800 && at.is_multiple_of(0x100)
}

impl Trigger {
    /// Reads `TRIGGER: COMMAND`.
    pub(crate) fn parse(line: &str) -> Result<Trigger, String> {
        let (trigger, command) = line.split_once(':').ok_or("no ':' after the trigger")?;
        let mut words = trigger.split_whitespace();
        let kind = words.next().ok_or("what shall be waited for?")?;
        let count = words.next().ok_or("how often?")?;
        let (mut of, mut device) = (None, None);
        while let Some(word) = words.next() {
            let next = words.next().ok_or_else(|| format!("'{word}' of what?"))?;
            match (word, next) {
                ("of", "qp" | "cq") => of = Some(words.next().ok_or("which one?")?.to_owned()),
                ("of", name) => of = Some(name.to_owned()),
                ("on", name) => device = Some(crate::fault::parse_device(name)?),
                _ => return Err(format!("'{word}' is unknown here")),
            }
        }
        let number = |of: Option<String>| match of {
            Some(of) => crate::fault::parse_number(&of).map(Some),
            None => Ok(None),
        };
        let event = match kind {
            "doorbell" => Event::Doorbell(number(of)?),
            "wqe" => Event::Executed(number(of)?),
            "cqe" => Event::Completion(number(of)?),
            "command" => Event::Command(of),
            "time" => Event::Time,
            _ => return Err(format!("nobody counts '{kind}'")),
        };
        let left = match event {
            Event::Time => crate::fault::parse_duration(count)?,
            _ => count.parse().map_err(|_| format!("'{count}' is no number"))?,
        };
        Ok(Trigger { event, device, left, command: command.trim().to_owned() })
    }

    fn counts(&self, device: usize, record: &Record<'_>) -> bool {
        if self.device.is_some_and(|wanted| wanted != device) {
            return false;
        }
        let is = |wanted: &Option<u32>, number: u32| wanted.is_none_or(|wanted| wanted == number);
        match (&self.event, record) {
            (Event::Doorbell(qp), Record::Store { at, bytes, .. }) => {
                rings(*at) && is(qp, be32(bytes, 4) >> 8)
            }
            (Event::Executed(qp), Record::Executed { qpn, .. }) => is(qp, *qpn),
            (Event::Completion(cq), Record::Completion { cqn, .. }) => is(cq, *cqn),
            (Event::Command(wanted), Record::Command { name, .. }) => {
                wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(name))
            }
            _ => false,
        }
    }
}

impl Triggers {
    pub(crate) fn add(&mut self, mut trigger: Trigger, now: u64) {
        if trigger.event == Event::Time {
            trigger.left += now;
        }
        self.waiting.push(trigger);
    }

    /// Counts a record.
    pub(crate) fn observe(&mut self, device: usize, record: &Record<'_>) {
        if self.waiting.is_empty() {
            return;
        }
        for trigger in &mut self.waiting {
            if trigger.counts(device, record) {
                trigger.left = trigger.left.saturating_sub(1);
            }
        }
        self.collect(|trigger| trigger.event != Event::Time && trigger.left == 0);
    }

    /// Lets time pass; says when the next trigger of time is due.
    pub(crate) fn tick(&mut self, now: u64) -> Option<u64> {
        self.collect(|trigger| trigger.event == Event::Time && trigger.left <= now);
        self.waiting.iter().filter(|trigger| trigger.event == Event::Time).map(|trigger| trigger.left).min()
    }

    fn collect(&mut self, is_due: impl Fn(&Trigger) -> bool) {
        let due = &mut self.due;
        self.waiting.retain(|trigger| {
            let now = is_due(trigger);
            if now {
                due.push(trigger.command.clone());
            }
            !now
        });
    }

    /// Takes the commands whose time has come.
    pub(crate) fn take_due(&mut self) -> Vec<String> {
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_doorbell_of_a_queue_pair() {
        let mut triggers = Triggers::default();
        triggers.add(Trigger::parse("doorbell 3 of qp 0x40 on d1: die").unwrap(), 0);
        let ring = |triggers: &mut Triggers, device, qpn: u32| {
            let bytes = [0u32.to_be_bytes(), (qpn << 8 | 2).to_be_bytes()].concat();
            triggers.observe(device, &Record::Store { uar: 16, at: 0x900, bytes: &bytes });
            triggers.take_due()
        };
        for (device, qpn) in [(1, 0x40), (0, 0x40), (1, 0x41), (1, 0x40)] {
            assert_eq!(ring(&mut triggers, device, qpn), Vec::<String>::new());
        }
        assert_eq!(ring(&mut triggers, 1, 0x40), ["die"]);
        assert_eq!(ring(&mut triggers, 1, 0x40), Vec::<String>::new());
    }

    #[test]
    fn time_counts_from_the_command() {
        let mut triggers = Triggers::default();
        triggers.add(Trigger::parse("time 2s: wire cut").unwrap(), 5);
        assert_eq!(triggers.tick(6), Some(2_000_000_005));
        assert_eq!(triggers.tick(2_000_000_005), None);
        assert_eq!(triggers.take_due(), ["wire cut"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["", "doorbell", "doorbell x: die", "moon 3: die", "wqe 3 of qp: die", "doorbell 3 die"] {
            assert!(Trigger::parse(line).is_err(), "{line}");
        }
    }
}
