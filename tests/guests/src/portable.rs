//! One build for all guests: linked against the oldest suite's glibc, so that the very same file is proven in each.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::root::{Root, Suite};

/// libibverbs appends its private ABI's number to the name of a provider it is told to load.
const PABI: [u32; 6] = [33, 34, 57, 59, 64, 65];

/// The test program that gives each kernel command to a live device (tests/uapi_live.rs).
const UAPI_LIVE: &str = "uapi_live";

/// The glibc of the oldest suite.
const GLIBC: (u32, u32) = (2, 31);

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the build is left.
pub(crate) fn dir() -> Result<PathBuf> {
    Ok(paths::checkout()?.join("target/portable"))
}

/// Builds the provider and the command, and proves that they load where glibc is 2.31.
pub(crate) fn build() -> Result<PathBuf> {
    let oldest = Root::ensure(Suite::Bullseye, &[])?;
    let dir = dir()?;
    let build = dir.join("build");
    fs::create_dir_all(&build).with_context(|| format!("creating {}", build.display()))?;
    let flags = link_flags(&oldest.fs(), &build.join("lib"))?;
    let checkout = paths::checkout()?;
    let cargo = |target_dir: &Path, args: &[&str]| -> Result<String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Not by arguments, which `cargo provider` would hand on to the compiler.
        cargo.current_dir(&checkout).args(args).env("CARGO_TARGET_DIR", target_dir);
        cargo.env("CARGO_BUILD_TARGET", TARGET).stdin(Stdio::null());
        // RUSTFLAGS would win over the variable of the target.
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", &flags);
        let output = cargo.stderr(Stdio::inherit()).output().context("running cargo")?;
        if !output.status.success() {
            bail!("the portable build failed: cargo {}: {}", args.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let provider = build.join("provider");
    cargo(&provider, &["provider"])?;
    let built = cargo(
        &build,
        &[
            "build",
            "--release",
            "-p",
            "holdfast",
            "--features",
            "tools",
            "--bins",
            "--test",
            UAPI_LIVE,
            "--message-format=json-render-diagnostics",
        ],
    )?;
    let release = |target_dir: &Path| target_dir.join(TARGET).join("release");
    let live = executable(&built, UAPI_LIVE)
        .with_context(|| format!("cargo does not say where it built {UAPI_LIVE}"))?;
    let files = [
        ("libholdfast.so", release(&provider).join("libholdfast.so")),
        ("holdfast", release(&build).join("holdfast")),
        (UAPI_LIVE, live),
    ];
    for (name, built) in &files {
        prove(built)?;
        replace(&dir.join(name), |new| fs::copy(built, new).map(drop))?;
    }
    for number in PABI {
        let name = format!("libholdfast-rdmav{number}.so");
        replace(&dir.join(name), |new| symlink("libholdfast.so", new))?;
    }
    Ok(dir)
}

/// Where the build left a program, by what cargo says of each artifact in JSON.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let built = message.get("executable")?.as_str()?;
        (message.pointer("/target/name")? == name).then(|| built.into())
    })
}

/// The libraries a Rust program links, by the names of their files in the oldest suite.
const LIBRARIES: [(&str, &str); 5] = [
    ("libpthread.so", "libpthread.so.0"),
    ("libdl.so", "libdl.so.2"),
    ("libm.so", "libm.so.6"),
    ("librt.so", "librt.so.1"),
    ("libutil.so", "libutil.so.1"),
];

/// The links of a development package are absolute and lead out of the root, and the compiler driver prefers the host's
/// directories to a sysroot's: so it gets a directory of links of our own first, and the root's start files by -B.
fn link_flags(root: &Path, lib: &Path) -> Result<String> {
    let (runtime, devel) = (root.join("lib/x86_64-linux-gnu"), root.join("usr/lib/x86_64-linux-gnu"));
    fs::create_dir_all(lib).with_context(|| format!("creating {}", lib.display()))?;
    for (name, file) in LIBRARIES {
        replace(&lib.join(name), |new| symlink(runtime.join(file), new))?;
    }
    let libc = format!(
        "GROUP ( {} {} AS_NEEDED ( {} ) )\n",
        runtime.join("libc.so.6").display(),
        devel.join("libc_nonshared.a").display(),
        runtime.join("ld-2.31.so").display(),
    );
    replace(&lib.join("libc.so"), |new| fs::write(new, libc))?;
    Ok(format!(
        "-C link-arg=-L{} -C link-arg=-L{} -C link-arg=-B{}",
        lib.display(),
        runtime.display(),
        devel.display()
    ))
}

/// Makes a file beside the place and renames it: a guest that has the old one mapped keeps it.
fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let new = path.with_extension("new");
    _ = fs::remove_file(&new);
    make(&new).and_then(|()| fs::rename(&new, path)).with_context(|| format!("writing {}", path.display()))
}

fn prove(file: &Path) -> Result<()> {
    let output = Command::new("objdump").arg("-T").arg(file).output().context("running objdump")?;
    if !output.status.success() {
        bail!("objdump {}: {}", file.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let symbols = String::from_utf8_lossy(&output.stdout);
    let (seen, newer) = versions(&symbols);
    if seen == 0 {
        bail!("objdump shows no glibc symbol in {}: nothing is proven", file.display());
    }
    if !newer.is_empty() {
        bail!("{} wants a glibc newer than {}.{}:\n{}", file.display(), GLIBC.0, GLIBC.1, newer.join("\n"));
    }
    Ok(())
}

/// How many symbols of glibc `objdump -T` shows, and the lines of those that the oldest suite does not have.
fn versions(symbols: &str) -> (usize, Vec<&str>) {
    let mut seen = 0;
    let mut newer = Vec::new();
    for line in symbols.lines() {
        let Some((_, rest)) = line.split_once("GLIBC_") else { continue };
        seen += 1;
        let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let mut parts = version.split('.').map(|n| n.parse().ok());
        // A name that is no number (GLIBC_PRIVATE) is none to depend on either.
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) <= GLIBC => {}
            _ => newer.push(line),
        }
    }
    (seen, newer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"live"},"executable":"/t/live-1"}"#;
        let other = r#"{"reason":"compiler-artifact","target":{"name":"live"},"executable":null}"#;
        let text = format!("no JSON\n{other}\n{line}\n");
        assert_eq!(executable(&text, "live"), Some(PathBuf::from("/t/live-1")));
        assert_eq!(executable(&text, "holdfast"), None);
    }

    #[test]
    fn a_symbol_of_a_newer_glibc_is_found() {
        let text = "0000 DF *UND* 0000 (GLIBC_2.2.5) free\n\
                    0000 DF *UND* 0000 (GLIBC_2.31) pthread_clockjoin_np\n\
                    0000 DF *UND* 0000 (GCC_3.0) _Unwind_Resume\n";
        assert_eq!(versions(text), (2, vec![]));
        for late in ["GLIBC_2.34", "GLIBC_2.100", "GLIBC_3.0", "GLIBC_PRIVATE"] {
            let line = format!("0000 DF *UND* 0000 ({late}) dlopen");
            assert_eq!(versions(&line), (1, vec![line.as_str()]));
        }
    }
}
