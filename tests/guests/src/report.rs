//! From what the guests wrote to the table: which cell is good, which is not, and which says nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde::Serialize;

use crate::kernel;
use crate::root::Suite;

/// The variant all others are measured by.
pub(crate) const STOCK: &str = "stock/stock";
const HOLDFAST: &str = "holdfast/holdfast";
/// Cases of this prefix are rdma-core's own tests: many, and told in sum where all is well.
const PYVERBS: &str = "pyverbs/";

/// What a run of a case came to. Later ones are worse: of several runs the worst counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Pass,
    Skip,
    Fail,
    /// The kernel complained while it ran, and of nothing that stock does as well.
    Complaint,
    /// It was to run and nothing more was heard of it.
    Lost,
}

/// What that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Good,
    /// Stock does not do it either.
    Excused,
    /// Neither ran it: the kernel or the release has not what it needs.
    Skipped,
    Bad,
}

/// One case with one variant on one suite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Cell {
    pub(crate) suite: Suite,
    pub(crate) case: String,
    pub(crate) variant: String,
    pub(crate) status: Status,
    pub(crate) seconds: f64,
    pub(crate) note: String,
    pub(crate) verdict: Verdict,
}

/// What one guest left.
#[derive(Debug, Default)]
pub(crate) struct Record {
    rows: BTreeMap<(String, String), (Status, f64, String)>,
}

impl Record {
    /// Reads the plan (every cell that was to run) and the results.
    pub(crate) fn parse(plan: &str, results: &str) -> Result<Self> {
        let mut rows = BTreeMap::new();
        for line in plan.lines() {
            let Some((case, variant)) = line.split_once('\t') else {
                bail!("not a line of a plan: {line:?}")
            };
            rows.insert((case.to_owned(), variant.to_owned()), (Status::Lost, 0.0, "no result".to_owned()));
        }
        for line in results.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [case, variant, status, seconds, note] = fields.as_slice() else {
                bail!("not a line of results: {line:?}");
            };
            let status = match *status {
                "pass" => Status::Pass,
                "skip" => Status::Skip,
                "fail" => Status::Fail,
                other => bail!("no status is called {other:?}: {line:?}"),
            };
            let seconds: f64 = seconds.parse().with_context(|| format!("no time: {line:?}"))?;
            let Some(row) = rows.get_mut(&((*case).to_owned(), (*variant).to_owned())) else {
                bail!("a result that was not planned: {line:?}");
            };
            if row.0 == Status::Lost || status >= row.0 {
                *row = (status, seconds, (*note).to_owned());
            }
        }
        Ok(Self { rows })
    }

    /// A cell fails that made the kernel complain. Gives back the complaints that are no cell's.
    pub(crate) fn blame<'a>(&mut self, complaints: &'a [kernel::Complaint]) -> Vec<&'a kernel::Complaint> {
        let mut nobody = Vec::new();
        for complaint in complaints {
            let cell = complaint.during.as_deref().and_then(|d| d.split_once(' '));
            let row = cell.and_then(|(c, v)| self.rows.get_mut(&(c.to_owned(), v.to_owned())));
            match row {
                Some(row) => {
                    row.0 = row.0.max(Status::Complaint);
                    row.2 = format!("the kernel complained: {}", complaint.headline());
                }
                None => nobody.push(complaint),
            }
        }
        nobody
    }

    /// A failure of the guest as a whole is a row too, or it would not be in the table.
    pub(crate) fn guest_failed(&mut self, note: String) {
        self.rows.insert(("the guest itself".to_owned(), STOCK.to_owned()), (Status::Fail, 0.0, note));
    }

    /// Judges all cells.
    pub(crate) fn judge(self, suite: Suite, cannot: &Cannot) -> Vec<Cell> {
        let stock: BTreeMap<String, Status> = self
            .rows
            .iter()
            .filter(|((_, variant), _)| variant == STOCK)
            .map(|((case, _), (status, ..))| (case.clone(), *status))
            .collect();
        self.rows
            .into_iter()
            .map(|((case, variant), (status, seconds, note))| {
                let listed = cannot.reason(suite, &case).is_some();
                let verdict = verdict(variant == STOCK, status, stock.get(&case).copied(), listed);
                Cell { suite, case, variant, status, seconds, note, verdict }
            })
            .collect()
    }
}

/// `stock` is what stock came to in the same matrix, if it ran; `listed` whether it is known not to do this.
fn verdict(is_stock: bool, status: Status, stock: Option<Status>, listed: bool) -> Verdict {
    match (status, stock) {
        (Status::Pass, _) => Verdict::Good,
        (Status::Complaint | Status::Lost, _) => Verdict::Bad,
        (Status::Fail, _) if is_stock => {
            if listed {
                Verdict::Excused
            } else {
                Verdict::Bad
            }
        }
        (Status::Skip, _) if is_stock => Verdict::Skipped,
        // Stock's own failure is judged in its own cell; here it only says that nothing is asked.
        (Status::Fail | Status::Skip, Some(Status::Fail | Status::Complaint)) => Verdict::Excused,
        // Where stock skips, holdfast may come to what the list knows that no provider can do.
        (Status::Fail, Some(Status::Skip) | None) if listed => Verdict::Excused,
        (Status::Skip, Some(Status::Skip) | None) => Verdict::Skipped,
        (Status::Fail | Status::Skip, _) => Verdict::Bad,
    }
}

/// What stock cannot do.
#[derive(Debug, Default)]
pub(crate) struct Cannot {
    entries: Vec<(Suite, Regex, String)>,
}

impl Cannot {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut entries = Vec::new();
        for (suite, fields) in kernel::table(text)? {
            let [pattern, reason] = fields.as_slice() else {
                bail!("{suite:?}: wants a pattern and a reason")
            };
            let regex =
                Regex::new(&format!("^(?:{pattern})$")).with_context(|| format!("the pattern {pattern}"))?;
            entries.push((suite, regex, reason.clone()));
        }
        Ok(Self { entries })
    }

    fn reason(&self, suite: Suite, case: &str) -> Option<&str> {
        self.entries
            .iter()
            .find(|(s, r, _)| *s == suite && r.is_match(case))
            .map(|(.., reason)| reason.as_str())
    }

    /// Entries that what stock did says are wrong.
    pub(crate) fn stale(&self, cells: &[Cell]) -> Vec<String> {
        let wrong = |c: &&Cell| c.variant == STOCK && c.status == Status::Pass;
        let line =
            |c: &Cell| Some(format!("{} {}: {}", c.suite.name(), c.case, self.reason(c.suite, &c.case)?));
        cells.iter().filter(wrong).filter_map(line).collect()
    }
}

/// The sum of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sum {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) excused: usize,
    pub(crate) skipped: usize,
}

pub(crate) fn sum(cells: &[Cell]) -> Sum {
    let mut sum = Sum::default();
    for cell in cells {
        match cell.verdict {
            Verdict::Good => sum.passed += 1,
            Verdict::Bad => sum.failed += 1,
            Verdict::Excused => sum.excused += 1,
            Verdict::Skipped => sum.skipped += 1,
        }
    }
    sum
}

/// The table, for people.
pub(crate) fn markdown(cells: &[Cell]) -> String {
    let mut suites: Vec<Suite> = cells.iter().map(|c| c.suite).collect();
    suites.sort_unstable();
    suites.dedup();
    let at: BTreeMap<(&str, Suite, &str), &Cell> =
        cells.iter().map(|c| ((c.case.as_str(), c.suite, c.variant.as_str()), c)).collect();
    let mut cases: Vec<&str> =
        cells.iter().map(|c| c.case.as_str()).filter(|c| !c.starts_with(PYVERBS)).collect();
    cases.sort_unstable();
    cases.dedup();
    let mut text = String::from("| case |");
    for suite in &suites {
        _ = write!(text, " {0} stock | {0} holdfast |", suite.name());
    }
    _ = write!(text, "\n| --- |{}\n", " --- | --- |".repeat(suites.len()));
    for case in &cases {
        // The mixed pairs are a row of their own: the stock server's in the first column, the holdfast server's next.
        for (name, left, right) in [
            ((*case).to_owned(), STOCK, HOLDFAST),
            (format!("{case}, mixed: server as above, client the other"), "stock/holdfast", "holdfast/stock"),
        ] {
            let cell = |suite: Suite, variant: &str| at.get(&(*case, suite, variant)).copied();
            if suites.iter().any(|s| cell(*s, left).or(cell(*s, right)).is_some()) {
                _ = write!(text, "| {name} |");
                for suite in &suites {
                    for variant in [left, right] {
                        _ = write!(text, " {} |", cell(*suite, variant).map_or("".to_owned(), show));
                    }
                }
                text.push('\n');
            }
        }
    }
    pyverbs(&mut text, cells, &suites);
    let sum = sum(cells);
    _ = writeln!(
        text,
        "\n{} passed, {} failed; {} that stock cannot do either, {} skipped with stock as well.",
        sum.passed, sum.failed, sum.excused, sum.skipped
    );
    for cell in cells.iter().filter(|c| c.verdict == Verdict::Bad) {
        _ = writeln!(text, "- FAILED: {}", headline(cell));
    }
    for cell in cells.iter().filter(|c| c.verdict == Verdict::Excused) {
        _ = writeln!(text, "- stock cannot: {}", headline(cell));
    }
    text
}

fn pyverbs(text: &mut String, cells: &[Cell], suites: &[Suite]) {
    if !cells.iter().any(|c| c.case.starts_with(PYVERBS)) {
        return;
    }
    text.push_str("| rdma-core's Python tests: pass, skip, fail |");
    for suite in suites {
        for variant in [STOCK, HOLDFAST] {
            let count = |wanted: fn(Status) -> bool| {
                let ours =
                    |c: &&Cell| c.suite == *suite && c.variant == variant && c.case.starts_with(PYVERBS);
                cells.iter().filter(ours).filter(|c| wanted(c.status)).count()
            };
            let (pass, skip) = (count(|s| s == Status::Pass), count(|s| s == Status::Skip));
            _ = write!(text, " {pass}, {skip}, {} |", count(|s| s >= Status::Fail));
        }
    }
    text.push('\n');
}

fn show(cell: &Cell) -> String {
    match (cell.verdict, cell.status) {
        (Verdict::Good, _) => format!("ok {:.1} s", cell.seconds),
        (Verdict::Excused, _) => "cannot".to_owned(),
        (Verdict::Skipped, _) => "skipped".to_owned(),
        (Verdict::Bad, Status::Lost) => "**LOST**".to_owned(),
        (Verdict::Bad, _) => "**FAIL**".to_owned(),
    }
}

/// A cell and what is known of it, in one line.
pub(crate) fn headline(cell: &Cell) -> String {
    format!("{} {} {}: {}", cell.suite.name(), cell.case, cell.variant, cell.note)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "a\tstock/stock\na\tholdfast/holdfast\nb\tstock/stock\nb\tholdfast/holdfast\n";

    fn cells(plan: &str, results: &str, cannot: &str) -> Vec<Cell> {
        let cannot = Cannot::parse(cannot).unwrap();
        Record::parse(plan, results).unwrap().judge(Suite::Forky, &cannot)
    }

    fn verdicts(results: &str, cannot: &str) -> Vec<Verdict> {
        // Sorted: a holdfast, a stock, b holdfast, b stock.
        cells(PLAN, results, cannot).iter().map(|c| c.verdict).collect()
    }

    const ALL_PASS: &str = "a\tstock/stock\tpass\t1.0\t\na\tholdfast/holdfast\tpass\t1.0\t\n\
                            b\tstock/stock\tpass\t1.0\t\nb\tholdfast/holdfast\tpass\t1.0\t\n";

    #[test]
    fn what_passes_is_good() {
        assert_eq!(verdicts(ALL_PASS, ""), [Verdict::Good; 4]);
    }

    #[test]
    fn worse_than_stock_is_bad() {
        for status in ["fail", "skip"] {
            let text =
                ALL_PASS.replace("b\tholdfast/holdfast\tpass", &format!("b\tholdfast/holdfast\t{status}"));
            assert_eq!(verdicts(&text, "")[2], Verdict::Bad, "{status}");
        }
    }

    #[test]
    fn what_was_planned_and_not_heard_of_is_bad() {
        let text = ALL_PASS.lines().take(3).collect::<Vec<_>>().join("\n");
        let cells = cells(PLAN, &text, "forky :: .* :: even if stock cannot");
        assert_eq!((cells[2].status, cells[2].verdict), (Status::Lost, Verdict::Bad));
    }

    #[test]
    fn stock_may_fail_only_where_that_is_known() {
        let text = ALL_PASS.replace("b\tstock/stock\tpass", "b\tstock/stock\tfail");
        let text = text.replace("b\tholdfast/holdfast\tpass", "b\tholdfast/holdfast\tfail");
        let known = "forky :: b :: no such opcode";
        assert_eq!(verdicts(&text, known)[2..], [Verdict::Excused, Verdict::Excused]);
        assert_eq!(verdicts(&text, "")[2..], [Verdict::Excused, Verdict::Bad]);
        assert_eq!(verdicts(&text, "trixie :: b :: elsewhere")[3], Verdict::Bad);
        assert_eq!(verdicts(&text, "forky :: bb? :: x")[3], Verdict::Excused);
        assert_eq!(verdicts(&text, "forky :: . b :: the whole name must match")[3], Verdict::Bad);
    }

    #[test]
    fn where_stock_skips_holdfast_may_fail_only_if_that_is_known() {
        let text = ALL_PASS.replace("b\tstock/stock\tpass", "b\tstock/stock\tskip");
        let text = text.replace("b\tholdfast/holdfast\tpass", "b\tholdfast/holdfast\tfail");
        let known = "forky :: b :: the kernel";
        assert_eq!(verdicts(&text, known)[2..], [Verdict::Excused, Verdict::Skipped]);
        assert_eq!(verdicts(&text, "")[2..], [Verdict::Bad, Verdict::Skipped]);
    }

    #[test]
    fn the_list_does_not_excuse_holdfast_where_stock_passed() {
        let text = ALL_PASS.replace("b\tholdfast/holdfast\tpass", "b\tholdfast/holdfast\tfail");
        let list = "forky :: b :: wrong by now";
        assert_eq!(verdicts(&text, list)[2], Verdict::Bad);
        let stale = Cannot::parse(list).unwrap().stale(&cells(PLAN, &text, list));
        assert_eq!(stale, ["forky b: wrong by now"]);
    }

    #[test]
    fn of_several_runs_the_worst_counts() {
        let text = format!("b\tholdfast/holdfast\tfail\t1.0\tflaky\n{ALL_PASS}");
        let cell = &cells(PLAN, &text, "")[2];
        assert_eq!((cell.status, cell.note.as_str()), (Status::Fail, "flaky"));
    }

    #[test]
    fn garbage_is_refused() {
        for results in ["a\tstock/stock\tpass", "a\tstock/stock\tgood\t1.0\t", "c\tstock/stock\tpass\t1.0\t"]
        {
            assert!(Record::parse(PLAN, results).is_err(), "{results}");
        }
        assert!(Record::parse("a stock/stock", "").is_err());
    }

    #[test]
    fn a_kernel_complaint_fails_the_cell_it_came_in() {
        let mut record = Record::parse(PLAN, ALL_PASS).unwrap();
        let complaint = |during: Option<&str>| kernel::Complaint {
            text: "[ 1.0] WARNING: x".to_owned(),
            during: during.map(str::to_owned),
        };
        let all = [complaint(Some("a holdfast/holdfast")), complaint(None)];
        assert_eq!(record.blame(&all), [&all[1]]);
        // Nothing excuses it: what stock does as well is for the allow list to say.
        let cells = record.judge(Suite::Forky, &Cannot::parse("forky :: .* :: stock cannot").unwrap());
        assert_eq!((cells[0].status, cells[0].verdict), (Status::Complaint, Verdict::Bad));
        assert!(cells[0].note.contains("WARNING: x"));
        assert_eq!(sum(&cells), Sum { passed: 3, failed: 1, ..Sum::default() });
    }

    #[test]
    fn the_table_shows_every_case_and_every_failure() {
        let plan = format!("{PLAN}a\tstock/holdfast\npyverbs/x\tstock/stock\npyverbs/x\tholdfast/holdfast\n");
        let text = format!(
            "{}a\tstock/holdfast\tfail\t2.0\tthe client ended with 1\npyverbs/x\tstock/stock\tpass\t0.1\t\n\
             pyverbs/x\tholdfast/holdfast\tpass\t0.1\t\n",
            ALL_PASS.replace("b\tholdfast/holdfast\tpass", "b\tholdfast/holdfast\tfail")
        );
        let table = markdown(&cells(&plan, &text, ""));
        assert!(table.contains("| b | ok 1.0 s | **FAIL** |"), "{table}");
        assert!(table.contains("| **FAIL** |  |"), "{table}");
        assert!(table.contains("| 1, 0, 0 | 1, 0, 0 |"), "{table}");
        assert!(table.contains("5 passed, 2 failed"), "{table}");
        assert!(table.contains("- FAILED: forky a stock/holdfast: the client ended with 1"), "{table}");
    }

    #[test]
    fn the_project_s_own_list_is_in_order() {
        for file in ["stock-cannot.txt", "stock-cannot-hca.txt"] {
            Cannot::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        }
    }
}
