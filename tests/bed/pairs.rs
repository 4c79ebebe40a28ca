//! Two processes, each with either provider: the tools of rdma-core and perftest, as they come.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::{BED, Provider, check, own_net};

/// A TCP port that nobody has at the moment; the tools want one to find each other.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The releases to try: this machine's, or one in a root of its own.
#[derive(Clone, Debug)]
struct Release {
    name: String,
    root: Option<PathBuf>,
    environment: Vec<(&'static str, String)>,
}

impl Release {
    fn here() -> Release {
        Release { name: "this machine's".to_owned(), root: None, environment: Vec::new() }
    }

    /// Those of `HOLDFAST_BED_ROOTS`, as `NAME=PATH:...`.
    fn others() -> Vec<Release> {
        let roots = std::env::var("HOLDFAST_BED_ROOTS").expect("HOLDFAST_BED_ROOTS: run tests/system/bed");
        let releases = roots.split(':').map(|item| {
            let (name, path) = item.split_once('=').expect("NAME=PATH");
            Release { name: name.to_owned(), root: Some(path.into()), environment: Vec::new() }
        });
        releases.collect()
    }

    /// A tool of this release, on the bed. A root's is started by the root's own dynamic linker, so that nobody has to be root.
    fn command(&self, provider: Provider, tool: &str, net: &str) -> Command {
        let Some(root) = &self.root else { return BED.command(provider, tool, net) };
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let mut command = BED.command(provider, root.join("lib64/ld-linux-x86-64.so.2"), net);
        command.arg("--library-path").arg(&libraries).arg(root.join("usr/bin").join(tool));
        if provider == Provider::Stock {
            command.env("RDMAV_DRIVERS", libraries.join("libibverbs/libmlx5"));
        }
        command
    }
}

pub(crate) fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs `tool` as server and client; what they said.
fn run(
    release: &Release,
    (server, client): (Provider, Provider),
    tool: &str,
    arguments: &[&str],
) -> [String; 2] {
    let what = format!("{tool} {arguments:?} of {release:?}, {server:?} with {client:?}");
    let (net, port) = (own_net(), free_port().to_string());
    let command = |provider| {
        let mut command = release.command(provider, tool, &net);
        command.envs(release.environment.iter().cloned()).args(["-p", &port]).args(arguments);
        command
    };
    let serving = start(command(server));
    // The tools give up at once when nobody listens yet.
    let said = loop {
        let mut command = command(client);
        let output = start({
            command.arg("localhost");
            command
        })
        .wait_with_output()
        .unwrap();
        let refused = String::from_utf8_lossy(&output.stderr).to_lowercase();
        if output.status.success() || !(refused.contains("couldn't connect") || refused.contains("refused")) {
            break output;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let served: Output = if said.status.success() {
        serving.wait_with_output().unwrap()
    } else {
        let mut serving = serving;
        let _ = serving.kill();
        serving.wait_with_output().unwrap()
    };
    [check(&said, &format!("client of {what}")), check(&served, &format!("server of {what}"))]
}

fn pairings() -> impl Iterator<Item = (Provider, Provider)> {
    Provider::BOTH.into_iter().flat_map(|server| Provider::BOTH.map(|client| (server, client)))
}

fn pingpong(release: &Release, kind: &str) {
    let tool = format!("ibv_{kind}_pingpong");
    for pairing in pairings() {
        for events in [false, true] {
            let mut arguments = vec!["-n", "50"];
            arguments.extend(events.then_some("-e"));
            // Where the tool can check the data, it does.
            arguments.extend((kind == "rc").then_some("-c"));
            let said = run(release, pairing, &tool, &arguments);
            for said in said {
                assert!(said.contains("50 iters in"), "{tool} with {pairing:?}: {said}");
            }
        }
    }
}

fn perftest(release: &Release, tool: &str) {
    // A processor whose speed varies is no failure.
    let arguments = ["-F", "-n", "100", "-s", "4096"];
    for pairing in pairings() {
        let [client, _] = run(release, pairing, tool, &arguments);
        // One line of figures for the size.
        let line = client.lines().find(|line| line.trim_start().starts_with("4096 "));
        let line = line.unwrap_or_else(|| panic!("{tool} with {pairing:?}: {client}"));
        assert_eq!(line.split_whitespace().nth(1), Some("100"), "{line}");
    }
}

#[test]
fn rc_pingpong() {
    pingpong(&Release::here(), "rc");
}

#[test]
fn uc_pingpong() {
    pingpong(&Release::here(), "uc");
}

#[test]
fn ud_pingpong() {
    pingpong(&Release::here(), "ud");
}

#[test]
fn srq_pingpong() {
    pingpong(&Release::here(), "srq");
}

#[test]
fn write_bw() {
    perftest(&Release::here(), "ib_write_bw");
}

#[test]
fn write_lat() {
    perftest(&Release::here(), "ib_write_lat");
}

#[test]
fn send_bw() {
    perftest(&Release::here(), "ib_send_bw");
}

#[test]
fn send_lat() {
    perftest(&Release::here(), "ib_send_lat");
}

#[test]
fn read_bw() {
    perftest(&Release::here(), "ib_read_bw");
}

#[test]
fn read_lat() {
    perftest(&Release::here(), "ib_read_lat");
}

/// The machine's libibverbs, and each that `HOLDFAST_TEST_LIBIBVERBS` names, under the tools of the machine, with holdfast at both
/// ends: it says which library it found.
#[test]
fn each_libibverbs_carries_traffic() {
    let named = std::env::var_os("HOLDFAST_TEST_LIBIBVERBS").unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    for (n, library) in std::iter::once(PathBuf::from("libibverbs.so.1")).chain(named).enumerate() {
        let log = BED.workshop.path().join(format!("traffic-{n}.log"));
        let directory = library.parent().unwrap().display().to_string();
        let release = Release {
            environment: vec![
                ("LD_LIBRARY_PATH", directory.clone()),
                ("HOLDFAST_LOG", format!("info:{}", log.display())),
            ],
            ..Release::here()
        };
        for kind in ["rc", "uc", "ud", "srq"] {
            for arguments in [&["-n", "50"][..], &["-n", "50", "-e"]] {
                let tool = format!("ibv_{kind}_pingpong");
                for said in run(&release, (Provider::Holdfast, Provider::Holdfast), &tool, arguments) {
                    assert!(said.contains("50 iters in"), "{tool} with {}: {said}", library.display());
                }
            }
        }
        let found = std::fs::read_to_string(log).unwrap();
        let found: Vec<&str> = found.lines().filter(|line| line.contains(": private ABI ")).collect();
        let meant = format!("{directory}/libibverbs.so.1");
        // A client that came before its server begins anew.
        assert!(found.len() >= 16 && found.iter().all(|line| line.contains(&meant)), "{meant}: {found:#?}");
    }
}

#[test]
#[ignore = "wants roots of other releases: tests/system/bed"]
fn other_releases() {
    for release in Release::others() {
        eprintln!("{}", release.name);
        for provider in Provider::BOTH {
            let output = release.command(provider, "ibv_devinfo", "none").output().unwrap();
            let said = check(&output, &format!("ibv_devinfo of {release:?}"));
            assert!(said.contains("mlx5_0"), "{said}");
        }
        for kind in ["rc", "uc", "ud", "srq"] {
            pingpong(&release, kind);
        }
        for tool in ["ib_write_bw", "ib_write_lat", "ib_send_bw", "ib_send_lat", "ib_read_bw", "ib_read_lat"]
        {
            perftest(&release, tool);
        }
    }
}
