//! The benchmark: stock and holdfast alternate in one guest; ratios with their spread go to target/bench.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::root::{Root, Suite};
use crate::run::{self, Job, Spec};
use crate::{clients, paths, portable};

/// Measures soft-RoCE with stock rdma-core and with holdfast, alternating: target/bench/rxe-SUITE.md and .json.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[arg(long, default_value = "bookworm")]
    suite: Suite,
    /// Rounds, each with both providers
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// By the clock, on two processors, instead of by counted instructions, on one
    #[arg(long)]
    clock: bool,
}

/// One figure of both providers.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    name: String,
    unit: String,
    /// Medians over all rounds.
    stock: f64,
    holdfast: f64,
    /// holdfast / stock: the median of the rounds' ratios, and the least and the greatest of them.
    ratio: f64,
    low: f64,
    high: f64,
}

/// Whether more of the unit is better.
fn more_is_better(unit: &str) -> bool {
    unit == "msg/s"
}

/// Gives the exit status: that of the guest.
pub(crate) fn bench(args: &BenchArgs) -> Result<u8> {
    if args.rounds == 0 {
        bail!("--rounds: at least one");
    }
    let root = Root::ensure(args.suite, &[])?;
    let (provider_dir, clients) = (portable::build()?, clients::build(&root)?);
    let mut text = String::new();
    // What is counted from outside is the same whatever the guest's clock does, and slow where that is counted, too.
    for part in ["times", "counts"] {
        let mut spec = Spec::new(&root);
        spec.timeout = Some(3600);
        if part == "times" && !args.clock {
            (spec.counted, spec.cpus) = (true, 1);
        }
        spec.job = Job::from_words(&[
            "tests/bench/rxe".to_owned(),
            part.to_owned(),
            clients.display().to_string(),
            provider_dir.display().to_string(),
            args.rounds.to_string(),
        ]);
        let outcome = run::boot(
            &spec,
            Some(&mut |line| {
                println!("{line}");
                text.push_str(line);
                text.push('\n');
            }),
        )?;
        let code = outcome.report();
        if code != 0 {
            return Ok(code);
        }
    }
    let rows = rows(&text)?;
    let dir = paths::checkout()?.join("target/bench");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let base = dir.join(format!("rxe-{}{}", args.suite.name(), if args.clock { "-clock" } else { "" }));
    let table = markdown(&rows, args);
    for (extension, text) in
        [("md", &table), ("json", &serde_json::to_string_pretty(&rows).context("the JSON")?)]
    {
        let path = base.with_extension(extension);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    println!("\n{table}\n{}", base.with_extension("md").display());
    Ok(0)
}

/// Rows in the order of their first figure.
fn rows(text: &str) -> Result<Vec<Row>> {
    // By name: its place, its unit, and for each round what stock and holdfast came to.
    type Rounds = BTreeMap<u32, [Option<f64>; 2]>;
    let mut found: BTreeMap<&str, (usize, &str, Rounds)> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [round, provider, name, value, unit] = words.as_slice() else { bail!("no figure: {line:?}") };
        let slot = match *provider {
            "stock" => 0,
            "holdfast" => 1,
            _ => bail!("no provider: {line:?}"),
        };
        let place = found.len();
        let (_, known, rounds) = found.entry(name).or_insert((place, unit, Rounds::new()));
        let value: f64 = value.parse().with_context(|| format!("no number: {line:?}"))?;
        let pair = rounds.entry(round.parse().with_context(|| format!("no round: {line:?}"))?).or_default();
        match pair.get_mut(slot) {
            Some(empty @ None) if known == unit => *empty = Some(value),
            _ => bail!("a second figure, or another unit: {line:?}"),
        }
    }
    let mut rows = Vec::new();
    for (name, (place, unit, rounds)) in found {
        let mut pairs = Vec::new();
        for (round, pair) in rounds {
            let [Some(stock), Some(holdfast)] = pair else {
                bail!("{name}: one provider has no figure in round {round}")
            };
            pairs.push((stock, holdfast));
        }
        // Nothing against nothing is the same.
        let ratios: Vec<f64> = pairs.iter().map(|(s, h)| if s == h { 1.0 } else { h / s }).collect();
        let (low, ratio, high) = spread(&ratios);
        let (_, stock, _) = spread(&pairs.iter().map(|p| p.0).collect::<Vec<_>>());
        let (_, holdfast, _) = spread(&pairs.iter().map(|p| p.1).collect::<Vec<_>>());
        let (name, unit) = (name.to_owned(), unit.to_owned());
        rows.push((place, Row { name, unit, stock, holdfast, ratio, low, high }));
    }
    if rows.is_empty() {
        bail!("no figure at all");
    }
    rows.sort_by_key(|(place, _)| *place);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Least, median, greatest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |n: usize| sorted.get(n).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { at(half) } else { (at(half.wrapping_sub(1)) + at(half)) / 2.0 };
    (at(0), median, at(sorted.len().wrapping_sub(1)))
}

fn markdown(rows: &[Row], args: &BenchArgs) -> String {
    let time = if args.clock {
        "two processors, by the clock of the host, which is noise unless it is idle"
    } else {
        "one processor, whose time is the instructions it has executed, the kernel's and the program's: 4 ns each"
    };
    let mut text = format!(
        "holdfast / stock rdma-core on soft-RoCE, {} under emulation, {} rounds that alternate; {time}. For msg/s more is \
         better, otherwise less. The spread is the least and the greatest of the rounds' ratios.\n\n\
         | figure | unit | stock | holdfast | ratio | spread | |\n| --- | --- | --- | --- | --- | --- | --- |\n",
        args.suite.name(),
        args.rounds
    );
    for row in rows {
        let better = if more_is_better(&row.unit) { row.ratio >= 1.0 } else { row.ratio <= 1.0 };
        // Within the spread a difference says nothing.
        let verdict = match (better, row.low <= 1.0 && row.high >= 1.0) {
            (_, true) => "equal within the spread",
            (true, false) => "better",
            (false, false) => "worse",
        };
        _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} to {:.2} | {verdict} |",
            row.name, row.unit, row.stock, row.holdfast, row.ratio, row.low, row.high
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_each_round() {
        let text = "1 stock r 100 msg/s\n1 holdfast r 110 msg/s\n2 holdfast r 300 msg/s\n2 stock r 200 msg/s\n\
                    3 stock r 50 msg/s\n3 holdfast r 60 msg/s\n1 stock s 0 calls\n1 holdfast s 0 calls\n";
        let rows = rows(text).unwrap();
        let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["r", "s"]);
        let r = &rows[0];
        assert_eq!((r.stock, r.holdfast), (100.0, 110.0));
        assert!((r.ratio - 1.2).abs() < 1e-9 && (r.low - 1.1).abs() < 1e-9 && (r.high - 1.5).abs() < 1e-9);
        assert!((rows[1].ratio - 1.0).abs() < 1e-9);
        let args = BenchArgs { suite: Suite::Bookworm, rounds: 3, clock: false };
        assert!(
            markdown(&rows, &args).contains("| r | msg/s | 100.00 | 110.00 | 1.20 | 1.10 to 1.50 | better |")
        );
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for text in [
            "",
            "1 stock r 100 msg/s\n",
            "1 stock r 1 us\n1 holdfast r 1 ns\n",
            "1 stock r 1 us\n1 stock r 1 us\n",
            "1 other r 1 us\n",
            "1 stock r x us\n",
        ] {
            assert!(rows(text).is_err(), "{text:?}");
        }
    }
}
