//! Faults on command: the language of the control socket and of scripts.
//!
//! One command a line; `dN` before it names the device (else it is d0).
//!
//! ```text
//! die [alive]                 every read of the function gives ones, stores and memory access have no effect;
//!                             `alive`: its data path goes on
//! return                      the function is there again, reset
//! flr                         function-level reset
//! syndrome CODE [fatal] [alive]   firmware error that asks for a reset; the reset cures it, unless `fatal`;
//!                             the data path stops, unless `alive`
//! health stop                 the health counter stands still
//! silence                     the data path does nothing more, and the device shows no sign of it
//! clear                       none of the four above
//! command hang [NAME]         commands (of that name) are not answered
//! command release             those held back are served now
//! command fail NAME [STATUS]  commands of that name fail (status 1 to 255; 1: internal error)
//! command ok                  no more hanging or failing commands
//! qp N error [SYNDROME]       the queue pair fails: its next work request completes with that syndrome
//! qp N drain                  the send queue is drained
//! cq N error                  the completion queue overruns
//! srq N error                 the shared receive queue fails
//! port down | port up         the port, with its event
//! lid N | guid HEX            the port's address changes, with its event
//! wire cut | wire heal        the wire between devices (a device reaches itself without it)
//! wire slow DURATION          each message takes so long (5ms, 20us, 1s)
//! wire drop N [answers]       the next N messages, or the answers to them, are lost
//! wire drop every N           each N-th message is lost
//! at TRIGGER: COMMAND         later: see the triggers
//! status | objects | findings what there is
//! sync                        nothing; the journal on disk is complete up to here
//! mark NAME                   a line of the journal, whose place in the order is its meaning
//! ```

use crate::device::Device;
use crate::journal::Record;
use crate::objects::cq::Syndrome as CompletionSyndrome;
use crate::objects::eq::{EventType, PortChange};
use crate::objects::qp::State;
use crate::prm::Status;
use crate::script::Trigger;
use crate::world::World;
use crate::wqe::Control;

/// A firmware error that the health buffer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Syndrome {
    pub(crate) code: u8,
    curable: bool,
}

/// What is wrong with a device.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) dead: bool,
    pub(crate) syndrome: Option<Syndrome>,
    pub(crate) health_stopped: bool,
    pub(crate) silent: bool,
    /// The data path goes on whatever the rest of the device shows.
    alive: bool,
    /// Commands that are not answered: of one name, or all.
    hang: Option<Option<String>>,
    fail: Option<(String, Status)>,
}

impl Faults {
    /// A reset of the function cures what it can.
    pub(crate) fn reset(&mut self) {
        self.syndrome = self.syndrome.filter(|syndrome| !syndrome.curable);
        self.health_stopped = false;
        self.silent = false;
        self.alive = self.is_undead();
    }

    /// Can the device not even reach memory?
    pub(crate) fn is_cut_off(&self) -> bool {
        self.dead && !self.alive
    }

    /// Does the data path go on although programs may have been told that the device is gone, and have taken their queues back?
    pub(crate) fn is_undead(&self) -> bool {
        self.alive && (self.dead || self.syndrome.is_some())
    }

    /// Does the data path work?
    pub(crate) fn data_path(&self) -> bool {
        !self.silent && (self.alive || !self.dead && self.syndrome.is_none())
    }

    pub(crate) fn holds_command(&self, name: &str) -> bool {
        match &self.hang {
            None => false,
            Some(None) => true,
            Some(Some(held)) => held == name,
        }
    }

    pub(crate) fn command_status(&self, name: &str) -> Option<Status> {
        self.fail.as_ref().filter(|(failing, _)| failing == name).map(|(_, status)| *status)
    }
}

/// `dN`.
pub(crate) fn parse_device(name: &str) -> Result<usize, String> {
    name.strip_prefix('d').and_then(|n| n.parse().ok()).ok_or_else(|| format!("'{name}' is no device"))
}

/// A number, decimal or hexadecimal.
pub(crate) fn parse_number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is no number"))
}

/// Nanoseconds of a duration: `5ms`, `20us`, `1.5s`; seconds without a unit.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    let units = [("us", 1e3), ("ms", 1e6), ("s", 1e9), ("", 1e9)];
    let found = units.iter().find_map(|(unit, scale)| text.strip_suffix(unit).map(|number| (number, scale)));
    let (number, scale) = found.ok_or("no duration")?;
    let seconds: f64 = number.parse().map_err(|_| format!("'{text}' is no duration"))?;
    let nanos =
        std::time::Duration::try_from_secs_f64(seconds * scale / 1e9).map_err(|error| error.to_string())?;
    u64::try_from(nanos.as_nanos()).map_err(|error| error.to_string())
}

fn status(code: u32) -> Result<Status, String> {
    use Status::*;
    let all = [
        InternalError,
        BadOpcode,
        BadParameter,
        BadSystemState,
        BadResource,
        ResourceBusy,
        ExceedsLimit,
        BadResourceState,
        BadIndex,
        NoResources,
        BadQpState,
        BadSizeOutstandingCqes,
        BadInputLength,
        BadOutputLength,
    ];
    all.into_iter().find(|status| *status as u32 == code).ok_or_else(|| format!("{code} is no status"))
}

impl World {
    /// Runs one command of the control language.
    pub(crate) fn command(&mut self, line: &str) -> Result<String, String> {
        let line = line.trim();
        if let Some(trigger) = line.strip_prefix("at ") {
            self.env.triggers.add(Trigger::parse(trigger)?, self.env.now);
            return Ok(String::new());
        }
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let mut index = 0;
        if let Some(number) = words.first().and_then(|word| parse_device(word).ok()) {
            index = number;
            words.remove(0);
        }
        match words.as_slice() {
            ["sync"] => return Ok(String::new()),
            ["mark", name] => {
                self.env.record(index, &Record::Mark(name));
                return Ok(String::new());
            }
            ["status"] => return Ok(self.status()),
            ["findings"] => return Ok(self.findings()),
            _ => {}
        }
        let answer = match words.as_slice() {
            ["wire", rest @ ..] => self.wire_command(rest)?,
            words => {
                let env = &mut self.env;
                let device = self.devices.get_mut(index).ok_or_else(|| format!("there is no d{index}"))?;
                device.fault(env, words)?
            }
        };
        if words.first() != Some(&"objects") {
            self.env.record(index, &Record::Fault(line));
        }
        Ok(answer)
    }

    fn wire_command(&mut self, words: &[&str]) -> Result<String, String> {
        let wire = &mut self.wire;
        match words {
            ["cut"] => wire.cut = true,
            ["heal"] => *wire = crate::transport::Wire::default(),
            ["slow", time] => wire.delay = parse_duration(time)?,
            ["drop", "every", count] => wire.drop_every = u64::from(parse_number(count)?),
            ["drop", count] => wire.drop_messages = u64::from(parse_number(count)?),
            ["drop", count, "answers"] => wire.drop_answers = u64::from(parse_number(count)?),
            _ => return Err("the wire can be cut, healed, slow or drop".to_owned()),
        }
        Ok(String::new())
    }

    fn status(&self) -> String {
        let lines = self.devices.iter().map(|device| {
            let (objects, port) = (&device.objects, device.port);
            format!(
                "d{} guid={:#018x} lid={} port={} bus={} dead={} data_path={} qps={} cqs={} mkeys={} findings={}",
                device.index,
                port.guid,
                port.lid,
                if port.up { "up" } else { "down" },
                device.has_bus(),
                device.faults.dead,
                device.faults.data_path(),
                objects.qps.iter().count(),
                objects.cqs.iter().count(),
                objects.mkeys.iter().count(),
                self.env.journal.finding_count,
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn findings(&self) -> String {
        self.env.journal.findings.join("\n")
    }
}

impl Device {
    fn fault(&mut self, env: &mut crate::device::Env, words: &[&str]) -> Result<String, String> {
        match words {
            ["die", rest @ ..] => {
                self.faults.alive = rest.contains(&"alive");
                self.faults.dead = true;
            }
            ["return"] => {
                self.faults = Faults::default();
                self.reset();
            }
            ["flr"] => self.reset(),
            ["syndrome", code, rest @ ..] => {
                let code = u8::try_from(parse_number(code)?).map_err(|error| error.to_string())?;
                self.faults.alive = rest.contains(&"alive");
                self.faults.syndrome = Some(Syndrome { code, curable: !rest.contains(&"fatal") });
            }
            ["health", "stop"] => self.faults.health_stopped = true,
            ["silence"] => self.faults.silent = true,
            ["clear"] => {
                self.faults.syndrome = None;
                (self.faults.health_stopped, self.faults.silent, self.faults.alive) = (false, false, false);
            }
            ["command", "hang"] => self.faults.hang = Some(None),
            ["command", "hang", name] => self.faults.hang = Some(Some(known(name)?)),
            ["command", "release"] => self.release_commands(env),
            ["command", "fail", name] => self.faults.fail = Some((known(name)?, Status::InternalError)),
            ["command", "fail", name, code] => {
                self.faults.fail = Some((known(name)?, status(parse_number(code)?)?));
            }
            ["command", "ok"] => (self.faults.hang, self.faults.fail) = (None, None),
            ["qp", qpn, "error", rest @ ..] => {
                let name = rest.first().copied().unwrap_or("retries-exceeded");
                let syndrome =
                    CompletionSyndrome::parse(name).ok_or_else(|| format!("'{name}' is no syndrome"))?;
                self.break_qp(env, parse_number(qpn)?, syndrome)?;
            }
            ["qp", qpn, "drain"] => {
                let qpn = parse_number(qpn)?;
                let qp = self.objects.qps.get_mut(qpn).filter(|qp| qp.state == State::ReadyToSend);
                let qp = qp.ok_or_else(|| format!("qp {qpn} is not ready to send"))?;
                qp.draining = true;
                qp.set_state(State::Drained);
                self.ready.insert(qpn);
            }
            ["cq", cqn, "error"] => {
                let cqn = parse_number(cqn)?;
                self.objects.cqs.get(cqn).ok_or_else(|| format!("there is no cq {cqn}"))?;
                self.fail_cq(env, cqn);
            }
            ["srq", srqn, "error"] => {
                let srqn = parse_number(srqn)?;
                let srq = self.objects.srqs.get_mut(srqn).ok_or_else(|| format!("there is no srq {srqn}"))?;
                srq.failed = true;
                self.queue_event(env, EventType::SrqCatastrophe, srqn);
            }
            ["port", "down"] => {
                self.port.up = false;
                self.port_event(env, PortChange::Down);
            }
            ["port", "up"] => {
                self.port.up = true;
                self.port_event(env, PortChange::Active);
            }
            ["lid", lid] => {
                self.port.lid = u16::try_from(parse_number(lid)?).map_err(|error| error.to_string())?;
                self.port_event(env, PortChange::Lid);
            }
            ["guid", guid] => {
                let digits = guid.trim_start_matches("0x");
                self.port.guid = u64::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
                self.port_event(env, PortChange::Guid);
            }
            ["objects"] => return Ok(self.list()),
            _ => return Err(format!("'{}' is no command", words.join(" "))),
        }
        Ok(String::new())
    }

    /// Ends the next work request of a queue pair in error, or just breaks it if there is none.
    fn break_qp(
        &mut self,
        env: &mut crate::device::Env,
        qpn: u32,
        syndrome: CompletionSyndrome,
    ) -> Result<(), String> {
        let qp = self.objects.qps.get(qpn).ok_or_else(|| format!("there is no qp {qpn}"))?;
        let head = qp.send.as_ref().filter(|queue| !queue.is_empty()).map(|queue| queue.consumer);
        match head.and_then(|index| self.ring_bytes(qpn, index, 16).map(|bytes| (index, bytes))) {
            Some((index, bytes)) => {
                let control = Control { index, ..Control::read(&bytes) };
                self.complete_in_error(env, qpn, &control, syndrome);
            }
            None => self.fail_qp(env, qpn, Some(EventType::WqCatastrophe)),
        }
        Ok(())
    }

    /// The queue pairs, for tests that look for theirs.
    fn list(&self) -> String {
        let lines = self.objects.qps.iter().map(|(qpn, qp)| {
            let send = qp
                .send
                .as_ref()
                .map(|queue| format!(" sq={}..{} scq={}", queue.consumer, queue.producer, queue.cqn));
            let cached = qp.cached;
            format!(
                "qp {qpn} service={:?} state={} uar={} rcq={} remote={}{}",
                qp.service,
                qp.state.name(),
                cached.uar,
                cached.receive_cqn,
                cached.remote_qpn,
                send.unwrap_or_default()
            )
        });
        let cqs = self
            .objects
            .cqs
            .iter()
            .map(|(cqn, cq)| format!("cq {cqn} produced={} error={}", cq.producer, cq.error));
        let srqs = self
            .objects
            .srqs
            .iter()
            .map(|(srqn, srq)| format!("srq {srqn} kind={:?} consumed={}", srq.kind, srq.consumed));
        lines.chain(cqs).chain(srqs).collect::<Vec<_>>().join("\n")
    }
}

fn known(name: &str) -> Result<String, String> {
    let name = name.to_uppercase();
    let found = crate::prm::layouts::OPCODES.iter().any(|(_, known)| *known == name);
    if found { Ok(name) } else { Err(format!("there is no command {name}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("5ms"), Ok(5_000_000));
        assert_eq!(parse_duration("20us"), Ok(20_000));
        assert_eq!((parse_duration("1.5s"), parse_duration("2")), (Ok(1_500_000_000), Ok(2_000_000_000)));
        assert!(parse_duration("-1s").is_err() && parse_duration("ms").is_err());
    }

    #[test]
    fn what_a_reset_cures() {
        let mut world = crate::testing::world(2);
        world.command("d1 syndrome 7").unwrap();
        world.command("syndrome 7 fatal alive").unwrap();
        assert!(world.devices[0].faults.data_path() && !world.devices[1].faults.data_path());
        world.command("flr").unwrap();
        world.command("d1 flr").unwrap();
        assert!(world.devices[0].faults.syndrome.is_some() && world.devices[1].faults.syndrome.is_none());
        world.command("die").unwrap();
        assert!(world.devices[0].faults.is_cut_off());
        world.command("return").unwrap();
        assert!(!world.devices[0].faults.dead);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut world = crate::testing::world(1);
        for line in [
            "",
            "dye",
            "d7 die",
            "wire",
            "wire drop",
            "command fail NOTHING",
            "qp 5 error",
            "lid 70000",
            "at noon: die",
        ] {
            assert!(world.command(line).is_err(), "{line}");
        }
        assert_eq!(world.command("at time 5ms: die"), Ok(String::new()));
    }
}
