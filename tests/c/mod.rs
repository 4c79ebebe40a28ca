//! C programs and libraries, built with the host's compiler for one test binary.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses what it needs")]

pub mod recipe;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `false` if the user chose to go without the tests that need a C compiler and libibverbs; said loudly.
pub fn wanted(test: &str) -> bool {
    let skipped = std::env::var_os("HOLDFAST_SKIP_C").is_some_and(|value| value == "1");
    if skipped {
        eprintln!("\n*** {test} SKIPPED: HOLDFAST_SKIP_C=1. What it would have proven is not proven. ***\n");
    }
    !skipped
}

/// A directory of the calling test binary's own, for what it builds; removed when dropped.
pub struct Workshop(tempfile::TempDir);

impl Workshop {
    pub fn new() -> Workshop {
        Workshop(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Builds `source` with gcc and `arguments` into `name`.
    pub fn build<S: AsRef<OsStr>>(
        &self,
        name: &str,
        source: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> PathBuf {
        let out = self.path().join(name);
        if let Some(parent) = out.parent() {
            std::fs::create_dir_all(parent).unwrap();
        }
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "gcc".into());
        let output = Command::new(&compiler)
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-o"])
            .arg(&out)
            .arg(source)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}. {WAY_OUT}", compiler.display()));
        assert!(
            output.status.success(),
            "{} does not build: {WAY_OUT}\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        out
    }

    /// Writes `text` to `name` and gives its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// What to do when the compiler or the headers are missing.
pub const WAY_OUT: &str = "These tests need a C compiler and libibverbs with its headers (Debian: apt-get install gcc \
     libibverbs-dev ibverbs-providers perftest); HOLDFAST_SKIP_C=1 goes without them";

/// A source file beside this module.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name)
}

/// The provider that this test run built.
pub fn provider() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libholdfast.so");
    assert!(path.exists(), "cargo left no {}", path.display());
    path
}

/// Its standard output, after it succeeded.
pub fn stdout(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out
}
