//! Virtual ConnectX devices for a guest: the program `vhca` that emulates them, how they are put into the guest, and
//! the way by which a job in the guest orders faults and hot-plug.
//!
//! Every device is behind a PCIe root port of its own (a *slot*), so that it can be taken out and another put in. One
//! more device than there are slots is served: the last one, the *spare*, is in no slot at boot.
//!
//! A line that the guest writes to its port 4 is an order (`init/hca.sh` writes them). The answer is any number of lines
//! that begin with `|`, and a last one that begins with `=` and is a status:
//!
//! | order | what it does |
//! | --- | --- |
//! | `control COMMAND` | `vhca control`: a fault, or a question |
//! | `journal QUERY...` | `vhca journal`: what the devices saw so far |
//! | `save FILE QUERY...` | the same, into a file of the host, by its path; the guest's port is slow |
//! | `plug del SLOT` | `device_del` by QMP; answers when the guest has let the device go |
//! | `plug add SLOT [DEVICE]` | `device_add` of that device, or of the one the slot had at boot |

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{paths, run};

/// How a guest reaches the doorbell pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bar {
    /// Shared memory: plain stores, which the device polls
    #[default]
    Mapped,
    /// Each store is a message: seen one by one, in order
    Trapped,
}

/// What the device says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Id {
    /// A physical function, 15b3:1019
    #[default]
    Pf,
    /// A virtual function, 15b3:101a
    Vf,
}

/// The devices of a guest to be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// How many slots have one at boot.
    pub(crate) slots: u32,
    pub(crate) bar: Bar,
    pub(crate) id: Id,
    /// The program.
    pub(crate) vhca: PathBuf,
    /// Where the journal is to stay; by default it goes with the guest, unless something is wrong.
    pub(crate) journal: Option<PathBuf>,
}

impl Wanted {
    pub(crate) fn new(slots: u32, bar: Bar, id: Id) -> Result<Self> {
        Ok(Self { slots, bar, id, vhca: program()?, journal: None })
    }
}

/// The number of the guest's port for orders.
pub(crate) const PORT: u32 = 4;

/// No answer of vhca or of QEMU takes that long, on a busy host either.
const LIMIT: Duration = Duration::from_secs(180);

/// Builds `vhca` and says where it is; `$VHCA` names another.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VHCA").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let checkout = paths::checkout()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&checkout).args(["build", "--quiet", "--release", "--package", "holdfast-vhca"]);
    let status = cargo.stdin(Stdio::null()).status().context("running cargo")?;
    if !status.success() {
        bail!("vhca does not build: {status}");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout.join("target"), PathBuf::from);
    Ok(target.join("release/vhca"))
}

/// What went wrong with the devices, from whatever thread.
#[derive(Clone, Debug, Default)]
struct Troubles(Arc<Mutex<Vec<String>>>);

impl Troubles {
    fn add(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The running devices of one guest.
pub(crate) struct Bed {
    wanted: Wanted,
    dir: PathBuf,
    child: Child,
    /// Set once the end of vhca is wanted.
    ending: Arc<AtomicBool>,
    watch: Option<thread::JoinHandle<()>>,
    troubles: Troubles,
}

impl Bed {
    /// Starts vhca, and the threads that serve QEMU and the guest once they come. `dir` is the guest's own, and short.
    pub(crate) fn start(wanted: &Wanted, dir: &Path) -> Result<Self> {
        let journal = wanted.journal.clone().unwrap_or_else(|| dir.join("journal"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(&wanted.vhca).arg("serve");
        for device in 0..=wanted.slots {
            command.arg("--socket").arg(socket(dir, device));
        }
        for (option, value) in [("--id", name(wanted.id)), ("--bar", name(wanted.bar))] {
            command.arg(option).arg(value);
        }
        command.arg("--control").arg(dir.join("control")).arg("--journal").arg(&journal);
        let errors = File::create(dir.join("vhca.log")).context("creating vhca's log")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let qmp = listen(&dir.join("qmp"))?;
        let orders = listen(&dir.join("orders"))?;
        let mut child = command.spawn().with_context(|| format!("starting {}", wanted.vhca.display()))?;
        let stdout = child.stdout.take().context("vhca's stdout")?;
        let mut bed = Self {
            wanted: Wanted { journal: Some(journal), ..wanted.clone() },
            dir: dir.to_path_buf(),
            child,
            ending: Arc::default(),
            watch: None,
            troubles: Troubles::default(),
        };
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        lines.read_line(&mut line).context("reading from vhca")?;
        if line.trim() != "ready" {
            bail!("vhca did not start (it said {line:?}); {}", bed.log());
        }
        bed.serve(lines, qmp, orders);
        Ok(bed)
    }

    fn serve(&mut self, mut stdout: impl Read + Send + 'static, qmp: UnixListener, orders: UnixListener) {
        // These two wait for QEMU and end with it. Should it never come they are left waiting, and end with us.
        let troubles = self.troubles.clone();
        let monitor: Arc<Mutex<Option<Monitor>>> = Arc::default();
        let desk = Desk { wanted: self.wanted.clone(), dir: self.dir.clone(), monitor: monitor.clone() };
        thread::spawn(move || {
            let served = (|| {
                let connected = Monitor::new(qmp.accept().context("waiting for QEMU")?.0)?;
                *desk.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(connected);
                desk.serve(orders.accept().context("waiting for QEMU")?.0)
            })();
            if let Err(error) = served {
                troubles.add(format!("taking the guest's orders: {error:#}"));
            }
        });
        let (troubles, ending) = (self.troubles.clone(), self.ending.clone());
        self.watch = Some(thread::spawn(move || {
            _ = std::io::copy(&mut stdout, &mut std::io::sink());
            // ORDER: set before the signal is sent that causes what we have just seen; a flag alone.
            if !ending.load(Ordering::Relaxed) {
                troubles.add("vhca ended while the guest was running".to_owned());
                // The guest would go on with devices that are dead: of no use to anybody.
                if let Some(monitor) = &mut *monitor.lock().unwrap_or_else(PoisonError::into_inner) {
                    _ = monitor.send(&json!({ "execute": "quit" }));
                }
            }
        }));
    }

    /// QEMU's arguments: the guest's memory (which vhca maps), the slots with their devices, and our two sockets.
    pub(crate) fn qemu_args(&self, memory: &str) -> Vec<String> {
        let mut words = vec![
            "-object".to_owned(),
            format!("memory-backend-memfd,id=ram,size={memory},share=on"),
            "-machine".to_owned(),
            "memory-backend=ram".to_owned(),
        ];
        let mut device = |text: String| words.extend(["-device".to_owned(), text]);
        for slot in 0..self.wanted.slots {
            let n = slot + 1;
            // The window is for the BAR of a device that comes later.
            device(format!("pcie-root-port,id=port{slot},chassis={n},slot={n},pref64-reserve=64M"));
            device(vfio_user(slot, &socket(&self.dir, slot)).to_string());
        }
        for (id, file) in [("qmp", "qmp"), ("orders", "orders")] {
            let path = run::comma(&self.dir.join(file));
            words.extend(["-chardev".to_owned(), format!("socket,id={id},path={path}")]);
        }
        words.extend(["-object", "monitor-qmp,id=monitor,chardev=qmp", "-device"].map(str::to_owned));
        words.push(format!("virtserialport,chardev=orders,nr={PORT}"));
        words
    }

    fn log(&self) -> String {
        format!("its last words:\n{}", crate::root::tail(&self.dir.join("vhca.log"), 20))
    }

    /// Ends vhca once QEMU has ended, and says what was wrong.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        let control = self.dir.join("control");
        let found = Command::new(&self.wanted.vhca).arg("control").arg(&control).arg("findings").output();
        for line in String::from_utf8_lossy(&found.context("asking vhca")?.stdout).lines() {
            self.troubles.add(format!("a finding: {line}"));
        }
        // ORDER: see `serve`.
        self.ending.store(true, Ordering::Relaxed);
        let pid = self.child.id().to_string();
        // It may have ended already, which the watch has noted.
        _ = Command::new("kill").args(["-TERM", &pid]).stderr(Stdio::null()).status();
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("waiting for vhca")? {
                break status;
            }
            if Instant::now() > end {
                self.troubles.add("vhca did not end when told to".to_owned());
                self.child.kill().context("ending vhca")?;
                break self.child.wait().context("waiting for vhca")?;
            }
            thread::sleep(Duration::from_millis(10));
        };
        if let Some(watch) = self.watch.take() {
            _ = watch.join();
        }
        if !status.success() {
            self.troubles.add(format!("vhca: {status}; {}", self.log()));
        }
        let troubles = self.troubles.take();
        let journal = self.dir.join("journal");
        if !troubles.is_empty() && journal.exists() {
            let kept = paths::output()?.join(format!("journal-{}", std::process::id()));
            fs::copy(&journal, &kept).context("keeping the journal")?;
            eprintln!("guest: the devices' journal: {}", kept.display());
        }
        Ok(troubles)
    }
}

impl Drop for Bed {
    /// Where `finish` was not reached.
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A value's name, as the command line has it.
pub(crate) fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

fn socket(dir: &Path, device: u32) -> PathBuf {
    dir.join(format!("device{device}"))
}

/// The device in that slot, served at that socket.
fn vfio_user(slot: u32, socket: &Path) -> Value {
    json!({
        "driver": "vfio-user-pci",
        "id": format!("hca{slot}"),
        "bus": format!("port{slot}"),
        "socket": { "type": "unix", "path": socket },
        // QEMU takes a device that does not answer in 5 s for gone, as none does that waits for a processor.
        "x-msg-timeout": u32::try_from(LIMIT.as_millis()).unwrap_or(u32::MAX),
    })
}

fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))
}

/// One who answers orders.
struct Desk {
    wanted: Wanted,
    dir: PathBuf,
    monitor: Arc<Mutex<Option<Monitor>>>,
}

impl Desk {
    fn serve(&self, orders: UnixStream) -> Result<()> {
        let mut answers = orders.try_clone().context("the guest's port")?;
        for order in BufReader::new(orders).lines() {
            // An end in the middle of a line is that of QEMU.
            let Ok(order) = order else { break };
            let (text, status) = self.answer(&order).unwrap_or_else(|error| (format!("{error:#}"), 125));
            let mut answer: String = text.lines().map(|line| format!("|{line}\n")).collect();
            answer.push_str(&format!("={status}\n"));
            if answers.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, order: &str) -> Result<(String, u8)> {
        let (what, rest) = order.split_once(' ').unwrap_or((order, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (what, words.as_slice()) {
            ("control", _) => self.ask("control", &self.dir.join("control"), &[rest]),
            ("journal", queries) => self.journal(queries),
            ("save", [file, queries @ ..]) => {
                let (text, status) = self.journal(queries)?;
                fs::write(file, text).with_context(|| format!("writing {file}"))?;
                Ok((String::new(), status))
            }
            ("plug", ["del", slot]) => self.monitor(|m| m.remove(&format!("hca{}", self.slot(slot)?))),
            ("plug", ["add", slot]) => self.add(slot, slot),
            ("plug", ["add", slot, device]) => self.add(slot, device),
            _ => bail!("no such order: {order}"),
        }
    }

    fn journal(&self, queries: &[&str]) -> Result<(String, u8)> {
        // Only then is the file complete.
        self.ask("control", &self.dir.join("control"), &["sync"])?;
        let journal = self.wanted.journal.as_deref().context("no journal")?;
        self.ask("journal", journal, queries)
    }

    fn slot(&self, word: &str) -> Result<u32> {
        match word.parse() {
            Ok(slot) if slot < self.wanted.slots => Ok(slot),
            _ => bail!("no slot {word:?}: there are {}", self.wanted.slots),
        }
    }

    fn add(&self, slot: &str, device: &str) -> Result<(String, u8)> {
        let slot = self.slot(slot)?;
        match device.parse() {
            Ok(device) if device <= self.wanted.slots => self.monitor(|m| {
                m.ask("device_add", vfio_user(slot, &socket(&self.dir, device)))?;
                Ok(())
            }),
            _ => bail!("no device {device:?}: the last one is {}", self.wanted.slots),
        }
    }

    fn monitor(&self, order: impl FnOnce(&mut Monitor) -> Result<()>) -> Result<(String, u8)> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        order(monitor.as_mut().context("no QEMU")?)?;
        Ok((String::new(), 0))
    }

    fn ask(&self, what: &str, path: &Path, words: &[&str]) -> Result<(String, u8)> {
        let mut command = Command::new(&self.wanted.vhca);
        command.arg(what).arg(path).args(words).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("running vhca {what}"))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((text, run::status_of(output.status)))
    }
}

/// QEMU's monitor, by its protocol QMP.
struct Monitor {
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Monitor {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT)).context("a time limit for QEMU's monitor")?;
        let mut monitor = Self { reader: BufReader::new(stream), events: VecDeque::new() };
        // The greeting, then the end of the negotiation.
        monitor.read()?;
        monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("QEMU's monitor")? == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line:?}"))
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        self.reader.get_mut().write_all(format!("{message}\n").as_bytes()).context("QEMU's monitor")
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.send(&json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let message = self.read()?;
            if let Some(error) = message.get("error") {
                bail!("{command}: {}", error.get("desc").and_then(Value::as_str).unwrap_or("an error"));
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            self.events.push_back(message);
        }
    }

    /// Takes a device out and waits until the guest has let it go.
    fn remove(&mut self, id: &str) -> Result<()> {
        let gone = |event: &Value| {
            event.get("event").and_then(Value::as_str) == Some("DEVICE_DELETED")
                && event.pointer("/data/device").and_then(Value::as_str) == Some(id)
        };
        self.events.clear();
        self.ask("device_del", json!({ "id": id }))?;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.read().with_context(|| format!("waiting for the guest to let {id} go"))?,
            };
            if gone(&event) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(dir: &str) -> Desk {
        let wanted =
            Wanted { slots: 2, bar: Bar::Mapped, id: Id::Pf, vhca: "echo".into(), journal: Some("j".into()) };
        Desk { wanted, dir: dir.into(), monitor: Arc::default() }
    }

    #[test]
    fn orders_reach_the_one_they_are_for() {
        let desk = desk("/d");
        assert_eq!(desk.answer("control die 0").unwrap(), ("control /d/control die 0\n".to_owned(), 0));
        assert_eq!(desk.answer("journal a b").unwrap(), ("journal j a b\n".to_owned(), 0));
        let file = std::env::temp_dir().join(format!("holdfast-save-{}", std::process::id()));
        assert_eq!(desk.answer(&format!("save {} a", file.display())).unwrap(), (String::new(), 0));
        assert_eq!(fs::read_to_string(&file).unwrap(), "journal j a\n");
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_wrong_order_is_refused() {
        let desk = desk("/d");
        for order in
            ["", "save", "plug", "plug del", "plug del 2", "plug add 0 3", "plug add x", "plug swap 0", "x y"]
        {
            assert!(desk.answer(order).is_err(), "{order}");
        }
        let error = desk.answer("plug add 1 2").unwrap_err();
        assert!(error.to_string().contains("no QEMU"), "a right one goes to QEMU: {error}");
    }

    /// QEMU's side of a conversation: what it says, and what it was told.
    fn conversation(
        says: &'static str,
        order: impl FnOnce(&mut Monitor) -> Result<()>,
    ) -> (Result<()>, String) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let greeting = "{\"QMP\": {}}\n{\"return\": {}}\n";
        theirs.write_all(format!("{greeting}{says}").as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let result = Monitor::new(ours).and_then(|mut m| order(&mut m));
        let mut told = String::new();
        theirs.read_to_string(&mut told).unwrap();
        (result, told)
    }

    #[test]
    fn a_device_is_gone_when_its_own_event_says_so() {
        let other = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/x/hca0\"}}\n";
        let own = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"hca0\"}}\n";
        let said = format!("{{\"return\": {{}}}}\n{other}{own}").leak();
        let (result, told) = conversation(said, |m| m.remove("hca0"));
        result.unwrap();
        assert!(told.contains("\"device_del\"") && told.contains("\"hca0\""), "{told}");
        let said = format!("{{\"return\": {{}}}}\n{other}").leak();
        let error = conversation(said, |m| m.remove("hca0")).0.unwrap_err();
        assert!(format!("{error:#}").contains("QEMU has ended"), "{error:#}");
    }

    #[test]
    fn what_qemu_refuses_is_told() {
        let said = "{\"error\": {\"desc\": \"slot is busy\"}}\n";
        let error = conversation(said, |m| m.ask("device_add", json!({})).map(drop)).0.unwrap_err();
        assert_eq!(error.to_string(), "device_add: slot is busy");
    }
}
