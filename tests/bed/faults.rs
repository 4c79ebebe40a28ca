//! Each fault of the virtual ConnectX in a guest, here: the same client says the same of it.
//!
//! What the kernel's drivers do of themselves there (notice, let go, recover) is told to the bed here, by `holdfast sim --tell`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::time::Duration;

use crate::{BED, Provider, c, own_net};

/// Slow is no failure.
const LIMIT: Duration = Duration::from_secs(240);

/// The facts of a fault.
type Facts = BTreeMap<String, String>;

/// The guests' expectations, for the kernel whose errors and events are the bed's.
const SUITE: &str = "bookworm";

fn expected(fault: &str) -> Facts {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/faults/stock.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let fields = lines.map(|line| line.split(" :: ").map(str::trim).collect::<Vec<_>>());
    let mut facts = Facts::new();
    let own = format!("{fault} {SUITE}");
    for of in [fault, own.as_str()] {
        let known = fields.clone().filter(|fields| fields[0] == of);
        facts.extend(
            known.filter_map(|fields| {
                Some((fields[1].strip_prefix("fatal.")?.to_owned(), fields[2].to_owned()))
            }),
        );
    }
    assert!(!facts.is_empty(), "the guests expect nothing of {fault}");
    facts
}

static CLIENT: LazyLock<PathBuf> = LazyLock::new(|| BED.verbs_client("fatal", &["fatal.c", "common.c"]));

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    over: bool,
}

/// The client, under a fault.
struct Session {
    child: Child,
    orders: Option<ChildStdin>,
    said: Arc<(Mutex<Said>, Condvar)>,
    net: String,
    done: usize,
    journal: PathBuf,
}

impl Session {
    fn start(fault: &str, devices: &[&str]) -> Session {
        let net = own_net();
        let journal = std::env::temp_dir().join(&net);
        let mut command = BED.command(Provider::Stock, &*CLIENT, &net);
        command.args(["-t", "3600"]).args(devices).env("HOLDFAST_SIM_DEVICES", devices.len().to_string());
        command.env("HOLDFAST_SIM_JOURNAL", &journal).env("HOLDFAST_SIM_PATIENCE", "2");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
        let (out, to) = (child.stdout.take().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                to.0.lock().unwrap().lines.push(line);
                to.1.notify_all();
            }
            to.0.lock().unwrap().over = true;
            to.1.notify_all();
        });
        let orders = child.stdin.take();
        let session = Session { child, orders, said, net, done: 0, journal };
        session.wait_for(&format!("traffic flows under {fault}"), 1, |line| line.contains("traffic flows"));
        session
    }

    fn wait_for(&self, what: &str, times: usize, is_it: impl Fn(&str) -> bool) {
        let (said, changed) = &*self.said;
        let count = |said: &Said| said.lines.iter().filter(|line| is_it(line)).count();
        let guard = said.lock().unwrap();
        let (said, _) =
            changed.wait_timeout_while(guard, LIMIT, |said| count(said) < times && !said.over).unwrap();
        assert!(count(&said) >= times, "not said: {what}\n{}", said.lines.join("\n"));
    }

    fn says(&self, text: &str) {
        self.wait_for(text, 1, |line| line.contains(text));
    }

    fn event(&self, name: &str) {
        self.says(&format!(" event {name}"));
    }

    /// An order to the client; back when it is done.
    fn tell(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        self.done += 1;
        self.wait_for(order, self.done, |line| line.contains(" done: "));
    }

    /// A command to the bed; its answer.
    fn control(&self, line: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        let output = command.args(["sim", "--net", &self.net, "--tell", line]).output().unwrap();
        crate::check(&output, line).trim_start_matches("0: ").to_owned()
    }

    /// The queue pair that sends (`from`), or the other (`to`).
    fn qp(&self, which: &str) -> String {
        let said = self.said.0.lock().unwrap();
        let line = said.lines.iter().find(|line| line.contains("traffic flows")).unwrap();
        let (_, rest) = line.split_once(&format!("{which} qp ")).unwrap();
        rest.split(' ').next().unwrap().to_owned()
    }

    fn stores(&self) -> usize {
        self.control("sync");
        let text = std::fs::read_to_string(&self.journal).unwrap();
        text.lines().filter(|line| line.contains(" d0 store ")).count()
    }

    fn comes_to_rest(&mut self) {
        self.says("no completion since");
        self.tell("forget");
    }

    fn give_up(&mut self) {
        self.tell("verbs final");
        self.tell("fill final");
        self.tell("close");
    }

    fn find_again(&mut self) {
        self.tell("open mlx5_0");
    }

    /// The driver notices, lets go and begins anew.
    fn recover(&mut self) {
        self.control("fatal");
        self.event("DEVICE_FATAL/1");
        self.control("remove");
        self.event("DEVICE_FATAL/0");
        self.control("return");
    }

    /// Taken away in an orderly way, given up, and back.
    fn leave(&mut self, back: &str) {
        self.control("remove");
        self.event("DEVICE_FATAL/0");
        self.give_up();
        self.control(back);
        self.find_again();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a failure; otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a fault and compares.
fn run(fault: &str, devices: &[&str], what: impl FnOnce(&mut Session)) {
    if !c::wanted(fault) {
        return;
    }
    let mut session = Session::start(fault, devices);
    what(&mut session);
    let seen = facts_of(session);
    let expected = expected(fault);
    let names = |facts: &Facts| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&seen), names(&expected), "facts of {fault}: {seen:#?}");
    for (name, value) in &seen {
        let known = &expected[name];
        assert!(
            known.split(" | ").any(|known| known == value),
            "{fault}: {name} is {value}, in a guest {known}"
        );
    }
}

/// Ends the client; all that it said of facts.
fn facts_of(mut session: Session) -> Facts {
    writeln!(session.orders.take().unwrap(), "end").unwrap();
    assert!(session.child.wait().unwrap().success(), "the client failed");
    // All that it said is there once its output has ended.
    let (said, changed) = &*session.said;
    let guard = said.lock().unwrap();
    let (said, _) = changed.wait_timeout_while(guard, LIMIT, |said| !said.over).unwrap();
    let facts = said.lines.iter().filter_map(|line| line.strip_prefix("fact ")?.split_once(' '));
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let _ = std::fs::remove_file(&session.journal);
    facts
}

const ONE: &[&str] = &["mlx5_0"];
const TWO: &[&str] = &["mlx5_0", "mlx5_1"];

#[test]
fn die() {
    run("die", ONE, |s| {
        s.control("die");
        s.control("fatal");
        s.event("DEVICE_FATAL/1");
        s.tell("verbs early");
        s.control("remove");
        s.event("DEVICE_FATAL/0");
        s.give_up();
        s.control("return");
        s.find_again();
    });
}

#[test]
fn die_alive() {
    run("die-alive", ONE, |s| {
        s.control("die alive");
        s.control("fatal");
        s.event("DEVICE_FATAL/1");
        s.tell("verbs early");
        s.control("remove");
        s.event("DEVICE_FATAL/0");
        s.comes_to_rest();
        s.give_up();
        s.control("return");
        s.find_again();
    });
}

#[test]
fn syndrome() {
    run("syndrome", ONE, |s| {
        s.control("syndrome 1");
        s.recover();
        s.give_up();
        s.find_again();
    });
}

#[test]
fn syndrome_for_good() {
    run("syndrome-for-good", ONE, |s| {
        s.control("syndrome 1 fatal");
        s.control("fatal");
        s.event("DEVICE_FATAL/1");
        s.control("remove");
        s.event("DEVICE_FATAL/0");
        s.give_up();
        s.control("return");
        s.find_again();
    });
}

#[test]
fn silence() {
    run("silence", ONE, |s| {
        s.control("silence");
        s.comes_to_rest();
        s.tell("verbs silent");
        s.control("syndrome 1");
        s.recover();
        s.give_up();
        s.find_again();
    });
}

#[test]
fn health_stop() {
    run("health-stop", ONE, |s| {
        s.control("health stop");
        s.tell("forget");
        s.tell("verbs after");
        s.tell("close");
    });
}

#[test]
fn flr() {
    run("flr", ONE, |s| {
        s.control("flr");
        s.recover();
        s.give_up();
        s.find_again();
    });
}

#[test]
fn command_hang() {
    run("command-hang", ONE, |s| {
        s.control("command hang CREATE_CQ");
        s.tell("verbs after");
        s.control("command release");
        s.control("command ok");
        s.tell("close");
    });
}

#[test]
fn command_fail() {
    run("command-fail", ONE, |s| {
        s.control("command fail CREATE_CQ");
        s.tell("verbs after");
        s.control("command ok");
        s.tell("close");
    });
}

/// The QP that the client calls `end` fails.
fn qp_error(end: &str, of: &str) {
    run(&format!("qp-error-{of}"), ONE, |s| {
        s.control(&format!("qp {} error", s.qp(end)));
        s.event(&format!("QP_FATAL/{of}"));
        s.says("completion in error");
        s.tell("forget");
        s.tell("verbs after");
        s.tell("close");
        s.find_again();
    });
}

#[test]
fn qp_error_sender() {
    qp_error("from", "sender");
}

#[test]
fn qp_error_receiver() {
    qp_error("to", "receiver");
}

#[test]
fn cq_error() {
    run("cq-error", ONE, |s| {
        let objects = s.control("objects");
        let qp = format!("qp {} ", s.qp("from"));
        let line = objects.lines().find(|line| line.contains(&qp)).unwrap();
        let cq = line.split("scq=").nth(1).unwrap().trim();
        s.control(&format!("cq {cq} error"));
        s.event("CQ_ERR");
        s.tell("verbs after");
        s.tell("close");
        s.find_again();
    });
}

#[test]
fn port_down() {
    run("port-down", ONE, |s| {
        s.control("port down");
        s.event("PORT_ERR/1");
        s.says("completion in error");
        s.tell("verbs down");
        s.control("port up");
        s.event("PORT_ACTIVE/1");
        s.tell("verbs up");
        s.tell("close");
        s.find_again();
    });
}

#[test]
fn lid_change() {
    run("lid-change", ONE, |s| {
        s.control("lid 77");
        s.event("LID_CHANGE/1");
        s.says("completion in error");
        s.tell("verbs after");
        s.tell("close");
        s.find_again();
    });
}

#[test]
fn gid_change() {
    run("gid-change", ONE, |s| {
        s.control("guid 0002c90300fa1234");
        s.tell("forget");
        s.tell("verbs after");
        s.tell("close");
        s.find_again();
    });
}

#[test]
fn wire_slow() {
    run("wire-slow", TWO, |s| {
        s.control("wire slow 20ms");
        s.tell("forget");
        s.tell("verbs slow");
        s.control("wire heal");
        s.tell("verbs healed");
        s.tell("close");
    });
}

#[test]
fn wire_drop() {
    run("wire-drop", TWO, |s| {
        s.control("wire drop every 5");
        s.tell("forget");
        s.tell("verbs lossy");
        s.control("wire heal");
        s.tell("verbs healed");
        s.tell("close");
    });
}

#[test]
fn wire_cut() {
    run("wire-cut", TWO, |s| {
        s.control("wire cut");
        s.says("completion in error");
        s.tell("verbs cut");
        s.control("wire heal");
        s.tell("close");
        s.find_again();
    });
}

#[test]
fn remove_rescan() {
    run("remove-rescan", ONE, |s| {
        let before = s.stores();
        s.tell("stores 100");
        assert!(s.stores() > before, "the device does not see the stores of a live device");
        s.control("remove");
        s.event("DEVICE_FATAL/0");
        let before = s.stores();
        s.tell("stores 10");
        assert_eq!(s.stores(), before, "stores after the removal reach the device");
        s.give_up();
        s.control("return");
        s.find_again();
    });
}

#[test]
fn unbind_bind() {
    run("unbind-bind", ONE, |s| s.leave("return"));
}

#[test]
fn netns() {
    run("netns", ONE, |s| s.leave("return"));
}

#[test]
fn plug_same() {
    run("plug-same", ONE, |s| s.leave("return"));
}

#[test]
fn plug_other() {
    run("plug-other", ONE, |s| s.leave("return other"));
}
