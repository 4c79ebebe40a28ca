//! One boot of one guest: QEMU's arguments, the job's output and exit status, the kernel log and what it complains of.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::emulator::Emulator;
use crate::kernel::{self, AllowList, Complaint};
use crate::root::{self, Root, Suite};
use crate::{boot, hca, host, paths};

/// The job may have gone well, but something is wrong with the virtual devices.
pub(crate) const DEVICE_TROUBLE: u8 = 122;
/// The job may have gone well, but the kernel complained.
pub(crate) const KERNEL_COMPLAINED: u8 = 123;
/// The time was up.
pub(crate) const TIMED_OUT: u8 = 124;
/// The guest did not get to give an exit status.
pub(crate) const GUEST_FAILED: u8 = 125;

/// What a guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A shell on our terminal.
    Shell,
    /// A bash script.
    Script(String),
}

impl Job {
    /// None is a shell, one is a script, several are a command.
    pub(crate) fn from_words(words: &[String]) -> Self {
        match words {
            [] => Self::Shell,
            [script] => Self::Script(script.clone()),
            words => Self::Script(words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ")),
        }
    }
}

/// A word as the shell reads it back.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A guest to be.
pub(crate) struct Spec {
    pub(crate) root: Root,
    pub(crate) job: Job,
    pub(crate) timeout: Option<u64>,
    pub(crate) cpus: u32,
    /// The guest's time is what it has executed, whatever the host's clock says: each instruction takes 4 ns, and waiting
    /// for a timer none. For one processor: several would see each other stand still.
    pub(crate) counted: bool,
    pub(crate) mem: String,
    pub(crate) modules: Vec<String>,
    pub(crate) rxe: bool,
    pub(crate) hca: Option<hca::Wanted>,
    pub(crate) qemu_args: Vec<String>,
    pub(crate) kernel_args: Vec<String>,
    pub(crate) log: Option<PathBuf>,
    shares: Vec<PathBuf>,
}

impl Spec {
    pub(crate) fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            job: Job::Shell,
            timeout: None,
            cpus: 2,
            counted: false,
            mem: "2G".to_owned(),
            modules: Vec::new(),
            rxe: true,
            hca: None,
            qemu_args: Vec::new(),
            kernel_args: Vec::new(),
            log: None,
            shares: Vec::new(),
        }
    }

    /// Shows the guest one more directory, at its own path.
    pub(crate) fn share(&mut self, dir: &Path) -> Result<()> {
        let dir = dir.canonicalize().with_context(|| format!("--share {}", dir.display()))?;
        if !dir.is_dir() {
            bail!("--share {}: not a directory", dir.display());
        }
        self.shares.push(dir);
        Ok(())
    }
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) suite: Suite,
    /// The job's exit status, if it came to that.
    pub(crate) status: Option<u8>,
    pub(crate) timed_out: bool,
    /// What the kernel complained of and the allow list does not excuse.
    pub(crate) complaints: Vec<Complaint>,
    /// What the allow list excuses, and why.
    pub(crate) excused: Vec<(Complaint, String)>,
    /// What went wrong with the virtual devices.
    pub(crate) troubles: Vec<String>,
    /// The kernel log, where it was kept.
    pub(crate) log: Option<PathBuf>,
    last_words: String,
}

impl Outcome {
    /// Our own exit status.
    pub(crate) fn code(&self) -> u8 {
        match self.status {
            _ if self.timed_out => TIMED_OUT,
            None => GUEST_FAILED,
            Some(_) if !self.complaints.is_empty() => KERNEL_COMPLAINED,
            Some(_) if !self.troubles.is_empty() => DEVICE_TROUBLE,
            Some(status) => status,
        }
    }

    /// Says on stderr what the exit status alone would not, and gives it.
    pub(crate) fn report(&self) -> u8 {
        let suite = self.suite.name();
        for (complaint, reason) in &self.excused {
            eprintln!(
                "guest {suite}: the kernel complained, which is allowed ({reason}): {}",
                complaint.headline()
            );
        }
        for complaint in &self.complaints {
            eprintln!("guest {suite}: the kernel complained: {}", complaint.headline());
        }
        for trouble in &self.troubles {
            eprintln!("guest {suite}: the virtual devices: {trouble}");
        }
        if self.timed_out {
            eprintln!("guest {suite}: killed, the time was up");
        } else if self.status.is_none() {
            eprintln!(
                "{}\nguest {suite}: no exit status came back; the end of the kernel log is above",
                self.last_words
            );
        }
        if let Some(log) = &self.log {
            eprintln!("guest {suite}: the kernel log: {}", log.display());
        }
        self.code()
    }
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // ORDER: a counter alone, nothing is published with it.
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("holdfast-guest-{}-{n}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Takes the job's output, line by line.
pub(crate) type Sink<'a> = &'a mut (dyn FnMut(&str) + Send);

/// Boots the guest and waits for its end. Without a sink the job's output is our output.
///
/// Emulation with several CPUs may kill a kernel that patches its running code, with an int3 that nobody owns up to: 6.12 did so once
/// in some hundred boots. Where that was before any program of ours ran, the guest is booted again, once.
pub(crate) fn boot(spec: &Spec, mut sink: Option<Sink<'_>>) -> Result<Outcome> {
    let (outcome, text) = match &mut sink {
        None => boot_once(spec, None)?,
        Some(sink) => boot_once(spec, Some(&mut |line: &str| sink(line)))?,
    };
    if outcome.status.is_some() || outcome.timed_out || !kernel::died_by_emulation(&text) {
        return Ok(outcome);
    }
    outcome.report();
    eprintln!(
        "guest {}: killed by its emulation before it ran a program; booted again",
        outcome.suite.name()
    );
    boot_once(spec, sink).map(|(outcome, _)| outcome)
}

/// Boots the guest once: how it went, and the kernel's log.
fn boot_once(spec: &Spec, sink: Option<Sink<'_>>) -> Result<(Outcome, String)> {
    let scratch = Scratch::new()?;
    let at = |name: &str| scratch.0.join(name);
    let mut shares = paths::shared()?;
    shares.extend(spec.shares.iter().cloned());
    let script = match &spec.job {
        Job::Script(script) => script.as_str(),
        Job::Shell => "",
    };
    boot::write_initramfs(&spec.root, &at("initrd"), &conf(spec, &shares)?, script)?;

    // The log is written where it is to stay, so that it can be followed.
    let log = spec.log.clone().unwrap_or_else(|| at("log"));
    fs::write(&log, b"").with_context(|| format!("creating {}", log.display()))?;
    let bed = spec.hca.as_ref().map(|wanted| hca::Bed::start(wanted, &scratch.0)).transpose()?;
    let mut command = qemu(spec, &shares, &scratch.0, &log, bed.as_ref())?;
    let exit = if spec.job == Job::Shell {
        command.status().context("starting QEMU")?
    } else {
        converse(&mut command, sink)?
    };
    let troubles = bed.map_or(Ok(Vec::new()), hca::Bed::finish)?;

    let text = fs::read(&log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let status = fs::read_to_string(at("status")).ok().and_then(|s| s.trim().parse().ok());
    let allow = AllowList::load(&paths::guests()?.join("kernel-allow.txt"))?;
    let suite = spec.root.suite;
    let (mut complaints, mut excused) = (Vec::new(), Vec::new());
    for complaint in kernel::complaints(&text) {
        match allow.reason(suite, &complaint) {
            Some(reason) => excused.push((complaint, reason.to_owned())),
            None => complaints.push(complaint),
        }
    }
    let timed_out = exit.code() == Some(124);
    let mut kept = spec.log.clone();
    if kept.is_none() && (status.is_none() || !complaints.is_empty()) {
        let path = paths::output()?.join(format!("kernel-{}-{}.log", suite.name(), std::process::id()));
        fs::copy(&log, &path).context("keeping the kernel log")?;
        kept = Some(path);
    }
    let last_words = root::tail(&log, 30);
    Ok((Outcome { suite, status, timed_out, complaints, excused, troubles, log: kept, last_words }, text))
}

/// Runs QEMU, and passes on what comes out of it while it runs.
fn converse(command: &mut Command, sink: Option<Sink<'_>>) -> Result<ExitStatus> {
    // Pipes of our own: QEMU opens /dev/stdout anew, which would cut a regular file short.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting QEMU")?;
    let stdout = child.stdout.take().context("QEMU's stdout")?;
    let stderr = child.stderr.take().context("QEMU's stderr")?;
    std::thread::scope(|scope| {
        let errors = scope.spawn(move || pass_on(stderr, io::stderr()));
        let output = match sink {
            None => pass_on(stdout, io::stdout()),
            Some(sink) => lines(stdout, sink),
        };
        if output.is_err() {
            // Nobody reads us any more (a closed pipe, say): the guest need not go on.
            _ = child.kill();
        }
        let exit = child.wait();
        _ = errors.join();
        exit.context("waiting for QEMU")
    })
}

fn pass_on(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        to.flush()?;
    }
}

fn lines(from: impl Read, sink: Sink<'_>) -> io::Result<()> {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        sink(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(())
}

/// What the guest's second script sources.
fn conf(spec: &Spec, shares: &[PathBuf]) -> Result<String> {
    let words = |list: Vec<String>| list.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ");
    let shares = shares.iter().map(|dir| dir.display().to_string()).collect();
    let (mut tty, mut size) = (String::new(), String::new());
    if spec.job == Job::Shell {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            bail!("a shell needs a terminal; give a command to run without one");
        }
        tty = std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned());
        let stty = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
        size = stty.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        if size.is_empty() {
            size = "24 80".to_owned();
        }
    }
    let cwd = paths::checkout()?.display().to_string();
    let mut text = String::new();
    // Writing to a String cannot fail.
    _ = writeln!(text, "shares=({})\nmodules=({})", words(shares), words(spec.modules.clone()));
    _ = writeln!(text, "rxe={}\ncwd={}", if spec.rxe { "1" } else { "" }, quote(&cwd));
    _ = writeln!(text, "hca={}", spec.hca.as_ref().map_or_else(String::new, |w| w.slots.to_string()));
    _ = writeln!(text, "tty={}\nsize={}", quote(&tty), quote(&size));
    Ok(text)
}

fn qemu(
    spec: &Spec,
    shares: &[PathBuf],
    scratch: &Path,
    log: &Path,
    bed: Option<&hca::Bed>,
) -> Result<Command> {
    // QEMU must not outlive us, whatever ends us.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]);
    if let Some(seconds) = spec.timeout {
        command.args(["timeout", "--foreground", "-k", "10"]).arg(seconds.to_string());
    }
    match bed {
        Some(_) => command.args(Emulator::ensure()?.words()),
        None => command.arg(host::qemu()),
    };
    command.args(["-M", "q35", "-cpu", "max", "-nodefaults", "-no-reboot"]);
    if spec.counted {
        command.args(["-accel", "tcg,thread=single", "-icount", "shift=2,sleep=off"]);
    } else {
        command.args(["-accel", "tcg,thread=multi"]);
    }
    command.args(["-display", "none", "-smp", &spec.cpus.to_string(), "-m", &spec.mem]);
    command.arg("-kernel").arg(spec.root.vmlinux()).arg("-initrd").arg(scratch.join("initrd"));
    // Emulated CPUs on a busy host stand still now and then: that is no lock-up, and no broken timer either. Nor is the
    // TSC unstable; a kernel that finds it so patches its running code, which this emulator does not always survive
    // with several CPUs (an int3 that nobody owns up to).
    let mut line =
        "console=ttyS0 panic=-1 nokaslr mitigations=off random.trust_cpu=on no_timer_check tsc=reliable \
                    watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120"
            .to_owned();
    for word in &spec.kernel_args {
        line.push(' ');
        line.push_str(word);
    }
    command.args(["-append", &line]);
    let file = |id: &str, path: &Path| format!("file,id={id},path={}", comma(path));
    command.args([
        "-chardev",
        &file("log", log),
        "-serial",
        "chardev:log",
        "-device",
        "virtio-serial-pci,max_ports=5",
    ]);
    let mut port = |n: u32, chardev: String, id: &str| {
        command.args(["-chardev", &chardev, "-device", &format!("virtserialport,chardev={id},nr={n}")]);
    };
    if spec.job != Job::Shell {
        port(1, file("out", Path::new("/dev/stdout")), "out");
        port(2, file("err", Path::new("/dev/stderr")), "err");
    }
    port(3, file("status", &scratch.join("status")), "status");
    if spec.job == Job::Shell {
        command.args(["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"]);
    } else {
        command.stdin(Stdio::null());
    }
    let fs = |path: &Path, tag: &str, more: &str| {
        format!("local,path={},mount_tag={tag},security_model=none,multidevs=remap{more}", comma(path))
    };
    command.args(["-virtfs", &fs(&spec.root.fs(), "root", ",readonly=on")]);
    for (n, dir) in shares.iter().enumerate() {
        command.args(["-virtfs", &fs(dir, &format!("share{n}"), "")]);
    }
    if let Some(bed) = bed {
        command.args(bed.qemu_args(&spec.mem));
    }
    command.args(&spec.qemu_args);
    Ok(command)
}

/// A path within one of QEMU's option lists.
pub(crate) fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The exit status a shell would give.
pub(crate) fn status_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|c| u8::try_from(c).ok()).unwrap_or(GUEST_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Job {
        Job::from_words(&list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_a_job() {
        assert_eq!(words(&[]), Job::Shell);
        assert_eq!(words(&["a; b"]), Job::Script("a; b".to_owned()));
        assert_eq!(words(&["echo", "it's", "a  b"]), Job::Script(r"'echo' 'it'\''s' 'a  b'".to_owned()));
    }

    fn outcome(status: Option<u8>, timed_out: bool, complaints: usize) -> u8 {
        troubled(status, timed_out, complaints, 0)
    }

    fn troubled(status: Option<u8>, timed_out: bool, complaints: usize, troubles: usize) -> u8 {
        let troubles = vec!["vhca ended".to_owned(); troubles];
        let complaint = Complaint { text: "WARNING: x".to_owned(), during: None };
        let complaints = vec![complaint; complaints];
        let (excused, log, last_words) = (Vec::new(), None, String::new());
        let suite = Suite::Forky;
        Outcome { suite, status, timed_out, complaints, excused, troubles, log, last_words }.code()
    }

    #[test]
    fn the_exit_status_tells_what_happened() {
        assert_eq!(outcome(Some(0), false, 0), 0);
        assert_eq!(outcome(Some(7), false, 0), 7);
        assert_eq!(outcome(Some(0), false, 1), KERNEL_COMPLAINED);
        assert_eq!(outcome(None, false, 0), GUEST_FAILED);
        assert_eq!(outcome(None, false, 2), GUEST_FAILED);
        assert_eq!(outcome(None, true, 0), TIMED_OUT);
        assert_eq!(troubled(Some(0), false, 0, 1), DEVICE_TROUBLE);
        assert_eq!(troubled(Some(7), false, 0, 1), DEVICE_TROUBLE);
    }
}
