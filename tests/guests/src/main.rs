//! `guest`: Debian roots of four suites, their kernels booted under QEMU with two soft-RoCE devices each, and the
//! table that says what runs there with stock rdma-core and with holdfast. See `tests/guests/README.md`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

mod bench;
mod boot;
mod clients;
mod emulator;
mod faults;
mod hca;
mod host;
mod kernel;
mod matrix;
mod module;
mod paths;
mod portable;
mod report;
mod root;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::root::{Extra, Root, Suite};

#[derive(Parser)]
#[command(name = "guest", about = "Real Debian kernels under QEMU, with two soft-RoCE devices each")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the host needs, or say what is missing and how to get it
    Setup,
    /// Make the roots of these suites where they are missing, and print where they are
    Root {
        #[arg(required = true)]
        suites: Vec<Suite>,
        /// Packages beyond the standard set
        #[arg(long, value_name = "SET")]
        with: Vec<Extra>,
    },
    /// Remove every cached root that is not of the present recipe
    Clean,
    /// Run a command in a suite's root with the host's own kernel (a chroot), for compilers and the like;
    /// the checkout is seen at its own path, the root itself does not change
    Chroot {
        suite: Suite,
        #[arg(long, value_name = "SET")]
        with: Vec<Extra>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a suite's own gcc, in the present directory
    Cc {
        suite: Suite,
        #[arg(last = true, required = true)]
        arguments: Vec<String>,
    },
    /// Build the provider and the command against the oldest suite's glibc, into target/portable
    Build,
    /// Compile the C clients for a suite, into target/clients
    Clients { suite: Suite },
    /// Run the cases with stock and with holdfast in all guests, and make the table
    Matrix(matrix::MatrixArgs),
    /// Measure both providers, alternating, in one guest
    Bench(bench::BenchArgs),
    /// Let a virtual ConnectX die in every way there is, each in a guest of its own, and compare what a client saw
    Faults(faults::FaultArgs),
    /// Boot a guest and run a command in it as root: its output, its exit status
    Run(RunArgs),
}

/// Exit status: the command's; 122 when the virtual devices had trouble, 123 when the kernel complained, 124 on timeout, 125 when the guest failed.
#[derive(Args)]
struct RunArgs {
    #[arg(long)]
    suite: Suite,
    #[arg(long, value_name = "SET")]
    with: Vec<Extra>,
    /// Seconds before the guest is killed; none by default for a shell, 600 for a command
    #[arg(long)]
    timeout: Option<u64>,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// One processor, whose time is the instructions it has executed
    #[arg(long, conflicts_with = "cpus")]
    counted: bool,
    #[arg(long, default_value = "2G")]
    mem: String,
    /// Keep the kernel log in this file (one that holds a complaint is kept and named in any case)
    #[arg(long)]
    log: Option<PathBuf>,
    /// A further directory the guest sees, read-write, at its own path
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Kernel modules to load beside those of soft-RoCE
    #[arg(long, value_name = "NAME")]
    module: Vec<String>,
    /// Do not set up rxe0 and rxe1
    #[arg(long)]
    no_rxe: bool,
    /// Virtual ConnectX devices, mlx5_0 and up, beside rxe0 and rxe1
    #[arg(long, value_name = "N")]
    hca: Option<u32>,
    /// How the guest reaches their doorbells
    #[arg(long, value_enum, default_value = "mapped", requires = "hca")]
    hca_bar: hca::Bar,
    /// What they say they are
    #[arg(long, value_enum, default_value = "pf", requires = "hca")]
    hca_id: hca::Id,
    /// Where the journal of what they saw is to stay
    #[arg(long, value_name = "FILE", requires = "hca")]
    hca_journal: Option<PathBuf>,
    /// A further argument for QEMU (one word each; give it several times). $QEMU names another QEMU
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// A further word for the kernel's command line
    #[arg(long, value_name = "WORD")]
    kernel_arg: Vec<String>,
    /// One word is a bash script, several are one command, none is a shell on this terminal
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::from(run::GUEST_FAILED)
        }
    }
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Setup => {
            host::setup()?;
            println!("guest: this host has all that the guests need");
            Ok(0)
        }
        Command::Root { suites, with } => {
            host::setup()?;
            for suite in suites {
                println!("{}", Root::ensure(suite, &with)?.fs().display());
            }
            Ok(0)
        }
        Command::Clean => {
            root::clean()?;
            Ok(0)
        }
        Command::Chroot { suite, with, command } => {
            host::setup()?;
            Root::ensure(suite, &with)?.chroot(&command)
        }
        Command::Cc { suite, arguments } => {
            host::setup()?;
            let mut command = vec!["gcc".to_owned()];
            command.extend(arguments);
            Root::ensure(suite, &[])?.chroot(&command)
        }
        Command::Build => {
            host::setup()?;
            println!("{}", portable::build()?.display());
            Ok(0)
        }
        Command::Clients { suite } => {
            host::setup()?;
            println!("{}", clients::build(&Root::ensure(suite, &[])?)?.display());
            Ok(0)
        }
        Command::Matrix(args) => {
            host::setup()?;
            matrix::matrix(&args)
        }
        Command::Bench(args) => {
            host::setup()?;
            bench::bench(&args)
        }
        Command::Faults(args) => {
            host::setup()?;
            faults::faults(&args)
        }
        Command::Run(args) => run_command(args),
    }
}

fn run_command(args: RunArgs) -> Result<u8> {
    host::setup()?;
    let root = Root::ensure(args.suite, &args.with)?;
    let mut spec = run::Spec::new(&root);
    spec.cpus = if args.counted { 1 } else { args.cpus };
    spec.counted = args.counted;
    spec.mem = args.mem;
    spec.modules = args.module;
    spec.rxe = !args.no_rxe;
    if let Some(slots) = args.hca.filter(|n| *n > 0) {
        let wanted = hca::Wanted::new(slots, args.hca_bar, args.hca_id)?;
        spec.hca = Some(hca::Wanted { journal: args.hca_journal, ..wanted });
    }
    spec.qemu_args = args.qemu_arg;
    spec.kernel_args = args.kernel_arg;
    for dir in args.share {
        spec.share(&dir)?;
    }
    spec.log = args.log;
    spec.job = run::Job::from_words(&args.command);
    spec.timeout = match (&spec.job, args.timeout) {
        (_, Some(0)) => bail!("--timeout: zero seconds are too few"),
        (_, Some(seconds)) => Some(seconds),
        (run::Job::Shell, None) => None,
        (run::Job::Script(_), None) => Some(600),
    };
    let outcome = run::boot(&spec, None)?;
    Ok(outcome.report())
}
