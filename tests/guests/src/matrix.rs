//! The matrix: one boot a suite, all cases of a bed inside it, one table of what came of it.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::report::{self, Cannot, Cell, Record, Sum, Verdict};
use crate::root::{Extra, Root, Suite};
use crate::run::{self, Job, Spec};
use crate::{clients, hca, module, paths, portable};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    Stock,
    Holdfast,
    Both,
}

/// What the cases run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bed {
    /// Two soft-RoCE devices
    Rxe,
    /// Two virtual ConnectX
    Hca,
}

impl Bed {
    /// What its results are called.
    fn output(self, bar: hca::Bar) -> &'static str {
        match (self, bar) {
            (Self::Rxe, _) => "matrix",
            (Self::Hca, hca::Bar::Mapped) => "hca",
            (Self::Hca, hca::Bar::Trapped) => "hca-trapped",
        }
    }

    fn cannot(self) -> &'static str {
        match self {
            Self::Rxe => "stock-cannot.txt",
            Self::Hca => "stock-cannot-hca.txt",
        }
    }
}

/// Runs the cases of tests/guests/cases in guests and makes the table: target/guests/matrix.md and matrix.json, or those
/// of hca or hca-trapped.
#[derive(Args)]
pub(crate) struct MatrixArgs {
    #[arg(long, value_enum, default_value = "rxe")]
    bed: Bed,
    /// How guests reach the doorbells of virtual ConnectX
    #[arg(long, value_enum, default_value = "mapped")]
    hca_bar: hca::Bar,
    /// All four by default
    #[arg(long)]
    suite: Vec<Suite>,
    /// Packages beyond the standard set; `headers`: also the cases that take a kernel module of ours
    #[arg(long, value_name = "SET")]
    with: Vec<Extra>,
    #[arg(long, value_enum, default_value = "both")]
    provider: Provider,
    /// Only cases whose names match, as the shell matches
    #[arg(long, value_name = "GLOB", default_value = "*")]
    case: String,
    /// Also the cases that only vary what others do
    #[arg(long)]
    full: bool,
    /// How often each cell runs; the worst run counts
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
    /// How many guests run at once
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Seconds a suite may take
    #[arg(long, default_value_t = 5400)]
    timeout: u64,
    /// Where libholdfast.so and its links are, instead of a new portable build
    #[arg(long, value_name = "DIR")]
    provider_dir: Option<PathBuf>,
}

/// What matrix.json holds.
#[derive(Serialize)]
struct Json<'a> {
    sum: Sum,
    cells: &'a [Cell],
}

/// Gives the exit status: 0 when no cell failed.
pub(crate) fn matrix(args: &MatrixArgs) -> Result<u8> {
    let started = Instant::now();
    let provider_dir = match (&args.provider_dir, args.provider) {
        (Some(dir), _) => dir.canonicalize().with_context(|| format!("--provider-dir {}", dir.display()))?,
        (None, Provider::Stock) => portable::dir()?,
        (None, _) => portable::build()?,
    };
    let cannot = Cannot::load(&paths::guests()?.join(args.bed.cannot()))?;
    let hca = match args.bed {
        Bed::Rxe => None,
        Bed::Hca => Some(hca::Wanted::new(2, args.hca_bar, hca::Id::Pf)?),
    };
    let mut suites = if args.suite.is_empty() { Suite::ALL.to_vec() } else { args.suite.clone() };
    suites.sort_unstable();
    suites.dedup();
    let mut roots = VecDeque::new();
    for suite in suites {
        roots.push_back(Root::ensure(suite, &args.with)?);
    }
    let queue = Mutex::new(roots);
    let done: Mutex<Vec<Result<Vec<Cell>>>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(root) = next else { break };
                    let cells = one_suite(&root, args, hca.clone(), &provider_dir, &cannot);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(cells);
                }
            });
        }
    });
    let mut cells = Vec::new();
    for suite in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        cells.extend(suite?);
    }
    cells.sort_by(|a, b| (a.suite, &a.case, &a.variant).cmp(&(b.suite, &b.case, &b.variant)));
    finish(&cells, &cannot, args, started)
}

fn one_suite(
    root: &Root,
    args: &MatrixArgs,
    hca: Option<hca::Wanted>,
    provider_dir: &Path,
    cannot: &Cannot,
) -> Result<Vec<Cell>> {
    let suite = root.suite;
    let out = paths::output()?.join(args.bed.output(args.hca_bar)).join(suite.name());
    // What an earlier matrix left must not be taken for this one's.
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("removing {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let clients = clients::build(root)?;
    let modules = module::build(root, &args.with)?.unwrap_or_default();
    let mut spec = Spec::new(root);
    spec.timeout = Some(args.timeout);
    spec.log = Some(out.with_extension("kernel.log"));
    if !provider_dir.starts_with(paths::checkout()?) {
        spec.share(provider_dir)?;
    }
    spec.hca = hca;
    let (provider, bed) = (hca::name(args.provider), hca::name(args.bed));
    let words = [
        "env",
        &format!("HOLDFAST_DIR={}", provider_dir.display()),
        &format!("CLIENTS_DIR={}", clients.display()),
        &format!("MODULES_DIR={}", modules.display()),
        "tests/guests/cases/run",
        "--bed",
        &bed,
        "--bar",
        &hca::name(args.hca_bar),
        "--provider",
        &provider,
        "--case",
        &args.case,
        "--repeat",
        &args.repeat.to_string(),
        "--out",
        &out.display().to_string(),
    ]
    .map(str::to_owned);
    let mut words = words.to_vec();
    if args.full {
        words.push("--full".to_owned());
    }
    spec.job = Job::from_words(&words);
    let outcome = run::boot(&spec, Some(&mut |line| println!("{:8} {line}", suite.name())))?;
    outcome.report();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    let (plan, results) = (read("plan.tsv"), read("results.tsv"));
    let mut record = Record::parse(&plan, &results).with_context(|| format!("what {} left", suite.name()))?;
    let nobody: Vec<String> = record
        .blame(&outcome.complaints)
        .iter()
        .map(|c| format!("the kernel complained: {}", c.headline()))
        .collect();
    let mut failures = nobody;
    failures.extend(outcome.troubles.iter().map(|t| format!("the virtual devices: {t}")));
    match outcome.status {
        _ if outcome.timed_out => failures.push("the time was up".to_owned()),
        None => failures.push("it gave no exit status".to_owned()),
        Some(0) if plan.is_empty() => failures.push("nothing ran".to_owned()),
        Some(0) if !out.join("done").exists() => failures.push("it did not come to the end".to_owned()),
        Some(0) => {}
        Some(status) => failures.push(format!("the cases ended with {status}")),
    }
    if !failures.is_empty() {
        record.guest_failed(failures.join("; "));
    }
    Ok(record.judge(suite, cannot))
}

fn finish(cells: &[Cell], cannot: &Cannot, args: &MatrixArgs, started: Instant) -> Result<u8> {
    if cells.is_empty() {
        bail!("no cell at all");
    }
    let sum = report::sum(cells);
    let output = paths::output()?;
    let table = report::markdown(cells);
    let json = serde_json::to_string_pretty(&Json { sum, cells }).context("the JSON")?;
    let file = output.join(args.bed.output(args.hca_bar));
    for (extension, text) in [("md", &table), ("json", &json)] {
        let file = file.with_extension(extension);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    println!("\n{table}");
    for line in cannot.stale(cells) {
        eprintln!("guest: {} has what stock can do by now: {line}", args.bed.cannot());
    }
    let bad = cells.iter().filter(|c| c.verdict == Verdict::Bad);
    for cell in bad.clone() {
        eprintln!("guest: FAILED {}", report::headline(cell));
    }
    println!("{}; {} s", file.with_extension("md").display(), started.elapsed().as_secs());
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(u8::from(bad.count() > 0))
}
