//! Where things are: the checkout, its target directory, the cache that all checkouts share.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout: the one we are in, or else the one this tool was built from.
pub(crate) fn checkout() -> Result<PathBuf> {
    let here = env::current_dir().context("the present directory is gone")?;
    let inside = here.ancestors().find(|dir| dir.join("tests/guests/Cargo.toml").is_file());
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    inside
        .unwrap_or(&built_from)
        .canonicalize()
        .context("not in a checkout, and the one this tool was built from is gone")
}

/// `tests/guests` of the checkout.
pub(crate) fn guests() -> Result<PathBuf> {
    Ok(checkout()?.join("tests/guests"))
}

/// Where results and kept kernel logs go: always below the checkout, so that a guest can write there.
pub(crate) fn output() -> Result<PathBuf> {
    let dir = checkout()?.join("target/guests");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// What a guest or a chroot sees of the host, each at its own path: the checkout, and cargo's target directory
/// where that lies elsewhere.
pub(crate) fn shared() -> Result<Vec<PathBuf>> {
    let checkout = checkout()?;
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).and_then(|t| t.canonicalize().ok());
    let outside = target.filter(|t| !t.starts_with(&checkout));
    Ok([checkout].into_iter().chain(outside).collect())
}

/// The cache outside the checkout: roots and the packages they are made of.
pub(crate) fn cache() -> Result<PathBuf> {
    let dir = cache_from(|name| env::var_os(name).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty()))
        .context("none of HOLDFAST_CACHE, XDG_CACHE_HOME and HOME is set")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("{}", dir.display()))
}

fn cache_from(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    var("HOLDFAST_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("holdfast")))
        .or_else(|| Some(var("HOME")?.join(".cache/holdfast")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> Option<PathBuf> {
        cache_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)))
    }

    #[test]
    fn the_nearest_variable_wins() {
        let all = [("HOLDFAST_CACHE", "/c"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(&all), Some(PathBuf::from("/c")));
        assert_eq!(with(&all[1..]), Some(PathBuf::from("/x/holdfast")));
        assert_eq!(with(&all[2..]), Some(PathBuf::from("/h/.cache/holdfast")));
        assert_eq!(with(&[]), None);
    }
}
