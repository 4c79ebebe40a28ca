//! The journal: what happened in and at the devices, in order, one line each.
//!
//! `ORDER SECONDS dDEVICE KIND NAME=VALUE...`: [`reader`](crate::reader) reads it back.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use crate::objects::cq::{Completion, Kind};
use crate::objects::eq::EventType;
use crate::prm;
use crate::wqe::{self, Data, Operation, Request, Sge};

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    /// A store to a doorbell page.
    Store { uar: u32, at: usize, bytes: &'a [u8] },
    /// A work request was executed, or came to an end without.
    Executed { qpn: u32, index: u16, request: &'a Request, outcome: &'a str },
    /// A work request could not be decoded or was flushed: only its place and opcode are known.
    Refused { qpn: u32, index: u16, opcode: u8, outcome: &'a str },
    /// A receive work request was used.
    Received { qpn: u32, srqn: Option<u32>, index: u16, len: u64, list: &'a [Sge] },
    /// A completion was written.
    Completion { cqn: u32, index: u32, completion: &'a Completion },
    /// An event was raised.
    Event { eqn: u32, event: EventType, subtype: u8, data: &'a [u8] },
    /// A command was served.
    Command { opcode: u16, name: &'a str, modifier: u16, status: u8, detail: &'a str },
    /// A fault was injected.
    Fault(&'a str),
    /// Whoever orders faults wants to find this place again.
    Mark(&'a str),
    /// Something that neither driver nor device should do.
    Finding(fmt::Arguments<'a>),
}

struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Display for Record<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Record::Store { uar, at, bytes } => write!(f, "store uar={uar} at={at:#x} bytes={}", Hex(bytes)),
            Record::Executed { qpn, index, request, outcome } => {
                let (control, name) = (&request.control, wqe::opcode_name(request.control.opcode));
                let signaled = u8::from(control.signaled);
                write!(f, "wqe qp={qpn} index={index} op={name} ds={} signaled={signaled}", control.ds)?;
                write!(f, " solicited={} fence={}", u8::from(control.solicited), control.fence)?;
                describe(f, request)?;
                write!(f, " rest={} outcome={outcome}", Hex(trimmed(&request.rest)))
            }
            Record::Refused { qpn, index, opcode, outcome } => {
                write!(f, "wqe qp={qpn} index={index} op={} outcome={outcome}", wqe::opcode_name(*opcode))
            }
            Record::Received { qpn, srqn, index, len, list } => {
                write!(f, "receive qp={qpn}")?;
                if let Some(srqn) = srqn {
                    write!(f, " srq={srqn}")?;
                }
                write!(f, " index={index} len={len}")?;
                list.iter().try_for_each(|piece| describe_sge(f, piece))
            }
            Record::Completion { cqn, index, completion } => {
                let Completion { kind, qpn, counter, length, .. } = completion;
                write!(f, "cqe cq={cqn} at={index} kind={} qp={qpn} counter={counter}", kind_name(*kind))?;
                match completion.syndrome {
                    Some(syndrome) => write!(f, " syndrome={}", syndrome.name()),
                    None => {
                        write!(f, " len={length} immediate={:#x}", completion.immediate)?;
                        write!(f, " inline={}", completion.inline.as_ref().map_or(0, Vec::len))
                    }
                }
            }
            Record::Event { eqn, event, subtype, data } => {
                write!(f, "eqe eq={eqn} type={} subtype={subtype}", event.name())?;
                let number = prm::be32(data, 24);
                match event {
                    EventType::Completion => write!(f, " cq={number}"),
                    EventType::CqError => write!(f, " cq={}", prm::be32(data, 0)),
                    EventType::PortChange => Ok(()),
                    EventType::CommandDone => write!(f, " slots={:#x}", prm::be32(data, 0)),
                    EventType::SrqLimit | EventType::SrqCatastrophe => write!(f, " srq={number}"),
                    _ => write!(f, " qp={number}"),
                }
            }
            Record::Command { opcode, name, modifier, status, detail } => {
                write!(
                    f,
                    "command op={name} code={opcode:#x} modifier={modifier} status={status:#x} {detail}"
                )
            }
            Record::Fault(what) => write!(f, "fault {what}"),
            Record::Mark(name) => write!(f, "mark {name}"),
            Record::Finding(what) => write!(f, "finding {what}"),
        }
    }
}

/// What a request names beyond its control segment.
fn describe(f: &mut Formatter<'_>, request: &Request) -> fmt::Result {
    let immediate = |f: &mut Formatter<'_>, value: Option<u32>| match value {
        Some(value) => write!(f, " immediate={value:#x}"),
        None => Ok(()),
    };
    if let Some(srqn) = request.srqn {
        write!(f, " srq={srqn}")?;
    }
    match &request.operation {
        Operation::Nop => {}
        Operation::Send { immediate: value, invalidate, address } => {
            immediate(f, *value)?;
            if let Some(key) = invalidate {
                write!(f, " invalidate={key:#x}")?;
            }
            if let Some(address) = address {
                write!(f, " lid={} qpn={} qkey={:#x}", address.lid, address.qpn, address.qkey)?;
            }
        }
        Operation::Write { remote, immediate: value } => {
            write!(f, " raddr={:#x} rkey={:#x}", remote.address, remote.key)?;
            immediate(f, *value)?;
        }
        Operation::Read(remote) => write!(f, " raddr={:#x} rkey={:#x}", remote.address, remote.key)?,
        Operation::Atomic { remote, .. } => write!(f, " raddr={:#x} rkey={:#x}", remote.address, remote.key)?,
        Operation::Register(change) => {
            write!(f, " mkey={:#x} flags={:#x} mask={:#x}", change.key, change.flags, change.mask)?;
            let context = &change.context;
            if change.mask & wqe::mask::QPN != 0 {
                write!(f, " qpn={}", prm::be32(context, 4) >> 8)?;
            }
            if change.mask & wqe::mask::START_ADDRESS != 0 {
                write!(f, " addr={:#x}", prm::be64(context, 16))?;
            }
            let Data::Inline(entries) = &change.translation else { return Ok(()) };
            for entry in entries.chunks_exact(16) {
                let (len, key, addr) = (prm::be32(entry, 0), prm::be32(entry, 4), prm::be64(entry, 8));
                write!(f, " addr={addr:#x} key={key:#x} len={len}")?;
            }
        }
    }
    for piece in &request.data {
        match piece {
            Data::Memory(sge) => describe_sge(f, sge)?,
            Data::Inline(bytes) => write!(f, " inline={}", bytes.len())?,
        }
    }
    Ok(())
}

fn describe_sge(f: &mut Formatter<'_>, sge: &Sge) -> fmt::Result {
    write!(f, " addr={:#x} key={:#x} len={}", sge.address, sge.key, sge.length)
}

/// Without the zeros at the end.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.get(..len).unwrap_or(bytes)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Requester => "requester",
        Kind::ReceivedWriteImmediate => "recv_write_imm",
        Kind::ReceivedSend => "recv",
        Kind::ReceivedSendImmediate => "recv_imm",
        Kind::ReceivedSendInvalidate => "recv_inv",
        Kind::Resized => "resized",
        Kind::RequesterError => "requester_error",
        Kind::ResponderError => "responder_error",
    }
}

/// Writes the journal, or nothing if none was asked for; counts findings in any case.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    file: Option<BufWriter<File>>,
    order: u64,
    flushed: u64,
    /// The last findings, and how many there were.
    pub(crate) findings: Vec<String>,
    pub(crate) finding_count: u64,
}

impl Journal {
    pub(crate) fn create(path: &Path) -> io::Result<Journal> {
        Ok(Journal { file: Some(BufWriter::new(File::create(path)?)), ..Journal::default() })
    }

    pub(crate) fn write(&mut self, now: u64, device: usize, record: &Record<'_>) {
        const KEPT: usize = 100;
        if let Record::Finding(what) = record {
            self.finding_count += 1;
            if self.findings.len() < KEPT {
                self.findings.push(format!("d{device} {what}"));
            }
        }
        self.order += 1;
        let Some(file) = &mut self.file else { return };
        let seconds = now / 1_000_000_000;
        // A journal that cannot be written is no reason to stop the guest; the reader will see that it ends.
        let _ = writeln!(file, "{} {seconds}.{:09} d{device} {record}", self.order, now % 1_000_000_000);
    }

    /// Flushes from time to time while there is no pause to do it in.
    pub(crate) fn flush_if_old(&mut self, now: u64) {
        const OLD: u64 = 20_000_000;
        if now.saturating_sub(self.flushed) > OLD {
            self.flushed = now;
            self.flush();
        }
    }

    /// Makes what was written visible to readers.
    pub(crate) fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }
}
