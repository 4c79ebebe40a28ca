//! The faults: each in a guest of its own with virtual ConnectX, under clients of one kind, stock and holdfast at once, so
//! that both see the very same death; and what they saw compared with what they have to see.
//!
//! What varies between two runs (when something came, how many completions there were) is in the table only; what does
//! not is a *fact*, and every fact is held.

mod expected;
mod proof;
mod table;

use std::collections::VecDeque;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use vhca::reader::Journal;

use self::expected::{Expected, Facts};
use crate::root::{Root, Suite};
use crate::run::{self, Job, Outcome, Spec};
use crate::{clients, hca, paths, portable};

/// Runs the faults of tests/guests/cases/fault and compares what clients saw with tests/guests/faults; writes
/// target/guests/faults.md, faults.json, and faults-PROVIDER.txt as it would have to be.
#[derive(Args)]
pub(crate) struct FaultArgs {
    /// bookworm, trixie and forky by default
    #[arg(long)]
    suite: Vec<Suite>,
    /// Only faults whose names match (the shell's patterns)
    #[arg(long, value_name = "GLOB", default_value = "*")]
    fault: String,
    /// Only clients of that kind; all by default
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Only clients with the stock provider
    #[arg(long)]
    stock: bool,
    /// How many guests run at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Seconds a fault may take
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// What chance depends on: how each load waits, the order of destruction, and more
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where libholdfast.so and its links are, instead of a new portable build
    #[arg(long, value_name = "DIR")]
    provider_dir: Option<PathBuf>,
}

/// The kinds of clients that live through a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// verbs-fatal: call by call
    Fatal,
    /// verbs-death: a ledger of all that is in flight
    Death,
    /// Programs that know nothing of this
    Tools,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Fatal, Self::Death, Self::Tools];

    fn name(self) -> &'static str {
        match self {
            Self::Fatal => "fatal",
            Self::Death => "death",
            Self::Tools => "tools",
        }
    }

    /// Is it a fact of theirs?
    fn has(self, fact: &str) -> bool {
        fact.split_once('.').is_some_and(|(kind, _)| kind == self.name())
    }

    /// The tools are no more than a handful of ends: a few faults show them all.
    fn lives_through(self, fault: &Fault) -> bool {
        match self {
            Self::Fatal => true,
            Self::Death => fault.dies,
            Self::Tools => ["remove-rescan", "die", "syndrome", "plug-same"].contains(&fault.name.as_str()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Provider {
    Stock,
    Holdfast,
}

impl Provider {
    const ALL: [Self; 2] = [Self::Stock, Self::Holdfast];

    fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Holdfast => "holdfast",
        }
    }

    /// The file that says what its clients have to see.
    fn expected(self) -> Result<PathBuf> {
        Ok(paths::guests()?.join("faults").join(self.name()).with_extension("txt"))
    }
}

/// A fault of tests/guests/cases/fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Fault {
    name: String,
    /// Is it one that the device dies of?
    dies: bool,
}

/// What the clients of one kind and one provider saw of one fault on one suite.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    fault: Fault,
    kind: Kind,
    suite: Suite,
    provider: Provider,
    facts: Facts,
    /// What happened, by the seconds since the fault.
    story: Vec<(f64, String)>,
    /// How long things took, in seconds, by name.
    times: Vec<(String, f64)>,
    /// Why it is not as it should be.
    wrong: Vec<String>,
}

/// What a client or the script wrote.
#[derive(Debug, Default)]
struct Told {
    facts: Facts,
    story: Vec<(f64, String)>,
    times: Vec<(String, f64)>,
    wrong: Vec<String>,
}

impl Told {
    /// Lines `fact NAME VALUE`, `wrong TEXT`, `SECONDS TEXT`, and among the last `SECONDS time NAME SECONDS`.
    fn read(kind: Kind, log: &str) -> Self {
        let mut told = Self::default();
        for line in log.lines() {
            let Some((first, rest)) = line.split_once(' ') else { continue };
            match first {
                "fact" => {
                    let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                    told.facts.insert(format!("{}.{name}", kind.name()), value.to_owned());
                }
                "wrong" => told.wrong.push(rest.to_owned()),
                _ => {
                    let Ok(at) = first.parse::<f64>() else { continue };
                    let time = rest.strip_prefix("time ").and_then(|time| time.split_once(' '));
                    match time.and_then(|(name, seconds)| Some((name, seconds.parse().ok()?))) {
                        Some((name, seconds)) => told.times.push((name.to_owned(), seconds)),
                        None => told.story.push((at, rest.to_owned())),
                    }
                }
            }
        }
        told
    }
}

/// The faults of that name, as the script lists them.
fn faults_named(glob: &str) -> Result<Vec<Fault>> {
    let script = paths::guests()?.join("cases/fault");
    let output = std::process::Command::new(&script).args(["--list", glob]).output();
    let output = output.with_context(|| format!("running {}", script.display()))?;
    if !output.status.success() {
        bail!("{}: {}", script.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut faults = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (name, what) = line.split_once(' ').context("a fault's name and kind")?;
        faults.push(Fault { name: name.to_owned(), dies: what == "death" });
    }
    if faults.is_empty() {
        bail!("no fault is called {glob}");
    }
    Ok(faults)
}

/// One boot.
#[derive(Clone)]
struct Task {
    root: Root,
    clients: PathBuf,
    holdfast: Option<PathBuf>,
    kind: Kind,
    fault: Fault,
    seed: u64,
    timeout: u64,
}

/// Gives the exit status: 0 when every client saw what it should.
pub(crate) fn faults(args: &FaultArgs) -> Result<u8> {
    let expected: Vec<(Provider, Expected)> =
        Provider::ALL.into_iter().map(|p| Ok((p, Expected::load(&p.expected()?)?))).collect::<Result<_>>()?;
    let some = |chosen: &[Suite]| match chosen {
        [] => vec![Suite::Bookworm, Suite::Trixie, Suite::Forky],
        chosen => chosen.to_vec(),
    };
    let mut suites = some(&args.suite);
    suites.sort_unstable();
    suites.dedup();
    let faults = faults_named(&args.fault)?;
    let holdfast = match &args.provider_dir {
        _ if args.stock => None,
        Some(dir) => Some(dir.canonicalize().with_context(|| format!("--provider-dir {}", dir.display()))?),
        None => Some(portable::build()?),
    };
    let wanted = hca::Wanted::new(2, hca::Bar::Trapped, hca::Id::Pf)?;
    let mut queue = VecDeque::new();
    for suite in suites {
        let root = Root::ensure(suite, &[])?;
        let clients = clients::build(&root)?;
        for (n, fault) in faults.iter().enumerate() {
            for kind in Kind::ALL {
                let chosen = args.kind.is_empty() || args.kind.contains(&kind);
                if chosen && kind.lives_through(fault) {
                    queue.push_back(Task {
                        root: root.clone(),
                        clients: clients.clone(),
                        holdfast: holdfast.clone(),
                        kind,
                        fault: fault.clone(),
                        seed: args.seed + n as u64,
                        timeout: args.timeout,
                    });
                }
            }
        }
    }
    if queue.is_empty() {
        bail!("no client of that kind lives through {}", args.fault);
    }
    let total = queue.len();
    let queue = Mutex::new(queue);
    let done: Mutex<Vec<Result<Vec<Seen>>>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(task) = next else { break };
                    let seen = one(&task, &wanted, &expected);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    let verdict = match &seen {
                        Ok(seen) if seen.iter().all(|s| s.wrong.is_empty()) => "as expected",
                        _ => "NOT AS EXPECTED",
                    };
                    let (suite, kind) = (task.root.suite.name(), task.kind.name());
                    println!("[{}/{total}] {suite} {} {kind}: {verdict}", done.len() + 1, task.fault.name);
                    done.push(seen);
                }
            });
        }
    });
    let mut seen: Vec<Seen> = Vec::new();
    for task in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        seen.extend(task?);
    }
    let place = |s: &Seen| faults.iter().position(|fault| *fault == s.fault);
    seen.sort_by_key(|s| (place(s), s.kind, s.suite, s.provider));
    finish(&seen)
}

fn one(task: &Task, wanted: &hca::Wanted, all_expected: &[(Provider, Expected)]) -> Result<Vec<Seen>> {
    let Task { root, kind, fault, .. } = task;
    let out = paths::output()?.join("faults").join(root.suite.name()).join(&fault.name).join(kind.name());
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("removing {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let mut spec = Spec::new(root);
    spec.timeout = Some(task.timeout);
    spec.log = Some(out.join("kernel.log"));
    spec.rxe = false;
    // The tools are too fast for a journal of what they do, and prove nothing by it.
    let (bar, journal) = match kind {
        Kind::Tools => (hca::Bar::Mapped, PathBuf::from("/dev/null")),
        _ => (wanted.bar, out.join("journal")),
    };
    spec.hca = Some(hca::Wanted { bar, journal: Some(journal), ..wanted.clone() });
    let mut words = vec!["env".to_owned(), format!("CLIENTS_DIR={}", task.clients.display())];
    if let Some(dir) = &task.holdfast {
        if !dir.starts_with(paths::checkout()?) {
            spec.share(dir)?;
        }
        words.push(format!("HOLDFAST_DIR={}", dir.display()));
    }
    words.push(format!("SEED={}", task.seed));
    words.extend(["tests/guests/cases/fault", kind.name(), &fault.name].map(str::to_owned));
    words.push(out.display().to_string());
    spec.job = Job::from_words(&words);
    let mut said = String::new();
    let outcome = run::boot(&spec, Some(&mut |line| said = line.to_owned()))?;
    let troubles = troubles(&outcome, &said);
    let script = Told::read(*kind, &read(&out.join("log")));
    let mut all = Vec::new();
    for (provider, expected) in all_expected {
        let client = format!("{}.{}", kind.name(), provider.name());
        if *provider == Provider::Holdfast && task.holdfast.is_none() {
            continue;
        }
        let log = read(&out.join(format!("{client}.log")));
        let told = Told::read(*kind, &log);
        let mut seen = Seen {
            fault: fault.clone(),
            kind: *kind,
            suite: root.suite,
            provider: *provider,
            facts: told.facts,
            story: merged(&script.story, told.story),
            times: told.times,
            wrong: told.wrong,
        };
        seen.wrong.extend(troubles.iter().cloned());
        // What the script says of a client begins with its name.
        let other = |text: &str| {
            Provider::ALL
                .iter()
                .any(|p| p != provider && text.starts_with(&format!("{}.{}", kind.name(), p.name())))
        };
        seen.wrong.extend(script.wrong.iter().filter(|text| !other(text)).cloned());
        if *kind == Kind::Death {
            let journal = fs::File::open(out.join("journal")).context("opening the journal")?;
            let journal = Journal::read(BufReader::new(journal)).context("reading the journal")?;
            let (facts, wrong) = proof::prove(&journal, &client, &log);
            seen.facts.extend(facts);
            seen.wrong.extend(wrong);
        }
        let mut want = Facts::new();
        if !fault.dies {
            // Where no device dies, holdfast's clients see what stock's do, unless their own list says otherwise.
            let stock = all_expected.iter().filter(|(p, _)| *p == Provider::Stock);
            want.extend(stock.flat_map(|(_, stock)| stock.of(fault, root.suite, *kind)));
        }
        want.extend(expected.of(fault, root.suite, *kind));
        seen.wrong.extend(expected::compare(&want, &seen.facts));
        all.push(seen);
    }
    Ok(all)
}

fn read(file: &Path) -> String {
    fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What was wrong with the guest itself.
fn troubles(outcome: &Outcome, said: &str) -> Vec<String> {
    let complaints = outcome.complaints.iter().map(|c| format!("the kernel complained: {}", c.headline()));
    let mut wrong: Vec<String> = complaints.collect();
    wrong.extend(outcome.troubles.iter().map(|t| format!("the virtual devices: {t}")));
    match outcome.status {
        _ if outcome.timed_out => wrong.push(format!("the time was up: {said}")),
        None => wrong.push("the guest gave no exit status".to_owned()),
        Some(0) => {}
        Some(status) => wrong.push(format!("ended with {status}: {said}")),
    }
    wrong
}

/// Both stories in one, by the seconds since the script's first order, which is the fault.
fn merged(script: &[(f64, String)], client: Vec<(f64, String)>) -> Vec<(f64, String)> {
    let start = script.iter().find(|(_, text)| text.starts_with("order: ")).map_or(0.0, |(at, _)| *at);
    let mut story: Vec<_> =
        script.iter().cloned().chain(client).map(|(at, text)| (at - start, text)).collect();
    story.sort_by(|a, b| a.0.total_cmp(&b.0));
    story
}

fn finish(seen: &[Seen]) -> Result<u8> {
    let output = paths::output()?;
    let table = table::markdown(seen);
    let json = serde_json::to_string_pretty(seen).context("the JSON")?;
    let mut files = vec![("faults.md".to_owned(), table.clone()), ("faults.json".to_owned(), json)];
    for provider in Provider::ALL {
        let of: Vec<&Seen> = seen.iter().filter(|s| s.provider == provider).collect();
        files.push((format!("faults-{}.txt", provider.name()), expected::written(&of)));
    }
    for (name, text) in files {
        fs::write(output.join(&name), text).with_context(|| format!("writing {name}"))?;
    }
    println!("\n{table}");
    let bad: Vec<&Seen> = seen.iter().filter(|s| !s.wrong.is_empty()).collect();
    for s in &bad {
        for wrong in &s.wrong {
            let (suite, fault, kind) = (s.suite.name(), &s.fault.name, s.kind.name());
            eprintln!("guest: FAILED {suite} {fault} {kind} {}: {wrong}", s.provider.name());
        }
    }
    println!("{}", output.join("faults.md").display());
    println!("{} passed, {} failed", seen.len() - bad.len(), bad.len());
    Ok(u8::from(!bad.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts(list: &[(&str, &str)]) -> Facts {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_log_has_facts_times_and_a_story_that_begins_with_the_fault() {
        let log = "1.0 traffic flows\n7.5 event DEVICE_FATAL/1\n8.0 time last_flush 0.25\n\
                   fact events DEVICE_FATAL/1\nwrong it broke\nqemu said this\n";
        let told = Told::read(Kind::Death, log);
        assert_eq!(told.facts, facts(&[("death.events", "DEVICE_FATAL/1")]));
        assert_eq!(told.times, [("last_flush".to_owned(), 0.25)]);
        assert_eq!(told.wrong, ["it broke"]);
        let story = merged(&[(5.5, "order: die".to_owned())], told.story);
        let text = |n: usize| (story[n].0, story[n].1.as_str());
        assert_eq!(
            [text(0), text(1), text(2)],
            [(-4.5, "traffic flows"), (0.0, "order: die"), (2.0, "event DEVICE_FATAL/1")]
        );
    }

    #[test]
    fn the_script_has_faults_of_both_sorts() {
        let all = faults_named("*").unwrap();
        let dies = |name: &str| all.iter().find(|fault| fault.name == name).unwrap().dies;
        assert!(dies("die") && dies("remove-rescan") && !dies("port-down") && !dies("health-stop"));
        assert!(faults_named("no-such").is_err());
    }
}
