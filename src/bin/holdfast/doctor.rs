//! `holdfast doctor`: what verbs programs meet on this system, which provider serves each device and why, and for each
//! trouble the way out.
//!
//! Files are read below a root, so that tests (and a chroot's owner) can bring their own. What only a running system can
//! answer goes through [`Live`]; code of others (libibverbs, its plug-ins) runs in a child, so that a crash of it is one
//! more finding.

use crate::drivers::{self, DriverFile, First, OURS, STOCK};
use crate::library::Library;
use crate::netlink;
use crate::system::{Root, Trouble, say};
use holdfast::abi::{ask, host};
use holdfast::config::{self, Config, Families};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Options of `holdfast doctor`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The same for machines
    #[arg(long)]
    json: bool,
    /// Look at the files of the system below this directory, and ask no kernel and no library
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Drivers by their number (`enum rdma_driver_id`): the kernel's name for people, and rdma-core's provider.
const DRIVERS: &[(u32, &str, &str)] = &[
    (1, "mlx5", "mlx5"),
    (2, "mlx4", "mlx4"),
    (4, "cxgb4", "cxgb4"),
    (5, "mthca", "mthca"),
    (6, "bnxt_re", "bnxt_re"),
    (7, "ocrdma", "ocrdma"),
    (9, "irdma", "irdma"),
    (10, "vmw_pvrdma", "vmw_pvrdma"),
    (11, "qedr", "qedr"),
    (12, "hns", "hns"),
    (14, "rxe", "rxe"),
    (15, "hfi1", "hfi1verbs"),
    (16, "qib", "ipathverbs"),
    (17, "efa", "efa"),
    (18, "siw", "siw"),
    (19, "erdma", "erdma"),
    (20, "mana", "mana"),
];

/// What libibverbs calls the version of the kernel's uverbs interface that it speaks.
const UVERBS_ABI: &str = "6";

/// Below this the registrations of ordinary programs fail; it is the kernel's own default since 5.16.
const MEMLOCK_LOW: u64 = 8 << 20;

/// `CAP_IPC_LOCK`: no limit on locked memory applies.
const CAP_IPC_LOCK: u32 = 14;

/// Device name and provider name, as libibverbs gave them.
type Providers = Vec<(String, String)>;

/// What only a running system answers.
trait Live {
    /// The devices as netlink tells them; `None` where nothing was asked.
    fn netlink(&self) -> Option<io::Result<BTreeMap<String, netlink::Told>>>;
    /// The private ABI layout of a libibverbs, or why holdfast declines it; an error when it could not be told.
    fn layout(&self, library: &Path) -> Option<Result<Result<String, String>, String>>;
    /// Which provider libibverbs gives each device.
    fn providers(&self, library: &Path) -> Option<Result<Providers, String>>;
    /// Opens a device node for reading and writing, and closes it.
    fn open(&self, node: &Path) -> Option<io::Result<()>>;
}

/// Nothing runs: only files are looked at.
struct FilesOnly;

impl Live for FilesOnly {
    fn netlink(&self) -> Option<io::Result<BTreeMap<String, netlink::Told>>> {
        None
    }
    fn layout(&self, _: &Path) -> Option<Result<Result<String, String>, String>> {
        None
    }
    fn providers(&self, _: &Path) -> Option<Result<Providers, String>> {
        None
    }
    fn open(&self, _: &Path) -> Option<io::Result<()>> {
        None
    }
}

/// This system.
struct Here;

impl Live for Here {
    fn netlink(&self) -> Option<io::Result<BTreeMap<String, netlink::Told>>> {
        Some(netlink::devices())
    }

    fn layout(&self, library: &Path) -> Option<Result<Result<String, String>, String>> {
        Some(ask_child("layout", library).and_then(|answer| {
            let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
            match (text("layout"), text("declined")) {
                (Some(layout), _) => Ok(Ok(layout)),
                (None, Some(why)) => Ok(Err(why)),
                (None, None) => Err("the answer was cut short".to_owned()),
            }
        }))
    }

    fn providers(&self, library: &Path) -> Option<Result<Providers, String>> {
        Some(ask_child("providers", library).and_then(|answer| {
            let pair = |entry: &Value| {
                Some((entry.get(0)?.as_str()?.to_owned(), entry.get(1)?.as_str()?.to_owned()))
            };
            let list = answer.get("providers").and_then(Value::as_array).ok_or("the answer was cut short")?;
            Ok(list.iter().filter_map(pair).collect())
        }))
    }

    fn open(&self, node: &Path) -> Option<io::Result<()>> {
        Some(fs::OpenOptions::new().read(true).write(true).open(node).map(drop))
    }
}

/// The hidden command of the child that runs other people's code.
pub(crate) const ASK: &str = "ask";

/// Options of the hidden `holdfast ask`.
#[derive(clap::Args)]
pub(crate) struct AskArgs {
    what: String,
    library: PathBuf,
}

/// Answers on stdout, as one line of JSON.
pub(crate) fn answer(args: &AskArgs) -> ExitCode {
    let answer = match args.what.as_str() {
        "layout" => host::describe(&args.library).map(|found| match found.layout {
            Ok(detected) => json!({ "layout": detected.layout.to_string() }),
            Err(why) => json!({ "declined": why.to_string() }),
        }),
        _ => ask::providers(&args.library).map(|list| json!({ "providers": list })),
    };
    match answer {
        Ok(answer) => {
            say(answer);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ask_child(what: &str, library: &Path) -> Result<Value, String> {
    let exe = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(exe)
        .args([ASK, what])
        .arg(library)
        .env_remove("HOLDFAST_LOG")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        return Err(format!("{} ({})", said.join("; "), output.status));
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    // A plug-in may have written on stdout as well.
    let line = answer.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).map_err(|error| error.to_string())
}

/// Where things are, and what may be asked.
struct Patient<'a> {
    root: Root,
    /// As the system names it.
    sysfs: PathBuf,
    env: &'a dyn Fn(&str) -> Option<OsString>,
    live: &'a dyn Live,
}

/// `holdfast doctor`.
pub(crate) fn doctor(args: &Args) -> Result<ExitCode, Trouble> {
    let here = args.root == Path::new("/");
    if !args.root.is_dir() {
        return Err(Trouble::new(
            format!("--root {} is not a directory", args.root.display()),
            "Give the top of a system's files",
        ));
    }
    let sysfs =
        env::var_os("SYSFS_PATH").filter(|path| here && !path.is_empty()).unwrap_or_else(|| "/sys".into());
    let live: &dyn Live = if here { &Here } else { &FilesOnly };
    // Another system's programs have another environment.
    let variable = |name: &str| if here { env::var_os(name) } else { None };
    let patient = Patient { root: Root::new(&args.root), sysfs: sysfs.into(), env: &variable, live };
    let report = Report::of(&patient);
    if args.json {
        say(format_args!("{:#}", report.json()));
    } else {
        say(report.text().trim_end());
    }
    Ok(ExitCode::from(report.status()))
}

/// One RDMA device.
#[derive(Debug, Default)]
struct Device {
    name: String,
    uverbs: Option<String>,
    driver: Option<&'static str>,
    stock: Option<&'static str>,
    family: Option<Families>,
    abi: Option<String>,
    netdev: Option<String>,
    ports: Vec<(String, String)>,
    access: String,
    provider: String,
    why: String,
    /// libibverbs itself named the provider.
    asked: bool,
}

/// Somebody who names a provider before libibverbs asks for one.
#[derive(Debug)]
struct Candidate {
    name: String,
    from: From,
    there: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    Preload,
    Variable(&'static str),
    File(PathBuf),
}

#[derive(Debug, Default)]
struct Report {
    library: Option<Library>,
    layout: Option<Result<String, String>>,
    installed: bool,
    order: Vec<(&'static str, First)>,
    kernel: Option<String>,
    uverbs_abi: Option<String>,
    modules: Vec<(&'static str, bool)>,
    memlock: String,
    container: Option<&'static str>,
    config: Option<Config>,
    devices: Vec<Device>,
    notes: Vec<String>,
    troubles: Vec<Trouble>,
    /// What could not be told, and why.
    unknown: Vec<String>,
}

impl Report {
    fn of(patient: &Patient<'_>) -> Report {
        let mut report = Report::default();
        report.look_at_container(patient);
        report.look_at_library(patient);
        report.look_at_settings(patient);
        let files = report.look_at_driver_files(patient);
        report.look_at_kernel(patient);
        report.look_at_devices(patient);
        report.look_at_memlock(patient);
        let candidates = report.candidates(patient, &files);
        report.choose(patient, &candidates);
        report
    }

    fn trouble(&mut self, what: impl Into<String>, way_out: impl Into<String>) {
        self.troubles.push(Trouble::new(what, way_out));
    }

    fn look_at_container(&mut self, patient: &Patient<'_>) {
        let marks = [
            ("/.dockerenv", "docker"),
            ("/run/.containerenv", "podman"),
            ("/run/systemd/container", "systemd-nspawn or another"),
        ];
        self.container = marks.iter().find(|(file, _)| patient.root.at(file).exists()).map(|(_, name)| *name);
    }

    /// " (in a container: ...)", where one is.
    fn in_container(&self, advice: &str) -> String {
        self.container.map_or_else(String::new, |_| format!("; this is a container: {advice}"))
    }

    fn look_at_library(&mut self, patient: &Patient<'_>) {
        let search = (patient.env)("LD_LIBRARY_PATH");
        let search: Vec<PathBuf> =
            search.iter().flat_map(env::split_paths).filter(|dir| dir.is_absolute()).collect();
        let library = match Library::find(&patient.root, &search) {
            Ok(library) => library,
            Err(trouble) => return self.troubles.push(trouble),
        };
        match patient.live.layout(&library.path) {
            Some(Ok(Ok(layout))) => self.layout = Some(Ok(layout)),
            Some(Ok(Err(why))) => {
                self.trouble(
                    format!("holdfast declines {}: {why}", library.path.display()),
                    format!(
                        "It serves the private ABIs {} as rdma-core released them: use the distribution's libibverbs, or a newer \
                         holdfast; until then the stock providers serve",
                        holdfast::abi::detect::supported()
                    ),
                );
                self.layout = Some(Err(why));
            }
            Some(Err(error)) => {
                self.unknown.push(format!("the layout of {}: {error}", library.path.display()))
            }
            None => {}
        }
        if let (Some(dir), Some(number)) = (&library.provider_dir, library.number) {
            self.installed = patient.root.at(patient.root.resolve(&plug_in(dir, OURS, number))).is_file();
        }
        self.library = Some(library);
    }

    /// What the settings let holdfast take.
    fn families(&self) -> Families {
        self.config.as_ref().map_or(Families::all(), |config| config.families)
    }

    fn look_at_settings(&mut self, patient: &Patient<'_>) {
        let (config, complaints) = config::read(patient.env, &patient.root.at(config::FILE));
        for complaint in complaints {
            self.trouble(complaint, "Correct that setting; until then its default applies");
        }
        if !Families::all().difference(config.families).is_empty() {
            self.notes
                .push(format!("settings: holdfast takes only these families: {}", config.families.names()));
        }
        self.config = Some(config);
        if self.off(patient) {
            self.notes.push("HOLDFAST=off is set: holdfast does nothing in programs started here".to_owned());
        }
    }

    fn off(&self, patient: &Patient<'_>) -> bool {
        (patient.env)("HOLDFAST").is_some_and(|value| value.eq_ignore_ascii_case("off") || value == "0")
    }

    fn look_at_driver_files(&mut self, patient: &Patient<'_>) -> Vec<DriverFile> {
        let Some(library) = self.library.clone() else { return Vec::new() };
        let files = match drivers::read(&patient.root, &library.config_dir) {
            Ok(files) => files,
            Err(trouble) => {
                self.troubles.push(trouble);
                return Vec::new();
            }
        };
        for file in &files {
            for line in &file.bad {
                self.trouble(
                    format!(
                        "{} has a line that libibverbs complains about in every program: '{line}'",
                        file.path.display()
                    ),
                    "Lines are empty, begin with '#', or read 'driver NAME'",
                );
            }
        }
        for (family, stock) in STOCK {
            let first = drivers::first(&files, stock);
            // Nobody waits for a family that the settings leave to stock.
            if let First::Chance { without, .. } = &first
                && self.families().contains(*family)
            {
                let names: Vec<String> = without.iter().map(|path| path.display().to_string()).collect();
                self.trouble(
                    format!(
                        "whether holdfast or stock '{stock}' is loaded first is chance, the order of a directory: {} names '{stock}' \
                         with no holdfast after it",
                        names.join(", ")
                    ),
                    "Run 'holdfast enable' to have holdfast first, or 'holdfast disable' to have stock first",
                );
            }
            self.order.push((stock, first));
        }
        files
    }

    fn look_at_kernel(&mut self, patient: &Patient<'_>) {
        self.kernel = text(&patient.root.at("/proc/sys/kernel/osrelease"));
        let sysfs = |path: &str| patient.root.at(patient.sysfs.join(path));
        self.uverbs_abi = text(&sysfs("class/infiniband_verbs/abi_version"));
        for module in ["ib_core", "ib_uverbs", "rdma_ucm", "rdma_rxe", "mlx5_ib"] {
            self.modules.push((module, sysfs(&format!("module/{module}")).is_dir()));
        }
        match self.uverbs_abi.as_deref() {
            Some(UVERBS_ABI) => {}
            Some(other) => self.trouble(
                format!("the kernel's uverbs ABI is {other}, and libibverbs and holdfast speak {UVERBS_ABI}"),
                "Run a kernel of this decade",
            ),
            None => {
                let container = self.in_container("load it on the host");
                self.trouble(
                    "the kernel's verbs interface (module ib_uverbs) is not loaded",
                    format!("Load it: modprobe ib_uverbs{container}"),
                );
            }
        }
    }

    fn look_at_devices(&mut self, patient: &Patient<'_>) {
        let told = match patient.live.netlink() {
            Some(Ok(told)) => told,
            // Kernels without RDMA have no such socket, and libibverbs turns to sysfs then, as we do.
            Some(Err(error)) => {
                if self.modules.contains(&("ib_core", true)) {
                    self.notes
                        .push(format!("RDMA netlink could not be asked ({error}): drivers are told by name"));
                }
                BTreeMap::new()
            }
            None => BTreeMap::new(),
        };
        let class = patient.root.at(patient.sysfs.join("class/infiniband"));
        let verbs = patient.root.at(patient.sysfs.join("class/infiniband_verbs"));
        let mut names = entries(&class);
        names.extend(told.keys().cloned());
        names.sort();
        names.dedup();
        let nodes: BTreeMap<String, String> = entries(&verbs)
            .into_iter()
            .filter_map(|node| Some((text(&verbs.join(&node).join("ibdev"))?, node)))
            .collect();
        for name in names {
            let dir = class.join(&name);
            let told = told.get(&name);
            let uverbs = told.and_then(|told| told.uverbs.clone()).or_else(|| nodes.get(&name).cloned());
            let number = told.and_then(|told| told.driver).or_else(|| by_files(&name, &dir));
            let driver = DRIVERS.iter().find(|(id, ..)| Some(*id) == number);
            let stock = driver.map(|(_, _, stock)| *stock);
            let mut device = Device {
                abi: uverbs.as_ref().and_then(|node| text(&verbs.join(node).join("abi_version"))),
                driver: driver.map(|(_, name, _)| *name),
                stock,
                family: STOCK.iter().find(|(_, name)| Some(*name) == stock).map(|(family, _)| *family),
                netdev: text(&dir.join("parent")),
                uverbs,
                name,
                ..Device::default()
            };
            let mut ports = entries(&dir.join("ports"));
            ports.sort();
            for port in ports {
                let state = text(&dir.join("ports").join(&port).join("state")).unwrap_or_default();
                // "4: ACTIVE"
                let state = state.split(": ").last().unwrap_or_default().to_owned();
                let link = text(&dir.join("ports").join(&port).join("link_layer")).unwrap_or_default();
                self.look_at_port(&device, &port, &state, &link);
                device.ports.push((port, state));
            }
            self.look_at_node(patient, &mut device);
            self.devices.push(device);
        }
        if self.devices.is_empty() {
            self.no_device(patient);
        }
    }

    fn look_at_port(&mut self, device: &Device, port: &str, state: &str, link_layer: &str) {
        let way_out = match (state, link_layer, device.netdev.as_deref()) {
            ("DOWN", "InfiniBand", _) => {
                "Connect the cable, and look at the port on the other end".to_owned()
            }
            ("DOWN", _, Some(netdev)) => {
                format!("Bring its network interface up: ip link set {netdev} up")
            }
            ("DOWN", _, None) => {
                "Connect the cable and bring its network interface up: ip link set DEV up".to_owned()
            }
            ("INIT" | "ARMED", "InfiniBand", _) => {
                "It waits for a subnet manager: start one on the fabric (opensm), or ask its administrator"
                    .to_owned()
            }
            _ => return,
        };
        self.trouble(format!("port {port} of {} is {state}: nothing can be sent", device.name), way_out);
    }

    fn look_at_node(&mut self, patient: &Patient<'_>, device: &mut Device) {
        let Some(node) = &device.uverbs else {
            device.access = "no uverbs node".to_owned();
            return self.trouble(
                format!("{} has no uverbs node: libibverbs does not list it", device.name),
                "Load the verbs interface: modprobe ib_uverbs",
            );
        };
        let path = Path::new("/dev/infiniband").join(node);
        let real = patient.root.at(&path);
        let shown = path.display();
        if !real.exists() {
            device.access = "missing".to_owned();
            let container = self.in_container(&format!("start it with --device={shown}"));
            return self.trouble(
                format!("{shown} is missing, so libibverbs leaves {} out", device.name),
                format!("udev makes it (udevadm trigger){container}"),
            );
        }
        match patient.live.open(&real) {
            None => device.access = "not tried".to_owned(),
            Some(Ok(())) => device.access = "read and write".to_owned(),
            Some(Err(error)) => {
                device.access = error.to_string();
                let way_out = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        let container = self.in_container(&format!(
                            "its device rules must allow it as well: start it with --device={shown}"
                        ));
                        format!(
                            "Give users access: chmod 666 {shown}, for good by rdma-core's udev rules (mode 0666), or run as root{container}"
                        )
                    }
                    _ => "The device is going away or was reset: look at dmesg".to_owned(),
                };
                self.trouble(format!("{shown} cannot be opened: {error}"), way_out);
            }
        }
    }

    fn no_device(&mut self, patient: &Patient<'_>) {
        let nets = entries(&patient.root.at(patient.sysfs.join("class/net")));
        let net = nets
            .iter()
            .find(|name| *name != "lo" && !name.starts_with("bonding"))
            .map_or("eth0", String::as_str);
        let make = format!("modprobe rdma_rxe && rdma link add rxe0 type rxe netdev {net}");
        let release = self.kernel.clone().unwrap_or_default();
        let modules = patient.root.at(format!("/lib/modules/{release}"));
        let lists = ["modules.dep", "modules.builtin"]
            .map(|file| fs::read_to_string(modules.join(file)).unwrap_or_default());
        let missing = !self.modules.contains(&("rdma_rxe", true))
            && lists.iter().any(|list| !list.is_empty())
            && !lists.iter().any(|list| list.contains("rdma_rxe"));
        let way_out = if missing {
            format!(
                "Plug in an RDMA adapter, or install a kernel with soft-RoCE: {release} has no module rdma_rxe (Debian's cloud kernels \
                 leave it out, linux-image-amd64 has it); then {make}"
            )
        } else {
            format!("Plug in an RDMA adapter, or make a soft-RoCE device on any network interface: {make}")
        };
        let container = self.in_container("that has to be done on the host");
        self.trouble("there is no RDMA device", format!("{way_out}{container}"));
    }

    fn look_at_memlock(&mut self, patient: &Patient<'_>) {
        let limits = text(&patient.root.at("/proc/self/limits")).unwrap_or_default();
        let status = text(&patient.root.at("/proc/self/status")).unwrap_or_default();
        let soft =
            limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next());
        let exempt = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
            .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1);
        self.memlock = match (soft, exempt) {
            (Some("unlimited"), _) => "unlimited".to_owned(),
            (Some(bytes), true) => format!("{} (not applied: CAP_IPC_LOCK)", size(bytes)),
            (Some(bytes), false) => {
                if bytes.parse().is_ok_and(|bytes: u64| bytes < MEMLOCK_LOW) {
                    let container = self.in_container("start it with --ulimit memlock=-1");
                    self.trouble(
                        format!("at most {} may be locked (RLIMIT_MEMLOCK): registering memory fails with ENOMEM beyond that", size(bytes)),
                        format!(
                            "Raise it: '* - memlock unlimited' in /etc/security/limits.conf and a new login, LimitMEMLOCK=infinity in a \
                             systemd unit{container}"
                        ),
                    );
                }
                size(bytes)
            }
            (None, _) => "unknown".to_owned(),
        };
    }

    /// Everybody who names a provider, in the order in which libibverbs will ask.
    fn candidates(&mut self, patient: &Patient<'_>, files: &[DriverFile]) -> Vec<Candidate> {
        let (dir, number) = match &self.library {
            Some(library) => (library.provider_dir.clone(), library.number),
            None => (None, None),
        };
        let there = |name: &str| {
            let Some(number) = number else { return true };
            let file = if name.starts_with('/') {
                PathBuf::from(format!("{name}-rdmav{number}.so"))
            } else {
                plug_in(dir.as_deref().unwrap_or(Path::new("/")), name, number)
            };
            patient.root.at(patient.root.resolve(&file)).is_file()
        };
        let mut candidates = Vec::new();
        let system_wide = text(&patient.root.at("/etc/ld.so.preload")).unwrap_or_default();
        let preload = (patient.env)("LD_PRELOAD").unwrap_or_default();
        for item in format!("{} {system_wide}", preload.to_string_lossy()).split([' ', ':', '\n']) {
            let file = Path::new(item).file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !file.starts_with("libholdfast") {
                continue;
            }
            let there = !item.contains('/') || patient.root.at(item).is_file();
            if !there {
                self.trouble(
                    format!("LD_PRELOAD names {item}, which is not there: every program started here complains, and goes on without"),
                    "Correct the path, or use 'holdfast run', which sets it",
                );
            }
            candidates.push(Candidate { name: OURS.to_owned(), from: From::Preload, there });
        }

        let set = |name: &str| (patient.env)(name).map(|value| value.to_string_lossy().into_owned());
        let (variable, list) = match (set("RDMAV_DRIVERS"), set("IBV_DRIVERS")) {
            (Some(list), _) => ("RDMAV_DRIVERS", list),
            (None, Some(list)) => ("IBV_DRIVERS", list),
            (None, None) => ("", String::new()),
        };
        for name in list.split([':', ';']).filter(|_| !variable.is_empty()) {
            let there = there(name);
            if !there {
                let way_out = match (name.split_once("-rdmav"), name.strip_suffix(".so")) {
                    (Some((stem, _)), _) => {
                        format!("Leave the ending off, libibverbs adds it: {variable}={stem}")
                    }
                    (None, Some(stem)) => {
                        format!("Leave the ending off, libibverbs adds '-rdmavNN.so': {variable}={stem}")
                    }
                    (None, None) if name.contains('/') && !name.starts_with('/') => {
                        format!("A path has to begin with '/': {variable}=$PWD/{name}")
                    }
                    (None, None) => "Correct the path, or use 'holdfast run', which sets it".to_owned(),
                };
                let number = number.map_or_else(|| "NN".to_owned(), |number| number.to_string());
                self.trouble(
                    format!("{variable} names '{name}', and there is no such plug-in ('{name}' with '-rdmav{number}.so' after it)"),
                    way_out,
                );
            }
            candidates.push(Candidate { name: name.to_owned(), from: From::Variable(variable), there });
        }
        for (name, path) in drivers::load_order(files) {
            candidates.push(Candidate {
                name: name.to_owned(),
                from: From::File(path.to_owned()),
                there: there(name),
            });
        }
        candidates
    }

    /// Fills in each device's provider, by the rules and, where libibverbs can be asked, by its answer.
    fn choose(&mut self, patient: &Patient<'_>, candidates: &[Candidate]) {
        let asked = match &self.library {
            Some(library) if !self.devices.is_empty() => patient.live.providers(&library.path),
            _ => None,
        };
        let asked = match asked {
            Some(Ok(providers)) => Some(providers),
            Some(Err(error)) => {
                self.unknown.push(format!("which providers libibverbs gives: {error}"));
                None
            }
            None => None,
        };
        let families = self.families();
        let off = self.off(patient);
        let declined = matches!(self.layout, Some(Err(_)));
        let mut troubles = Vec::new();
        for device in &mut self.devices {
            let leaves = if off {
                Some("HOLDFAST=off".to_owned())
            } else if declined {
                Some("holdfast declines this libibverbs".to_owned())
            } else if device.family.is_none_or(|family| !families.contains(family)) {
                Some(match device.family {
                    Some(family) => format!("the settings leave {} out", family.names()),
                    None => "holdfast does not drive such devices".to_owned(),
                })
            } else {
                None
            };
            let (mut provider, mut why) = expect(device, candidates, leaves.as_deref(), &self.order);
            if let Some(asked) = &asked {
                let answer = asked.iter().find(|(name, _)| *name == device.name);
                let found = match answer {
                    Some((_, by)) if by.starts_with("holdfast") => OURS.to_owned(),
                    Some((_, by)) => by.clone(),
                    None => NOBODY.to_owned(),
                };
                device.asked = true;
                if found != provider {
                    if device.access != "missing" && device.uverbs.is_some() {
                        troubles.push(Trouble::new(
                            format!("libibverbs gives {} to {found}, though by its files and variables it should be {provider}", device.name),
                            "Run the program with HOLDFAST_LOG=info and IBV_SHOW_WARNINGS=1 to see why, and please report it",
                        ));
                    }
                    why = "so libibverbs answered".to_owned();
                    provider = found;
                }
            }
            device.provider = provider;
            device.why = why;
        }
        self.troubles.extend(troubles);
    }

    fn status(&self) -> u8 {
        if !self.troubles.is_empty() {
            1
        } else if !self.unknown.is_empty() {
            2
        } else {
            0
        }
    }

    fn enabled(&self) -> Vec<&'static str> {
        let taken = |stock: &str| {
            STOCK.iter().any(|(family, name)| *name == stock && self.families().contains(*family))
        };
        self.order
            .iter()
            .filter(|(stock, first)| taken(stock) && matches!(first, First::Holdfast | First::OnlyHoldfast))
            .map(|(stock, _)| *stock)
            .collect()
    }

    fn json(&self) -> Value {
        let library = self.library.as_ref().map(|library| {
            json!({
                "path": library.path,
                "release": library.release,
                "private_abi": library.number,
                "layout": self.layout.as_ref().and_then(|layout| layout.as_ref().ok()),
                "declined": self.layout.as_ref().and_then(|layout| layout.as_ref().err()),
                "provider_dir": library.provider_dir,
                "config_dir": library.config_dir,
            })
        });
        let devices: Vec<Value> = self
            .devices
            .iter()
            .map(|device| {
                json!({
                    "name": device.name,
                    "uverbs": device.uverbs,
                    "abi_version": device.abi,
                    "driver": device.driver,
                    "netdev": device.netdev,
                    "ports": device.ports.iter().map(|(port, state)| json!({ "port": port, "state": state })).collect::<Vec<_>>(),
                    "access": device.access,
                    "provider": device.provider,
                    "why": device.why,
                    "asked": device.asked,
                })
            })
            .collect();
        let troubles: Vec<Value> = self
            .troubles
            .iter()
            .map(|trouble| json!({ "what": trouble.what, "way_out": trouble.way_out }))
            .collect();
        let modules: BTreeMap<&str, bool> = self.modules.iter().copied().collect();
        json!({
            "holdfast": {
                "version": env!("CARGO_PKG_VERSION"),
                "installed": self.installed,
                "enabled": self.enabled(),
                "families": self.config.as_ref().map(|config| config.families.names()),
            },
            "libibverbs": library,
            "kernel": { "release": self.kernel, "uverbs_abi": self.uverbs_abi, "modules": modules },
            "memlock": self.memlock,
            "container": self.container,
            "devices": devices,
            "notes": self.notes,
            "troubles": troubles,
            "unknown": self.unknown,
            "status": self.status(),
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(out, "{key:<12}{value}");
        };
        match &self.library {
            Some(library) => {
                let release = library
                    .release
                    .as_ref()
                    .map_or_else(String::new, |release| format!(" (rdma-core {release})"));
                line("libibverbs", &format!("{}{release}", library.path.display()));
                let number = library.number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
                match &self.layout {
                    Some(Ok(layout)) => line("", &format!("private ABI {layout}: served by holdfast")),
                    Some(Err(_)) => line("", &format!("private ABI {number}: not served by holdfast")),
                    None => line("", &format!("private ABI {number}")),
                }
                let dir = library
                    .provider_dir
                    .as_ref()
                    .map_or_else(|| "none".to_owned(), |dir| dir.display().to_string());
                line("", &format!("plug-ins in {dir}, driver files in {}", library.config_dir.display()));
            }
            None => line("libibverbs", "not found"),
        }
        let enabled = self.enabled();
        let state = match (self.installed, enabled.is_empty()) {
            (_, false) => format!("the system's default for {}", enabled.join(", ")),
            (true, true) => {
                "installed, not the system's default ('holdfast enable' makes it that)".to_owned()
            }
            (false, true) => "not installed ('make install'); 'holdfast run' works without".to_owned(),
        };
        line("holdfast", &format!("{}, {state}", env!("CARGO_PKG_VERSION")));
        let loaded: Vec<&str> =
            self.modules.iter().filter(|(_, loaded)| *loaded).map(|(name, _)| *name).collect();
        line(
            "kernel",
            &format!(
                "{}, uverbs ABI {}, modules {}",
                self.kernel.as_deref().unwrap_or("unknown"),
                self.uverbs_abi.as_deref().unwrap_or("none"),
                if loaded.is_empty() { "none".to_owned() } else { loaded.join(" ") }
            ),
        );
        line("memlock", &self.memlock);
        if let Some(container) = self.container {
            line("container", container);
        }
        for device in &self.devices {
            let ports: Vec<String> =
                device.ports.iter().map(|(port, state)| format!("port {port} {state}")).collect();
            let on = device.netdev.as_ref().map_or_else(String::new, |netdev| format!(" on {netdev}"));
            let node = device
                .uverbs
                .as_ref()
                .map_or_else(String::new, |node| format!(", /dev/infiniband/{node} ({})", device.access));
            let abi = device.abi.as_ref().map_or_else(String::new, |abi| format!(", driver ABI {abi}"));
            line(
                &device.name,
                &format!(
                    "{}{on}{node}{abi}, {}",
                    device.driver.unwrap_or("unknown driver"),
                    ports.join(", ")
                ),
            );
            line("", &format!("gets {}: {}", device.provider, device.why));
        }
        for note in &self.notes {
            line("note", note);
        }
        for unknown in &self.unknown {
            line("not told", unknown);
        }
        for trouble in &self.troubles {
            line("trouble", &trouble.what);
            line("  way out", &trouble.way_out);
        }
        if self.status() == 0 {
            line("", "Nothing is in the way.");
        }
        out
    }
}

/// What a device gets when nobody takes it: libibverbs does not list it.
const NOBODY: &str = "nobody";

/// The provider `device` gets by libibverbs's rules, and why; `leaves` is why holdfast would not take it if asked.
fn expect(
    device: &Device,
    candidates: &[Candidate],
    leaves: Option<&str>,
    order: &[(&'static str, First)],
) -> (String, String) {
    let mut passed_over = None;
    for candidate in candidates.iter().filter(|candidate| candidate.there) {
        let from = match &candidate.from {
            From::Preload => "LD_PRELOAD brings it before any other".to_owned(),
            From::Variable(name) => format!("{name} names it, which comes before the driver files"),
            From::File(path) => format!("{} names it", path.display()),
        };
        if drivers::is(&candidate.name, OURS) {
            match leaves {
                None => {
                    let why = match (
                        &candidate.from,
                        device.stock.and_then(|stock| order.iter().find(|(name, _)| *name == stock)),
                    ) {
                        (From::File(_), Some((stock, First::Holdfast))) => {
                            format!(
                                "the driver files name holdfast in front of stock '{stock}' (holdfast enable)"
                            )
                        }
                        (From::File(_), Some((stock, First::Chance { .. }))) => {
                            format!("by chance: a directory's order put it before stock '{stock}'")
                        }
                        _ => from,
                    };
                    return (OURS.to_owned(), why);
                }
                Some(why) => {
                    passed_over = passed_over.or(Some(format!("holdfast is asked first ({from}), but {why}")))
                }
            }
        } else if device.stock.is_some_and(|stock| drivers::is(&candidate.name, stock)) {
            let chance = matches!(
                (&candidate.from, order.iter().find(|(name, _)| Some(*name) == device.stock)),
                (From::File(_), Some((_, First::Chance { .. })))
            );
            let why = match (passed_over, leaves) {
                (Some(why), _) => why,
                (None, Some(why)) => why.to_owned(),
                (None, None) if chance => "by chance: a directory's order put it before holdfast".to_owned(),
                (None, None) => format!(
                    "{from}, and nothing puts holdfast in front of it ('holdfast run' or 'holdfast enable' would)"
                ),
            };
            return (candidate.name.clone(), why);
        }
    }
    let stock = device.stock.map_or_else(String::new, |stock| format!(" (stock would be '{stock}')"));
    (NOBODY.to_owned(), format!("no installed plug-in is for it{stock}, so libibverbs does not list it"))
}

fn plug_in(dir: &Path, name: &str, number: u32) -> PathBuf {
    dir.join(format!("lib{name}-rdmav{number}.so"))
}

/// A driver's number by what sysfs shows: libibverbs's own way where netlink does not answer.
fn by_files(name: &str, dir: &Path) -> Option<u32> {
    let module = fs::read_link(dir.join("device/driver")).ok();
    let module =
        module.as_deref().and_then(Path::file_name).and_then(|module| module.to_str()).unwrap_or_default();
    DRIVERS
        .iter()
        .find(|(_, driver, _)| {
            module.trim_end_matches("_core").trim_end_matches("_ib") == *driver
                || (module.is_empty() && matches!(*driver, "rxe" | "siw") && name.starts_with(driver))
        })
        .map(|(id, ..)| *id)
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| dir.join(name).is_dir())
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).trim_end().to_owned())
}

fn size(bytes: &str) -> String {
    match bytes.parse::<u64>() {
        Ok(bytes) if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        Ok(bytes) => format!("{} KiB", bytes >> 10),
        Err(_) => bytes.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library;

    const LIB: &str = "/usr/lib/x86_64-linux-gnu";

    /// A healthy Debian 12 with holdfast installed and one soft-RoCE device.
    struct Fake {
        _dir: tempfile::TempDir,
        root: Root,
        env: Vec<(&'static str, String)>,
        live: FakeLive,
    }

    #[derive(Default)]
    struct FakeLive {
        layout: Option<Result<Result<String, String>, String>>,
        providers: Option<Result<Providers, String>>,
        driver: Option<u32>,
        open: Option<io::ErrorKind>,
    }

    impl Live for FakeLive {
        fn netlink(&self) -> Option<io::Result<BTreeMap<String, netlink::Told>>> {
            let told = netlink::Told { uverbs: Some("uverbs0".into()), driver: Some(self.driver?) };
            Some(Ok(BTreeMap::from([("rxe0".into(), told)])))
        }
        fn layout(&self, _: &Path) -> Option<Result<Result<String, String>, String>> {
            self.layout.clone()
        }
        fn providers(&self, _: &Path) -> Option<Result<Providers, String>> {
            self.providers.clone()
        }
        fn open(&self, _: &Path) -> Option<io::Result<()>> {
            Some(self.open.map_or(Ok(()), |kind| Err(kind.into())))
        }
    }

    impl Fake {
        fn new() -> Fake {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new(dir.path());
            library::tests::fake(&root, LIB, "44.0", 34);
            let fake = Fake {
                _dir: dir,
                root,
                env: Vec::new(),
                live: FakeLive { layout: Some(Ok(Ok("34 (rdma-core 44)".into()))), ..FakeLive::default() },
            };
            for name in ["holdfast", "rxe", "mlx5", "mlx4"] {
                fake.write(&format!("{LIB}/libibverbs/lib{name}-rdmav34.so"), "");
            }
            fake.write("/etc/libibverbs.d/rxe.driver", "driver rxe\n");
            fake.write("/etc/libibverbs.d/mlx5.driver", "driver mlx5\n");
            fake.write("/etc/libibverbs.d/mlx4.driver", "driver mlx4\n");
            fake.write(
                "/etc/libibverbs.d/holdfast.driver",
                include_str!("../../../providers.d/holdfast.driver"),
            );
            fake.write("/proc/sys/kernel/osrelease", "6.1.0-50-amd64\n");
            fake.write("/proc/self/limits", "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         unlimited            unlimited            bytes\n");
            fake.write("/proc/self/status", "CapEff:\t0000000000000000\n");
            fake.write("/sys/class/infiniband_verbs/abi_version", "6\n");
            fake.write("/sys/class/infiniband_verbs/uverbs0/ibdev", "rxe0\n");
            fake.write("/sys/class/infiniband_verbs/uverbs0/abi_version", "2\n");
            fake.write("/sys/class/infiniband/rxe0/parent", "eth0\n");
            fake.write("/sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n");
            fake.write("/sys/class/net/eth0/x", "");
            for module in ["ib_core", "ib_uverbs", "rdma_rxe"] {
                fake.write(&format!("/sys/module/{module}/x"), "");
            }
            fake.write("/dev/infiniband/uverbs0", "");
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn remove(&self, path: &str) {
            let path = self.root.at(path);
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }

        fn enable(&self) {
            for name in ["rxe", "mlx5", "holdfast"] {
                let path = self.root.at(format!("/etc/libibverbs.d/{name}.driver"));
                let text = fs::read(&path).unwrap();
                fs::write(&path, drivers::Block::with(&text, &["driver holdfast".into()])).unwrap();
            }
        }

        fn report(&self) -> Report {
            let env =
                |name: &str| self.env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            Report::of(&Patient {
                root: self.root.clone(),
                sysfs: "/sys".into(),
                env: &env,
                live: &self.live,
            })
        }

        /// The one trouble there is, which says all of `words`.
        fn one_trouble(&self, words: &[&str]) {
            let report = self.report();
            assert_eq!(report.troubles.len(), 1, "{:#?}", report.troubles);
            assert_eq!(report.status(), 1);
            let text = report.troubles[0].to_string();
            for word in words {
                assert!(text.contains(word), "{word}: {text}");
            }
            assert!(report.text().contains(&report.troubles[0].way_out));
        }

        fn gets(&self, provider: &str, word: &str) {
            let report = self.report();
            let device = report.devices.iter().find(|device| device.name == "rxe0").unwrap();
            assert_eq!(device.provider, provider, "{}", device.why);
            assert!(device.why.contains(word), "{}", device.why);
        }
    }

    #[test]
    fn a_healthy_system_has_nothing_in_the_way() {
        let fake = Fake::new();
        let report = fake.report();
        assert_eq!(report.status(), 0, "{}", report.text());
        let text = report.text();
        for word in [
            "44.0",
            "private ABI 34 (rdma-core 44): served",
            "6.1.0-50-amd64",
            "uverbs ABI 6",
            "rxe on eth0",
            "Nothing is in the way",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let json = report.json();
        assert_eq!(json["libibverbs"]["private_abi"], 34);
        assert_eq!(json["devices"][0]["provider"], "rxe");
        assert_eq!(json["devices"][0]["ports"][0]["state"], "ACTIVE");
        assert_eq!(json["status"], 0);
    }

    #[test]
    fn the_provider_follows_files_and_variables() {
        let mut fake = Fake::new();
        fake.gets("rxe", "holdfast run");
        fake.enable();
        fake.gets("holdfast", "holdfast enable");
        assert_eq!(fake.report().json()["holdfast"]["enabled"][0], "rxe");
        fake.env = vec![("HOLDFAST_FAMILIES", "none".into())];
        fake.gets("rxe", "settings leave rxe out");
        fake.env = vec![("HOLDFAST", "off".into())];
        fake.gets("rxe", "HOLDFAST=off");
        fake.env = vec![("RDMAV_DRIVERS", "rxe:holdfast".into())];
        fake.gets("rxe", "RDMAV_DRIVERS");

        let mut fake = Fake::new();
        fake.env = vec![("RDMAV_DRIVERS", "/opt/libholdfast".into())];
        fake.write("/opt/libholdfast-rdmav34.so", "");
        fake.gets("holdfast", "RDMAV_DRIVERS");
        fake.env = vec![("IBV_DRIVERS", "holdfast".into())];
        fake.gets("holdfast", "IBV_DRIVERS");
        fake.env =
            vec![("RDMAV_DRIVERS", "rxe".into()), ("LD_PRELOAD", "/x.so:/opt/libholdfast-rdmav34.so".into())];
        fake.gets("holdfast", "LD_PRELOAD");
        fake.remove(&format!("{LIB}/libibverbs/librxe-rdmav34.so"));
        fake.env.clear();
        fake.gets("holdfast", "holdfast.driver");
        fake.remove(&format!("{LIB}/libibverbs/libholdfast-rdmav34.so"));
        fake.gets("nobody", "stock would be 'rxe'");
    }

    #[test]
    fn netlink_says_the_driver_whatever_the_name() {
        let mut fake = Fake::new();
        fake.enable();
        fake.live.driver = Some(2);
        fake.gets("mlx4", "does not drive such devices");
        fake.live.driver = Some(1);
        fake.gets("holdfast", "in front of stock 'mlx5'");
        fake.env = vec![("HOLDFAST_FAMILIES", "rxe".into())];
        fake.gets("mlx5", "settings leave mlx5 out");
        assert_eq!(fake.report().json()["holdfast"]["enabled"], json!(["rxe"]));
        fake.env.clear();
        fake.live.driver = Some(14);
        fake.gets("holdfast", "holdfast enable");
    }

    #[test]
    fn what_libibverbs_answers_is_believed() {
        let mut fake = Fake::new();
        fake.enable();
        fake.live.providers = Some(Ok(vec![("rxe0".into(), "holdfast-rxe".into())]));
        assert_eq!(fake.report().status(), 0);
        fake.gets("holdfast", "holdfast enable");
        fake.live.providers = Some(Ok(vec![("rxe0".into(), "rxe".into())]));
        fake.gets("rxe", "answered");
        fake.one_trouble(&["gives rxe0 to rxe", "should be holdfast", "HOLDFAST_LOG"]);
        fake.live.providers = Some(Ok(Vec::new()));
        fake.gets("nobody", "answered");
        fake.live.providers = Some(Err("signal: 11".into()));
        assert_eq!(fake.report().status(), 2);
    }

    #[test]
    fn each_trouble_has_a_way_out() {
        let with = |change: &dyn Fn(&mut Fake)| {
            let mut fake = Fake::new();
            change(&mut fake);
            fake
        };
        with(&|fake| fake.remove(LIB)).one_trouble(&["no libibverbs.so.1", "apt-get install"]);
        with(&|fake| {
            fake.live.layout = Some(Ok(Err("its verbs_context has 700 bytes instead of 648".into())))
        })
        .one_trouble(&["declines", "700 bytes", "newer"]);
        with(&|fake| {
            fake.enable();
            fake.write("/etc/libibverbs.d/rxe.driver", "driver rxe\n");
        })
        .one_trouble(&["chance", "rxe.driver", "holdfast enable", "holdfast disable"]);
        let left_out = with(&|fake| {
            fake.enable();
            fake.write("/etc/libibverbs.d/mlx5.driver", "driver mlx5\n");
            fake.write("/etc/holdfast.conf", "families = rxe\n");
        });
        assert_eq!(left_out.report().status(), 0, "{}", left_out.report().text());
        with(&|fake| fake.write("/etc/libibverbs.d/x", "load rxe\n"))
            .one_trouble(&["'load rxe'", "driver NAME"]);
        with(&|fake| fake.env = vec![("RDMAV_DRIVERS", "/x/libholdfast-rdmav34.so".into())])
            .one_trouble(&["RDMAV_DRIVERS", "RDMAV_DRIVERS=/x/libholdfast."]);
        with(&|fake| fake.env = vec![("RDMAV_DRIVERS", "/x/libholdfast.so".into())])
            .one_trouble(&["RDMAV_DRIVERS=/x/libholdfast."]);
        with(&|fake| fake.env = vec![("RDMAV_DRIVERS", "target/libholdfast".into())])
            .one_trouble(&["$PWD/target/libholdfast"]);
        with(&|fake| fake.env = vec![("LD_PRELOAD", "/x/libholdfast.so".into())])
            .one_trouble(&["LD_PRELOAD", "holdfast run"]);
        with(&|fake| fake.env = vec![("HOLDFAST_LOG", "loud".into())]).one_trouble(&["HOLDFAST_LOG", "loud"]);
        with(&|fake| fake.write("/sys/class/infiniband/rxe0/ports/1/state", "1: DOWN\n"))
            .one_trouble(&["port 1 of rxe0", "ip link set eth0 up"]);
        with(&|fake| {
            fake.write("/sys/class/infiniband/rxe0/ports/1/state", "2: INIT\n");
            fake.write("/sys/class/infiniband/rxe0/ports/1/link_layer", "InfiniBand\n");
        })
        .one_trouble(&["port 1 of rxe0 is INIT", "subnet manager"]);
        with(&|fake| fake.remove("/dev/infiniband/uverbs0")).one_trouble(&["uverbs0 is missing", "udev"]);
        with(&|fake| fake.live.open = Some(io::ErrorKind::PermissionDenied))
            .one_trouble(&["permission denied", "chmod 666"]);
        with(&|fake| fake.write("/sys/class/infiniband_verbs/abi_version", "7\n"))
            .one_trouble(&["uverbs ABI is 7"]);
        with(&|fake| {
            fake.write(
                "/proc/self/limits",
                "Max locked memory         65536                65536                bytes\n",
            );
        })
        .one_trouble(&["64 KiB", "limits.conf"]);
        with(&|fake| {
            fake.write("/.dockerenv", "");
            fake.remove("/dev/infiniband/uverbs0");
        })
        .one_trouble(&["container", "--device=/dev/infiniband/uverbs0"]);
        with(&|fake| {
            fake.remove("/sys/class/infiniband/rxe0");
            fake.remove("/sys/class/infiniband_verbs/uverbs0");
        })
        .one_trouble(&["no RDMA device", "rdma link add rxe0 type rxe netdev eth0"]);
        with(&|fake| {
            fake.remove("/sys/class/infiniband/rxe0");
            fake.remove("/sys/class/infiniband_verbs/uverbs0");
            fake.remove("/sys/module/rdma_rxe");
            fake.write("/lib/modules/6.1.0-50-amd64/modules.dep", "kernel/drivers/net/veth.ko:\n");
        })
        .one_trouble(&["no module rdma_rxe", "linux-image-amd64"]);
    }

    #[test]
    fn a_machine_without_rdma_says_what_to_load() {
        let fake = Fake::new();
        fake.remove("/sys");
        let report = fake.report();
        assert!(report.troubles[0].way_out.contains("modprobe ib_uverbs"), "{:?}", report.troubles);
        assert!(report.troubles[1].way_out.contains("rdma link add"), "{:?}", report.troubles);
    }

    #[test]
    fn capabilities_lift_the_memlock_limit() {
        let fake = Fake::new();
        fake.write(
            "/proc/self/limits",
            "Max locked memory         65536                65536                bytes\n",
        );
        fake.write("/proc/self/status", "CapEff:\t000001ffffffffff\n");
        assert_eq!(fake.report().status(), 0);
        assert!(fake.report().memlock.contains("CAP_IPC_LOCK"));
    }
}
