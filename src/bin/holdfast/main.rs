//! The `holdfast` command: start a program with holdfast, say what a system would do, make holdfast its default.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its terminal")]

mod doctor;
mod drivers;
mod enable;
mod library;
mod netlink;
mod run;
mod sim;
mod system;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Keeps libibverbs programs working when their RDMA device is gone.
#[derive(Parser)]
#[command(name = "holdfast", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a program with holdfast in front of the stock providers
    Run(run::Args),
    /// Start a program with RDMA devices where there are none
    ///
    /// The devices are virtual ConnectX in the program itself, at work in a thread of it; programs of one user reach each other. No
    /// kernel support, no privilege and no hardware is needed.
    Sim(sim::Args),
    /// Say which provider serves each RDMA device and why, and what is in the way
    ///
    /// Exit status: 0 nothing is in the way, 1 something is, 2 it could not be told.
    Doctor(doctor::Args),
    /// Make holdfast the default provider of this system, the stock one staying behind it
    Enable(enable::EnableArgs),
    /// Undo `enable`: the stock provider is the default again
    Disable(enable::DisableArgs),
    #[command(name = doctor::ASK, hide = true)]
    Ask(doctor::AskArgs),
    #[command(name = run::IS_LOADED, hide = true)]
    IsLoaded { library: std::path::PathBuf },
    /// For the Makefile
    #[command(hide = true)]
    Where(library::WhereArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Sim(args) => sim::sim(&args),
        Command::Where(args) => library::print_where(&args),
        Command::IsLoaded { library } => Ok(run::is_loaded(&library)),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Ask(args) => Ok(doctor::answer(&args)),
        Command::Enable(args) => enable::enable(&args),
        Command::Disable(args) => enable::disable(&args),
    };
    done.unwrap_or_else(|trouble| {
        eprintln!("holdfast: {trouble}");
        ExitCode::from(2)
    })
}
