//! The system's libibverbs, told from its file: nothing of it is run, so a root of another release can be asked too.

use crate::system::{Root, Trouble, say};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A libibverbs file and what stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Library {
    /// The file, links followed, as its system names it.
    pub(crate) path: PathBuf,
    /// The rdma-core release, where the file's name tells it (`libibverbs.so.1.14.44.0` is of 44.0).
    pub(crate) release: Option<String>,
    /// The private ABI number its plug-ins are named for.
    pub(crate) number: Option<u32>,
    /// Where it looks for plug-ins.
    pub(crate) provider_dir: Option<PathBuf>,
    /// Where it looks for driver files.
    pub(crate) config_dir: PathBuf,
}

const SONAME: &str = "libibverbs.so.1";

impl Library {
    /// The first libibverbs that the dynamic linker of `root` would find; `search` are directories to look in before.
    pub(crate) fn find(root: &Root, search: &[PathBuf]) -> Result<Library, Trouble> {
        let mut dirs = search.to_vec();
        linker_dirs(root, Path::new("/etc/ld.so.conf"), &mut dirs, 0);
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        dirs.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")].map(PathBuf::from));
        dirs.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
        for dir in &dirs {
            let path = root.resolve(&dir.join(SONAME));
            if let Ok(bytes) = std::fs::read(root.at(&path))
                && is_ours(&bytes)
            {
                return Ok(Library::read(path, &bytes));
            }
        }
        Err(Trouble::new(
            format!("no {SONAME} was found (looked in {})", list(&dirs)),
            "Install rdma-core's verbs library (Debian: apt-get install libibverbs1 ibverbs-providers; Fedora: dnf install \
             libibverbs), or name its directory in LD_LIBRARY_PATH",
        ))
    }

    /// The one that programs started from here would load.
    pub(crate) fn of_this_process() -> Result<Library, Trouble> {
        let search = std::env::var_os("LD_LIBRARY_PATH");
        let search: Vec<PathBuf> =
            search.iter().flat_map(std::env::split_paths).filter(|dir| dir.is_absolute()).collect();
        Library::find(&Root::new("/"), &search)
    }

    fn read(path: PathBuf, bytes: &[u8]) -> Library {
        let mut library = Library {
            release: release(&path),
            path,
            number: None,
            provider_dir: None,
            config_dir: PathBuf::from("/etc/libibverbs.d"),
        };
        for text in bytes.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok()) {
            if let Some((before, after)) = text.split_once("lib%s-rdmav")
                && let Some(number) = after.strip_suffix(".so").and_then(|number| number.parse().ok())
            {
                library.number = Some(number);
                if before.starts_with('/') {
                    library.provider_dir = Some(PathBuf::from(before.trim_end_matches('/')));
                }
            } else if text.starts_with('/') && text.ends_with("/libibverbs.d") {
                library.config_dir = PathBuf::from(text);
            }
        }
        library
    }
}

/// Options of the hidden `holdfast where`.
#[derive(clap::Args)]
pub(crate) struct WhereArgs {
    what: What,
}

#[derive(Clone, clap::ValueEnum)]
enum What {
    ProviderDir,
    ConfigDir,
}

/// Prints a directory of this system's libibverbs.
pub(crate) fn print_where(args: &WhereArgs) -> Result<ExitCode, Trouble> {
    let library = Library::find(&Root::new("/"), &[])?;
    let dir = match args.what {
        What::ProviderDir => library.provider_dir.ok_or_else(|| {
            Trouble::new(
                format!("{} was built without a provider directory", library.path.display()),
                "Choose one that its linker searches: PROVIDERDIR=/usr/lib",
            )
        })?,
        What::ConfigDir => library.config_dir,
    };
    say(dir.display());
    Ok(ExitCode::SUCCESS)
}

fn list(dirs: &[PathBuf]) -> String {
    let mut names: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    names.dedup();
    names.join(", ")
}

/// Whether `bytes` are a 64-bit little-endian ELF file of the machine this command runs on.
fn is_ours(bytes: &[u8]) -> bool {
    let machine: &[u8] = match std::env::consts::ARCH {
        "x86_64" => &[62, 0],
        "aarch64" => &[183, 0],
        _ => return bytes.starts_with(b"\x7fELF"),
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(machine)
}

fn release(path: &Path) -> Option<String> {
    let version = path.file_name()?.to_str()?.strip_prefix("libibverbs.so.1.")?;
    let mut numbers = version.split('.');
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(_), Some(major), Some(minor), None) if !major.is_empty() => Some(format!("{major}.{minor}")),
        _ => None,
    }
}

/// The directories of an ld.so.conf, in order, `include` lines followed.
fn linker_dirs(root: &Root, file: &Path, dirs: &mut Vec<PathBuf>, depth: u32) {
    let Ok(text) = std::fs::read_to_string(root.at(file)) else { return };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) {
            Some(pattern) if depth < 4 => {
                // Only the form that distributions use: a directory and `*.conf`.
                let pattern = Path::new(pattern.trim());
                let dir =
                    file.parent().unwrap_or(Path::new("/")).join(pattern.parent().unwrap_or(Path::new("")));
                let mut files: Vec<PathBuf> = std::fs::read_dir(root.at(&dir))
                    .into_iter()
                    .flatten()
                    .filter_map(|entry| Some(dir.join(entry.ok()?.file_name())))
                    .filter(|path| path.extension().is_some_and(|ext| ext == "conf"))
                    .collect();
                files.sort();
                for path in files {
                    linker_dirs(root, &path, dirs, depth + 1);
                }
            }
            Some(_) => {}
            None if line.starts_with('/') => dirs.push(PathBuf::from(line)),
            None => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file that says what a libibverbs of Debian says.
    pub(crate) fn fake(root: &Root, dir: &str, release: &str, number: u32) {
        let name = format!("{dir}/libibverbs.so.1.14.{release}");
        std::fs::create_dir_all(root.at(dir)).unwrap();
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
        bytes.extend(if std::env::consts::ARCH == "aarch64" { [183, 0] } else { [62, 0] });
        let texts =
            format!("\0lib%s-rdmav{number}.so\0/etc/libibverbs.d\0{dir}/libibverbs/lib%s-rdmav{number}.so\0");
        bytes.extend(texts.bytes());
        std::fs::write(root.at(&name), bytes).unwrap();
        let link = root.at(format!("{dir}/{SONAME}"));
        std::os::unix::fs::symlink(format!("libibverbs.so.1.14.{release}"), link).unwrap();
    }

    #[test]
    fn a_library_tells_release_number_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fake(&root, "/opt/verbs/lib", "44.0", 34);
        std::fs::create_dir_all(root.at("/etc/ld.so.conf.d")).unwrap();
        std::fs::write(root.at("/etc/ld.so.conf"), "include /etc/ld.so.conf.d/*.conf\n").unwrap();
        std::fs::write(root.at("/etc/ld.so.conf.d/verbs.conf"), "# ours\n/nowhere\n/opt/verbs/lib\n")
            .unwrap();
        let found = Library::find(&root, &[]).unwrap();
        assert_eq!(found.path, Path::new("/opt/verbs/lib/libibverbs.so.1.14.44.0"));
        assert_eq!(found.release.as_deref(), Some("44.0"));
        assert_eq!(found.number, Some(34));
        assert_eq!(found.provider_dir.as_deref(), Some(Path::new("/opt/verbs/lib/libibverbs")));
        assert_eq!(found.config_dir, Path::new("/etc/libibverbs.d"));
    }

    #[test]
    fn a_library_of_another_machine_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        std::fs::create_dir_all(root.at("/lib64")).unwrap();
        std::fs::write(root.at("/lib64/libibverbs.so.1"), b"\x7fELF\x01\x01").unwrap();
        fake(&root, "/usr/lib64", "56.1", 34);
        assert_eq!(Library::find(&root, &[]).unwrap().release.as_deref(), Some("56.1"));
    }

    #[test]
    fn no_library_is_told_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let trouble = Library::find(&Root::new(dir.path()), &[]).unwrap_err().to_string();
        assert!(trouble.contains("no libibverbs.so.1") && trouble.contains("apt-get install"), "{trouble}");
    }

    #[test]
    fn releases_are_read_from_names_of_that_form_only() {
        let of = |name: &str| release(Path::new(name));
        assert_eq!(of("/x/libibverbs.so.1.14.56.1").as_deref(), Some("56.1"));
        assert_eq!(of("/x/libibverbs.so.1"), None);
        assert_eq!(of("/x/libibverbs.so.1.0.0"), None);
    }
}
