//! The processes that measure: `c/worker.c`, compiled, with one provider or the other behind `holdfast sim`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Options;

/// Who serves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Provider {
    Stock,
    Holdfast,
    /// holdfast built with what a device's death needs compiled out of post and poll.
    Bare,
}

/// How the application says that it needs no locks, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Default,
    Single,
    Domain,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Default, Mode::Single, Mode::Domain];

    /// What is put behind a row's name.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Mode::Default => "",
            Mode::Single => ".single",
            Mode::Domain => ".domain",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Mode::Default => "with locks (default)",
            Mode::Single => "MLX5_SINGLE_THREADED=1",
            Mode::Domain => "thread domain, single-threaded CQ",
        }
    }
}

/// What a case needs of the machine, and does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Queues,
    Crowd,
    Threads,
    Objects,
}

/// Two timed parts that belong together, and the rows that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) index: usize,
    pub(crate) rows: [Option<String>; 2],
    pub(crate) kind: Kind,
}

/// Of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Took {
    pub(crate) cycles: f64,
    pub(crate) ns: f64,
}

/// Compiles the worker; `name` is what it is called, `extra` what the compiler is told beside.
pub(crate) fn compile(options: &Options, name: &str, extra: &[&str]) -> Result<PathBuf> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;
    let out = options.out.join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/worker.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let output = Command::new(&compiler)
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", "-g", "-O2"])
        .args(extra)
        .arg("-o")
        .arg(&out)
        .arg(&source)
        .args(["-libverbs", "-ldl", "-lpthread"])
        .output()
        .with_context(|| format!("running {}", compiler.display()))?;
    if !output.status.success() {
        bail!("{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

/// `holdfast sim` in front of a program.
pub(crate) fn sim(options: &Options, provider: Provider, net: &str) -> Result<Command> {
    let mut command = Command::new(&options.command);
    command.args(["sim", "--net", net]);
    if let Some(bed) = &options.bed {
        command.arg("--bed").arg(bed);
    }
    match provider {
        Provider::Stock => {
            command.arg("--stock");
        }
        Provider::Holdfast => {
            if let Some(lib) = &options.lib {
                command.arg("--lib").arg(lib);
            }
        }
        Provider::Bare => {
            let lib = options.bare.as_ref().context("no library without the death machinery")?;
            command.arg("--lib").arg(lib);
        }
    }
    // What the caller has set for its own programs is not what is measured.
    for name in
        ["RDMAV_DRIVERS", "IBV_DRIVERS", "LD_PRELOAD", "HOLDFAST", "HOLDFAST_LOG", "MLX5_SINGLE_THREADED"]
    {
        command.env_remove(name);
    }
    command.arg("--");
    Ok(command)
}

/// A worker at its work.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) provider: Provider,
    what: String,
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one; `front` is a program that runs it, with its arguments (valgrind).
    pub(crate) fn start(
        options: &Options,
        program: &Path,
        (provider, mode): (Provider, Mode),
        front: &[String],
    ) -> Result<Worker> {
        let mut command = sim(options, provider, "none")?;
        command.args(front).arg(program).arg(options.cpu.map_or(-1, i32::from).to_string());
        command.arg(if mode == Mode::Domain { "td" } else { "shared" });
        if options.forget {
            command.arg("forget");
        }
        command.env("HOLDFAST_SIM_ENGINE", "null");
        if mode == Mode::Single {
            command.env("MLX5_SINGLE_THREADED", "1");
        }
        let what = format!("the worker with {provider:?}, {mode:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {what}: {command:?}"))?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Worker { provider, what, child, to, from })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let to = self.to.as_mut().context("ended")?;
        to.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("{}: gone", self.what))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.from.read_line(&mut line).unwrap_or(0) == 0 {
            let status = self.child.wait()?;
            bail!("{} ended ({status}): what it said of it stands above", self.what);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Says a line and hears one.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String> {
        self.say(line)?;
        self.line().with_context(|| format!("'{line}'"))
    }

    /// All cases that there are.
    pub(crate) fn cases(&mut self) -> Result<Vec<Case>> {
        self.say("cases")?;
        let mut cases = Vec::new();
        loop {
            let line = self.line()?;
            if line == "." {
                return Ok(cases);
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let [index, first, second, kind] = words.as_slice() else { bail!("no case: {line}") };
            let row = |name: &str| (name != "-").then(|| name.to_owned());
            let kind = match *kind {
                "queues" => Kind::Queues,
                "crowd" => Kind::Crowd,
                "threads" => Kind::Threads,
                "objects" => Kind::Objects,
                _ => bail!("no kind: {line}"),
            };
            cases.push(Case { index: index.parse()?, rows: [row(first), row(second)], kind });
        }
    }

    /// Bytes of each kind of object.
    pub(crate) fn sizes(&mut self) -> Result<Vec<(String, f64)>> {
        self.say("size")?;
        let mut sizes = Vec::new();
        loop {
            let line = self.line()?;
            if line == "." {
                return Ok(sizes);
            }
            let (name, bytes) = line.split_once(' ').with_context(|| format!("no size: {line}"))?;
            sizes.push((name.to_owned(), bytes.parse()?));
        }
    }

    /// Measures a case once: both parts.
    pub(crate) fn run(&mut self, case: &Case, bursts: u32) -> Result<[Took; 2]> {
        let answer = self.ask(&format!("run {} {bursts}", case.index))?;
        let numbers: Vec<f64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [a, b, c, d] = numbers.as_slice() else { bail!("{}: no figures: {answer}", self.what) };
        Ok([Took { cycles: *a, ns: *b }, Took { cycles: *c, ns: *d }])
    }

    /// Has it end, well.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.to.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{} ended with {status}", self.what);
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // After `end` there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
