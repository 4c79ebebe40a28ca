//! What was found, for people and for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::measure::{Measured, Series};
use crate::rows::{self, GROUPS, Row};
use crate::stats::Spread;
use crate::worker::{Mode, Took};
use crate::{Found, Options, plot};

/// A row in one mode, summed up.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) row: &'static Row,
    pub(crate) mode: Mode,
    pub(crate) stock: Spread,
    pub(crate) holdfast: Spread,
    stock_ns: f64,
    holdfast_ns: f64,
    /// holdfast / stock, turn by turn.
    pub(crate) ratio: Spread,
    pub(crate) ratios: Vec<f64>,
    /// holdfast with the death machinery / without, turn by turn.
    death: Option<Spread>,
}

/// Turn by turn, one provider's cycles over another's.
fn ratios(of: &[Took], to: &[Took]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of.cycles / to.cycles).collect()
}

fn cycles(took: &[Took]) -> Spread {
    Spread::of(took.iter().map(|took| took.cycles))
}

impl Line {
    fn new(series: &Series) -> Line {
        let ns = |took: &[Took]| Spread::of(took.iter().map(|took| took.ns)).median;
        let ratios_of = ratios(&series.holdfast, &series.stock);
        Line {
            row: series.row,
            mode: series.mode,
            stock: cycles(&series.stock),
            holdfast: cycles(&series.holdfast),
            stock_ns: ns(&series.stock),
            holdfast_ns: ns(&series.holdfast),
            ratio: Spread::of(ratios_of.iter().copied()),
            ratios: ratios_of,
            death: (!series.bare.is_empty()).then(|| Spread::of(ratios(&series.holdfast, &series.bare))),
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
            "name": self.name(), "row": self.row.name, "mode": self.mode.title(), "what": self.row.what, "unit": "cycles",
            "stock": round(self.stock.median), "holdfast": round(self.holdfast.median), "ratio": round(self.ratio.median),
            "turns": self.ratios.len(), "ratio_spread": spread(&self.ratio), "stock_spread": spread(&self.stock),
            "holdfast_spread": spread(&self.holdfast), "stock_ns": round(self.stock_ns),
            "holdfast_ns": round(self.holdfast_ns),
        });
        if let (Some(floor), Some(object)) = (floor, value.as_object_mut()) {
            object.insert("floor".to_owned(), json!(round(floor)));
        }
        if let (Some(death), Some(object)) = (&self.death, value.as_object_mut()) {
            object.insert("death_ratio".to_owned(), json!(round(death.median)));
            object.insert("death_spread".to_owned(), spread(death));
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

fn markdown(lines: &[Line], machine: &Value, options: &Options) -> String {
    let mut text = format!(
        "# Stock libmlx5 and holdfast, one run\n\n{}, kernel {}, rdma-core {}, holdfast {}. {} turns of {} bursts of 256 operations, \
         {} starts.\n\nCore cycles for each operation, medians of the turns; ratio: holdfast / stock, the median of the turns' ratios, \
         in brackets their quartiles, then the least and the greatest with how many lie outside of Tukey's fences. README.md in \
         tests/bench says how it is measured.\n",
        machine.get("cpu").and_then(Value::as_str).unwrap_or_default(),
        machine.get("kernel").and_then(Value::as_str).unwrap_or_default(),
        machine.get("rdma-core").and_then(Value::as_str).unwrap_or_default(),
        machine.get("commit").and_then(Value::as_str).unwrap_or_default(),
        options.rounds,
        options.bursts,
        options.starts,
    );
    for mode in Mode::ALL {
        if !lines.iter().any(|line| line.mode == mode) {
            continue;
        }
        let _ = writeln!(text, "\n## {}", mode.title());
        for (title, rows) in GROUPS {
            let here: Vec<&Line> =
                lines.iter().filter(|line| line.mode == mode && rows.contains(line.row)).collect();
            if here.is_empty() {
                continue;
            }
            let _ = writeln!(
                text,
                "\n### {title}\n\n| row | | stock | holdfast | ns | floor | ratio | extremes |\n|---|---|--:|--:|--:|--:|---|---|"
            );
            for line in here {
                let floor = floor(lines, line).map_or(String::new(), |floor| format!("{floor:.1}"));
                let Spread { least, low, median, high, greatest, outliers } = line.ratio;
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.1} | {:.1} | {:.1} / {:.1} | {floor} | **{median:.2}** ({low:.2}–{high:.2}) | {least:.2}–{greatest:.2}, {outliers} out |",
                    line.name(),
                    line.row.what,
                    line.stock.median,
                    line.holdfast.median,
                    line.stock_ns,
                    line.holdfast_ns,
                );
            }
        }
    }
    let deaths: Vec<(&Line, Spread)> = lines.iter().filter_map(|line| Some((line, line.death?))).collect();
    if !deaths.is_empty() {
        text.push_str(
            "\n## What the death machinery costs\n\nholdfast / holdfast with it compiled out, turn by turn.\n\n| row | ratio | extremes |\n|---|---|---|\n",
        );
        for (line, Spread { least, low, median, high, greatest, outliers }) in deaths {
            let _ = writeln!(
                text,
                "| {} | **{median:.3}** ({low:.3}–{high:.3}) | {least:.2}–{greatest:.2}, {outliers} out |",
                line.name()
            );
        }
    }
    text
}

/// Writes the files.
pub(crate) fn write(options: &Options, measured: &Measured) -> Result<Found> {
    let lines: Vec<Line> = measured.series.iter().map(Line::new).collect();
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
    let cell = |name: &str, field: &str, digits: usize| {
        let found: Vec<f64> = runs.iter().filter_map(|run| find(run, name, field)).collect();
        if found.is_empty() {
            return String::new();
        }
        let Spread { least, median, greatest, .. } = Spread::of(found);
        if digits == 0 {
            format!("{median:.0}")
        } else {
            format!("{median:.digits$} ({least:.digits$}–{greatest:.digits$})")
        }
    };
    let cpu = runs.first().and_then(|run| run.pointer("/machine/cpu")).and_then(Value::as_str).unwrap_or("?");
    let core =
        runs.first().and_then(|run| run.pointer("/machine/rdma-core")).and_then(Value::as_str).unwrap_or("?");
    let mut text = format!(
        "{cpu}, libmlx5 {core}; {} runs, of each ratio the median and from least to greatest.\n\n\
         | | stock, cycles | with locks | `MLX5_SINGLE_THREADED` | thread domain |\n|---|--:|---|---|---|\n",
        runs.len()
    );
    for (title, rows) in GROUPS {
        let mut titled = false;
        for row in rows.iter().filter(|row| row.readme) {
            let cells = Mode::ALL.map(|mode| cell(&format!("{}{}", row.name, mode.suffix()), "ratio", 2));
            if cells.iter().all(String::is_empty) {
                continue;
            }
            if !titled {
                let _ = writeln!(text, "| *{title}* | | | | |");
                titled = true;
            }
            let [default, single, domain] = cells;
            let stock = cell(row.name, "stock", 0);
            let _ = writeln!(text, "| {} | {stock} | {default} | {single} | {domain} |", row.what);
        }
    }
    let deaths: Vec<f64> = rows::all()
        .filter(|row| row.death)
        .flat_map(|row| Mode::ALL.map(|mode| format!("{}{}", row.name, mode.suffix())))
        .flat_map(|name| runs.iter().filter_map(|run| find(run, &name, "death_ratio")).collect::<Vec<f64>>())
        .collect();
    if !deaths.is_empty() {
        let Spread { low, median, high, .. } = Spread::of(deaths);
        let _ = writeln!(
            text,
            "\nThe death machinery compiled in, against compiled out: {median:.3} over all of these rows with a quarter of them below {low:.3} and a quarter above {high:.3}."
        );
    }
    Ok(text)
}
