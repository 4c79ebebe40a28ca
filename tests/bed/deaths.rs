//! Devices that die under programs: what else may be missing then, who else knows them, and what tools say.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::bed::pairs::{free_port, start};
use crate::{BED, Provider, c, check, own_net};

/// Runs a case of `dies`; what it said on stderr.
fn dies(case: &str, settings: &[(&str, &str)]) -> String {
    if !c::wanted(case) {
        return String::new();
    }
    let mut command = BED.command(Provider::Holdfast, BED.client("dies"), "none");
    let output = command.arg(case).envs(settings.iter().copied()).output().unwrap();
    let text = check(&output, case);
    assert!(text.ends_with("fine\n"), "{case}: {text}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

macro_rules! dies {
    ($($case:ident)*) => {$(
        #[test]
        fn $case() {
            assert_eq!(dies(stringify!($case), &[]), "");
        }
    )*};
}

dies! {
    final_lost no_files files_later no_waiting no_memory no_dummy no_async no_events_of_ours no_channel_of_ours
    nothing_of_ours closed_async closed_channel many at_once
}

#[test]
fn no_threads() {
    let said = dies("no_threads", &[]);
    assert!(
        said.lines().count() == 1 && said.contains("cannot start the thread that watches devices"),
        "{said}"
    );
}

#[test]
fn off() {
    assert_eq!(dies("off", &[("HOLDFAST_WATCH", "off")]), "");
}

#[test]
fn many_who_know_a_device_outlive_it() {
    if !c::wanted("many who know a device") {
        return;
    }
    for watch in ["on", "off"] {
        let mut command = BED.command(Provider::Holdfast, BED.client("crowd"), "none");
        let output = command.env("HOLDFAST_WATCH", watch).output().unwrap();
        assert!(check(&output, "crowd").contains("1 rounds"), "with HOLDFAST_WATCH={watch}");
    }
}

/// Ends a tool that does not end by itself.
struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command to every process of a wire; what they answer.
fn tell(net: &str, line: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    let output = command.args(["sim", "--net", net, "--tell", line]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What pingpongs say.
const FLUSHED: &str = "Failed status Work Request Flushed Error";

/// How long a tool may take to say that its device is gone: it takes milliseconds, on a machine that is not busy.
const SOON: Duration = Duration::from_secs(1);
/// A machine that is.
const LATE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(60);

/// Lets both devices of a tool and its peer die in the middle of traffic. Both end by themselves and say why.
fn ends_with_its_device(tool: &str, arguments: &[&str], says: &[&str]) {
    if !c::wanted(tool) {
        return;
    }
    let (net, port) = (own_net(), free_port().to_string());
    let run = |to: Option<&str>| {
        let mut command = BED.command(Provider::Holdfast, tool, &net);
        command.args(["-p", &port]).args(arguments).args(to);
        Tool(start(command))
    };
    let begun = Instant::now();
    let server = run(None);
    let mut client = run(Some("localhost"));
    // Until much was completed on both sides.
    let busy = |objects: &str| {
        let produced = objects.lines().filter_map(|line| line.split("produced=").nth(1));
        let counts = produced.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        counts.filter(|count| *count > 50).count() >= 2
    };
    while !busy(&tell(&net, "objects")) {
        // The client gives up at once when nobody listens yet.
        if client.0.try_wait().unwrap().is_some() {
            client = run(Some("localhost"));
        }
        assert!(begun.elapsed() < LIMIT, "no traffic of {tool} {arguments:?}");
    }
    assert!(tell(&net, "kill").lines().filter(|line| line.ends_with("ok")).count() == 2);
    let dead = Instant::now();
    for (mut side, name) in [(client, "client"), (server, "server")] {
        while side.0.try_wait().unwrap().is_none() {
            assert!(dead.elapsed() < LATE, "the {name} of {tool} {arguments:?} does not end");
            std::thread::yield_now();
        }
        let took = dead.elapsed();
        let output = {
            use std::io::Read as _;
            let mut text = String::new();
            side.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            side.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let status = side.0.wait().unwrap();
        eprintln!(
            "{name} of {tool} {arguments:?}: {took:?}, {status}{}",
            if took > SOON { ", late" } else { "" }
        );
        assert!(
            status.code().is_some_and(|code| code != 0),
            "{name} of {tool} {arguments:?}: {status}\n{output}"
        );
        let said = says.iter().any(|says| output.contains(says));
        assert!(said, "{name} of {tool} {arguments:?} says\n{output}");
    }
}

#[test]
fn a_pingpong_ends_with_its_device() {
    ends_with_its_device("ibv_rc_pingpong", &["-n", "100000000"], &[FLUSHED]);
}

/// Who sleeps as the kernel closes its channel may be told so.
#[test]
fn a_pingpong_with_events_ends_with_its_device() {
    ends_with_its_device("ibv_rc_pingpong", &["-e", "-n", "100000000"], &[FLUSHED, "Failed to get cq_event"]);
}

#[test]
fn a_send_bandwidth_test_ends_with_its_device() {
    ends_with_its_device("ib_send_bw", &["-F", "-n", "10000000"], &["Completion with error"]);
}

/// Of perftest's latency tests those of writes have no events and wait for data in memory, which nobody can send any more, and
/// that of sends cannot post with them.
#[test]
fn a_send_bandwidth_test_with_events_ends_with_its_device() {
    ends_with_its_device(
        "ib_send_bw",
        &["-F", "-e", "-n", "10000000"],
        &["Completion with error", "Failed to get cq_event"],
    );
}
