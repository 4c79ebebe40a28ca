//! Settings: the environment first, then `/etc/holdfast.conf`, read once, at load.
//!
//! | environment | file | meaning |
//! | --- | --- | --- |
//! | `HOLDFAST_FAMILIES` | `families` | device families to take: names separated by commas, `all` (default) or `none` |
//! | `HOLDFAST_LOG` | `log` | `LEVEL[:stderr\|:/path]`, see [`crate::log`] |
//! | `HOLDFAST_WATCH` | `watch` | `on` (default): a thread notices by itself that a device is gone; `off`: calls do |
//! | `HOLDFAST_FLUSH_AFTER` | `flush_after` | milliseconds to wait, after a driver reported a fatal error, for the kernel to take the device off our memory (default 30000) |
//! | `HOLDFAST_CONF` | | another file instead of `/etc/holdfast.conf`; naming one that is not there is an error |
//!
//! In a program that gained privileges (setuid, file capabilities) the environment is not read: it is the caller's, and a
//! log file named there would be written with the program's rights.
//!
//! A setting that cannot be understood is said in one line on stderr and otherwise left at its default, except that an
//! unknown family is never taken for "all".

use crate::log::{self, Level, Output, Target};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Whether this library does for the death of a device what makes it worth having. Only the benchmark builds one that does not
/// (`--cfg holdfast_bare`), to know what posts and polls pay for it.
pub const OUTLIVES_DEVICES: bool = !cfg!(holdfast_bare);

/// The file read when `HOLDFAST_CONF` names no other.
pub const FILE: &str = "/etc/holdfast.conf";

bitflags::bitflags! {
    /// Device families.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Families: u32 {
        /// soft-RoCE, the kernel's `rdma_rxe`.
        const RXE = 1 << 0;
        /// ConnectX, the kernel's `mlx5_ib`.
        const MLX5 = 1 << 1;
    }
}

/// The families of this release, by the name users write.
pub const FAMILIES: &[(&str, Families)] = &[("rxe", Families::RXE), ("mlx5", Families::MLX5)];

impl Families {
    /// A list as users write it: `rxe`, `all`, `none`.
    ///
    /// # Errors
    /// The families that could be read, and a sentence about those that could not.
    pub fn parse(text: &str) -> Result<Families, (Families, String)> {
        let (mut families, mut unknown) = (Families::empty(), Vec::new());
        for name in text.split([',', ' ', '\t']).filter(|name| !name.is_empty()) {
            match (name, FAMILIES.iter().find(|(known, _)| *known == name)) {
                ("all", _) => families |= Families::all(),
                ("none", _) => {}
                (_, Some((_, family))) => families |= *family,
                _ => unknown.push(name),
            }
        }
        if unknown.is_empty() {
            return Ok(families);
        }
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        Err((
            families,
            format!(
                "unknown device family '{}'; this release has: {} (or 'all', 'none')",
                unknown.join("', '"),
                known.join(", ")
            ),
        ))
    }

    /// The names, comma separated, as [`Families::parse`] takes them.
    #[must_use]
    pub fn names(self) -> String {
        let names: Vec<&str> =
            FAMILIES.iter().filter(|(_, family)| self.contains(*family)).map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(",") }
    }
}

/// What the user chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The families to take; the stock provider serves the rest.
    pub families: Families,
    /// Where the log goes; nothing is off.
    pub log: Vec<Output>,
    /// Whether a thread of ours notices the death of devices.
    pub watch: bool,
    /// How long what is owed is kept back, after an early sign of death, for the final one.
    pub flush_after: Duration,
}

/// Longer than the kernel takes to give a device up after a fatal error (2 s to wait for the reset, and the commands that end
/// early then), and shorter than programs wait for a peer.
const FLUSH_AFTER: Duration = Duration::from_secs(30);

/// What holds when nobody chose anything.
static DEFAULT: Config =
    Config { families: Families::all(), log: Vec::new(), watch: true, flush_after: FLUSH_AFTER };
static CONFIG: OnceLock<Config> = OnceLock::new();

/// The settings; the defaults until [`init`] has run.
#[must_use]
pub fn get() -> &'static Config {
    CONFIG.get().unwrap_or(&DEFAULT)
}

/// Reads the settings and opens the log. The first call counts; the constructor makes it.
///
/// `secure` is `getauxval(AT_SECURE) != 0`: the program gained privileges, so the environment is not to be trusted.
pub fn init(secure: bool) -> &'static Config {
    CONFIG.get_or_init(|| {
        let (config, complaints) =
            read(|name| if secure { None } else { std::env::var_os(name) }, Path::new(FILE));
        log::init(&config.log);
        for complaint in complaints {
            log::notice(format_args!("{complaint}"));
        }
        config
    })
}

/// The settings that environment `env` and, unless it names another, `file` give, and one line for each that is wrong.
pub fn read(env: impl Fn(&str) -> Option<OsString>, file: &Path) -> (Config, Vec<String>) {
    let mut config = DEFAULT.clone();
    let mut complaints = Vec::new();
    let mut main = None;

    let named = env("HOLDFAST_CONF").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = named.as_deref().unwrap_or(file);
    match std::fs::read(path) {
        Ok(bytes) => {
            for (index, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let mut complain =
                    |text| complaints.push(format!("{}:{}: {text}", path.display(), index + 1));
                match line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
                    Some(("families", value)) => config.families = families(value, &mut complain),
                    Some(("log", value)) => main = output(value, &mut complain),
                    Some(("watch", value)) => config.watch = switch(value, &mut complain),
                    Some(("flush_after", value)) => config.flush_after = milliseconds(value, &mut complain),
                    Some((key, _)) => complain(format!(
                        "unknown setting '{key}'; known are: families, log, watch, flush_after"
                    )),
                    None => complain(format!("'{line}' is not 'name = value'")),
                }
            }
        }
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            complaints.push(format!("cannot read {}: {error}; the defaults apply instead", path.display()));
        }
    }

    let text = |name: &str| {
        env(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
    };
    if let Some(value) = text("HOLDFAST_FAMILIES") {
        config.families = families(&value, &mut |what| complaints.push(format!("HOLDFAST_FAMILIES: {what}")));
    }
    if let Some(value) = text("HOLDFAST_WATCH") {
        config.watch = switch(&value, &mut |what| complaints.push(format!("HOLDFAST_WATCH: {what}")));
    }
    if let Some(value) = text("HOLDFAST_FLUSH_AFTER") {
        config.flush_after =
            milliseconds(&value, &mut |what| complaints.push(format!("HOLDFAST_FLUSH_AFTER: {what}")));
    }
    if let Some(value) = text("HOLDFAST_LOG") {
        main = output(&value, &mut |what| complaints.push(format!("HOLDFAST_LOG: {what}")));
    } else if let (None, Some(level), Some(path)) = (&main, text("VERBS_LOG_LEVEL"), env("VERBS_LOG_FILE")) {
        // libibverbs reads the number with strtol and is as quiet about nonsense.
        let level = level.trim().parse::<u32>().ok().map(|level| level.min(4).to_string());
        main = level
            .and_then(|level| Level::parse(&level).flatten())
            .map(|level| Output { level, target: Target::File(PathBuf::from(path)) });
    }

    // libibverbs shows its warnings if the variable is there at all, and so do we; not twice.
    let to_stderr = main.as_ref().is_some_and(|output| output.target == Target::Stderr);
    let warnings = env("IBV_SHOW_WARNINGS").is_some() && !to_stderr;
    config.log.extend(main);
    config.log.extend(warnings.then_some(Output { level: Level::Warn, target: Target::Stderr }));
    (config, complaints)
}

fn families(value: &str, complain: &mut dyn FnMut(String)) -> Families {
    Families::parse(value).unwrap_or_else(|(known, what)| {
        complain(what);
        known
    })
}

fn switch(value: &str, complain: &mut dyn FnMut(String)) -> bool {
    match value {
        "on" => true,
        "off" => false,
        other => {
            complain(format!("'{other}' is neither 'on' nor 'off'; it is on"));
            true
        }
    }
}

fn milliseconds(value: &str, complain: &mut dyn FnMut(String)) -> Duration {
    value.parse().map(Duration::from_millis).unwrap_or_else(|_| {
        complain(format!("'{value}' is no number of milliseconds; {} hold", FLUSH_AFTER.as_millis()));
        FLUSH_AFTER
    })
}

fn output(value: &str, complain: &mut dyn FnMut(String)) -> Option<Output> {
    let (level, target) = value.split_once(':').unwrap_or((value, "stderr"));
    let Some(level) = Level::parse(level) else {
        complain(format!(
            "unknown level '{level}'; write off, error, warn, info or debug, then :stderr or :/path (info:/tmp/holdfast.log)"
        ));
        return None;
    };
    let target = match target.trim() {
        "stderr" => Target::Stderr,
        path if path.starts_with('/') => Target::File(PathBuf::from(path)),
        other => {
            complain(format!(
                "'{other}' is neither 'stderr' nor a path that begins with '/'; nothing is logged"
            ));
            return None;
        }
    };
    level.map(|level| Output { level, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(env: &[(&str, &str)], file: Option<&str>) -> (Config, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdfast.conf");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let get = |name: &str| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value))
        };
        read(get, &path)
    }

    fn quiet(env: &[(&str, &str)], file: Option<&str>) -> Config {
        let (config, complaints) = with(env, file);
        assert!(complaints.is_empty(), "{complaints:?}");
        config
    }

    #[test]
    fn nothing_said_is_all_families_and_no_log() {
        assert_eq!(quiet(&[], None), DEFAULT);
        assert_eq!(quiet(&[("HOLDFAST_LOG", ""), ("HOLDFAST_FAMILIES", "")], None), DEFAULT);
    }

    #[test]
    fn the_environment_beats_the_file() {
        let file = "# chosen by hand\n\n families = none\nlog=debug:/var/log/holdfast.log\n";
        let config = quiet(&[], Some(file));
        assert_eq!(config.families, Families::empty());
        let log = |level, path: &str| vec![Output { level, target: Target::File(PathBuf::from(path)) }];
        assert_eq!(config.log, log(Level::Debug, "/var/log/holdfast.log"));
        let config = quiet(&[("HOLDFAST_FAMILIES", "rxe"), ("HOLDFAST_LOG", "info:/tmp/x")], Some(file));
        assert_eq!(config.families, Families::RXE);
        assert_eq!(config.log, log(Level::Info, "/tmp/x"));
        assert_eq!(quiet(&[("HOLDFAST_LOG", "off")], Some(file)).log, []);
    }

    #[test]
    fn libibverbs_own_variables_count() {
        let stderr = |level| Output { level, target: Target::Stderr };
        let file = |level| Output { level, target: Target::File(PathBuf::from("/tmp/v")) };
        let verbs = [("VERBS_LOG_LEVEL", "4"), ("VERBS_LOG_FILE", "/tmp/v")];
        assert_eq!(quiet(&verbs, None).log, [file(Level::Debug)]);
        assert_eq!(
            quiet(&[("VERBS_LOG_LEVEL", "9"), ("VERBS_LOG_FILE", "/tmp/v")], None).log,
            [file(Level::Debug)]
        );
        assert_eq!(quiet(&[("VERBS_LOG_LEVEL", "x"), ("VERBS_LOG_FILE", "/tmp/v")], None).log, []);
        assert_eq!(quiet(&[("VERBS_LOG_LEVEL", "4")], None).log, []);
        assert_eq!(quiet(&[("IBV_SHOW_WARNINGS", "")], None).log, [stderr(Level::Warn)]);
        let both = [verbs[0], verbs[1], ("IBV_SHOW_WARNINGS", "1")];
        assert_eq!(quiet(&both, None).log, [file(Level::Debug), stderr(Level::Warn)]);
        let ours = [verbs[0], verbs[1], ("IBV_SHOW_WARNINGS", "1"), ("HOLDFAST_LOG", "info")];
        assert_eq!(quiet(&ours, None).log, [stderr(Level::Info)]);
    }

    #[test]
    fn each_mistake_is_one_line_that_names_place_and_way_out() {
        for (env, file, words) in [
            (("HOLDFAST_LOG", "loud"), None, ["HOLDFAST_LOG", "loud", "debug"]),
            (("HOLDFAST_LOG", "info:log.txt"), None, ["HOLDFAST_LOG", "log.txt", "stderr"]),
            (("HOLDFAST_FAMILIES", "rxe,quux"), None, ["HOLDFAST_FAMILIES", "quux", "rxe"]),
            (("HOLDFAST_CONF", "/nonexistent"), None, ["/nonexistent", "No such file", "defaults"]),
            (("HOLDFAST_WATCH", "maybe"), None, ["HOLDFAST_WATCH", "maybe", "off"]),
            (("HOLDFAST_FLUSH_AFTER", "soon"), None, ["HOLDFAST_FLUSH_AFTER", "soon", "30000"]),
            (("X", ""), Some("flush_after = -1"), [".conf:1", "-1", "milliseconds"]),
            (("X", ""), Some("families = quux"), [".conf:1", "quux", "rxe"]),
            (("X", ""), Some("\ncolour = red"), [".conf:2", "colour", "families"]),
            (("X", ""), Some("rxe"), [".conf:1", "rxe", "name = value"]),
        ] {
            let (_, complaints) = with(&[env], file);
            assert_eq!(complaints.len(), 1, "{env:?} {file:?}: {complaints:?}");
            for word in words {
                assert!(complaints[0].contains(word), "{word}: {complaints:?}");
            }
        }
    }

    #[test]
    fn the_watcher_and_its_patience_are_settings() {
        let config = quiet(&[], Some("watch = off\nflush_after = 250"));
        assert_eq!((config.watch, config.flush_after), (false, Duration::from_millis(250)));
        let env = [("HOLDFAST_WATCH", "on"), ("HOLDFAST_FLUSH_AFTER", "0")];
        let config = quiet(&env, Some("watch = off\nflush_after = 250"));
        assert_eq!((config.watch, config.flush_after), (true, Duration::ZERO));
    }

    #[test]
    fn an_unknown_family_is_not_all_families() {
        assert_eq!(with(&[("HOLDFAST_FAMILIES", "quux")], None).0.families, Families::empty());
        assert_eq!(with(&[("HOLDFAST_FAMILIES", "rxe quux")], None).0.families, Families::RXE);
    }

    #[test]
    fn families_are_written_as_they_are_read() {
        for families in [Families::empty(), Families::RXE, Families::all()] {
            assert_eq!(Families::parse(&families.names()), Ok(families));
        }
    }

    #[test]
    fn a_file_of_bytes_that_are_no_text_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conf");
        std::fs::write(&path, b"\xff\xfe=\x00\nfamilies = rxe\n").unwrap();
        let (config, complaints) = read(|_| None, &path);
        assert_eq!(config.families, Families::RXE);
        assert_eq!(complaints.len(), 1);
        assert_eq!(read(|_| None, dir.path()).1.len(), 1, "a directory in the file's place");
    }
}
