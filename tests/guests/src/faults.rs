//! The faults: each in a guest of its own with a virtual ConnectX, under the client `verbs-fatal`, and what that client
//! saw compared with `faults.txt`.
//!
//! What varies between two runs (when something came, how many completions there were) is in the table only; what does
//! not is a *fact*, and every fact is held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::root::{Root, Suite};
use crate::run::{self, Job, Spec};
use crate::{clients, hca, paths};

/// Runs the faults of tests/guests/cases/fault and compares what a client saw with tests/guests/faults.txt; writes
/// target/guests/faults.md, faults.json, and faults.txt as it would have to be.
#[derive(Args)]
pub(crate) struct FaultArgs {
    /// bookworm and forky by default
    #[arg(long)]
    suite: Vec<Suite>,
    /// Only faults whose names match (the shell's patterns)
    #[arg(long, value_name = "GLOB", default_value = "*")]
    fault: String,
    /// How many guests run at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Seconds a fault may take
    #[arg(long, default_value_t = 900)]
    timeout: u64,
}

/// What a client may be asked to hold: a fact by its name.
type Facts = BTreeMap<String, String>;

/// `faults.txt`: `FAULT :: FACT :: VALUE` for every suite, `FAULT SUITE :: FACT :: VALUE` where that differs. A value may
/// be several, of which one has to be it: `ONE | OTHER`.
#[derive(Debug, Default)]
struct Expected(BTreeMap<(String, Option<String>), Facts>);

impl Expected {
    fn parse(text: &str) -> Result<Self> {
        let mut expected: BTreeMap<_, Facts> = BTreeMap::new();
        for (n, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = line.split(" :: ").map(str::trim).collect();
            let [of, fact, value] = fields.as_slice() else { bail!("line {}: wants three fields", n + 1) };
            let (fault, suite) = match of.split_once(' ') {
                Some((fault, suite)) => (fault, Some(suite.to_owned())),
                None => (*of, None),
            };
            if let Some(suite) = &suite
                && !Suite::ALL.iter().any(|s| s.name() == suite)
            {
                bail!("line {}: no suite is called {suite:?}", n + 1);
            }
            let facts = expected.entry((fault.to_owned(), suite)).or_default();
            if facts.insert((*fact).to_owned(), (*value).to_owned()).is_some() {
                bail!("line {}: {of} has two values for {fact}", n + 1);
            }
        }
        Ok(Self(expected))
    }

    fn of(&self, fault: &str, suite: Suite) -> Facts {
        let mut facts = self.0.get(&(fault.to_owned(), None)).cloned().unwrap_or_default();
        let own = self.0.get(&(fault.to_owned(), Some(suite.name().to_owned())));
        facts.extend(own.cloned().unwrap_or_default());
        facts
    }
}

/// One fault on one suite.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    fault: String,
    suite: Suite,
    facts: Facts,
    /// What happened, by the seconds since the fault.
    story: Vec<(f64, String)>,
    /// Why it is not as it should be.
    wrong: Vec<String>,
}

/// What the client and the script wrote: lines `fact NAME VALUE` and `SECONDS TEXT`.
fn read(log: &str) -> (Facts, Vec<(f64, String)>) {
    let mut facts = Facts::new();
    let mut story = Vec::new();
    for line in log.lines() {
        let Some((first, rest)) = line.split_once(' ') else { continue };
        if first == "fact" {
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            facts.insert(name.to_owned(), value.to_owned());
        } else if let Ok(at) = first.parse::<f64>() {
            story.push((at, rest.to_owned()));
        }
    }
    // The fault is the script's first order.
    let start = story.iter().find(|(_, text)| text.starts_with("order: ")).map_or(0.0, |(at, _)| *at);
    for (at, _) in &mut story {
        *at -= start;
    }
    story.sort_by(|a, b| a.0.total_cmp(&b.0));
    (facts, story)
}

fn compare(expected: &Facts, facts: &Facts) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in expected.keys().chain(facts.keys()).collect::<BTreeSet<_>>() {
        match (expected.get(name), facts.get(name)) {
            (Some(want), Some(got)) if want.split(" | ").any(|either| either == got) => {}
            (Some(want), Some(got)) => wrong.push(format!("{name}: got {got}; wanted {want}")),
            (Some(want), None) => wrong.push(format!("{name}: did not come; wanted {want}")),
            (None, got) => {
                wrong.push(format!("{name}: nobody expects it: {}", got.map_or("", String::as_str)))
            }
        }
    }
    wrong
}

/// The names of the faults, as the script lists them.
fn names(glob: &str) -> Result<Vec<String>> {
    let script = paths::guests()?.join("cases/fault");
    let output = std::process::Command::new(&script).args(["--list", glob]).output();
    let output = output.with_context(|| format!("running {}", script.display()))?;
    if !output.status.success() {
        bail!("{}: {}", script.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let names: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    if names.is_empty() {
        bail!("no fault is called {glob}");
    }
    Ok(names)
}

/// Gives the exit status: 0 when every client saw what it should.
pub(crate) fn faults(args: &FaultArgs) -> Result<u8> {
    let file = paths::guests()?.join("faults.txt");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let expected = Expected::parse(&text).with_context(|| file.display().to_string())?;
    let mut suites =
        if args.suite.is_empty() { vec![Suite::Bookworm, Suite::Forky] } else { args.suite.clone() };
    suites.sort_unstable();
    suites.dedup();
    let names = names(&args.fault)?;
    let wanted = hca::Wanted::new(1, hca::Bar::Trapped, hca::Id::Pf)?;
    let output = paths::output()?.join("faults");
    let mut queue = VecDeque::new();
    for suite in suites {
        let root = Root::ensure(suite, &[])?;
        let clients = clients::build(&root)?;
        queue.extend(names.iter().map(|name| (root.clone(), clients.clone(), name.clone())));
    }
    let total = queue.len();
    let queue = Mutex::new(queue);
    let done: Mutex<Vec<Result<Seen>>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((root, clients, fault)) = next else { break };
                    let out = output.join(root.suite.name()).join(&fault);
                    let seen = one(&root, &wanted, &clients, &fault, &out, args.timeout);
                    let seen = seen.map(|mut seen| {
                        let facts = compare(&expected.of(&fault, root.suite), &seen.facts);
                        seen.wrong.extend(facts);
                        seen
                    });
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Ok(seen) = &seen {
                        let verdict = if seen.wrong.is_empty() { "as expected" } else { "NOT AS EXPECTED" };
                        println!("[{}/{total}] {} {fault}: {verdict}", done.len() + 1, seen.suite.name());
                    }
                    done.push(seen);
                }
            });
        }
    });
    let mut seen: Vec<Seen> =
        done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect::<Result<_>>()?;
    let place = |s: &Seen| names.iter().position(|n| *n == s.fault);
    seen.sort_by_key(|s| (place(s), s.suite));
    finish(&seen)
}

fn one(
    root: &Root,
    wanted: &hca::Wanted,
    clients: &Path,
    fault: &str,
    out: &Path,
    timeout: u64,
) -> Result<Seen> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("removing {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let mut spec = Spec::new(root);
    spec.timeout = Some(timeout);
    spec.log = Some(out.join("kernel.log"));
    spec.rxe = false;
    // The faults of the wire take a device at each end.
    let slots = if fault.starts_with("wire-") { 2 } else { wanted.slots };
    spec.hca = Some(hca::Wanted { slots, journal: Some(out.join("journal")), ..wanted.clone() });
    let words =
        ["tests/guests/cases/fault", fault, &clients.display().to_string(), &out.display().to_string()];
    spec.job = Job::from_words(&words.map(str::to_owned));
    let mut said = String::new();
    let outcome = run::boot(&spec, Some(&mut |line| said = line.to_owned()))?;
    let log = fs::read_to_string(out.join("log")).unwrap_or_default();
    let (facts, story) = read(&log);
    let mut wrong: Vec<String> =
        outcome.complaints.iter().map(|c| format!("the kernel complained: {}", c.headline())).collect();
    wrong.extend(outcome.troubles.iter().map(|t| format!("the virtual devices: {t}")));
    match outcome.status {
        _ if outcome.timed_out => wrong.push(format!("the time was up: {said}")),
        None => wrong.push("the guest gave no exit status".to_owned()),
        Some(0) => {}
        Some(status) => wrong.push(format!("ended with {status}: {said}")),
    }
    Ok(Seen { fault: fault.to_owned(), suite: root.suite, facts, story, wrong })
}

fn finish(seen: &[Seen]) -> Result<u8> {
    let output = paths::output()?;
    let table = markdown(seen);
    let json = serde_json::to_string_pretty(seen).context("the JSON")?;
    for (name, text) in [("faults.md", &table), ("faults.json", &json), ("faults.txt", &as_expected(seen))] {
        fs::write(output.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    println!("\n{table}");
    let bad: Vec<&Seen> = seen.iter().filter(|s| !s.wrong.is_empty()).collect();
    for s in &bad {
        for wrong in &s.wrong {
            eprintln!("guest: FAILED {} {}: {wrong}", s.suite.name(), s.fault);
        }
    }
    println!("{}", output.join("faults.md").display());
    println!("{} passed, {} failed", seen.len() - bad.len(), bad.len());
    Ok(u8::from(!bad.is_empty()))
}

/// `faults.txt`, had it been written after this run.
fn as_expected(seen: &[Seen]) -> String {
    let mut text = String::new();
    let mut faults: Vec<&str> = seen.iter().map(|s| s.fault.as_str()).collect();
    faults.dedup();
    for fault in faults {
        let runs: Vec<&Seen> = seen.iter().filter(|s| s.fault == fault).collect();
        let facts: BTreeSet<&String> = runs.iter().flat_map(|s| s.facts.keys()).collect();
        for fact in facts {
            let values: BTreeSet<Option<&String>> = runs.iter().map(|s| s.facts.get(fact)).collect();
            for run in &runs {
                let Some(value) = run.facts.get(fact) else { continue };
                // Writing to a String cannot fail.
                if values.len() == 1 {
                    _ = writeln!(text, "{fault} :: {fact} :: {value}");
                    break;
                }
                _ = writeln!(text, "{fault} {} :: {fact} :: {value}", run.suite.name());
            }
        }
        text.push('\n');
    }
    text
}

/// The table, for people: for each fault what was seen where, and when.
fn markdown(seen: &[Seen]) -> String {
    let mut text = String::from("| fault | suite | when | facts |\n| --- | --- | --- | --- |\n");
    for s in seen {
        let told = |what: &str| {
            [
                "order: ",
                "event ",
                "no completion",
                "completions come",
                "the first completion in error",
                "opened ",
            ]
            .iter()
            .any(|start| what.starts_with(start))
        };
        let story: Vec<String> = s
            .story
            .iter()
            .filter(|(at, what)| *at >= 0.0 && told(what))
            .map(|(at, what)| format!("{at:+.1} s {what}"))
            .collect();
        let facts: Vec<String> = s.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let (story, mut facts) = (story.join("<br>"), facts.join("<br>"));
        for wrong in &s.wrong {
            _ = write!(facts, "<br>**{wrong}**");
        }
        _ = writeln!(text, "| {} | {} | {story} | {facts} |", s.fault, s.suite.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "1.0 traffic flows\n5.5 order: die\n7.5 event DEVICE_FATAL/1 after 9 completions\n\
                       fact events DEVICE_FATAL/1,DEVICE_FATAL/0\nfact never_completed some\nqemu said this\n";

    fn facts(list: &[(&str, &str)]) -> Facts {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_log_has_facts_and_a_story_that_begins_with_the_fault() {
        let (seen, story) = read(LOG);
        assert_eq!(seen, facts(&[("events", "DEVICE_FATAL/1,DEVICE_FATAL/0"), ("never_completed", "some")]));
        assert_eq!(story[0], (-4.5, "traffic flows".to_owned()));
        assert_eq!(story[2], (2.0, "event DEVICE_FATAL/1 after 9 completions".to_owned()));
    }

    #[test]
    fn every_fact_is_held() {
        let either = Expected::parse("flr :: events :: none | DEVICE_FATAL/1\n").unwrap();
        let either = either.of("flr", Suite::Forky);
        assert_eq!(compare(&either, &facts(&[("events", "DEVICE_FATAL/1")])), [""; 0]);
        assert_eq!(compare(&either, &facts(&[("events", "DEVICE_FATAL/0")])).len(), 1);
        let text =
            "# why\ndie :: events :: none\ndie forky :: events :: DEVICE_FATAL/1\ndie :: close :: all 0\n";
        let expected = Expected::parse(text).unwrap();
        let (old, new) = (expected.of("die", Suite::Bookworm), expected.of("die", Suite::Forky));
        assert_eq!(compare(&old, &facts(&[("events", "none"), ("close", "all 0")])), [""; 0]);
        assert_eq!(compare(&new, &facts(&[("events", "DEVICE_FATAL/1"), ("close", "all 0")])), [""; 0]);
        assert_eq!(compare(&new, &facts(&[("events", "none"), ("close", "all 0")])).len(), 1);
        assert_eq!(compare(&new, &facts(&[("events", "DEVICE_FATAL/1")])).len(), 1);
        assert_eq!(compare(&old, &facts(&[("events", "none"), ("close", "all 0"), ("more", "x")])).len(), 1);
        assert_eq!(compare(&expected.of("other", Suite::Forky), &facts(&[("events", "none")])).len(), 1);
    }

    #[test]
    fn a_mistake_in_the_list_is_refused() {
        for text in ["die :: events", "die sarge :: events :: x", "die :: a :: b\ndie :: a :: c"] {
            assert!(Expected::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_after_a_run_expects_that_run() {
        let seen = |suite, events: &str| Seen {
            fault: "die".to_owned(),
            suite,
            facts: facts(&[("events", events), ("close", "all 0")]),
            story: Vec::new(),
            wrong: Vec::new(),
        };
        let runs = [seen(Suite::Bookworm, "none"), seen(Suite::Forky, "DEVICE_FATAL/1")];
        let text = as_expected(&runs);
        assert!(text.contains("die :: close :: all 0\n"), "{text}");
        let expected = Expected::parse(&text).unwrap();
        for run in &runs {
            assert_eq!(compare(&expected.of("die", run.suite), &run.facts), [""; 0]);
        }
    }

    #[test]
    fn the_project_s_own_list_is_in_order() {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("faults.txt")).unwrap();
        Expected::parse(&text).unwrap();
    }
}
