//! The native bed under real programs: unmodified tools and clients, with the stock provider and with holdfast, in all pairings.
//!
//! What the stock provider and the tools of rdma-core do on it is the proof that the bed is a ConnectX; what a client sees of
//! a fault is held to what it sees of the same fault in a guest, with a real kernel (`tests/guests/faults/stock.txt`).
//!
//! The test that is ignored wants roots of other releases, which `tests/system/bed` finds for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may say what it did"
)]

mod c;
mod bed {
    mod deaths;
    mod faults;
    pub(crate) mod pairs;
    mod soak;
    mod walk;
}

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use vhca::reader::Journal;

/// Who serves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    Stock,
    Holdfast,
}

impl Provider {
    const BOTH: [Provider; 2] = [Provider::Stock, Provider::Holdfast];
}

/// What all tests share.
struct Bed {
    library: PathBuf,
    /// What `RDMAV_DRIVERS` names: a plug-in's file without `-rdmavN.so`.
    holdfast: PathBuf,
    workshop: c::Workshop,
    /// The clients that were compiled: once each, as a file that somebody runs cannot be written.
    clients: Mutex<HashMap<String, Arc<OnceLock<PathBuf>>>>,
}

static BED: LazyLock<Bed> = LazyLock::new(Bed::new);

/// A wire that no other test is on.
fn own_net() -> String {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    format!("test-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed))
}

impl Bed {
    fn new() -> Bed {
        let workshop = c::Workshop::new();
        let holdfast = workshop.path().join("libholdfast");
        for number in [33, 34, 57, 59, 64, 65] {
            let plugin = format!("{}-rdmav{number}.so", holdfast.display());
            std::os::unix::fs::symlink(c::provider(), plugin).unwrap();
        }
        let library = c::provider().with_file_name("libholdfast_sim.so");
        assert!(library.exists(), "cargo left no {}", library.display());
        Bed { library, holdfast, workshop, clients: Mutex::default() }
    }

    /// Compiles a client.
    fn client(&self, name: &str) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/native/clients/{name}.c"));
        self.compiled(name, &source, Vec::new())
    }

    /// Compiles `verbs-NAME` of the clients that run in the guests, too.
    fn verbs_client(&self, name: &str, sources: &[&str]) -> PathBuf {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/verbs");
        let (first, rest) = sources.split_first().unwrap();
        let rest = rest.iter().map(|file| directory.join(file).display().to_string()).collect();
        self.compiled(&format!("verbs-{name}"), &directory.join(first), rest)
    }

    fn compiled(&self, name: &str, source: &Path, mut arguments: Vec<String>) -> PathBuf {
        let client = Arc::clone(self.clients.lock().unwrap().entry(name.to_owned()).or_default());
        let build = || {
            arguments.extend(
                ["-Wno-missing-field-initializers", "-libverbs", "-ldl", "-lpthread"].map(String::from),
            );
            self.workshop.build(name, source, arguments)
        };
        client.get_or_init(build).clone()
    }

    /// A program on the bed, on a wire.
    fn command(&self, provider: Provider, program: impl AsRef<Path>, net: &str) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("LD_PRELOAD", &self.library).env_remove("RDMAV_DRIVERS").env("HOLDFAST_SIM_NET", net);
        if provider == Provider::Holdfast {
            command.env("RDMAV_DRIVERS", &self.holdfast);
            // Tools that link libmlx5 register it before libibverbs reads any list.
            command.env("LD_PRELOAD", format!("{}:{}", c::provider().display(), self.library.display()));
        }
        command
    }
}

fn check(output: &Output, what: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{text}\n{errors}", output.status);
    text
}

#[test]
fn the_null_engine_completes_what_it_is_told_to() {
    if !c::wanted("the null engine") {
        return;
    }
    let client = BED.client("null");
    for provider in Provider::BOTH {
        let mut command = BED.command(provider, &client, "none");
        let output =
            command.env("HOLDFAST_SIM_ENGINE", "null").env("HOLDFAST_LOG", "debug").output().unwrap();
        check(&output, &format!("{provider:?}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("mlx5_0"), provider == Provider::Holdfast, "who served: {said}");
    }
}

#[test]
fn a_removal_is_what_the_kernel_shows() {
    if !c::wanted("removals") {
        return;
    }
    let client = BED.client("removal");
    let output = BED.command(Provider::Stock, &client, "none").arg("200").output().unwrap();
    assert!(check(&output, "removal").contains("200 deaths"));
}

#[test]
fn a_forked_child_has_devices_of_its_own() {
    if !c::wanted("forks") {
        return;
    }
    let client = BED.client("forked");
    for provider in Provider::BOTH {
        let output = BED.command(provider, &client, &own_net()).output().unwrap();
        check(&output, &format!("forked with {provider:?}"));
    }
}

/// What queues and memory saw, of a journal; commands and stores are each provider's own.
fn essence(path: &Path) -> String {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut journal = Journal::read(file).unwrap();
    journal.entries.retain(|entry| matches!(entry.kind.as_str(), "wqe" | "receive" | "cqe" | "finding"));
    journal.normal()
}

#[test]
fn each_run_is_the_same_to_the_device_and_each_provider_too() {
    if !c::wanted("journals") {
        return;
    }
    let client = BED.client("steps");
    let run = |provider, name: &str| {
        let journal = BED.workshop.path().join(name);
        let mut command = BED.command(provider, &client, "none");
        command.env("HOLDFAST_SIM_ENGINE", "null").env("HOLDFAST_SIM_JOURNAL", &journal);
        check(&command.output().unwrap(), name);
        essence(&journal)
    };
    let stock = run(Provider::Stock, "stock");
    assert!(!stock.contains("finding"), "{stock}");
    // Eleven steps four times, six of them with a receive: a request, a completion, and with a receive two more.
    assert_eq!(stock.lines().count(), 4 * (11 * 2 + 6 * 2));
    assert_eq!(run(Provider::Stock, "again"), stock);
    assert_eq!(run(Provider::Holdfast, "holdfast"), stock);
}

/// What `verbs-death` says after any number of deaths, in ways and at moments of chance, when all is well. A program may be
/// woken by the kernel that closes its channel before the event is there.
const AFTER_DEATHS: &[(&str, &[&str])] = &[
    ("late", &["post_send=0 post_recv=0 post_srq_recv=0 arm=0"]),
    ("after_final", &["post_send=0 post_recv=0 post_srq_recv=0 arm=0"]),
    (
        "never_completed",
        &[
            "write=none send=none srq=none ud=none xrc=none atomic=none idle-block=none idle-poll=none idle-epoll=none \
           idle-edge=none",
        ],
    ),
    ("wrong", &["none"]),
    ("statuses", &["none"]),
    ("srq_receives", &["kept"]),
    ("sleeper.block", &["event", "EIO, event"]),
    ("sleeper.poll", &["event", "EIO, event", "ERR, event", "ERR, EIO, event"]),
    ("sleeper.epoll", &["event", "EIO, event", "ERR, event", "ERR, EIO, event"]),
    ("sleeper.edge", &["event", "EIO, event", "ERR, event", "ERR, EIO, event"]),
    ("qps", &["query_qp=ERR to_rts=EIO to_err=0 to_reset=0 to_init=EIO"]),
    (
        "calls",
        &[
            "create_cq=EIO create_qp=EIO create_srq=EIO reg_mr=EIO alloc_pd=EIO create_comp_channel=EIO resize_cq=EIO",
        ],
    ),
    ("destroy_waits_for_acknowledgement", &["yes"]),
    ("destroy", &["qp=0 ah=0 srq=0 cq=0 channel=0 xrcd=0 mr=0 pd=0 close=0"]),
    ("left", &["fds=0 maps=0 threads=0"]),
    ("events.remove", &["DEVICE_FATAL/0"]),
    ("events.kill", &["DEVICE_FATAL/1,DEVICE_FATAL/0"]),
    ("events.die", &["DEVICE_FATAL/1,DEVICE_FATAL/0"]),
    ("events.die-alive", &["DEVICE_FATAL/1,DEVICE_FATAL/0"]),
    ("events.error", &["DEVICE_FATAL/1,DEVICE_FATAL/0"]),
    ("events.lost", &["none"]),
    ("events.early-lost", &["DEVICE_FATAL/0"]),
    ("events.final-lost", &["DEVICE_FATAL/1"]),
    ("events.twice", &["DEVICE_FATAL/1,DEVICE_FATAL/1,DEVICE_FATAL/0,DEVICE_FATAL/0"]),
    ("events.silence", &["DEVICE_FATAL/1,DEVICE_FATAL/0"]),
    ("neighbour", &["goes_on=yes wrong=none statuses=none events=none"]),
    ("resident", &["steady"]),
];

/// The sources of `verbs-death`.
const DEATH: &[&str] =
    &["death.c", "death-ledger.c", "death-load.c", "death-wait.c", "death-calls.c", "common.c"];

/// `HOLDFAST_DEATHS`: how many; a thousand (`make test-full`) prove more than sixty.
#[test]
fn whatever_is_in_flight_ends_once_however_the_device_dies() {
    if !c::wanted("deaths") {
        return;
    }
    let deaths = std::env::var("HOLDFAST_DEATHS").unwrap_or_else(|_| "60".to_owned());
    let client = BED.verbs_client("death", DEATH);
    let mut command = BED.command(Provider::Holdfast, &client, "none");
    command.env("HOLDFAST_SIM_DEVICES", "2").env("HOLDFAST_FLUSH_AFTER", "300");
    command.args(["-a", "-o", "-L", "all", "-N", "mlx5_1", "-r", "100", "-l", "60", "-n", &deaths]);
    command.args(["-p", "holdfast", "mlx5_0"]);
    let text = check(&command.output().unwrap(), "deaths");
    let said: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("fact ")?.split_once(' ')).collect();
    let names = |names: &mut dyn Iterator<Item = &str>| {
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(
        names(&mut said.iter().map(|(name, _)| *name)),
        names(&mut AFTER_DEATHS.iter().map(|(name, _)| *name))
    );
    for (name, values) in said {
        let (_, known) = AFTER_DEATHS.iter().find(|(known, _)| *known == name).unwrap();
        // Several values have each the number of deaths behind it: `VALUE (N of M), VALUE (N of M)`.
        for value in values.split("), ") {
            let value = value.split(" (").next().unwrap();
            assert!(known.contains(&value), "{name}: {value}, of {known:?}\n{text}");
        }
    }
}

#[test]
fn the_example_goes_on_with_another_device() {
    if !c::wanted("the example of failover") {
        return;
    }
    let client = BED.verbs_client("failover", &["failover.c", "common.c"]);
    let script = BED.workshop.write("failover.script", "at doorbell 500: kill\n");
    for kills in [false, true] {
        let mut command = BED.command(Provider::Holdfast, &client, &own_net());
        command.env("HOLDFAST_SIM_DEVICES", "2");
        command.args(["-d", "mlx5_0", "-e", "mlx5_1", "-g", "0", "-p", "holdfast"]);
        if kills {
            command.arg("kill");
        } else {
            command.env("HOLDFAST_SIM_SCRIPT", &script);
        }
        let text = check(&command.output().unwrap(), "failover");
        assert!(text.contains("4 not executed and posted again"), "{text}");
    }
}

#[test]
fn both_providers_say_the_same_of_a_device_however_they_find_it() {
    let say = |provider, netlink| {
        let mut command = BED.command(provider, "ibv_devinfo", "none");
        let output = command.arg("-v").env("HOLDFAST_SIM_NETLINK", netlink).output().unwrap();
        check(&output, &format!("ibv_devinfo with {provider:?}, netlink {netlink}"))
    };
    let stock = say(Provider::Stock, "on");
    assert!(stock.contains("mlx5_0") && stock.contains("PORT_ACTIVE"), "{stock}");
    assert_eq!(say(Provider::Stock, "off"), stock);
    assert_eq!(say(Provider::Holdfast, "on"), stock);
    assert_eq!(say(Provider::Holdfast, "off"), stock);
}
