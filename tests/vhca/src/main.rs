//! The `vhca` command: serve virtual ConnectX devices, send them commands, read their journals.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use vhca::{BarMode, Identity, Options, control};

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
    }
}
