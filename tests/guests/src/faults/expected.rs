//! What each client has to see, by provider: `faults/stock.txt` and `faults/holdfast.txt`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Fault, Kind, Seen};
use crate::root::Suite;

/// What a client may be asked to hold: a fact by its name, `KIND.NAME`.
pub(super) type Facts = BTreeMap<String, String>;

/// For every fault that a device dies of.
const EVERY: &str = "*";

/// `FAULT :: FACT :: VALUE` for every suite, `FAULT SUITE :: FACT :: VALUE` where that differs. A value may be several, of
/// which one has to be it: `ONE | OTHER`. What is more special wins.
#[derive(Debug, Default)]
pub(super) struct Expected(BTreeMap<(String, Option<String>), Facts>);

impl Expected {
    pub(super) fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut expected: BTreeMap<_, Facts> = BTreeMap::new();
        for (n, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = line.split(" :: ").map(str::trim).collect();
            let [of, fact, value] = fields.as_slice() else { bail!("line {}: wants three fields", n + 1) };
            if !Kind::ALL.iter().any(|kind| kind.has(fact)) {
                bail!("line {}: no kind of client has a fact {fact:?}", n + 1);
            }
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

    /// What a client of that kind has to see.
    pub(super) fn of(&self, fault: &Fault, suite: Suite, kind: Kind) -> Facts {
        let every = fault.dies.then_some(EVERY);
        let mut facts = Facts::new();
        for name in every.into_iter().chain([fault.name.as_str()]) {
            for suite in [None, Some(suite.name().to_owned())] {
                facts.extend(self.0.get(&(name.to_owned(), suite)).cloned().unwrap_or_default());
            }
        }
        facts.retain(|fact, _| kind.has(fact));
        facts
    }
}

/// What is not as it has to be.
pub(super) fn compare(expected: &Facts, facts: &Facts) -> Vec<String> {
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

/// Such a file, had it been written after this run: of one provider.
pub(super) fn written(seen: &[&Seen]) -> String {
    let mut text = String::new();
    let mut faults: Vec<&str> = seen.iter().map(|s| s.fault.name.as_str()).collect();
    faults.dedup();
    for fault in faults {
        let runs: Vec<&Seen> = seen.iter().copied().filter(|s| s.fault.name == fault).collect();
        let facts: BTreeSet<&String> = runs.iter().flat_map(|s| s.facts.keys()).collect();
        for fact in facts {
            let of: Vec<(Suite, &String)> =
                runs.iter().filter_map(|s| Some((s.suite, s.facts.get(fact)?))).collect();
            let values: BTreeSet<&String> = of.iter().map(|(_, value)| *value).collect();
            for (suite, value) in of {
                // Writing to a String cannot fail.
                if values.len() == 1 {
                    _ = writeln!(text, "{fault} :: {fact} :: {value}");
                    break;
                }
                _ = writeln!(text, "{fault} {} :: {fact} :: {value}", suite.name());
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Provider, tests::facts};
    use super::*;

    fn fault(name: &str, dies: bool) -> Fault {
        Fault { name: name.to_owned(), dies }
    }

    #[test]
    fn every_fact_is_held() {
        let either = Expected::parse("flr :: fatal.events :: none | DEVICE_FATAL/1\n").unwrap();
        let either = either.of(&fault("flr", true), Suite::Forky, Kind::Fatal);
        assert_eq!(compare(&either, &facts(&[("fatal.events", "DEVICE_FATAL/1")])), [""; 0]);
        assert_eq!(compare(&either, &facts(&[("fatal.events", "DEVICE_FATAL/0")])).len(), 1);
        let text = "# why\ndie :: fatal.events :: none\ndie forky :: fatal.events :: DEVICE_FATAL/1\n\
                    die :: fatal.close :: all 0\ndie :: death.left :: 0\n";
        let expected = Expected::parse(text).unwrap();
        let of = |name, suite| expected.of(&fault(name, true), suite, Kind::Fatal);
        let (old, new) = (of("die", Suite::Bookworm), of("die", Suite::Forky));
        let seen = |events: &str| facts(&[("fatal.events", events), ("fatal.close", "all 0")]);
        assert_eq!(compare(&old, &seen("none")), [""; 0]);
        assert_eq!(compare(&new, &seen("DEVICE_FATAL/1")), [""; 0]);
        assert_eq!(compare(&new, &seen("none")).len(), 1);
        assert_eq!(compare(&new, &facts(&[("fatal.events", "DEVICE_FATAL/1")])).len(), 1);
        let mut more = seen("none");
        more.insert("fatal.more".to_owned(), "x".to_owned());
        assert_eq!(compare(&old, &more).len(), 1);
        assert_eq!(compare(&of("other", Suite::Forky), &facts(&[("fatal.events", "none")])).len(), 1);
    }

    #[test]
    fn what_holds_for_every_death_yields_to_what_is_special() {
        let text = "* :: death.left :: 0\n* bookworm :: death.calls :: old\n* :: death.calls :: new\n\
                    die :: death.calls :: own\n";
        let expected = Expected::parse(text).unwrap();
        let calls = |name, dies, suite| {
            expected
                .of(&fault(name, dies), suite, Kind::Death)
                .get("death.calls")
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(calls("die", true, Suite::Bookworm), "own");
        assert_eq!(calls("flr", true, Suite::Bookworm), "old");
        assert_eq!(calls("flr", true, Suite::Forky), "new");
        assert_eq!(calls("port-down", false, Suite::Forky), "");
    }

    #[test]
    fn a_mistake_in_the_list_is_refused() {
        let texts = [
            "die :: fatal.events",
            "die sarge :: fatal.events :: x",
            "die :: fatal.a :: b\ndie :: fatal.a :: c",
            "die :: a :: b",
        ];
        for text in texts {
            assert!(Expected::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_after_a_run_expects_that_run() {
        let seen = |suite, events: &str| Seen {
            fault: fault("die", true),
            kind: Kind::Fatal,
            suite,
            provider: Provider::Stock,
            facts: facts(&[("fatal.events", events), ("fatal.close", "all 0")]),
            story: Vec::new(),
            times: Vec::new(),
            wrong: Vec::new(),
        };
        let runs = [seen(Suite::Bookworm, "none"), seen(Suite::Forky, "DEVICE_FATAL/1")];
        let text = written(&runs.iter().collect::<Vec<_>>());
        assert!(text.contains("die :: fatal.close :: all 0\n"), "{text}");
        let expected = Expected::parse(&text).unwrap();
        for run in &runs {
            assert_eq!(compare(&expected.of(&run.fault, run.suite, run.kind), &run.facts), [""; 0]);
        }
    }

    #[test]
    fn the_project_s_own_lists_are_in_order() {
        for provider in Provider::ALL {
            Expected::load(&provider.expected().unwrap()).unwrap();
        }
    }
}
