//! The log: off by default, one line a fact, to stderr or a file.
//!
//! `HOLDFAST_LOG=LEVEL[:stderr|:/path]` turns it on; so do libibverbs's own `VERBS_LOG_LEVEL` with `VERBS_LOG_FILE`, and
//! `IBV_SHOW_WARNINGS` sends warnings to stderr ([`crate::config`] reads them, once, at load). While it is off a log
//! statement is one relaxed load. Nothing logs in post, poll or arm.
//!
//! Invariants:
//! - L1: a line is put together in a buffer on the stack and leaves in one `write(2)`: no allocation, no lock, so a
//!   forked child, a constructor and two threads at once are all fine, and lines do not mix.
//! - L2: a descriptor is used only while it is still what was opened. A program that closes every descriptor and opens
//!   its own (daemons do) never finds our lines in its files.
//! - L3: nothing here fails or panics towards the caller. It may change `errno`; the verbs guard sets that last.

use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicU8, Ordering};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// How much a line matters; the numbers are those of libibverbs's `VERBS_LOG_LEVEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something was asked for and could not be done.
    Error = 1,
    /// It works, but not as asked.
    Warn = 2,
    /// What holdfast did: registered, took a device, opened or closed a context, met a death.
    Info = 3,
    /// Each control-path call and kernel answer.
    Debug = 4,
}

impl Level {
    /// The name that `HOLDFAST_LOG` takes and the line shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    /// `word` as a level: a name, or libibverbs's number. `Some(None)` is "off".
    #[must_use]
    pub fn parse(word: &str) -> Option<Option<Level>> {
        Some(match word.trim().to_ascii_lowercase().as_str() {
            "off" | "none" | "0" => None,
            "error" | "err" | "1" => Some(Level::Error),
            "warn" | "warning" | "2" => Some(Level::Warn),
            "info" | "3" => Some(Level::Info),
            "debug" | "4" => Some(Level::Debug),
            _ => return None,
        })
    }
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Descriptor 2, if it was open at load.
    Stderr,
    /// Appended to this file.
    File(PathBuf),
}

/// One place to write to and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Lines of this level and above.
    pub level: Level,
    /// To here.
    pub target: Target,
}

struct Sink {
    level: Level,
    kind: Kind,
}

enum Kind {
    Stderr,
    File { path: PathBuf, file: File, dev: u64, ino: u64 },
}

/// The most verbose level of any sink; 0 is off.
static LEVEL: AtomicU8 = AtomicU8::new(0);
static SINKS: OnceLock<Vec<Sink>> = OnceLock::new();

/// Whether a line of `level` would go anywhere.
#[inline(always)]
#[must_use]
pub fn enabled(level: Level) -> bool {
    // ORDER: Relaxed, a switch and no data: `write` reads the sinks through the OnceLock, which synchronises.
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Opens `outputs`; the first call counts. A file that cannot be opened is said on stderr, once, and left out.
pub fn init(outputs: &[Output]) {
    if outputs.is_empty() {
        return;
    }
    SINKS.get_or_init(|| {
        let sinks: Vec<Sink> = outputs.iter().filter_map(Sink::open).collect();
        let level = sinks.iter().map(|sink| sink.level as u8).max().unwrap_or(0);
        // ORDER: Relaxed, see `enabled`.
        LEVEL.store(level, Ordering::Relaxed);
        sinks
    });
}

impl Sink {
    fn open(output: &Output) -> Option<Sink> {
        let kind = match &output.target {
            Target::Stderr if stderr().is_none() => return None,
            Target::Stderr => Kind::Stderr,
            Target::File(path) => {
                match open(path).and_then(|file| file.metadata().map(|meta| (file, meta))) {
                    Ok((file, meta)) => {
                        Kind::File { path: path.clone(), dev: meta.dev(), ino: meta.ino(), file }
                    }
                    Err(error) => {
                        notice(format_args!(
                            "cannot write the log to {}: {error}; nothing is logged there. Name a file in a directory this user may \
                         write to, or stderr (HOLDFAST_LOG=info:stderr)",
                            path.display()
                        ));
                        return None;
                    }
                }
            }
        };
        Some(Sink { level: output.level, kind })
    }

    fn put(&self, line: &[u8]) {
        match &self.kind {
            Kind::Stderr => to_stderr(line),
            Kind::File { path, file, dev, ino } => {
                // L2: somebody may have closed our descriptor and been given its number.
                if file.metadata().is_ok_and(|meta| meta.dev() == *dev && meta.ino() == *ino) {
                    let _ = (&*file).write_all(line);
                } else if let Ok(again) = open(path) {
                    let _ = (&again).write_all(line);
                }
            }
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    // A FIFO without a reader must not stop the program; close-on-exec is std's default.
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    Ok(above_stderr(file))
}

/// A program started with 0, 1 or 2 closed would have our file as its stdout: move it out of the way.
fn above_stderr(file: File) -> File {
    let clone = file.as_fd().try_clone_to_owned();
    match clone {
        // `try_clone_to_owned` asks for 3 or more.
        Ok(moved) => File::from(moved),
        Err(_) => file,
    }
}

fn stderr() -> Option<File> {
    // A copy, made for this line, follows what the program redirects stderr to, and needs no lock of std's.
    std::io::stderr().as_fd().try_clone_to_owned().ok().map(File::from)
}

fn to_stderr(line: &[u8]) {
    if let Some(mut stderr) = stderr() {
        let _ = stderr.write_all(line);
    }
}

/// Writes a line of `level` to every sink that wants it: what the macros call once [`enabled`] said yes.
#[cold]
pub fn write(level: Level, args: fmt::Arguments<'_>) {
    let Some(sinks) = SINKS.get() else { return };
    let line = Line::new(Some(level), args);
    for sink in sinks.iter().filter(|sink| level <= sink.level) {
        sink.put(line.bytes());
    }
}

/// Says one line on stderr whatever the log level, and in the log file if there is one: only for what the user has to
/// know though nobody asked (an unknown libibverbs, a setting that cannot be read).
#[cold]
pub fn notice(args: fmt::Arguments<'_>) {
    to_stderr(Line::new(None, args).bytes());
    for sink in SINKS.get().into_iter().flatten() {
        if matches!(sink.kind, Kind::File { .. }) {
            sink.put(Line::new(Some(Level::Error), args).bytes());
        }
    }
}

/// Longer lines are cut.
const LINE: usize = 1024;

/// A line in the making. Control characters become spaces: a device name or a file's text cannot forge a second line.
struct Line {
    buf: [u8; LINE],
    len: usize,
}

impl Line {
    fn new(level: Option<Level>, args: fmt::Arguments<'_>) -> Line {
        let mut line = Line { buf: [0; LINE], len: 0 };
        let _ = match level {
            Some(level) => {
                write!(line, "holdfast[{}] {} {}: ", std::process::id(), Utc(SystemTime::now()), level.name())
            }
            None => line.write_str("holdfast: "),
        };
        let _ = line.write_fmt(args);
        // `write_str` leaves room for this one.
        if let Some(last) = line.buf.get_mut(line.len) {
            *last = b'\n';
            line.len += 1;
        }
        line
    }

    fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.buf.get_mut(self.len..LINE - 1).unwrap_or_default();
        let taken = room.len().min(text.len());
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = if from.is_ascii_control() { b' ' } else { from };
        }
        self.len += taken;
        Ok(())
    }
}

/// A time as `2026-11-24T00:14:16.123456Z`.
struct Utc(SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Years that begin in March put the leap day last; 400 of them have 146,097 days.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            second / 3_600,
            second / 60 % 60,
            second % 60,
            since.subsec_micros()
        )
    }
}

/// One line of level [`Level::Error`], put together only if someone listens.
#[allow(unused_macros, reason = "the four come as a set")]
macro_rules! error_ {
    ($($arg:tt)*) => {
        if $crate::log::enabled($crate::log::Level::Error) {
            $crate::log::write($crate::log::Level::Error, format_args!($($arg)*));
        }
    };
}

/// One line of level [`Level::Warn`], put together only if someone listens.
#[allow(unused_macros, reason = "the four come as a set")]
macro_rules! warn_ {
    ($($arg:tt)*) => {
        if $crate::log::enabled($crate::log::Level::Warn) {
            $crate::log::write($crate::log::Level::Warn, format_args!($($arg)*));
        }
    };
}

/// One line of level [`Level::Info`], put together only if someone listens.
#[allow(unused_macros, reason = "the four come as a set")]
macro_rules! info_ {
    ($($arg:tt)*) => {
        if $crate::log::enabled($crate::log::Level::Info) {
            $crate::log::write($crate::log::Level::Info, format_args!($($arg)*));
        }
    };
}

/// One line of level [`Level::Debug`], put together only if someone listens.
#[allow(unused_macros, reason = "the four come as a set")]
macro_rules! debug_ {
    ($($arg:tt)*) => {
        if $crate::log::enabled($crate::log::Level::Debug) {
            $crate::log::write($crate::log::Level::Debug, format_args!($($arg)*));
        }
    };
}

// Under their own names, `warn` would clash with the built-in attribute.
#[allow(unused_imports, reason = "the four come as a set")]
pub(crate) use {debug_ as debug, error_ as error, info_ as info, warn_ as warn};

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line(level: Option<Level>, text: &str) -> String {
        String::from_utf8(Line::new(level, format_args!("{text}")).bytes().to_vec()).unwrap()
    }

    #[test]
    fn levels_are_libibverbs_numbers_or_names() {
        assert_eq!(Level::parse("INFO"), Some(Some(Level::Info)));
        assert_eq!(Level::parse("2"), Some(Some(Level::Warn)));
        assert_eq!(Level::parse("0"), Some(None));
        assert_eq!(Level::parse("loud"), None);
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
            assert_eq!(Level::parse(level.name()), Some(Some(level)));
            assert_eq!(Level::parse(&(level as u8).to_string()), Some(Some(level)));
        }
    }

    #[test]
    fn a_line_is_one_line_and_says_who_and_when() {
        let text = line(Some(Level::Info), "took rxe0\nholdfast[1] forged");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.ends_with("Z info: took rxe0 holdfast[1] forged\n"), "{text}");
        assert!(text.starts_with(&format!("holdfast[{}] 2", std::process::id())), "{text}");
        assert_eq!(line(None, "x"), "holdfast: x\n");
    }

    #[test]
    fn a_long_line_is_cut_and_still_ends() {
        let text = line(None, &"x".repeat(3 * LINE));
        assert_eq!(text.len(), LINE);
        assert!(text.ends_with("x\n"));
    }

    #[test]
    fn times_are_utc_dates() {
        let at = |seconds| Utc(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn a_file_that_is_no_longer_ours_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let output = Output { level: Level::Info, target: Target::File(ours.clone()) };
        let mut sink = Sink::open(&output).unwrap();
        sink.put(b"one\n");
        // What a daemon does to us: our descriptor's number now names its own file.
        let Kind::File { file, .. } = &mut sink.kind else { panic!("a file was asked for") };
        *file = File::create(&theirs).unwrap();
        sink.put(b"two\n");
        assert_eq!(std::fs::read_to_string(ours).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(theirs).unwrap(), "");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_left_out() {
        let target = Target::File(PathBuf::from("/nonexistent/holdfast.log"));
        assert!(Sink::open(&Output { level: Level::Info, target }).is_none());
    }
}
