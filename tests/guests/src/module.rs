//! The project's own kernel module (tests/guests/fatal), built by a suite's own compiler against the headers of its kernel.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::root::{Extra, Root};

/// Builds it if the root has the headers; gives the directory it is in.
pub(crate) fn build(root: &Root, extras: &[Extra]) -> Result<Option<PathBuf>> {
    if !extras.contains(&Extra::Headers) {
        return Ok(None);
    }
    let out = paths::checkout()?.join("target/modules").join(root.suite.name());
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    for entry in fs::read_dir(paths::guests()?.join("fatal")).context("reading tests/guests/fatal")? {
        let from = entry.context("reading tests/guests/fatal")?.path();
        let name = from.file_name().context("a file has a name")?;
        fs::copy(&from, out.join(name)).with_context(|| format!("copying {}", from.display()))?;
    }
    let script = "make -C /lib/modules/*/build M=\"$1\" modules >&2";
    let words = ["bash", "-ec", script, "bash", &out.display().to_string()].map(str::to_owned);
    match root.chroot(&words)? {
        0 => Ok(Some(out)),
        status => bail!("building the module for {} ended with {status}", root.suite.name()),
    }
}
