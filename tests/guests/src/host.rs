//! What the host must have: found by name, installed by apt where we may, named where we may not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A command, and the Debian package it comes in.
struct Need {
    command: &'static str,
    package: &'static str,
    root_only: Option<bool>,
}

const fn need(command: &'static str, package: &'static str) -> Need {
    Need { command, package, root_only: None }
}

const NEEDS: &[Need] = &[
    need("mmdebstrap", "mmdebstrap"),
    need("gpgv", "gpgv"),
    need("xz", "xz-utils"),
    need("zstd", "zstd"),
    need("tar", "tar"),
    need("cc", "gcc"),
    need("objdump", "binutils"),
    need("unshare", "util-linux"),
    need("setpriv", "util-linux"),
    need("timeout", "coreutils"),
    Need { command: "newuidmap", package: "uidmap", root_only: Some(false) },
];

/// Where Debian keeps the keys that its archives are signed with.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Whether we are root, by what `id -u` says.
pub(crate) fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("-u").output().context("running id")?;
    Ok(id.stdout.trim_ascii() == b"0")
}

/// The first executable of that name in PATH, or in the directories of the administrator.
pub(crate) fn find(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(command))
        .find(|file| file.is_file())
}

/// The emulator: $QEMU, or the one in PATH.
pub(crate) fn qemu() -> PathBuf {
    env::var_os("QEMU").filter(|q| !q.is_empty()).map_or_else(|| "qemu-system-x86_64".into(), PathBuf::from)
}

fn missing(root: bool) -> Vec<&'static str> {
    let mut packages: Vec<&str> = NEEDS
        .iter()
        .filter(|n| n.root_only.is_none_or(|only| only == root) && find(n.command).is_none())
        .map(|n| n.package)
        .collect();
    if env::var_os("QEMU").is_none() && find("qemu-system-x86_64").is_none() {
        packages.push("qemu-system-x86");
    }
    if !KEYRINGS.iter().any(|k| Path::new(k).exists()) {
        packages.push("debian-archive-keyring");
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs what is missing, or fails with the command that would.
pub(crate) fn setup() -> Result<()> {
    let root = is_root()?;
    let packages = missing(root);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let advice = format!("the guests need these Debian packages: {list}\n  sudo apt-get install {list}");
    if find("apt-get").is_none() {
        bail!("{advice}\n(this host has no apt-get: install their counterparts by hand)");
    }
    let sudo = !root;
    if sudo && !quiet(Command::new("sudo").args(["-n", "true"])) {
        bail!("{advice}");
    }
    eprintln!("guest: installing {list}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(if sudo { "sudo" } else { "env" });
        let env: &[&str] = if sudo { &["env"] } else { &[] };
        command.args(env).args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]).args(arguments);
        // What apt prints is progress, and stdout is for results.
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        command.status().is_ok_and(|s| s.success())
    };
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&packages);
    if !(apt(&install) || (apt(&["update"]) && apt(&install))) {
        bail!("apt-get failed; {advice}");
    }
    match missing(root) {
        rest if rest.is_empty() => Ok(()),
        rest => bail!("still missing after the installation: {}", rest.join(" ")),
    }
}

fn quiet(command: &mut Command) -> bool {
    let null = Stdio::null;
    command.stdin(null()).stdout(null()).stderr(null()).status().is_ok_and(|s| s.success())
}
