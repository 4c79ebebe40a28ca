//! What was done with each queue in one part of a journal, as text in which two runs of the same program can be compared.
//!
//! Queues are told by the order in which they were created, and each has a text for each aspect of it, because what two
//! queues do at the same time has no order, nor have a queue's doorbells and its work requests. Only queues that were
//! created in that part are in it, and none of the driver's own, which Linux 7.2 makes when a program first needs them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead};

use crate::objects::FIRST_UAR;
use crate::reader::{Entry, Names};
use crate::script::rings;

/// Kinds of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Cq,
    Srq,
    Qp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Cq => "cq",
            Kind::Srq => "srq",
            Kind::Qp => "qp",
        }
    }

    /// The kind that a command is about.
    fn of_command(op: &str) -> Option<Kind> {
        if op.ends_with("_QP") {
            Some(Kind::Qp)
        } else if op.ends_with("_CQ") {
            Some(Kind::Cq)
        } else if op.ends_with("_RMP") || op.ends_with("_SRQ") || op == "ARM_RQ" {
            Some(Kind::Srq)
        } else {
            None
        }
    }
}

/// A queue: its device, its kind and its place among those created.
type Queue = (usize, Kind, usize);

/// The number of a device's register page, and a register's offset in it.
type Register = (usize, String, usize);

#[derive(Debug, Default)]
struct Queues {
    /// The queue that has a number now.
    present: BTreeMap<(usize, Kind, u32), Queue>,
    created: BTreeMap<(usize, Kind), usize>,
    texts: BTreeMap<(Queue, &'static str), (Names, String)>,
    /// Register pages have names that all queues share: which of them have one in common is looked at too.
    pages: Names,
    /// Whose doorbell came last in a register: what follows in it is a copy of the work request.
    rung: BTreeMap<Register, Queue>,
    findings: String,
}

/// What a journal says was done with each queue between the mark `name` and the next mark. `None`: there is no such mark.
///
/// # Errors
/// Those of reading.
pub fn after(mut journal: impl BufRead, name: &str) -> io::Result<Option<String>> {
    let mut queues: Option<Queues> = None;
    let mut line = String::new();
    while journal.read_line(&mut line)? != 0 {
        // ORDER TIME DEVICE KIND ...: what lies before the mark, most of a long journal, is not looked at more closely.
        let mut words = line.split_whitespace().skip(3);
        let is_mark = words.next() == Some("mark");
        match &mut queues {
            None if is_mark && words.next() == Some(name) => queues = Some(Queues::default()),
            None => {}
            Some(_) if is_mark => break,
            Some(queues) => {
                if let Some(entry) = Entry::parse(&line) {
                    queues.add(&entry);
                }
            }
        }
        line.clear();
    }
    Ok(queues.map(|queues| queues.text()))
}

/// The n-th word of an entry that is a number without a name.
fn number(entry: &Entry) -> Option<u32> {
    let mut words = entry.fields.iter().filter(|(name, _)| name.is_empty());
    words.find_map(|(_, value)| u32::from_str_radix(value.strip_prefix("0x")?, 16).ok())
}

fn decimal(entry: &Entry, name: &str) -> Option<u32> {
    entry.get(name)?.parse().ok()
}

/// Is a created queue one of the driver's own: a completion queue on its page, or the queue pair that it registers memory with?
fn is_of_driver(kind: Kind, entry: &Entry) -> bool {
    match kind {
        Kind::Cq => decimal(entry, "uar") == Some(FIRST_UAR),
        Kind::Qp => entry.get("service") == Some("Registration"),
        Kind::Srq => false,
    }
}

impl Queues {
    fn add(&mut self, entry: &Entry) {
        match entry.kind.as_str() {
            "command" => self.command(entry),
            "wqe" => self.of_qp(entry, "requests"),
            "receive" => self.of_qp(entry, "receives"),
            "cqe" if entry.get("kind").is_some_and(|kind| kind.starts_with("requester")) => {
                self.of_qp(entry, "sent");
            }
            "cqe" => self.of_qp(entry, "received"),
            "store" => self.store(entry),
            "finding" => {
                // Writing to a string does not fail.
                let _ = writeln!(self.findings, "{}", entry.text());
            }
            _ => {}
        }
    }

    fn command(&mut self, entry: &Entry) {
        let Some((op, kind)) = entry.get("op").and_then(|op| Some((op, Kind::of_command(op)?))) else {
            return;
        };
        let (Some(number), device) = (number(entry), entry.device) else { return };
        if op.starts_with("CREATE_") && entry.get("status") == Some("0x0") {
            if is_of_driver(kind, entry) {
                return;
            }
            let created = self.created.entry((device, kind)).or_insert(0);
            *created += 1;
            self.present.insert((device, kind, number), (device, kind, *created));
        }
        if let Some(queue) = self.present.get(&(device, kind, number)).copied() {
            self.write(queue, "commands", entry, &["code"]);
        }
        if op.starts_with("DESTROY_") {
            self.present.remove(&(device, kind, number));
        }
    }

    fn of_qp(&mut self, entry: &Entry, aspect: &'static str) {
        let Some(number) = decimal(entry, "qp") else { return };
        if let Some(queue) = self.present.get(&(entry.device, Kind::Qp, number)).copied() {
            // Its place in a completion queue depends on what others completed.
            self.write(queue, aspect, entry, &["qp", "cq", "at"]);
        }
    }

    fn store(&mut self, entry: &Entry) {
        let hex = |name: &str| usize::from_str_radix(entry.get(name)?.trim_start_matches("0x"), 16).ok();
        let (Some(at), Some(uar)) = (hex("at"), entry.get("uar")) else { return };
        let second = entry.get("bytes").and_then(|bytes| bytes.get(8..16));
        let Some(second) = second.and_then(|hex| u32::from_str_radix(hex, 16).ok()) else { return };
        let present = |kind, number| self.present.get(&(entry.device, kind, number)).copied();
        let register = (entry.device, uar.to_owned(), at - at % 0x100);
        if rings(at) {
            match present(Kind::Qp, second >> 8) {
                Some(queue) => self.rung.insert(register, queue),
                None => self.rung.remove(&register),
            };
        } else if at < 0x800 {
            if let Some(queue) = present(Kind::Cq, second & 0xff_ffff) {
                self.write(queue, "armed", entry, &[]);
            }
            return;
        }
        let register = (entry.device, uar.to_owned(), at - at % 0x100);
        if let Some(queue) = self.rung.get(&register).copied() {
            self.write(queue, "doorbells", entry, &[]);
        }
    }

    fn write(&mut self, queue: Queue, aspect: &'static str, entry: &Entry, without: &[&str]) {
        let (names, text) = self.texts.entry((queue, aspect)).or_default();
        text.push_str(&entry.kind);
        for (name, value) in entry.fields.iter().filter(|(name, _)| !without.contains(&name.as_str())) {
            let names = if name == "uar" { &mut self.pages } else { &mut *names };
            let (value, equals) = (names.normal(entry, name, value), if name.is_empty() { "" } else { "=" });
            // Writing to a string does not fail.
            let _ = write!(text, " {name}{equals}{value}");
        }
        text.push('\n');
    }

    fn text(self) -> String {
        let mut text = String::new();
        for (((device, kind, place), aspect), (_, lines)) in &self.texts {
            let _ = write!(text, "== d{device} {}#{place} {aspect}\n{lines}", kind.name());
        }
        if !self.findings.is_empty() {
            let _ = write!(text, "== findings\n{}", self.findings);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(qp: u32, swap: bool) -> String {
        let bell = format!("store uar=17 at=0x800 bytes=00000a00{:08x}\n", qp << 8 | 2);
        let more = "store uar=17 at=0x808 bytes=0000000800000000\n".to_owned();
        let wqe = format!("wqe qp={qp} index=0 op=send addr=0x{qp}123 key=0x{qp} len=7 outcome=done\n");
        let middle = if swap { [bell, wqe, more] } else { [bell, more, wqe] };
        let lines = [
            "mark one\n".to_owned(),
            format!("wqe qp={qp} index=7 op=send\n"),
            "mark two\n".to_owned(),
            format!("command op=CREATE_QP code=0x500 modifier=0 status=0x0 blocks=4 -> {qp:#x}\n"),
            format!("command op=CREATE_QP code=0x500 modifier=0 status=0x0 blocks=4 -> {:#x}\n", qp + 1),
            middle.concat(),
            format!("command op=DESTROY_QP code=0x501 modifier=0 status=0x0 {qp:#x} sent=0x1\n"),
            format!("wqe qp={qp} index=1 op=send\n"),
            "mark three\n".to_owned(),
        ];
        lines.concat().lines().map(|line| format!("1 0.000000000 d0 {line}\n")).collect()
    }

    fn queues(journal: &str, mark: &str) -> Option<String> {
        after(journal.as_bytes(), mark).unwrap()
    }

    #[test]
    fn two_runs_read_the_same_whatever_their_numbers_and_their_pace() {
        let text = queues(&journal(70, false), "two").unwrap();
        assert_eq!(text, queues(&journal(93, true), "two").unwrap());
        assert!(
            text.contains("== d0 qp#1 doorbells\nstore uar=uar0#1 at=0x800 bytes=00000a00/qp0#1/2\n"),
            "{text}"
        );
        assert!(text.contains("store uar=uar0#1 at=0x808 bytes=data\n== d0 qp#1 requests\n"), "{text}");
        assert!(
            text.contains("wqe index=0 op=send addr=page#1+0x123 key=key#1 len=7 outcome=done\n"),
            "{text}"
        );
        assert!(text.contains("status=0x0 number#1 sent=0x1\n"), "{text}");
        assert!(
            text.contains("== d0 qp#2 commands\n") && !text.contains("index=1") && !text.contains("index=7"),
            "{text}"
        );
    }

    #[test]
    fn what_differs_shows() {
        let journal = journal(70, false);
        let other = journal.replace("outcome=done", "outcome=done rest=08");
        assert_ne!(queues(&journal, "two"), queues(&other, "two"));
        assert_eq!(queues(&journal, "four"), None);
    }

    #[test]
    fn queues_of_the_driver_are_left_out() {
        let journal = "1 0.100000000 d0 mark one\n\
            2 0.200000000 d0 command op=CREATE_CQ code=0x400 status=0x0 log=8 uar=16 -> 0x1\n\
            3 0.300000000 d0 command op=CREATE_QP code=0x500 status=0x0 service=Registration uar=17 -> 0x40\n\
            4 0.400000000 d0 command op=CREATE_CQ code=0x400 status=0x0 log=7 uar=18 -> 0x2\n\
            5 0.500000000 d0 command op=DESTROY_CQ code=0x401 status=0x0 0x1\n";
        let text = queues(journal, "one").unwrap();
        assert_eq!(
            text,
            "== d0 cq#1 commands\ncommand op=CREATE_CQ status=0x0 log=7 uar=uar0#1 -> number#1\n"
        );
    }
}
