//! The emulator of guests that have a virtual ConnectX: `vfio-user-pci` came to QEMU with 10.1, which no stable Debian
//! has, so QEMU of forky is unpacked into the cache, as the roots are, and run from there by its own dynamic loader.
//! Nothing of it is installed on the host.
//!
//! This QEMU does not survive the unplug of such a device; `qemu/unplug.c`, preloaded into it, says why and mends it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::root::{self, Suite};

/// What its directories in the cache begin with.
pub(crate) const NAME: &str = "qemu";

const SUITE: Suite = Suite::Forky;
const PACKAGES: &[&str] = &["qemu-system-x86"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// Where its boot code lies; the BIOS has a package of its own.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
const UNPLUG: &str = include_str!("../qemu/unplug.c");
const CC: &[&str] = &["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-static-libgcc", "-xc", "-"];

/// What the content depends on but for the mirror's state.
fn recipe() -> String {
    format!("version 1\nsuite {}\npackages {PACKAGES:?}\ncc {CC:?}\n{UNPLUG}", SUITE.name())
}

/// The name of the present recipe's directory.
pub(crate) fn key() -> String {
    root::named(NAME, &recipe())
}

/// A complete installation.
pub(crate) struct Emulator {
    dir: PathBuf,
}

impl Emulator {
    /// The emulator, unpacked now if it is not there.
    pub(crate) fn ensure() -> Result<Self> {
        let roots = root::directory()?;
        let emulator = Self { dir: roots.join(key()) };
        if !emulator.dir.is_dir() {
            let _lock = root::lock(&roots, NAME)?;
            if !emulator.dir.is_dir() {
                emulator.build().context("unpacking QEMU")?;
            }
        }
        Ok(emulator)
    }

    fn build(&self) -> Result<()> {
        let roots = root::directory()?;
        root::remove_unfinished(&roots, NAME)?;
        let new = Self { dir: roots.join(format!(".{}.new", key())) };
        fs::create_dir(&new.dir).with_context(|| format!("creating {}", new.dir.display()))?;
        let log = roots.join(format!("{}.log", key()));
        eprintln!("guest: unpacking QEMU of {} (a minute; once); log: {}", SUITE.name(), log.display());
        root::install(SUITE, "extract", PACKAGES, &[], &new.dir.join("fs"), &log)
            .with_context(|| format!("{}\nthe whole log: {}", root::tail(&log, 15), log.display()))?;
        new.compile_unplug()?;
        new.prove()?;
        fs::write(new.dir.join("recipe"), recipe()).context("writing the recipe")?;
        fs::rename(&new.dir, &self.dir).context("renaming the complete QEMU")
    }

    fn compile_unplug(&self) -> Result<()> {
        let source = self.dir.join("unplug.c");
        fs::write(&source, UNPLUG).context("writing unplug.c")?;
        let mut cc = Command::new("cc");
        cc.args(CC).arg("-o").arg(self.unplug()).stdin(fs::File::open(&source).context("reading unplug.c")?);
        root::succeed(&mut cc).context("compiling unplug.c")
    }

    /// It runs on this host and has the device.
    fn prove(&self) -> Result<()> {
        let words = self.words();
        let (program, arguments) = words.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(arguments).args(["-device", "vfio-user-pci,help"]).stdin(Stdio::null());
        let output = command.output().context("running QEMU")?;
        if !output.status.success() || !String::from_utf8_lossy(&output.stdout).contains("socket=") {
            bail!(
                "this QEMU has no vfio-user-pci ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    fn unplug(&self) -> PathBuf {
        self.dir.join("unplug.so")
    }

    /// The command that runs it, without arguments of QEMU's own but for where its firmware is.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let fs = self.dir.join("fs");
        let mut words: Vec<OsString> = vec!["env".into()];
        // Debian keeps parts of QEMU in modules, which are looked for where they would be installed.
        let mut modules = OsString::from("QEMU_MODULE_DIR=");
        modules.push(fs.join(LIBRARIES).join("qemu"));
        words.push(modules);
        words.push(fs.join(LOADER).into());
        words.push("--library-path".into());
        words.push(fs.join(LIBRARIES).into());
        words.push("--preload".into());
        words.push(self.unplug().into());
        words.push(fs.join(PROGRAM).into());
        for dir in FIRMWARE {
            words.push("-L".into());
            words.push(fs.join(dir).into());
        }
        words
    }
}
