//! The benchmark of the mlx5 data path: stock libmlx5 and holdfast in one run, on the native bed's null engine. README.md
//! beside this crate says what is measured, and how noise is handled.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a tool: it says what it does, and counts are far from what a float cannot hold"
)]

mod counts;
mod measure;
mod plot;
mod programs;
mod report;
mod rows;
mod stats;
mod worker;

use std::path::PathBuf;

use anyhow::Result;

/// What to measure, with what.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The `holdfast` command
    #[arg(long, default_value = "target/holdfast/holdfast")]
    pub command: PathBuf,
    /// The provider [default: the one beside the command]
    #[arg(long)]
    pub lib: Option<PathBuf>,
    /// The native bed [default: the one beside the command]
    #[arg(long)]
    pub bed: Option<PathBuf>,
    /// A provider built without the death machinery, to be compared with the other
    #[arg(long)]
    pub bare: Option<PathBuf>,
    /// Where figures and the compiled worker go
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// The processor to measure on [default: the last one]
    #[arg(long)]
    pub cpu: Option<u16>,
    /// How often each provider has its turn at each row
    #[arg(long, default_value_t = 120)]
    pub rounds: u32,
    /// How often all processes are started anew
    #[arg(long, default_value_t = 4)]
    pub starts: u32,
    /// Timed bursts a turn, of 256 operations
    #[arg(long, default_value_t = 12)]
    pub bursts: u32,
    /// How often each provider has its turn at each program on the live engine
    #[arg(long, default_value_t = 5)]
    pub programs: u32,
    /// Count no instructions
    #[arg(long = "no-counts", action = clap::ArgAction::SetFalse)]
    pub counts: bool,
    /// Rows to measure, by name; * stands for anything
    #[arg(long, default_value = "*", value_delimiter = ' ')]
    pub rows: Vec<String>,
    /// Have the workers leave out a work request: the run has to fail
    #[arg(long, hide = true)]
    pub forget: bool,
}

/// What a run found.
#[derive(Debug)]
pub struct Found {
    /// Each row in each mode, as in the JSON.
    pub rows: Vec<serde_json::Value>,
}

/// Measures, writes `bench.md`, `bench.json` and `bench.svg` to `options.out`, and says what it found.
///
/// # Errors
/// Anything that a worker finds not to be as it has to, or that could not be started.
pub fn run(options: &Options) -> Result<Found> {
    let measured = measure::all(options)?;
    report::write(options, &measured)
}

pub use report::readme;
