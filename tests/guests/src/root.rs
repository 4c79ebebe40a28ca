//! The roots: one Debian installation a suite, in the cache, named by the content of its recipe.
//!
//! `roots/SUITE-HASH/` holds `fs` (the installation), `vmlinux` (its kernel, unpacked), `modules` (what the initramfs
//! loads, in order) and `mnt` (a mount point). It is made under another name and renamed when complete, so a directory
//! of that name is a whole root; a lock a suite keeps two builders apart.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{boot, emulator, host, paths};

/// The Debian releases of which a guest can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Suite {
    /// Linux 5.10, rdma-core 33
    Bullseye,
    /// Linux 6.1, rdma-core 44
    Bookworm,
    /// Linux 6.12, rdma-core 56
    Trixie,
    /// Linux 7.2, rdma-core 65
    Forky,
}

impl Suite {
    pub(crate) const ALL: [Self; 4] = [Self::Bullseye, Self::Bookworm, Self::Trixie, Self::Forky];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Forky => "forky",
        }
    }
}

/// Packages beyond the standard set. A root with them is a root of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Extra {
    /// What building a kernel module takes
    Headers,
}

impl Extra {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Headers => &["linux-headers-amd64", "make"],
        }
    }
}

/// To be raised when the way a root is made changes while the lists below do not.
const RECIPE_VERSION: u32 = 1;

const PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "busybox-static",
    "mount",
    "kmod",
    "iproute2",
    "procps",
    "pciutils",
    "strace",
    // soft-RoCE and the tools that prove it
    "rdma-core",
    "libibverbs1",
    "ibverbs-providers",
    "ibverbs-utils",
    "rdmacm-utils",
    "perftest",
    "qperf",
    "python3-pyverbs",
    // C clients are compiled with the suite's own compiler and headers
    "libibverbs-dev",
    "librdmacm-dev",
    "gcc",
    "libc6-dev",
    "valgrind",
    "libc6-dbg",
];

const APT_OPTIONS: &[&str] = &[
    // A mirror's copy of a testing suite may be older than the date its Release file ends.
    "Acquire::Check-Valid-Until \"false\"",
    "Acquire::Languages \"none\"",
    "Acquire::Retries \"5\"",
    "Apt::Install-Recommends \"false\"",
];

const DPKG_OPTIONS: &[&str] = &[
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/rdma-core/*",
];

/// rdma-core's own tests come with python3-pyverbs, as documentation, some of them compressed.
const PLACE_TESTS: &str = r#"set -eu
dir=$1/usr/src/rdma-core
mkdir -p "$dir"
cp -r "$1/usr/share/doc/rdma-core/tests" "$dir/tests"
find "$dir" -name '*.gz' -exec gzip -d {} +
test -e "$dir/tests/run_tests.py" && test -e "$dir/tests/test_qp.py""#;

/// Everything the content of a root depends on but the mirror's state.
fn recipe(suite: Suite, extras: &[Extra]) -> String {
    let mut text = format!("version {RECIPE_VERSION}\nsuite {}\n", suite.name());
    for (what, list) in [
        ("package", packages(extras)),
        ("apt", APT_OPTIONS.to_vec()),
        ("dpkg", DPKG_OPTIONS.to_vec()),
        ("module", boot::EARLY_MODULES.to_vec()),
    ] {
        for item in list {
            // Writing to a String cannot fail.
            _ = writeln!(text, "{what} {item}");
        }
    }
    text + PLACE_TESTS
}

fn packages(extras: &[Extra]) -> Vec<&'static str> {
    PACKAGES.iter().chain(extras.iter().flat_map(|e| e.packages())).copied().collect()
}

fn key(suite: Suite, extras: &[Extra]) -> String {
    named(suite.name(), &recipe(suite, extras))
}

/// The name of what is made by a recipe.
pub(crate) fn named(name: &str, recipe: &str) -> String {
    let digest = Sha256::digest(recipe);
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{hex}")
}

fn sorted(extras: &[Extra]) -> Vec<Extra> {
    let mut extras = extras.to_vec();
    extras.sort_unstable();
    extras.dedup();
    extras
}

/// A complete root.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) suite: Suite,
    dir: PathBuf,
}

impl Root {
    /// The root of that suite, made now if it is not there.
    pub(crate) fn ensure(suite: Suite, extras: &[Extra]) -> Result<Self> {
        let extras = sorted(extras);
        let roots = directory()?;
        let root = Self { suite, dir: roots.join(key(suite, &extras)) };
        if root.dir.is_dir() {
            return Ok(root);
        }
        let _lock = lock(&roots, suite.name())?;
        if !root.dir.is_dir() {
            build(&root, &roots, &extras).with_context(|| format!("making the root of {}", suite.name()))?;
        }
        Ok(root)
    }

    /// The installation itself.
    pub(crate) fn fs(&self) -> PathBuf {
        self.dir.join("fs")
    }

    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// Runs a command in the root under the host's kernel and gives its exit status. The checkout is at its own path;
    /// what the command writes elsewhere is gone afterwards.
    pub(crate) fn chroot(&self, command: &[String]) -> Result<u8> {
        let shared = paths::shared()?;
        let here = std::env::current_dir().context("the present directory is gone")?;
        let checkout = paths::checkout()?;
        let cwd = if shared.iter().any(|dir| here.starts_with(dir)) { &here } else { &checkout };
        let status = Command::new("unshare")
            .args(namespaces(host::is_root()?))
            .args(["bash", "-c", CHROOT, "chroot"])
            .args([self.dir.as_path(), cwd.as_path()])
            .arg(shared.len().to_string())
            .args(&shared)
            .args(command)
            .status()
            .context("running unshare")?;
        Ok(crate::run::status_of(status))
    }
}

fn namespaces(root: bool) -> &'static [&'static str] {
    if root { &["--mount"] } else { &["--mount", "--map-root-user"] }
}

const CHROOT: &str = r#"set -eu
top=$1 cwd=$2 n=$3
shift 3
mount -t tmpfs chroot "$top/mnt"
mkdir "$top/mnt/upper" "$top/mnt/work" "$top/mnt/root"
mount -t overlay -o "lowerdir=$top/fs,upperdir=$top/mnt/upper,workdir=$top/mnt/work" root "$top/mnt/root"
for dir in /proc /dev "${@:1:$n}"; do
    mkdir -p "$top/mnt/root$dir"
    mount --rbind "$dir" "$top/mnt/root$dir"
done
shift "$n"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
exec chroot "$top/mnt/root" /bin/bash -c 'cd "$1"; shift; exec "$@"' chroot "$cwd" "$@""#;

/// Keeps other builders of `name` out for as long as the file lives.
pub(crate) fn lock(roots: &Path, name: &str) -> Result<File> {
    let path = roots.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("guest: another build of {name} is under way, waiting for it");
        file.lock().with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

fn build(root: &Root, roots: &Path, extras: &[Extra]) -> Result<()> {
    let suite = root.suite.name();
    remove_unfinished(roots, suite)?;
    let name = root.dir.file_name().context("a root has a name")?.to_string_lossy().into_owned();
    let new = Root { suite: root.suite, dir: roots.join(format!(".{name}.new")) };
    let debs = paths::cache()?.join("debs").join(suite);
    for dir in [&debs, &new.dir, &new.dir.join("mnt")] {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let log = roots.join(format!("{name}.log"));
    eprintln!("guest: making the root of {suite} (a minute or two; once); log: {}", log.display());
    let started = std::time::Instant::now();
    bootstrap(&new, extras, &debs, &log)
        .with_context(|| format!("{}\nthe whole log: {}", tail(&log, 15), log.display()))?;
    boot::unpack_kernel(&new)?;
    boot::unpack_modules(&new)?;
    fs::write(new.dir.join("recipe"), recipe(root.suite, extras)).context("writing the recipe")?;
    fs::rename(&new.dir, &root.dir).context("renaming the complete root")?;
    eprintln!("guest: {suite} is ready after {} s", started.elapsed().as_secs());
    Ok(())
}

/// Where the roots are.
pub(crate) fn directory() -> Result<PathBuf> {
    let roots = paths::cache()?.join("roots");
    fs::create_dir_all(&roots).with_context(|| format!("creating {}", roots.display()))?;
    Ok(roots)
}

/// To be called under the lock: whatever is left under a temporary name is of a build that did not end.
pub(crate) fn remove_unfinished(roots: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(roots).context("reading the cache")?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!(".{name}-")) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn bootstrap(new: &Root, extras: &[Extra], debs: &Path, log: &Path) -> Result<()> {
    let debs = debs.display();
    let options = [
        "--skip=download/empty".to_owned(),
        "--skip=essential/unlink".to_owned(),
        "--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives/".to_owned(),
        format!("--setup-hook=sync-in {debs} /var/cache/apt/archives/"),
        format!("--customize-hook=sync-out /var/cache/apt/archives {debs}"),
        format!("--customize-hook={PLACE_TESTS}"),
    ];
    install(new.suite, "apt", &packages(extras), &options, &new.fs(), log)
}

/// Installs packages of a suite in a new directory. The variant is mmdebstrap's.
pub(crate) fn install(
    suite: Suite,
    variant: &str,
    packages: &[&str],
    options: &[String],
    into: &Path,
    log: &Path,
) -> Result<()> {
    let is_root = host::is_root()?;
    let mirror = mirror(suite)?;
    let log = File::create(log).context("creating the log")?;
    let mut command = Command::new("mmdebstrap");
    // `guest` makes its own initramfs.
    command.env("INITRD", "No").env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command.arg(format!("--variant={variant}"));
    command.arg(format!("--mode={}", if is_root { "root" } else { "unshare" }));
    command.arg(format!("--include={}", packages.join(",")));
    command.args(APT_OPTIONS.iter().map(|o| format!("--aptopt={o}")));
    command.args(proxies().iter().map(|o| format!("--aptopt={o}")));
    command.args(DPKG_OPTIONS.iter().map(|o| format!("--dpkgopt={o}")));
    command.args(options);
    let tar = into.with_extension("tar");
    command.arg(suite.name()).arg(if is_root { into } else { &tar });
    command.arg(format!("deb {mirror} {} main", suite.name()));
    succeed(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?))?;
    if !is_root {
        // All files ours: QEMU, which runs as this user, must be able to read them. Devices come from devtmpfs.
        fs::create_dir(into).context("creating the root")?;
        let mut untar = Command::new("tar");
        untar.arg("-xf").arg(&tar).arg("-C").arg(into);
        untar.args(["--no-same-owner", "--exclude=./dev/*", "--delay-directory-restore"]);
        succeed(untar.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        fs::remove_file(&tar).context("removing the archive")?;
    }
    Ok(())
}

/// The first mirror that has the suite: the host's own, Debian's, and the archive where old suites end up.
fn mirror(suite: Suite) -> Result<String> {
    let helper = Path::new("/usr/lib/apt/apt-helper");
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"])
        .output();
    let own = targets.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let candidates: Vec<String> = own
        .lines()
        .filter(|uri| !uri.contains("security"))
        .take(1)
        .chain(["http://deb.debian.org/debian", "http://archive.debian.org/debian"])
        .map(|uri| uri.trim_end_matches('/').to_owned())
        .collect();
    if !helper.exists() {
        return candidates.into_iter().next().context("no mirror");
    }
    let probe = std::env::temp_dir().join(format!("holdfast-release-{}", std::process::id()));
    let found = candidates.iter().find(|uri| {
        let url = format!("{uri}/dists/{}/InRelease", suite.name());
        let mut command = Command::new(helper);
        command.arg("download-file").arg(url).arg(&probe);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    });
    _ = fs::remove_file(&probe);
    found.cloned().with_context(|| format!("no mirror has {}: tried {}", suite.name(), candidates.join(", ")))
}

/// The host's apt may know a proxy, without which it reaches no mirror.
fn proxies() -> Vec<String> {
    let dump = Command::new("apt-config").args(["dump", "--format", "%f \"%v\"%n"]).output();
    let text = dump.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let wanted = |line: &&str| {
        ["http", "https"]
            .iter()
            .any(|scheme| line.starts_with(&format!("Acquire::{scheme}::Proxy ")) && !line.ends_with(" \"\""))
    };
    text.lines().filter(wanted).map(str::to_owned).collect()
}

pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("running {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// Removes a tree. A root that was made by root, and mounts nothing, goes as any other tree does.
fn remove(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
}

/// Removes all but the roots of the present recipes.
pub(crate) fn clean() -> Result<()> {
    let roots = directory()?;
    let mut keep: Vec<String> =
        Suite::ALL.iter().flat_map(|s| [key(*s, &[]), key(*s, &[Extra::Headers])]).collect();
    keep.push(emulator::key());
    for name in Suite::ALL.map(Suite::name).into_iter().chain([emulator::NAME]) {
        let _lock = lock(&roots, name)?;
        for entry in fs::read_dir(&roots).context("reading the cache")?.flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            let ours = found.trim_start_matches('.').starts_with(&format!("{name}-"));
            if ours && entry.path().is_dir() && !keep.contains(&found) {
                eprintln!("guest: removing {}", entry.path().display());
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// The last lines of a file, for messages.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_named_by_its_content() {
        let plain = key(Suite::Forky, &[]);
        assert!(plain.starts_with("forky-") && plain.len() == "forky-".len() + 12, "{plain}");
        assert_eq!(plain, key(Suite::Forky, &[]));
        assert_ne!(plain, key(Suite::Forky, &[Extra::Headers]));
        assert_ne!(plain.split_once('-').unwrap().1, key(Suite::Trixie, &[]).split_once('-').unwrap().1);
    }

    #[test]
    fn the_recipe_names_every_input() {
        let text = recipe(Suite::Trixie, &[Extra::Headers]);
        for input in [
            "suite trixie",
            "package perftest",
            "package linux-headers-amd64",
            "module overlay",
            "run_tests.py",
        ] {
            assert!(text.contains(input), "{input} is not in\n{text}");
        }
    }
}
