//! What the environment says of the bed.

use std::path::PathBuf;
use std::time::Duration;

/// Who executes work requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// A thread.
    Live,
    /// The program, by the calls of `holdfast_sim.h`.
    Null,
}

/// The settings.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) engine: Engine,
    pub(crate) devices: usize,
    /// Processes with the same name are on the same wire; `None`: this one is alone.
    pub(crate) net: Option<String>,
    pub(crate) journal: Option<PathBuf>,
    /// Commands to run first, one a line.
    pub(crate) script: Option<PathBuf>,
    /// Whether devices are told by RDMA netlink, or only by sysfs as on old kernels.
    pub(crate) netlink: bool,
    /// How long a command waits for a device that does not answer.
    pub(crate) patience: Duration,
}

/// The kernel's own.
const PATIENCE: Duration = Duration::from_secs(60);

/// More devices than a test wants.
const MAX_DEVICES: usize = 16;

impl Config {
    /// Reads `HOLDFAST_SIM_*`. What cannot be understood is an error in words.
    pub(crate) fn read() -> Result<Config, String> {
        let get =
            |name: &str| std::env::var_os(format!("HOLDFAST_SIM_{name}")).filter(|value| !value.is_empty());
        let text = |name: &str| get(name).map(|value| value.to_string_lossy().into_owned());
        let engine = match text("ENGINE").as_deref() {
            None | Some("live") => Engine::Live,
            Some("null") => Engine::Null,
            Some(other) => return Err(format!("HOLDFAST_SIM_ENGINE is 'live' or 'null', not '{other}'")),
        };
        let devices = match text("DEVICES") {
            None => 1,
            Some(count) => count
                .parse()
                .ok()
                .filter(|count| (1..=MAX_DEVICES).contains(count))
                .ok_or_else(|| format!("HOLDFAST_SIM_DEVICES is 1 to {MAX_DEVICES}, not '{count}'"))?,
        };
        let net = match text("NET").as_deref() {
            Some("none") => None,
            name => Some(name.unwrap_or("default").to_owned()),
        };
        let journal = text("JOURNAL").map(|path| path.replace("%p", &std::process::id().to_string()).into());
        let patience = match text("PATIENCE") {
            None => PATIENCE,
            Some(seconds) => seconds
                .parse()
                .map(Duration::from_secs)
                .map_err(|_| format!("HOLDFAST_SIM_PATIENCE is a number of seconds, not '{seconds}'"))?,
        };
        let netlink = match text("NETLINK").as_deref() {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => return Err(format!("HOLDFAST_SIM_NETLINK is 'on' or 'off', not '{other}'")),
        };
        let script = get("SCRIPT").map(PathBuf::from);
        Ok(Config { engine, devices, net, journal, script, netlink, patience })
    }
}
