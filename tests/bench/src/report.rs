//! What was found, for people and for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::counts::Counts;
use crate::measure::{Measured, Series};
use crate::rows::{self, GROUPS, PROGRAMS, Row, SIZES};
use crate::stats::Spread;
use crate::worker::{Mode, Provider, Took};
use crate::{Found, Options, plot};

/// A row in one mode, summed up.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) row: &'static Row,
    pub(crate) mode: Mode,
    pub(crate) unit: &'static str,
    pub(crate) stock: Spread,
    pub(crate) holdfast: Spread,
    /// Nanoseconds of both, where the unit is the cycle.
    ns: Option<[f64; 2]>,
    /// holdfast / stock, turn by turn.
    pub(crate) ratio: Spread,
    pub(crate) ratios: Vec<f64>,
    /// holdfast with the death machinery / without, turn by turn.
    death: Option<Spread>,
    /// Instructions of stock, holdfast, and holdfast without the death machinery.
    instructions: [Option<f64>; 3],
}

/// Turn by turn, one provider's figures over another's.
fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

fn spread(figures: &[f64]) -> Spread {
    Spread::of(figures.iter().copied())
}

impl Line {
    fn new((row, mode, unit): (&'static Row, Mode, &'static str), stock: &[f64], holdfast: &[f64]) -> Line {
        let ratios = ratios(holdfast, stock);
        Line {
            row,
            mode,
            unit,
            stock: spread(stock),
            holdfast: spread(holdfast),
            ns: None,
            ratio: spread(&ratios),
            ratios,
            death: None,
            instructions: [None; 3],
        }
    }

    fn of_series(series: &Series, counts: &Counts) -> Line {
        let cycles = |took: &[Took]| took.iter().map(|took| took.cycles).collect::<Vec<f64>>();
        let ns = |took: &[Took]| Spread::of(took.iter().map(|took| took.ns)).median;
        let (stock, holdfast, bare) = (cycles(&series.stock), cycles(&series.holdfast), cycles(&series.bare));
        let counted = |provider| counts.get(&(series.row.name, series.mode, provider)).copied();
        Line {
            ns: Some([ns(&series.stock), ns(&series.holdfast)]),
            death: (!bare.is_empty()).then(|| spread(&ratios(&holdfast, &bare))),
            instructions: [Provider::Stock, Provider::Holdfast, Provider::Bare].map(counted),
            ..Line::new((series.row, series.mode, "cycles"), &stock, &holdfast)
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.row.name, self.mode.suffix())
    }

    fn json(&self, floor: Option<f64>) -> Value {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let spread = |spread: &Spread| {
            json!({
                "low": round(spread.low), "high": round(spread.high), "least": round(spread.least),
                "greatest": round(spread.greatest), "outliers": spread.outliers,
            })
        };
        let mut value = json!({
            "name": self.name(), "row": self.row.name, "mode": self.mode.title(), "what": self.row.what, "unit": self.unit,
            "stock": round(self.stock.median), "holdfast": round(self.holdfast.median), "ratio": round(self.ratio.median),
            "turns": self.ratios.len(), "ratio_spread": spread(&self.ratio), "stock_spread": spread(&self.stock),
            "holdfast_spread": spread(&self.holdfast),
        });
        let [stock, holdfast, bare] = self.instructions;
        let more = [
            ("stock_ns", self.ns.map(|[ns, _]| ns)),
            ("holdfast_ns", self.ns.map(|[_, ns]| ns)),
            ("stock_instructions", stock),
            ("holdfast_instructions", holdfast),
            ("bare_instructions", bare),
            ("floor", floor),
            ("death_ratio", self.death.map(|death| death.median)),
        ];
        if let Some(object) = value.as_object_mut() {
            object.extend(
                more.iter().filter_map(|(name, value)| Some(((*name).to_owned(), json!(round((*value)?))))),
            );
            object.extend(self.death.map(|death| ("death_spread".to_owned(), spread(&death))));
        }
        value
    }
}

/// What was measured on.
fn machine() -> Value {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output
            .ok()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    json!({
        "cpu": format!("{} (family {}, model {}, stepping {})", field("model name"), field("cpu family"), field("model"),
            field("stepping")),
        "kernel": said("uname", &["-r"]),
        "rdma-core": said("dpkg-query", &["-W", "-f", "${Version}", "ibverbs-providers"]),
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "hypervisor": info.contains(" hypervisor"),
    })
}

/// The floor of a row, in its mode: the mean of what both processes measured.
fn floor(lines: &[Line], line: &Line) -> Option<f64> {
    let name = line.row.floor?;
    let floor = lines.iter().find(|other| other.row.name == name && other.mode == line.mode)?;
    Some((floor.stock.median + floor.holdfast.median) / 2.0)
}

/// The ratio's cells.
fn ratio_cells(ratio: &Spread) -> String {
    let Spread { least, low, median, high, greatest, outliers } = ratio;
    format!("**{median:.2}** ({low:.2}–{high:.2}) | {least:.2}–{greatest:.2}, {outliers} out |")
}

fn markdown(lines: &[Line], machine: &Value, options: &Options) -> String {
    let field = |name: &str| machine.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut text = format!(
        "# Stock libmlx5 and holdfast, one run\n\n{}, kernel {}, rdma-core {}, holdfast {}. {} turns of {} bursts of 256 operations, \
         {} starts.\n\nCore cycles for each operation, medians of the turns; ratio: holdfast / stock, the median of the turns' ratios, \
         in brackets their quartiles, then the least and the greatest with how many lie outside of Tukey's fences. Pairs are stock and \
         holdfast. README.md in tests/bench says how it is measured.\n",
        field("cpu"),
        field("kernel"),
        field("rdma-core"),
        field("commit"),
        options.rounds,
        options.bursts,
        options.starts,
    );
    for mode in Mode::ALL {
        let of_mode = |line: &&Line| line.mode == mode && line.unit == "cycles";
        if lines.iter().any(|line| of_mode(&line)) {
            let _ = writeln!(text, "\n## {}", mode.title());
        }
        for (title, rows) in GROUPS {
            let here: Vec<&Line> =
                lines.iter().filter(of_mode).filter(|line| rows.contains(line.row)).collect();
            if here.is_empty() {
                continue;
            }
            let _ = writeln!(
                text,
                "\n### {title}\n\n| row | | stock | holdfast | ns | instructions | floor | ratio | extremes |\n\
                 |---|---|--:|--:|--:|--:|--:|---|---|"
            );
            for line in here {
                let floor = floor(lines, line).map_or(String::new(), |floor| format!("{floor:.1}"));
                let [stock_ns, holdfast_ns] = line.ns.unwrap_or_default();
                let instructions = match line.instructions {
                    [Some(stock), Some(holdfast), _] => format!("{stock:.0} / {holdfast:.0}"),
                    _ => String::new(),
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.1} | {:.1} | {stock_ns:.1} / {holdfast_ns:.1} | {instructions} | {floor} | {}",
                    line.name(),
                    line.row.what,
                    line.stock.median,
                    line.holdfast.median,
                    ratio_cells(&line.ratio),
                );
            }
        }
    }
    for (unit, title) in [
        ("bytes", "Memory, bytes an object, of 256"),
        ("us", "Unmodified programs on the live engine, microseconds a message"),
    ] {
        let here: Vec<&Line> = lines.iter().filter(|line| line.unit == unit).collect();
        if here.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "\n## {title}\n\n| row | | stock | holdfast | ratio | extremes |\n|---|---|--:|--:|---|---|"
        );
        for line in here {
            let digits = if unit == "bytes" { 0 } else { 1 };
            let _ = writeln!(
                text,
                "| {} | {} | {:.digits$} | {:.digits$} | {}",
                line.name(),
                line.row.what,
                line.stock.median,
                line.holdfast.median,
                ratio_cells(&line.ratio),
            );
        }
    }
    let deaths: Vec<(&Line, Spread)> = lines.iter().filter_map(|line| Some((line, line.death?))).collect();
    if !deaths.is_empty() {
        text.push_str(
            "\n## What the death machinery costs\n\nholdfast / holdfast with it compiled out, turn by turn; instructions with it and \
             without.\n\n| row | ratio | extremes | instructions |\n|---|---|---|--:|\n",
        );
        for (line, Spread { least, low, median, high, greatest, outliers }) in deaths {
            let instructions = match line.instructions {
                [_, Some(with), Some(without)] => format!("{with:.1} / {without:.1}"),
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "| {} | **{median:.3}** ({low:.3}–{high:.3}) | {least:.2}–{greatest:.2}, {outliers} out | {instructions} |",
                line.name()
            );
        }
    }
    text
}

/// Writes the files.
pub(crate) fn write(options: &Options, measured: &Measured) -> Result<Found> {
    let mut lines: Vec<Line> =
        measured.series.iter().map(|series| Line::of_series(series, &measured.counts)).collect();
    for size in &measured.sizes {
        lines.push(Line::new((size.row, Mode::Default, "bytes"), &[size.stock], &[size.holdfast]));
    }
    for program in &measured.programs {
        lines.push(Line::new((program.row, Mode::Default, "us"), &program.stock, &program.holdfast));
    }
    let machine = machine();
    let rows: Vec<Value> = lines.iter().map(|line| line.json(floor(&lines, line))).collect();
    let table = markdown(&lines, &machine, options);
    let whole = json!({ "machine": machine, "rows": rows });
    for (name, text) in [
        ("bench.md", &table),
        ("bench.json", &serde_json::to_string_pretty(&whole)?),
        ("bench.svg", &plot::svg(&lines)),
    ] {
        let path = options.out.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    println!("{table}\n{}", options.out.join("bench.md").display());
    Ok(Found { rows })
}

/// The README's table of the `bench.json` of several runs: for each row and mode the median of the runs' ratios, and from
/// which to which they went.
///
/// # Errors
/// A file that is not there, or is none of ours.
pub fn readme(files: &[PathBuf]) -> Result<String> {
    let mut runs = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        runs.push(
            serde_json::from_str::<Value>(&text).with_context(|| format!("{}: no JSON", file.display()))?,
        );
    }
    let find = |run: &Value, name: &str, field: &str| -> Option<f64> {
        let rows = run.get("rows")?.as_array()?;
        rows.iter().find(|row| row.get("name").and_then(Value::as_str) == Some(name))?.get(field)?.as_f64()
    };
    let found = |name: &str, field: &str| {
        let found: Vec<f64> = runs.iter().filter_map(|run| find(run, name, field)).collect();
        (!found.is_empty()).then(|| Spread::of(found))
    };
    let ratio = |name: &str| match found(name, "ratio") {
        None => String::new(),
        Some(Spread { least, median, greatest, .. }) if greatest - least < 0.005 => format!("{median:.2}"),
        Some(Spread { least, median, greatest, .. }) => format!("{median:.2} ({least:.2}–{greatest:.2})"),
    };
    let whole = |name: &str, field: &str| {
        found(name, field).map_or(String::new(), |spread| format!("{:.0}", spread.median))
    };
    let machine = |name: &str| {
        let value = runs.first().and_then(|run| run.get("machine")?.get(name)?.as_str());
        value.unwrap_or("?").to_owned()
    };
    let mut text = format!(
        "{}, libmlx5 {}; {} runs: of each ratio the median, and in brackets from least to greatest where they differ.\n\n\
         | | stock | holdfast | instructions | with locks | `MLX5_SINGLE_THREADED` | thread domain |\n\
         |---|--:|--:|--:|---|---|---|\n",
        machine("cpu"),
        machine("rdma-core"),
        runs.len()
    );
    let more: [rows::Group; 2] = [
        ("memory of an object, bytes", SIZES),
        ("unmodified programs on the live engine, microseconds a message", PROGRAMS),
    ];
    for (title, rows) in GROUPS.iter().chain(&more) {
        let mut titled = false;
        for row in rows.iter().filter(|row| row.readme) {
            let ratios = Mode::ALL.map(|mode| ratio(&format!("{}{}", row.name, mode.suffix())));
            if ratios.iter().all(String::is_empty) {
                continue;
            }
            if !titled {
                let _ = writeln!(text, "| **{}** | | | | | | |", title.replace('*', "\\*"));
                titled = true;
            }
            let [default, single, domain] = ratios;
            let (stock, holdfast) = (whole(row.name, "stock"), whole(row.name, "holdfast"));
            let counts = ["stock_instructions", "holdfast_instructions"].map(|field| whole(row.name, field));
            let instructions =
                if counts.iter().any(String::is_empty) { String::new() } else { counts.join(" / ") };
            let name = if PROGRAMS.contains(row) {
                format!("`{}`, {}", row.name, row.what)
            } else {
                row.what.to_owned()
            };
            let _ = writeln!(
                text,
                "| {name} | {stock} | {holdfast} | {instructions} | {default} | {single} | {domain} |"
            );
        }
    }
    let names = || rows::all().flat_map(|row| Mode::ALL.map(|mode| format!("{}{}", row.name, mode.suffix())));
    let deaths: Vec<f64> = names().filter_map(|name| Some(found(&name, "death_ratio")?.median)).collect();
    let counts: Vec<f64> = names()
        .filter_map(|name| {
            Some(found(&name, "holdfast_instructions")?.median / found(&name, "bare_instructions")?.median)
        })
        .collect();
    if !deaths.is_empty() {
        let Spread { low, median, high, .. } = Spread::of(deaths);
        let _ = writeln!(
            text,
            "\nThe death machinery compiled in, against compiled out, over all rows for which that was measured: cycles {median:.3} \
             ({low:.3}–{high:.3}, the quartiles)"
        );
    }
    if !counts.is_empty() {
        let Spread { low, median, high, .. } = Spread::of(counts);
        let _ = writeln!(text, "and instructions {median:.3} ({low:.3}–{high:.3}).");
    }
    Ok(text)
}
