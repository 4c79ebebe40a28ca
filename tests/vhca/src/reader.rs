//! Reads a journal back, and answers what tests ask of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead};

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The place in the order of all lines.
    pub order: u64,
    /// Nanoseconds since the devices were started.
    pub time: u64,
    /// The device.
    pub device: usize,
    /// What kind of thing happened: `store`, `wqe`, `receive`, `cqe`, `eqe`, `command`, `fault`, `mark`, `finding`.
    pub kind: String,
    /// What it says of itself: `NAME=VALUE` in order; a word without `=` has no name.
    pub fields: Vec<(String, String)>,
}

impl Entry {
    /// Reads a line; `None` if it is none of a journal, as the last one of a process that was killed may be.
    #[must_use]
    pub fn parse(line: &str) -> Option<Entry> {
        let mut words = line.split_whitespace();
        let order = words.next()?.parse().ok()?;
        let (seconds, fraction) = words.next()?.split_once('.')?;
        let seconds: u64 = seconds.parse().ok()?;
        let fraction: u64 = fraction.parse().ok().filter(|_| fraction.len() == 9)?;
        let device = words.next()?.strip_prefix('d')?.parse().ok()?;
        let kind = words.next()?.to_owned();
        let field = |word: &str| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (String::new(), word.to_owned()),
        };
        let fields = words.map(field).collect();
        Some(Entry {
            order,
            time: seconds.checked_mul(1_000_000_000)?.checked_add(fraction)?,
            device,
            kind,
            fields,
        })
    }

    /// The value of the first field of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The text after order, time and device.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.kind.clone();
        for (name, value) in &self.fields {
            let equals = if name.is_empty() { "" } else { "=" };
            // Writing to a string does not fail.
            let _ = write!(text, " {name}{equals}{value}");
        }
        text
    }
}

/// A whole journal.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Its entries, in order.
    pub entries: Vec<Entry>,
}

impl Journal {
    /// Reads all entries.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(from: impl BufRead) -> io::Result<Journal> {
        let mut entries = Vec::new();
        for line in from.lines() {
            entries.extend(Entry::parse(&line?));
        }
        Ok(Journal { entries })
    }

    /// Entries of a kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.kind == kind)
    }

    /// Stores that reached a device after a time (in nanoseconds since start).
    pub fn stores_after(&self, time: u64) -> impl Iterator<Item = &Entry> {
        self.of_kind("store").filter(move |entry| entry.time > time)
    }

    /// Work requests of a queue pair that were executed or flushed.
    pub fn requests_of(&self, device: usize, qpn: u32) -> impl Iterator<Item = &Entry> {
        let qpn = qpn.to_string();
        self.of_kind("wqe").filter(move |entry| entry.device == device && entry.get("qp") == Some(&qpn))
    }

    /// Work requests that ended twice, or out of their order: none should.
    #[must_use]
    pub fn repeated(&self) -> Vec<&Entry> {
        let mut last: BTreeMap<(usize, &str), u16> = BTreeMap::new();
        let mut repeated = Vec::new();
        for entry in &self.entries {
            let qpn = entry.get("qp").unwrap_or("");
            match entry.kind.as_str() {
                // A queue pair that begins anew counts from zero.
                "command"
                    if matches!(
                        entry.get("op"),
                        Some("2RST_QP" | "DESTROY_QP" | "DESTROY_SQ" | "MODIFY_SQ")
                    ) =>
                {
                    let number = entry.fields.iter().filter(|(name, _)| name.is_empty());
                    let number = number
                        .filter_map(|(_, value)| u32::from_str_radix(value.strip_prefix("0x")?, 16).ok());
                    for number in number {
                        last.retain(|(device, qpn), _| {
                            (*device, *qpn) != (entry.device, number.to_string().as_str())
                        });
                    }
                }
                "fault" => last.retain(|(device, _), _| *device != entry.device),
                "wqe" => {
                    let Some(index) = entry.get("index").and_then(|index| index.parse::<u16>().ok()) else {
                        continue;
                    };
                    let before = last.insert((entry.device, qpn), index);
                    if before.is_some_and(|before| index.wrapping_sub(before).wrapping_sub(1) >= 1 << 15) {
                        repeated.push(entry);
                    }
                }
                _ => {}
            }
        }
        repeated
    }

    /// The journal as text in which two runs of the same program can be compared: without times, commands' own
    /// numbers and the places of things in memory. A number is replaced by the order in which it first came.
    #[must_use]
    pub fn normal(&self) -> String {
        let mut names = Names::default();
        let mut text = String::new();
        for entry in &self.entries {
            // Interrupts and the events of commands come as the machine has time for them.
            if entry.get("type") == Some("command") {
                continue;
            }
            let _ = write!(text, "d{} {}", entry.device, entry.kind);
            for (name, value) in &entry.fields {
                let value = names.normal(entry, name, value);
                let equals = if name.is_empty() { "" } else { "=" };
                let _ = write!(text, " {name}{equals}{value}");
            }
            text.push('\n');
        }
        text
    }
}

/// Names for numbers: the n-th of its class that was seen.
#[derive(Debug, Default)]
pub(crate) struct Names {
    seen: BTreeMap<(String, String), usize>,
    count: BTreeMap<String, usize>,
}

impl Names {
    fn name(&mut self, class: &str, value: &str) -> String {
        let count = self.count.entry(class.to_owned()).or_insert(0);
        let name = self.seen.entry((class.to_owned(), value.to_owned())).or_insert_with(|| {
            *count += 1;
            *count
        });
        format!("{class}#{name}")
    }

    /// A field's value without what differs from run to run.
    pub(crate) fn normal(&mut self, entry: &Entry, name: &str, value: &str) -> String {
        let device = entry.device;
        match name {
            "qp" | "qpn" => self.name(&format!("qp{device}"), value),
            "cq" | "eq" | "srq" | "uar" | "pd" => self.name(&format!("{name}{device}"), value),
            "key" | "rkey" | "mkey" | "invalidate" => self.name("key", value),
            "immediate" if entry.get("kind") == Some("recv_inv") => self.name("key", value),
            // Where in its page an address is stays: alignment is a part of what two providers may differ in.
            "addr" | "raddr" => match value
                .strip_prefix("0x")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            {
                Some(address) => {
                    format!("{}+{:#x}", self.name("page", &format!("{:x}", address >> 12)), address & 0xfff)
                }
                None => value.to_owned(),
            },
            "bytes" => self.store(entry, value),
            "" if value.starts_with("0x") && entry.kind == "command" => self.name("number", value),
            _ => value.to_owned(),
        }
    }

    /// A store's bytes: a send doorbell names a queue pair, an arming a completion queue.
    fn store(&mut self, entry: &Entry, value: &str) -> String {
        let at = entry
            .get("at")
            .and_then(|at| usize::from_str_radix(at.trim_start_matches("0x"), 16).ok())
            .unwrap_or(0);
        let (Some(first), Some(second), 16) = (value.get(..8), value.get(8..16), value.len()) else {
            return "data".to_owned();
        };
        let device = entry.device;
        let number = |hex: &str| u32::from_str_radix(hex, 16).unwrap_or(0);
        if crate::script::rings(at) {
            format!(
                "{first}/{}/{:x}",
                self.name(&format!("qp{device}"), &(number(second) >> 8).to_string()),
                number(second) & 0xff
            )
        } else if at == 0x20 {
            format!(
                "{first}/{}",
                self.name(&format!("cq{device}"), &(number(second) & 0xff_ffff).to_string())
            )
        } else {
            "data".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(text: &str) -> Journal {
        Journal::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn lines_are_read_and_broken_ones_left_out() {
        let journal = journal(
            "1 0.000000005 d0 store uar=17 at=0x800 bytes=00\n2 1.5 d0 store\n\
             3 1.500000000 d1 store uar=17 at=0x900 bytes=00\n4 2.0000",
        );
        assert_eq!(journal.entries.len(), 2);
        assert_eq!(journal.entries[1].time, 1_500_000_000);
        let late: Vec<u64> = journal.stores_after(5).map(|entry| entry.order).collect();
        assert_eq!(late, [3]);
    }

    #[test]
    fn a_request_that_ends_twice_is_found() {
        let wqe = |order: u32, index: u32| {
            format!("{order} 0.000000000 d0 wqe qp=70 index={index} op=send outcome=done\n")
        };
        let once = [wqe(1, 65534), wqe(2, 65535), wqe(3, 0), wqe(4, 2)].concat();
        assert!(journal(&once).repeated().is_empty());
        assert_eq!(journal(&(once.clone() + &wqe(5, 2))).repeated()[0].order, 5);
        let reset = once + "5 0.000000000 d0 command op=2RST_QP status=0x0 0x46\n" + &wqe(6, 0);
        assert!(journal(&reset).repeated().is_empty());
    }

    #[test]
    fn the_same_run_at_another_place_reads_the_same() {
        let run = |qp: u32, page: u32, key: u32| {
            journal(&format!(
                "1 0.{qp:09} d0 store uar={page} at=0x800 bytes=00000a{qp:08x}02\n\
                 2 0.000000000 d0 wqe qp={qp} index=0 op=send addr={page:#x}123 key={key:#x} len=7 outcome=done\n"
            ))
            .normal()
        };
        let text = run(70, 17, 0x500);
        assert_eq!(text, run(99, 33, 0x777));
        assert!(text.contains("addr=page#1+0x123 key=key#1 len=7"), "{text}");
    }
}
