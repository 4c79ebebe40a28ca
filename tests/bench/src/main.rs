//! The command of the benchmark.
#![allow(clippy::print_stdout, reason = "what was asked for goes to standard output")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Stock libmlx5 and holdfast on the native bed's null engine, taking turns.
#[derive(Parser)]
#[command(name = "bench")]
enum Command {
    /// Measure, and write bench.md, bench.json and bench.svg
    Run(holdfast_bench::Options),
    /// The README's table, of the bench.json of several runs
    Readme {
        /// Files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Run(options) => holdfast_bench::run(&options).map(drop)?,
        Command::Readme { files } => print!("{}", holdfast_bench::readme(&files)?),
    }
    Ok(ExitCode::SUCCESS)
}
