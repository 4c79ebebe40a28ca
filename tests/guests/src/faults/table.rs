//! The table, for people: for each fault what a program sees of it, under stock and under holdfast.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Provider, Seen};
use crate::root::Suite;

/// What is told of a story.
const TOLD: [&str; 8] = [
    "order: ",
    "event ",
    "no completion",
    "completions come",
    "the first completion in error",
    "opened ",
    "ledger ",
    "wrong: ",
];

pub(super) fn markdown(seen: &[Seen]) -> String {
    let mut text = String::new();
    let mut names: Vec<&str> = seen.iter().map(|s| s.fault.name.as_str()).collect();
    names.dedup();
    for name in names {
        let of: Vec<&Seen> = seen.iter().filter(|s| s.fault.name == name).collect();
        // Writing to a String cannot fail.
        _ = writeln!(text, "## {name}\n\n| fact | suites | stock | holdfast |\n| --- | --- | --- | --- |");
        facts(&mut text, &of);
        times(&mut text, &of);
        text.push('\n');
        for s in &of {
            story(&mut text, s);
        }
    }
    text
}

fn providers<T>(of: impl Fn(Provider) -> T) -> [T; 2] {
    Provider::ALL.map(of)
}

/// A line for each fact, or several where suites differ.
fn facts(text: &mut String, of: &[&Seen]) {
    let names: BTreeSet<&String> = of.iter().flat_map(|s| s.facts.keys()).collect();
    for name in names {
        let mut lines: BTreeMap<[&str; 2], Vec<&str>> = BTreeMap::new();
        for suite in of.iter().map(|s| s.suite).collect::<BTreeSet<Suite>>() {
            let value = |provider: Provider| {
                let mut values = of
                    .iter()
                    .filter(|s| s.suite == suite && s.provider == provider)
                    .filter_map(|s| s.facts.get(name));
                values.next().map_or("-", String::as_str)
            };
            lines.entry(providers(value)).or_default().push(suite.name());
        }
        for ([stock, holdfast], suites) in lines {
            _ = writeln!(text, "| {name} | {} | {stock} | {holdfast} |", suites.join(", "));
        }
    }
}

/// How long things took; several of one name are several deaths.
fn times(text: &mut String, of: &[&Seen]) {
    let names: BTreeSet<&String> = of.iter().flat_map(|s| s.times.iter().map(|(name, _)| name)).collect();
    for name in names {
        for suite in of.iter().map(|s| s.suite).collect::<BTreeSet<Suite>>() {
            let [stock, holdfast] = providers(|provider| {
                let seconds: Vec<f64> = of
                    .iter()
                    .filter(|s| s.suite == suite && s.provider == provider)
                    .flat_map(|s| s.times.iter().filter(|(n, _)| n == name).map(|(_, seconds)| *seconds))
                    .collect();
                spread(&seconds)
            });
            _ = writeln!(text, "| time {name} | {} | {stock} | {holdfast} |", suite.name());
        }
    }
}

/// One time, or the spread of several.
pub(super) fn spread(seconds: &[f64]) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let last = sorted.len().saturating_sub(1) as f64;
        sorted.get((last * share).round() as usize).copied().unwrap_or_default()
    };
    match sorted.as_slice() {
        [] => "never".to_owned(),
        [one] => human(*one),
        _ => format!(
            "min {}, median {}, p99 {}, max {} of {}",
            human(at(0.0)),
            human(at(0.5)),
            human(at(0.99)),
            human(at(1.0)),
            sorted.len()
        ),
    }
}

fn human(seconds: f64) -> String {
    match seconds.abs() {
        s if s < 1e-3 => format!("{:.0} us", seconds * 1e6),
        s if s < 1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

fn story(text: &mut String, s: &Seen) {
    _ = writeln!(text, "{} {} {}:", s.suite.name(), s.kind.name(), s.provider.name());
    for wrong in &s.wrong {
        _ = writeln!(text, "* **{wrong}**");
    }
    for (at, what) in &s.story {
        if *at >= 0.0 && TOLD.iter().any(|start| what.starts_with(start)) {
            _ = writeln!(text, "* {at:+.2} s {what}");
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_ends_and_its_middle() {
        assert_eq!(spread(&[]), "never");
        assert_eq!(spread(&[0.25]), "250.0 ms");
        let many: Vec<f64> = (1..=101).rev().map(|n| f64::from(n) * 1e-6).collect();
        assert_eq!(spread(&many), "min 1 us, median 51 us, p99 100 us, max 101 us of 101");
    }
}
