//! What the device itself saw of a client, by its journal: the other side of the client's ledger.

use std::collections::BTreeSet;

use vhca::reader::{Entry, Journal};

use super::expected::Facts;

/// What a client says of one of its queues in the end.
#[derive(Debug, PartialEq, Eq)]
struct Queue {
    name: String,
    /// One, or those of a shared receive queue.
    qps: Vec<u32>,
    well: u64,
    retired: u64,
}

/// `SECONDS queue NAME of qp N[,N...]: W well, R retired, ...`
fn queue(line: &str) -> Option<Queue> {
    let (_, rest) = line.split_once(" queue ")?;
    let (name, rest) = rest.split_once(" of qp ")?;
    let (qps, rest) = rest.split_once(": ")?;
    let mut counts = rest.split(", ").map(|part| part.split_once(' ').and_then(|(n, _)| n.parse().ok()));
    Some(Queue {
        name: name.to_owned(),
        qps: qps.split(',').map(|n| n.parse().ok()).collect::<Option<_>>()?,
        well: counts.next()??,
        retired: counts.next()??,
    })
}

/// The number that a command gave what it created.
fn created(entry: &Entry) -> Option<u32> {
    let last = entry.fields.last().map(|(_, value)| value.as_str())?;
    u32::from_str_radix(last.strip_prefix("0x")?, 16).ok()
}

fn number(entry: &Entry, name: &str) -> Option<u32> {
    entry.get(name)?.parse().ok()
}

fn is_mark(entry: &Entry, of: &str) -> bool {
    entry.kind == "mark" && entry.fields.iter().any(|(_, name)| name == of)
}

fn is_command(entry: &Entry, name: &str) -> bool {
    entry.kind == "command" && entry.get("op") == Some(name)
}

/// The facts of a client that is called so in the journal's marks and has written that log, and what is wrong.
pub(super) fn prove(journal: &Journal, client: &str, log: &str) -> (Facts, Vec<String>) {
    let mut wrong = Vec::new();
    let device: Vec<&Entry> = journal.entries.iter().filter(|entry| entry.device == 0).collect();
    let mark = device.iter().position(|e| is_mark(e, client));
    let Some(mark) = mark else { return (Facts::new(), vec![format!("{client}: no mark in the journal")]) };
    // A driver that begins anew begins all numbers anew.
    let begins =
        |from: usize| device.iter().skip(from).position(|e| is_command(e, "ENABLE_HCA")).map(|n| from + n);
    let fault = device.iter().position(|e| is_mark(e, "fault")).unwrap_or(mark);
    let end = begins(fault).unwrap_or(device.len());
    let life = device.get(..end).unwrap_or_default();

    let queues: Vec<Queue> = log.lines().filter_map(queue).collect();
    let qps: BTreeSet<u32> = queues.iter().flat_map(|queue| queue.qps.iter().copied()).collect();
    let cqs: BTreeSet<u32> = life
        .iter()
        .filter(|e| e.kind == "cqe" && number(e, "qp").is_some_and(|qp| qps.contains(&qp)))
        .filter_map(|e| number(e, "cq"))
        .collect();
    let pages: BTreeSet<u32> = life
        .iter()
        .filter(|e| match created(e) {
            Some(number) if is_command(e, "CREATE_QP") => qps.contains(&number),
            Some(number) if is_command(e, "CREATE_CQ") => cqs.contains(&number),
            _ => false,
        })
        .filter_map(|e| number(e, "uar"))
        .collect();
    let is_store =
        |e: &&&Entry| e.kind == "store" && number(e, "uar").is_some_and(|page| pages.contains(&page));
    if life.iter().take(mark).filter(is_store).count() == 0 {
        wrong.push("the journal has no store of this client at all".to_owned());
    }
    let late = life.iter().skip(mark).filter(is_store).count();
    let mut facts = Facts::new();
    let stores = match late {
        _ if end <= mark => "the driver had begun anew",
        0 => "none",
        _ => "some",
    };
    facts.insert("death.stores_after_the_gate".to_owned(), stores.to_owned());

    let mut differs = Vec::new();
    for queue in &queues {
        let of = |e: &&&Entry| number(e, "qp").is_some_and(|qp| queue.qps.contains(&qp));
        let sends = queue.name.ends_with("sends");
        let completions = life
            .iter()
            .filter(of)
            .filter(|e| e.kind == "cqe" && e.get("syndrome").is_none())
            .filter(|e| e.get("kind").is_some_and(|kind| (kind == "requester") == sends))
            .count() as u64;
        if completions != queue.well {
            differs.push(format!("{}: {completions} completions, {} came", queue.name, queue.well));
        }
        let executed =
            life.iter().filter(of).filter(|e| e.kind == "wqe" && e.get("outcome") == Some("done")).count()
                as u64;
        if sends && executed < queue.well + queue.retired {
            differs.push(format!(
                "{}: {executed} executed, {} said to be",
                queue.name,
                queue.well + queue.retired
            ));
        }
    }
    if queues.is_empty() {
        wrong.push("the client says nothing of its queues".to_owned());
    }
    let what = if differs.is_empty() { "all, and no other" } else { "not what the device did" };
    facts.insert("death.successes".to_owned(), what.to_owned());
    wrong.extend(differs);
    let repeated: Vec<u64> = journal.repeated().iter().map(|e| e.order).collect();
    if let Some(order) = repeated.first() {
        wrong.push(format!(
            "{} work requests executed twice; the first: line {order} of the journal",
            repeated.len()
        ));
    }
    (facts, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "1.0 queue write.sends of qp 73: 2 well, 1 retired, 5 flushed, 0 in error, 0 owed\n\
                       1.0 queue srq.shared of qp 73,74: 1 well, 0 retired, 0 flushed, 0 in error, 3 owed\n";

    fn journal(before_the_fault: &str, after_the_mark: &str) -> Journal {
        let life = "d0 command op=CREATE_CQ status=0x0 log=9 uar=18 -> 0x9\n\
                    d0 command op=CREATE_QP status=0x0 uar=21 -> 0x49\n\
                    d0 command op=CREATE_QP status=0x0 uar=30 -> 0x77\n\
                    d0 store uar=21 at=0x800 bytes=00\n\
                    d0 wqe qp=73 index=0 op=write outcome=done\n\
                    d0 wqe qp=73 index=1 op=write outcome=done\n\
                    d0 cqe cq=9 at=0 kind=requester qp=73 counter=1 len=0\n\
                    d0 wqe qp=73 index=2 op=write outcome=done\n\
                    d0 cqe cq=9 at=1 kind=requester qp=73 counter=2 len=0\n\
                    d0 cqe cq=9 at=2 kind=recv qp=74 counter=0 len=4\n"
            .to_owned()
            + before_the_fault
            + "d0 mark fault\n\
                    d0 fault die\n\
                    d0 store uar=21 at=0x800 bytes=00\n\
                    d0 mark death.holdfast\n\
                    d0 store uar=30 at=0x800 bytes=00\n"
            + after_the_mark
            + "d0 command op=ENABLE_HCA status=0x0\nd0 store uar=21 at=0x800 bytes=00\n";
        let text: String =
            life.lines().enumerate().map(|(n, line)| format!("{n} 0.000000000 {line}\n")).collect();
        Journal::read(text.as_bytes()).unwrap()
    }

    fn stores(after_the_mark: &str) -> (String, Vec<String>) {
        let (facts, wrong) = prove(&journal("", after_the_mark), "death.holdfast", LOG);
        (facts["death.stores_after_the_gate"].clone(), wrong)
    }

    #[test]
    fn only_stores_of_this_client_in_that_life_after_the_mark_count() {
        assert_eq!(stores(""), ("none".to_owned(), Vec::new()));
        assert_eq!(stores("d0 store uar=21 at=0x800 bytes=00\n").0, "some");
        assert_eq!(stores("d0 store uar=18 at=0x20 bytes=00\n").0, "some");
        assert_eq!(stores("d1 store uar=21 at=0x800 bytes=00\n").0, "none");
    }

    #[test]
    fn the_ledger_and_the_journal_are_compared() {
        assert_eq!(prove(&journal("", ""), "death.holdfast", LOG).0["death.successes"], "all, and no other");
        for changed in [("2 well", "1 well"), ("1 retired", "2 retired"), (": 1 well", ": 0 well")] {
            let (facts, wrong) =
                prove(&journal("", ""), "death.holdfast", &LOG.replace(changed.0, changed.1));
            assert_eq!(facts["death.successes"], "not what the device did");
            assert!(!wrong.is_empty());
        }
        let more = "d0 cqe cq=9 at=3 kind=requester qp=73 counter=3 len=0\n";
        assert_eq!(
            prove(&journal(more, ""), "death.holdfast", LOG).0["death.successes"],
            "not what the device did"
        );
        let twice = "d0 wqe qp=73 index=2 op=write outcome=done\n";
        assert!(!prove(&journal(twice, ""), "death.holdfast", LOG).1.is_empty());
    }

    #[test]
    fn what_cannot_be_proven_is_wrong() {
        assert!(!prove(&journal("", ""), "death.stock", LOG).1.is_empty());
        assert!(!prove(&journal("", ""), "death.holdfast", "").1.is_empty());
    }
}
