//! The bed under real programs: unmodified providers and tools, in the pairings that there are.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// Who serves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    Stock,
    Holdfast,
}

/// What all tests share.
struct Bed {
    library: PathBuf,
    /// What `RDMAV_DRIVERS` names: a plug-in's file without `-rdmavN.so`.
    holdfast: PathBuf,
    workshop: tempfile::TempDir,
}

static BED: LazyLock<Bed> = LazyLock::new(Bed::new);

/// A file that cargo left beside this test.
fn built(name: &str) -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name(name);
    let above = beside.parent().and_then(Path::parent).map(|directory| directory.join(name));
    let found = [Some(beside), above].into_iter().flatten().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("cargo left no {name}"))
}

impl Bed {
    fn new() -> Bed {
        let workshop = tempfile::tempdir().unwrap();
        let holdfast = workshop.path().join("libholdfast");
        for number in [33, 34, 57, 59, 64, 65] {
            let plugin = format!("{}-rdmav{number}.so", holdfast.display());
            std::os::unix::fs::symlink(built("libholdfast.so"), plugin).unwrap();
        }
        Bed { library: built("libholdfast_sim.so"), holdfast, workshop }
    }

    /// Compiles a client of `clients/`.
    fn client(&self, name: &str) -> PathBuf {
        self.compile(name, &[&format!("clients/{name}.c")])
    }

    /// Compiles `sources` of this package.
    fn compile(&self, name: &str, sources: &[&str]) -> PathBuf {
        let home = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = self.workshop.path().join(name);
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "gcc".into()));
        compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]);
        compiler.args(["-O2", "-g", "-o"]).arg(&program).args(sources.iter().map(|source| home.join(source)));
        let output = compiler
            .args(["-libverbs", "-ldl", "-lpthread"])
            .output()
            .expect("gcc and libibverbs-dev are needed");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        program
    }

    /// A program on the bed.
    fn command(&self, provider: Provider, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_PRELOAD", &self.library).env_remove("RDMAV_DRIVERS");
        if provider == Provider::Holdfast {
            command.env("RDMAV_DRIVERS", &self.holdfast);
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

fn each(run: impl Fn(Provider)) {
    [Provider::Stock, Provider::Holdfast].into_iter().for_each(run);
}

#[test]
fn the_null_engine_completes_what_it_is_told_to() {
    let client = BED.client("null");
    each(|provider| {
        let mut command = BED.command(provider, &client);
        let output =
            command.env("HOLDFAST_SIM_ENGINE", "null").env("HOLDFAST_LOG", "debug").output().unwrap();
        check(&output, &format!("{provider:?}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("mlx5_0"), provider == Provider::Holdfast, "who served: {said}");
    });
}

#[test]
fn a_removal_is_what_the_kernel_shows() {
    let client = BED.client("removal");
    let output = BED.command(Provider::Stock, &client).arg("200").output().unwrap();
    assert!(check(&output, "removal").contains("200 deaths"));
}

#[test]
fn many_who_know_a_device_outlive_it() {
    let client = BED.client("crowd");
    let output = BED.command(Provider::Holdfast, &client).output().unwrap();
    assert!(check(&output, "crowd").contains("1 rounds"));
}

#[test]
fn the_example_goes_on_with_another_device() {
    let client = BED.compile("failover", &["../clients/verbs/failover.c", "../clients/verbs/common.c"]);
    let script = BED.workshop.path().join("failover.script");
    std::fs::write(&script, "at doorbell 500: kill\n").unwrap();
    for kills in [false, true] {
        let mut command = BED.command(Provider::Holdfast, &client);
        command.env("HOLDFAST_SIM_DEVICES", "2").env("HOLDFAST_SIM_NET", "failover");
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
