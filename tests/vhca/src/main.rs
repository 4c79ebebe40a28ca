//! The `vhca` command: serve virtual ConnectX devices, send them commands, read their journals.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use vhca::reader::{Entry, Journal};
use vhca::{BarMode, Identity, Options, control, queues};

/// Virtual ConnectX devices over vfio-user.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve devices, one a socket, until SIGTERM. Prints `ready` when all sockets listen.
    Serve {
        /// The vfio-user socket of a device; may be given several times.
        #[arg(long, required = true)]
        socket: Vec<PathBuf>,
        /// Physical or virtual function.
        #[arg(long, default_value = "pf")]
        id: Id,
        /// How doorbell pages are reached.
        #[arg(long, default_value = "mapped")]
        bar: Bar,
        /// The control socket.
        #[arg(long)]
        control: Option<PathBuf>,
        /// Where to write the journal.
        #[arg(long)]
        journal: Option<PathBuf>,
        /// Commands and triggers to begin with.
        #[arg(long)]
        script: Option<PathBuf>,
    },
    /// Send one command to a control socket and print the answer.
    Control {
        /// The control socket.
        path: PathBuf,
        /// The command.
        line: String,
    },
    /// Print a journal, or answer a question about it.
    ///
    /// Questions: `stores after SECONDS`, `wqes of DEVICE QP` (as `wqes of d0 70`), `once` (prints work requests that
    /// ended more than once; fails if there are some), `findings` (fails if there are some), `kind NAME`, `queues after
    /// MARK` (what was done with each queue up to the next mark, so that two runs can be compared).
    Journal {
        /// The journal.
        path: PathBuf,
        /// As text in which two runs can be compared: no times, numbers and addresses in the order they came in.
        #[arg(long)]
        normal: bool,
        /// The question.
        query: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Id {
    Pf,
    Vf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bar {
    Mapped,
    Trapped,
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Serve { socket, id, bar, control, journal, script } => {
            let identity = match id {
                Id::Pf => Identity::Physical,
                Id::Vf => Identity::Virtual,
            };
            let mode = match bar {
                Bar::Mapped => BarMode::Mapped,
                Bar::Trapped => BarMode::Trapped,
            };
            // Blocked before there are threads, so that none of them takes the signal.
            let mut end = SigSet::empty();
            end.add(Signal::SIGTERM);
            end.add(Signal::SIGINT);
            end.thread_block()?;
            vhca::start(&Options { sockets: socket, identity, mode, control, journal, script })
                .context("cannot serve")?;
            writeln!(io::stdout(), "ready")?;
            end.wait()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Control { path, line } => match control::command(&path, &line)? {
            Ok(text) if text.is_empty() => Ok(ExitCode::SUCCESS),
            Ok(text) => {
                writeln!(io::stdout(), "{text}")?;
                Ok(ExitCode::SUCCESS)
            }
            Err(why) => {
                writeln!(io::stderr(), "vhca: {why}")?;
                Ok(ExitCode::FAILURE)
            }
        },
        Command::Journal { path, normal, query } => {
            let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let (file, query) = (BufReader::new(file), query.join(" "));
            if let ["queues", "after", mark] = query.split_whitespace().collect::<Vec<_>>().as_slice() {
                let text = queues::after(file, mark)?.with_context(|| format!("there is no mark {mark}"))?;
                write!(io::stdout(), "{text}")?;
                return Ok(ExitCode::SUCCESS);
            }
            ask(&Journal::read(file)?, normal, &query)
        }
    }
}

/// Answers a question about a journal; the status says whether what should not be there is.
fn ask(journal: &Journal, normal: bool, query: &str) -> anyhow::Result<ExitCode> {
    let words: Vec<&str> = query.split_whitespace().collect();
    let (entries, wanted): (Vec<&Entry>, bool) = match words.as_slice() {
        [] => (journal.entries.iter().collect(), true),
        ["stores", "after", seconds] => {
            let after = Duration::try_from_secs_f64(seconds.parse()?)?;
            (journal.stores_after(u64::try_from(after.as_nanos())?).collect(), true)
        }
        ["wqes", "of", device, qpn] => {
            let device = device.trim_start_matches('d').parse()?;
            (journal.requests_of(device, qpn.parse()?).collect(), true)
        }
        ["once"] => (journal.repeated(), false),
        ["findings"] => (journal.of_kind("finding").collect(), false),
        ["kind", kind] => (journal.of_kind(kind).collect(), true),
        _ => anyhow::bail!("'{query}' is no question"),
    };
    let good = wanted || entries.is_empty();
    let mut out = io::stdout().lock();
    if normal {
        let entries = entries.into_iter().cloned().collect();
        write!(out, "{}", Journal { entries }.normal())?;
    } else {
        for entry in entries {
            let (seconds, nanos) = (entry.time / 1_000_000_000, entry.time % 1_000_000_000);
            writeln!(out, "{} {seconds}.{nanos:09} d{} {}", entry.order, entry.device, entry.text())?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
