//! What the kernel says against itself: complaints in its log, and the list of those that stock has as well.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::root::Suite;

/// The line a complaint starts with; its time tells it from what a program wrote to the console. Lock-ups are in it as BUG; stalls that RCU notes are not, since an emulated CPU
/// that waits for a busy host looks the same.
static COMPLAINT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"^\[ *[0-9]+\.[0-9]+\].*(?:cut here \]|Kernel panic|BUG:|kernel BUG at|Oops|WARNING:|refcount_t:|general protection fault[,:]|UBSAN:|KASAN:|INFO: task .* blocked for more than|unable to handle)",
    )
    .ok()
});

/// Where a complaint ends, if it says so.
const END: &str = "---[ end ";

/// How much of a complaint that does not say where it ends belongs to it.
const LINES: usize = 60;

/// What a guest's job writes to the kernel log to say what it is about to do.
pub(crate) const MARK: &str = "holdfast-case: ";

/// One complaint of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// All its lines.
    pub(crate) text: String,
    /// What the last mark before it said.
    pub(crate) during: Option<String>,
}

impl Complaint {
    /// The line that says most.
    pub(crate) fn headline(&self) -> &str {
        let says = |line: &&str| !line.contains("cut here ]");
        self.text.lines().find(says).unwrap_or(&self.text)
    }
}

/// All complaints of a kernel log, in order.
pub(crate) fn complaints(log: &str) -> Vec<Complaint> {
    let Some(start) = COMPLAINT.as_ref() else { return Vec::new() };
    let mut found = Vec::new();
    let mut during = None;
    let mut open: Option<Vec<&str>> = None;
    for line in log.lines() {
        if let Some((_, mark)) = line.split_once(MARK) {
            // A mark is written between cases, so a complaint that is still open ends here.
            close(&mut found, &mut open, during.as_ref());
            during = Some(mark.trim().to_owned());
            continue;
        }
        match &mut open {
            None if start.is_match(line) => open = Some(vec![line]),
            None => {}
            Some(lines) => lines.push(line),
        }
        if open.as_ref().is_some_and(|lines| line.contains(END) || lines.len() >= LINES) {
            close(&mut found, &mut open, during.as_ref());
        }
    }
    close(&mut found, &mut open, during.as_ref());
    found
}

/// Whether the kernel ended by a breakpoint of its own, before the first program ran: it patches code so, and emulation with several
/// CPUs may show one of them the breakpoint when it is gone.
pub(crate) fn died_by_emulation(log: &str) -> bool {
    let ran = log.contains("Run /init as init process");
    !ran && complaints(log).first().is_some_and(|first| first.headline().contains("int3: 0000"))
}

fn close(found: &mut Vec<Complaint>, open: &mut Option<Vec<&str>>, during: Option<&String>) {
    if let Some(lines) = open.take() {
        found.push(Complaint { text: lines.join("\n"), during: during.cloned() });
    }
}

/// The complaints that are no news: stock causes them as well.
#[derive(Debug, Default)]
pub(crate) struct AllowList {
    entries: Vec<Allowed>,
}

#[derive(Debug)]
struct Allowed {
    suite: Suite,
    pattern: Regex,
    reason: String,
}

impl AllowList {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// One entry a line: `suite :: regular expression :: reason`.
    fn parse(text: &str) -> Result<Self> {
        let mut entries = Vec::new();
        for (suite, fields) in table(text)? {
            let [pattern, reason] = fields.as_slice() else {
                bail!("{suite:?}: wants a pattern and a reason")
            };
            let pattern = Regex::new(pattern).with_context(|| format!("the pattern {pattern}"))?;
            entries.push(Allowed { suite, pattern, reason: reason.clone() });
        }
        Ok(Self { entries })
    }

    /// Why this complaint is no failure, if it is none.
    pub(crate) fn reason(&self, suite: Suite, complaint: &Complaint) -> Option<&str> {
        let fits = |a: &&Allowed| a.suite == suite && a.pattern.is_match(&complaint.text);
        self.entries.iter().find(fits).map(|a| a.reason.as_str())
    }
}

/// Lines of `suite :: field :: ...`, where no field is empty; comments start with `#`.
pub(crate) fn table(text: &str) -> Result<Vec<(Suite, Vec<String>)>> {
    let mut rows = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split(" :: ").map(|f| f.trim().to_owned());
        let name = fields.next().unwrap_or_default();
        let Some(suite) = Suite::ALL.into_iter().find(|s| s.name() == name) else {
            bail!("line {}: no suite is called {name:?}", n + 1);
        };
        let fields: Vec<String> = fields.collect();
        if fields.is_empty() || fields.iter().any(String::is_empty) {
            bail!("line {}: a field is missing", n + 1);
        }
        rows.push((suite, fields));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    1.0] Linux version 5.10
[    2.0] holdfast-case: rc-pingpong/stock
[    3.0] rdma_rxe: loaded
[    4.0] holdfast-case: atomic-bw/holdfast
[    5.0] ------------[ cut here ]------------
[    5.0] refcount_t: underflow; use-after-free.
[    5.0] WARNING: CPU: 1 PID: 9 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
[    5.0] Call Trace:
[    5.0]  rxe_elem_release+0x12/0x20
[    5.0] ---[ end trace 12 ]---
[    6.0] all is well
[    7.0] BUG: unable to handle page fault for address: 0000000000000010
[    7.0] Oops: 0000
[    7.0] ---[ end trace 13 ]---
";

    #[test]
    fn each_complaint_is_found_once_with_what_was_going_on() {
        let found = complaints(LOG);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert_eq!(found[0].during.as_deref(), Some("atomic-bw/holdfast"));
        assert!(found[0].text.contains("rxe_elem_release"));
        assert!(found[0].headline().contains("refcount_t: underflow"), "{}", found[0].headline());
        assert!(found[1].text.contains("Oops"));
    }

    #[test]
    fn a_quiet_log_has_none() {
        assert_eq!(complaints("[ 1.0] Linux version\n[ 2.0] rxe0: added\n"), []);
        // A fault of a program is the program's.
        let program = "[ 1.0] traps: ib_send_bw[717] general protection fault ip:7fc606ceec71 error:0 in librdmacm.so.1";
        assert_eq!(complaints(program), []);
    }

    #[test]
    fn a_breakpoint_of_the_kernels_own_is_told_from_other_deaths() {
        let int3 = "[ 1.9] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n[ 1.9] Kernel panic - not syncing: Fatal exception\n";
        assert!(died_by_emulation(&format!("[ 0.0] Linux version\n{int3}")));
        assert!(!died_by_emulation(&format!("[ 1.8] Run /init as init process\n{int3}")), "programs ran");
        assert!(
            !died_by_emulation(&format!("[ 1.8] BUG: kernel NULL pointer dereference\n{int3}")),
            "not the first"
        );
        assert!(!died_by_emulation("[ 1.8] Linux version\n"));
    }

    #[test]
    fn a_complaint_cut_off_by_the_end_of_the_log_counts() {
        let found = complaints("[ 1.0] Kernel panic - not syncing: Attempted to kill init!");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].during, None);
    }

    #[test]
    fn every_kind_is_known() {
        for line in [
            "WARNING: CPU: 0 PID: 1 at drivers/infiniband/core/x.c:1 f+0x0/0x10 [ib_core]",
            "BUG: KASAN: use-after-free in rxe_cq_post",
            "general protection fault, probably for non-canonical address",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 26s!",
            "INFO: task ib_send_bw:77 blocked for more than 120 seconds.",
            "kernel BUG at mm/slub.c:1!",
            "UBSAN: array-index-out-of-bounds in drivers/x.c",
        ] {
            assert_eq!(complaints(&format!("[   12.345678] {line}")).len(), 1, "{line}");
            assert_eq!(complaints(line), [], "no kernel wrote {line}");
        }
    }

    #[test]
    fn the_list_allows_what_it_names_on_the_suite_it_names() {
        let list =
            AllowList::parse("# why\nbullseye :: refcount_warn_saturate(.|\\n)*rxe_elem :: stock does it\n");
        let list = list.unwrap();
        let found = complaints(LOG);
        assert_eq!(list.reason(Suite::Bullseye, &found[0]), Some("stock does it"));
        assert_eq!(list.reason(Suite::Forky, &found[0]), None);
        assert_eq!(list.reason(Suite::Bullseye, &found[1]), None);
    }

    #[test]
    fn a_list_with_a_mistake_is_refused() {
        for text in
            ["bullseye :: WARNING", "sarge :: x :: y", "bullseye :: ( :: y", "bullseye :: x :: ", "bullseye"]
        {
            assert!(AllowList::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_project_s_own_list_is_in_order() {
        AllowList::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernel-allow.txt"))).unwrap();
    }
}
