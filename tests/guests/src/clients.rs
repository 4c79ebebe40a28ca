//! The project's C clients, compiled by each suite's own compiler against its own libibverbs, into target/clients.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::paths;
use crate::root::Root;

/// Compiles what has changed since it was last compiled; gives the directory.
pub(crate) fn build(root: &Root) -> Result<PathBuf> {
    let checkout = paths::checkout()?;
    let (sources, compile) = (checkout.join("tests/clients/verbs"), checkout.join("tests/clients/compile"));
    let out = checkout.join("target/clients").join(root.suite.name());
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let wanted = stamp(root, &sources, &compile)?;
    let stamp = out.join(".stamp");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(out);
    }
    let words = [&compile, &sources, &out].map(|path| path.display().to_string());
    match root.chroot(&words)? {
        0 => {}
        status => bail!("compiling the clients for {} ended with {status}", root.suite.name()),
    }
    fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(out)
}

/// What the outcome depends on: the root, by its name, and every source.
fn stamp(root: &Root, sources: &Path, compile: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(sources)
        .with_context(|| format!("reading {}", sources.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.push(compile.to_owned());
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}\n{hex}\n", root.fs().display()))
}
