//! Instructions, counted by callgrind: those of the provider and of the C library on its behalf. They say the same in every run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::measure::wanted;
use crate::rows;
use crate::worker::{self, Kind, Mode, Provider, Worker};
use crate::{Options, measure};

/// Instructions of one operation: by row, mode and provider.
pub(crate) type Counts = BTreeMap<(&'static str, Mode, Provider), f64>;

/// Objects whose instructions are nobody's: the worker's own loop, and the bed's.
fn is_ours(object: &str) -> bool {
    let name = object.rsplit('/').next().unwrap_or(object);
    name.starts_with("worker-") || name.starts_with("libholdfast_sim") || name.starts_with("ld-linux")
}

/// What a dump of callgrind counted in all objects but those.
fn sum(dump: &str) -> Result<u64> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut counted, mut total, mut of_a_call) = (false, 0, false);
    for line in dump.lines() {
        if let Some(object) = line.strip_prefix("ob=").or_else(|| line.strip_prefix("cob=")) {
            // "(number) name" the first time, "(number)" later.
            let (number, name) = object.split_once(' ').unwrap_or((object, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            if line.starts_with("ob=") {
                counted = !is_ours(names.get(number).copied().unwrap_or(object));
            }
        } else if line.starts_with("calls=") {
            // The next line is what the call cost in all.
            of_a_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let cost = line.split_whitespace().nth(1).map_or(Ok(0), str::parse::<u64>);
            let cost = cost.with_context(|| format!("callgrind's line: {line}"))?;
            if counted && !std::mem::take(&mut of_a_call) {
                total += cost;
            }
            of_a_call = false;
        }
    }
    Ok(total)
}

/// Counts what was asked for; empty, and said loudly, where there is no valgrind.
pub(crate) fn all(options: &Options) -> Result<Counts> {
    let mut counts = Counts::new();
    let there = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !options.counts {
        return Ok(counts);
    }
    if !there("valgrind") || !Path::new("/usr/include/valgrind/callgrind.h").exists() {
        eprintln!(
            "\n*** bench: NO INSTRUCTIONS COUNTED: valgrind is missing (Debian: apt-get install valgrind) ***\n"
        );
        return Ok(counts);
    }
    let program = std::path::absolute(worker::compile(options, "worker-count", &["-DCOUNT"])?)?;
    for mode in Mode::ALL {
        for provider in measure::providers(options) {
            count(options, &program, (provider, mode), &mut counts)?;
        }
    }
    Ok(counts)
}

fn count(
    options: &Options,
    program: &Path,
    (provider, mode): (Provider, Mode),
    counts: &mut Counts,
) -> Result<()> {
    let dumps = std::path::absolute(options.out.join("dumps"))?;
    if dumps.exists() {
        fs::remove_dir_all(&dumps)?;
    }
    fs::create_dir_all(&dumps)?;
    let out = dumps.join("callgrind");
    let front = [
        "valgrind".to_owned(),
        "--quiet".to_owned(),
        "--tool=callgrind".to_owned(),
        "--collect-atstart=no".to_owned(),
        format!("--callgrind-out-file={}", out.display()),
    ];
    let mut worker = Worker::start(options, program, (provider, mode), &front)?;
    let mut dump = 0;
    for case in worker.cases()? {
        let named =
            case.rows.iter().flatten().any(|name| wanted(options, name) && !name.starts_with("floor"));
        if !named || !matches!(case.kind, Kind::Queues | Kind::Crowd) {
            continue;
        }
        let answer = worker.ask(&format!("count {}", case.index))?;
        let operations: Vec<u64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        ensure!(operations.len() == 2, "no numbers: {answer}");
        for (name, operations) in case.rows.iter().zip(operations) {
            dump += 1;
            let file = dumps.join(format!("callgrind.{dump}"));
            let Some(row) = name.as_deref().filter(|name| wanted(options, name)).and_then(rows::find) else {
                continue;
            };
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            let sum = sum(&text)?;
            if sum == 0 {
                bail!("{}: callgrind counted nothing", row.name);
            }
            counts.insert((row.name, mode, provider), sum as f64 / operations as f64);
        }
    }
    worker.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_provider_does_itself_counts() {
        let dump = "events: Ir\nsummary: 99\n\nob=(10) /x/worker-count\nfn=(1) loop\n0 7\ncob=(26) /lib/libmlx5.so.1\ncfn=(2)\n\
            calls=3 0 \n0 300\n\nob=(26)\nfn=(2)\n0 100\n+3 20\ncob=(3) /lib/libc.so.6\ncfn=(4) memcpy\ncalls=3 0\n* 40\n\
            ob=(3)\nfn=(4)\n12 40\nob=(7) /x/libholdfast_sim.so\n1 1000\n";
        assert_eq!(sum(dump).unwrap(), 160);
    }
}
