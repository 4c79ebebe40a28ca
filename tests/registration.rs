//! Who serves which device: the built provider in real programs, with the libibverbs of this machine and a fake sysfs, and with
//! a libibverbs built from the recorded facts of each layout.
//!
//! No RDMA hardware or kernel driver is needed: libibverbs is shown devices by `SYSFS_PATH`, with `tests/c/shim.c`
//! preloaded. What is held: holdfast gets its devices in every way it can be loaded, first where it should be; nothing else
//! changes, for any other device or program.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may say what it did"
)]

mod c;

use c::recipe::{Recipe, layouts};
use holdfast::abi::host::describe;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the stock providers look for each other.
const CONFIG: &str = "/etc/libibverbs.d";

/// What all tests here share: a fake sysfs and the programs.
struct Bench {
    workshop: c::Workshop,
    number: u32,
    holdfast: PathBuf,
    shim: PathBuf,
}

static BENCH: LazyLock<Bench> = LazyLock::new(Bench::new);

impl Bench {
    fn new() -> Bench {
        let description = describe(Path::new("libibverbs.so.1"));
        let description = description.unwrap_or_else(|error| panic!("{error}. {}", c::WAY_OUT));
        assert!(
            Path::new(CONFIG).join("mlx5.driver").exists(),
            "no stock providers in {CONFIG}. {}",
            c::WAY_OUT
        );
        let workshop = c::Workshop::new();
        let shim = workshop.build("shim.so", &c::source("shim.c"), ["-shared", "-fPIC"]);
        let bench = Bench { workshop, number: description.number.unwrap(), holdfast: c::provider(), shim };
        let plugin = bench.plugin(&bench.path("plugin/libholdfast"));
        std::fs::create_dir_all(plugin.parent().unwrap()).unwrap();
        symlink(&bench.holdfast, plugin).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workshop.path().join(name)
    }

    /// The file libibverbs loads for `stem`.
    fn plugin(&self, stem: &Path) -> PathBuf {
        PathBuf::from(format!("{}-rdmav{}.so", stem.display(), self.number))
    }

    /// A sysfs with devices; names that begin with mlx5 have an mlx5 card's modalias. `NAME@9` has a kernel driver of ABI 9.
    fn sysfs(&self, devices: &[&str]) -> PathBuf {
        // One for each run: tests run at the same time, and a file being written is empty for a moment.
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let root = format!("sysfs-{}", RUNS.fetch_add(1, Ordering::Relaxed));
        let write = |name: &str, text: &str| self.workshop.write(&format!("{root}/class/{name}"), text);
        write("infiniband_verbs/abi_version", "6\n");
        for (index, device) in devices.iter().enumerate() {
            let (device, abi) = device.split_once('@').unwrap_or((device, "1"));
            let uverbs = format!("infiniband_verbs/uverbs{index}");
            write(&format!("{uverbs}/ibdev"), &format!("{device}\n"));
            write(&format!("{uverbs}/dev"), "1:3\n");
            write(&format!("{uverbs}/abi_version"), &format!("{abi}\n"));
            let modalias = if device.starts_with("mlx5") {
                "pci:v000015B3d00001017sv000015B3sd00000008bc02sc00i00\n"
            } else {
                "\n"
            };
            write(&format!("{uverbs}/device/modalias"), modalias);
            write(&format!("infiniband/{device}/device/modalias"), modalias);
            write(&format!("infiniband/{device}/node_type"), "1: CA\n");
            write(&format!("infiniband/{device}/node_guid"), "0000:0000:0000:0001\n");
            write(&format!("infiniband/{device}/fw_ver"), "\n");
        }
        self.path(&root)
    }

    /// The program that lists devices, linked with `arguments`.
    fn lister(&self, name: &str, arguments: &[&str]) -> PathBuf {
        self.workshop.build(name, &c::source("devices.c"), arguments.iter().chain(&["-ldl"]))
    }

    /// Runs `program` with the sysfs of `devices`, and nothing in its environment but what is given.
    fn run(&self, program: &Path, arguments: &[&str], devices: &[&str], way: &Way) -> Seen {
        let mut preload = OsString::from(&self.shim);
        for object in &way.preload {
            preload.push(":");
            preload.push(object);
        }
        let output = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("SYSFS_PATH", self.sysfs(devices))
            .env("HOLDFAST_CONF", "/dev/null")
            // One family, where a way does not say otherwise: who comes first does not depend on how many there are.
            .env("HOLDFAST_FAMILIES", "rxe")
            .env("LD_PRELOAD", preload)
            .env("KEEP", "this = as it is")
            .envs(way.variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        Seen::of(&output)
    }
}

/// How holdfast is put in a program's way.
#[derive(Default)]
struct Way {
    preload: Vec<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
}

impl Way {
    fn stock() -> Way {
        Way::default()
    }

    fn preload() -> Way {
        Way { preload: vec![BENCH.holdfast.clone()], ..Way::default() }
    }

    fn plugin() -> Way {
        Way::default().with("RDMAV_DRIVERS", BENCH.path("plugin/libholdfast"))
    }

    fn with(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Way {
        self.variables.push((name, value.as_ref().to_owned()));
        self
    }
}

/// What a program printed.
struct Seen {
    stdout: String,
    stderr: String,
}

impl Seen {
    fn of(output: &Output) -> Seen {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Seen { stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    fn all(&self, key: &str) -> BTreeSet<&str> {
        let lines = self.stdout.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        lines.collect()
    }

    fn only(&self, key: &str) -> &str {
        let all = self.all(key);
        assert_eq!(all.len(), 1, "{key}: {}\n{}", self.stdout, self.stderr);
        all.first().unwrap()
    }

    /// What holdfast said to a library that asked it twice about each of four devices.
    fn answers(&self) -> Vec<&str> {
        let answers: Vec<&str> =
            self.stdout.lines().map(|line| line.strip_prefix("holdfast-rxe: driver ").unwrap()).collect();
        let (first, second) = answers.split_at(answers.len() / 2);
        assert_eq!(first, second);
        first.to_vec()
    }

    /// Holds which provider each device got, and that nothing else is to be seen.
    fn served(&self, devices: &[&str]) {
        assert_eq!(self.all("device"), devices.iter().copied().collect(), "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stderr, "", "nobody asked for a word");
        assert_eq!(self.only("dlerror"), "none", "an error of ours was left for the program to find");
        assert_eq!(self.only("files"), "as before");
    }
}

/// Whether to run at all.
fn wanted(test: &str) -> bool {
    c::wanted(&format!("registration: {test}"))
}

#[test]
fn without_holdfast_stock_serves_all() {
    if !wanted("stock") {
        return;
    }
    let program = BENCH.lister("stock/lister", &["-libverbs"]);
    let seen = BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &Way::stock());
    seen.served(&["rxe0 rxe", "mlx5_0 mlx5"]);
    assert_eq!(seen.only("copies"), "0");
}

#[test]
fn a_plug_in_named_by_rdmav_drivers_gets_rxe_and_leaves_mlx5() {
    if !wanted("RDMAV_DRIVERS") {
        return;
    }
    let program = BENCH.lister("plugged/lister", &["-libverbs"]);
    let seen = BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &Way::plugin());
    seen.served(&["rxe0 holdfast-rxe", "mlx5_0 mlx5"]);
    let local = BENCH.lister("plugged/local", &["-DLOCAL"]);
    BENCH.run(&local, &[], &["rxe0"], &Way::plugin()).served(&["rxe0 holdfast-rxe"]);
}

#[test]
fn preloaded_it_comes_before_a_provider_that_the_program_links() {
    if !wanted("linked provider") {
        return;
    }
    let number = format!("-DNUMBER={}", BENCH.number);
    let provider = BENCH.workshop.build(
        "linked/libprovider.so",
        &c::source("provider.c"),
        ["-shared", "-fPIC", &number, "-libverbs"],
    );
    let directory = provider.parent().unwrap().to_str().unwrap();
    let (rpath, path) = (format!("-Wl,-rpath,{directory}"), format!("-L{directory}"));
    let linked = ["-Wl,--no-as-needed", &path, &rpath, "-lprovider", "-libverbs"];
    let program = BENCH.lister("linked/lister", &linked);

    // What makes the interposers necessary: the linked provider is there first, however ours is loaded.
    BENCH.run(&program, &[], &["rxe0"], &Way::stock()).served(&["rxe0 linked"]);
    BENCH.run(&program, &[], &["rxe0"], &Way::plugin()).served(&["rxe0 linked"]);
    BENCH.run(&program, &[], &["rxe0"], &Way::preload()).served(&["rxe0 holdfast-rxe"]);
    let now = Way::preload().with("LD_BIND_NOW", "1");
    BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &now).served(&["rxe0 holdfast-rxe", "mlx5_0 mlx5"]);
    // A kernel driver newer than we know: a line that says so, and the next provider has it.
    let seen = BENCH.run(&program, &[], &["rxe0@9"], &Way::preload());
    assert_eq!(seen.all("device"), BTreeSet::from(["rxe0 linked"]), "{}", seen.stderr);
    let line = "Driver holdfast-rxe does not support the kernel ABI of 9 (supports 1 to 2)";
    let said: Vec<&str> = seen.stderr.lines().filter(|line| line.contains("holdfast")).collect();
    assert!(matches!(said.as_slice(), [said] if said.contains(line)), "{}", seen.stderr);
    // Between us and libibverbs there may be another.
    let tracer = BENCH.workshop.build(
        "linked/tracer.so",
        &c::source("tracer.c"),
        ["-shared", "-fPIC", &number, "-ldl"],
    );
    let mut traced = Way::preload();
    traced.preload.push(tracer);
    let seen = BENCH.run(&program, &[], &["rxe0"], &traced);
    seen.served(&["rxe0 holdfast-rxe"]);
    assert!(seen.all("traced").contains("linked"), "{}", seen.stdout);
    // Its call is handed on: what holdfast does not take, it gets.
    BENCH
        .run(&program, &[], &["rxe0"], &Way::preload().with("HOLDFAST_FAMILIES", "none"))
        .served(&["rxe0 linked"]);
    BENCH.run(&program, &[], &["rxe0"], &Way::preload().with("HOLDFAST", "off")).served(&["rxe0 linked"]);
}

#[test]
fn a_program_that_links_libmlx5_keeps_stock_for_mlx5_and_gets_ours_for_rxe() {
    if !wanted("libmlx5") {
        return;
    }
    let program = BENCH.lister("mlx5/lister", &["-Wl,--no-as-needed", "-l:libmlx5.so.1", "-libverbs"]);
    for way in [Way::preload(), Way::preload().with("LD_BIND_NOW", "1")] {
        let seen = BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &way);
        seen.served(&["rxe0 holdfast-rxe", "mlx5_0 mlx5"]);
    }
    // With mlx5 devices alone there is nothing to tell that holdfast is there.
    let stock = BENCH.run(&program, &[], &["mlx5_0"], &Way::stock());
    for way in [Way::preload(), Way::plugin()] {
        let seen = BENCH.run(&program, &[], &["mlx5_0"], &way);
        seen.served(&["mlx5_0 mlx5"]);
        assert_eq!(seen.all("device"), stock.all("device"));
    }
}

#[test]
fn by_default_mlx5_is_ours_too_whoever_links_libmlx5() {
    if !wanted("libmlx5 taken") {
        return;
    }
    let linked = BENCH.lister("taken/linked", &["-Wl,--no-as-needed", "-l:libmlx5.so.1", "-libverbs"]);
    let plain = BENCH.lister("taken/plain", &["-libverbs"]);
    for (program, way) in [(&linked, Way::preload()), (&plain, Way::plugin()), (&plain, Way::preload())] {
        // Empty is as if it were not there.
        let seen = BENCH.run(program, &[], &["rxe0", "mlx5_0"], &way.with("HOLDFAST_FAMILIES", ""));
        seen.served(&["rxe0 holdfast-rxe", "mlx5_0 holdfast-mlx5"]);
    }
    let way = Way::preload().with("HOLDFAST_FAMILIES", "mlx5");
    BENCH.run(&linked, &[], &["mlx5_0"], &way).served(&["mlx5_0 holdfast-mlx5"]);
}

#[test]
fn ib_write_bw_binds_the_interposer_and_opens_holdfast() {
    if !wanted("ib_write_bw") {
        return;
    }
    let program = Path::new("/usr/bin/ib_write_bw");
    assert!(program.exists(), "no {}. {}", program.display(), c::WAY_OUT);
    let (bindings, log) = (BENCH.path("bindings"), BENCH.path("perftest.log"));
    let mut way = Way::preload()
        .with("LD_DEBUG", "bindings")
        .with("LD_DEBUG_OUTPUT", &bindings)
        .with("LD_BIND_NOW", "1");
    let mut name = OsString::from("debug:");
    name.push(&log);
    way = way.with("HOLDFAST_LOG", name);
    BENCH.run(program, &["-d", "rxe0"], &["rxe0", "mlx5_0"], &way);

    let symbol = format!("`verbs_register_driver_{}' [IBVERBS_PRIVATE_{}]", BENCH.number, BENCH.number);
    let bound: Vec<String> = std::fs::read_dir(BENCH.workshop.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().starts_with(bindings.to_str().unwrap()))
        .flat_map(|path| {
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|line| line.contains(&symbol) && line.contains("libmlx5.so.1"))
        .collect();
    assert!(!bound.is_empty(), "ib_write_bw no longer links libmlx5: {symbol}");
    assert!(bound.iter().all(|line| line.contains("libholdfast.so")), "{bound:?}");
    let log = std::fs::read_to_string(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    assert!(log.contains("cannot open the rxe device"), "holdfast was not asked to open rxe0: {log}");
}

#[test]
fn libibverbs_that_arrives_later_is_found() {
    if !wanted("dlopen") {
        return;
    }
    let program = BENCH.lister("local/lister", &["-DLOCAL"]);
    let seen = BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &Way::preload());
    seen.served(&["rxe0 holdfast-rxe", "mlx5_0 mlx5"]);
}

#[test]
fn two_copies_and_two_names_do_no_harm() {
    if !wanted("copies") {
        return;
    }
    let program = BENCH.lister("copies/lister", &["-libverbs"]);
    // The same file under two names is one object.
    let mut both = Way::plugin();
    both.preload.push(BENCH.holdfast.clone());
    let seen = BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &both);
    seen.served(&["rxe0 holdfast-rxe", "mlx5_0 mlx5"]);
    assert_eq!(seen.only("copies"), "1");

    let stem = BENCH.path("copies/libholdfast");
    let copy = BENCH.plugin(&stem);
    std::fs::copy(&BENCH.holdfast, &copy).unwrap();
    let mut other = Way::preload().with("RDMAV_DRIVERS", &stem);
    // One device that nobody has claimed, so that the plug-ins are loaded at all.
    let seen = BENCH.run(&program, &[], &["rxe0", "nobody0"], &other);
    seen.served(&["rxe0 holdfast-rxe"]);
    assert_eq!(seen.only("copies"), "2");
    // Two preloaded copies hand on to each other, and then to libibverbs.
    other.preload.push(copy);
    let linked = BENCH.lister("copies/mlx5", &["-Wl,--no-as-needed", "-l:libmlx5.so.1", "-libverbs"]);
    let seen = BENCH.run(&linked, &[], &["rxe0", "mlx5_0"], &other);
    seen.served(&["rxe0 holdfast-rxe", "mlx5_0 mlx5"]);
    assert_eq!(seen.only("copies"), "2");
}

#[test]
fn ours_come_first_and_each_call_is_handed_on_once_from_however_many_threads() {
    if !wanted("threads") {
        return;
    }
    let recipe = Recipe::of("pabi-65");
    let library = recipe.build(&BENCH.workshop, "threads");
    let (number, rpath) = (
        format!("-DNUMBER={}", recipe.number),
        format!("-Wl,-rpath,{}", library.parent().unwrap().display()),
    );
    let arguments = [number.as_str(), &rpath, "-ldl", "-lpthread"];
    let program = BENCH.workshop.build("threads/threads", &c::source("threads.c"), arguments);
    for _ in 0..50 {
        let seen = BENCH.run(&program, &[], &[], &Way::preload());
        assert!(seen.stdout.starts_with("holdfast-rxe: driver 14"), "{}\n{}", seen.stdout, seen.stderr);
        assert_eq!((seen.only("registered"), seen.stderr.as_str()), ("13", ""), "{}", seen.stdout);
        for thread in 0..12 {
            let asked = seen.stdout.matches(&format!("thread{thread}: driver 14")).count();
            assert_eq!(asked, 1, "thread{thread}: its call was handed on {asked} times");
        }
    }
}

#[test]
fn the_environment_and_other_programs_are_left_alone() {
    if !wanted("environment") {
        return;
    }
    let program = BENCH.lister("environment/lister", &["-libverbs"]);
    let without = |seen: &Seen| -> BTreeSet<String> {
        let given = ["LD_PRELOAD=", "SYSFS_PATH="];
        let variables = seen.all("env").into_iter();
        variables
            .filter(|variable| !given.iter().any(|name| variable.starts_with(name)))
            .map(str::to_owned)
            .collect()
    };
    let stock = BENCH.run(&program, &[], &["rxe0"], &Way::stock());
    let ours = BENCH.run(&program, &[], &["rxe0"], &Way::preload());
    ours.served(&["rxe0 holdfast-rxe"]);
    assert!(without(&stock).contains("KEEP=this = as it is"));
    assert_eq!(without(&ours), without(&stock));

    // A program without libibverbs: silent, the same output, and no libibverbs pulled in.
    for program in ["/bin/true", "/usr/bin/env"] {
        let stock = BENCH.run(Path::new(program), &[], &["rxe0"], &Way::stock());
        let ours = BENCH.run(Path::new(program), &[], &["rxe0"], &Way::preload());
        let plain = |seen: &Seen| -> Vec<String> {
            let given = ["LD_PRELOAD=", "SYSFS_PATH="];
            let lines = seen.stdout.lines().filter(|line| !given.iter().any(|name| line.starts_with(name)));
            lines.map(str::to_owned).collect()
        };
        assert_eq!((plain(&ours), ours.stderr.as_str()), (plain(&stock), ""), "{program}");
    }
    let maps = BENCH.run(Path::new("/bin/cat"), &["/proc/self/maps"], &["rxe0"], &Way::preload());
    assert!(maps.stdout.contains("libholdfast.so"), "{}", maps.stdout);
    assert!(!maps.stdout.contains("libibverbs"), "{}", maps.stdout);
}

#[test]
fn holdfast_off_and_families_none_are_silent_stock() {
    if !wanted("HOLDFAST=off") {
        return;
    }
    let program = BENCH.lister("off/lister", &["-libverbs"]);
    for (name, value) in [("HOLDFAST", "off"), ("HOLDFAST", "OFF"), ("HOLDFAST_FAMILIES", "none")] {
        for way in [Way::preload(), Way::plugin()] {
            let seen = BENCH.run(&program, &[], &["rxe0", "mlx5_0"], &way.with(name, value));
            seen.served(&["rxe0 rxe", "mlx5_0 mlx5"]);
        }
    }
    let on = BENCH.run(&program, &[], &["rxe0"], &Way::preload().with("HOLDFAST", "on"));
    on.served(&["rxe0 holdfast-rxe"]);
}

#[test]
fn a_libibverbs_of_each_layout_is_registered_with_and_its_device_taken() {
    if !wanted("each layout") {
        return;
    }
    for name in layouts() {
        let seen = ask(&Recipe::of(&name), &format!("each/{name}"), &Way::preload());
        // A device of another driver that is called rxe0 is not soft-RoCE.
        assert_eq!(
            seen.answers(),
            ["14, matched: yes", "0, matched: yes", "0, no match: no", "1, matched: no"],
            "{name}"
        );
        assert_eq!(seen.stderr, "", "{name}");
    }
}

#[test]
fn a_libibverbs_that_is_not_known_gets_one_line_and_keeps_its_own_providers() {
    if !wanted("unknown libibverbs") {
        return;
    }
    let one_line = |seen: &Seen, words: &[&str]| {
        assert_eq!(seen.stderr.lines().count(), 1, "{}", seen.stderr);
        for word in
            words.iter().chain(&["holdfast", "libibverbs.so.1", "33, 34, 57, 59, 64, 65", "stock", "doctor"])
        {
            assert!(seen.stderr.contains(word), "'{word}' in: {}", seen.stderr);
        }
    };
    let mut changed = Recipe::of("pabi-34-v44");
    changed.operations.insert(7, "magic".to_owned());
    let seen = ask(&changed, "unknown/changed", &Way::preload());
    assert_eq!(seen.answers(), ["14, matched: no", "0, matched: no", "0, no match: no", "1, matched: no"]);
    one_line(&seen, &["34", "77 operations instead of 76"]);
    // Nobody asked for a device of ours: not a word.
    let mut next = Recipe::of("pabi-65");
    next.number = 66;
    let seen = ask(&next, "unknown/next", &Way::preload());
    assert_eq!(seen.stdout, "");
    one_line(&seen, &["no provider of a known private ABI"]);
    let seen = ask(&next, "unknown/off", &Way::preload().with("HOLDFAST", "off"));
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), ("", ""));
}

/// Runs a program that asks every provider of `recipe`'s library for a soft-RoCE device, twice.
fn ask(recipe: &Recipe, name: &str, way: &Way) -> Seen {
    let library = recipe.build(&BENCH.workshop, name);
    let rpath = format!("-Wl,-rpath,{}", library.parent().unwrap().display());
    let program = BENCH.workshop.build(
        &format!("{name}/asks"),
        &c::source("asks.c"),
        [library.to_str().unwrap(), rpath.as_str(), "-ldl"],
    );
    BENCH.run(&program, &[], &[], way)
}

#[test]
fn the_library_exports_the_interposers_and_the_c_api_and_needs_no_libibverbs() {
    if !wanted("exports") {
        return;
    }
    let tool = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(c::provider()).output();
        c::stdout(
            &output
                .unwrap_or_else(|error| panic!("cannot run {program} (binutils): {error}. {}", c::WAY_OUT)),
        )
    };
    let symbols = tool("nm", &["-D", "--defined-only"]);
    let names: BTreeSet<&str> = symbols.lines().map(|line| line.split_whitespace().last().unwrap()).collect();
    let interposers: BTreeSet<String> = [33, 34, 57, 59, 64, 65]
        .iter()
        .map(|number| format!("verbs_register_driver_{number}"))
        .chain(["mlx5dv_query_device".to_owned()])
        .collect();
    for name in &interposers {
        // Without a version: the loader takes such a definition for a reference to any version.
        assert!(names.contains(name.as_str()), "{name} is not exported, or with a version: {symbols}");
    }
    let strangers: Vec<&&str> =
        names.iter().filter(|name| !interposers.contains(**name) && !name.starts_with("holdfast_")).collect();
    assert!(strangers.is_empty(), "exported by accident: {strangers:?}");

    let dynamic = tool("readelf", &["-d", "-W"]);
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    for line in &needed {
        let known = ["libc.so.6", "libgcc_s.so.1", "ld-linux", "libm.so.6"];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
    assert!(dynamic.contains("libholdfast.so") && dynamic.contains("NODELETE"), "{dynamic}");
    assert!(
        !dynamic.contains("INITFIRST"),
        "a constructor that runs first loses the process its environment"
    );
}
