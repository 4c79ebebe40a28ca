//! `holdfast run -- CMD ...`: a program, and all that it starts, with holdfast in front of the stock providers.
//!
//! Two variables do it, since neither does alone: `RDMAV_DRIVERS` has libibverbs load holdfast before the system's driver
//! files; `LD_PRELOAD` has holdfast register first in programs whose own libraries register a stock provider before
//! libibverbs reads any list (those that link libmlx5). What the variables held stays behind ours.

use crate::library::Library;
use crate::system::Trouble;
use holdfast::config::Families;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Options of `holdfast run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take only devices of these families, comma separated; the stock providers serve the rest
    #[arg(long, value_name = "LIST", value_parser = families)]
    families: Option<Families>,
    /// Log what holdfast does: error, warn, info or debug, then ":stderr" or ":/path"
    #[arg(long, value_name = "LEVEL[:TARGET]")]
    log: Option<String>,
    /// The library to use [default: beside this command, else in libibverbs's provider directory]
    #[arg(long, value_name = "FILE")]
    lib: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn families(text: &str) -> Result<Families, String> {
    Families::parse(text).map_err(|(_, what)| what)
}

/// The status of env(1) and others when it is not the program that failed.
const OWN_FAILURE: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// `holdfast run`; comes back only if the program could not be started.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Trouble> {
    let mut environment = Vec::new();
    if let Some(families) = args.families {
        environment.push(("HOLDFAST_FAMILIES", families.names().into()));
    }
    if let Some(log) = &args.log {
        environment.push(("HOLDFAST_LOG", log.into()));
    }
    start(&args.command, &Front { provider: true, lib: args.lib.as_deref(), bed: None, environment })
}

/// What is put in front of a program.
pub(crate) struct Front<'a> {
    /// Whether holdfast is.
    pub(crate) provider: bool,
    /// Where it is, if the user said so.
    pub(crate) lib: Option<&'a Path>,
    /// The native bed, and where it is if the user said so.
    pub(crate) bed: Option<Option<&'a Path>>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

/// Starts a program; comes back only if that could not be done.
pub(crate) fn start(command: &[OsString], front: &Front<'_>) -> Result<ExitCode, Trouble> {
    let failed = |status: u8, trouble: &Trouble| {
        eprintln!("holdfast: {trouble}");
        Ok(ExitCode::from(status))
    };
    let Some((name, rest)) = command.split_first() else { return Ok(ExitCode::from(OWN_FAILURE)) };
    let program = match find(name) {
        Ok(program) => program,
        Err((status, trouble)) => return failed(status, &trouble),
    };
    let checked = refuse_privileged(&program).and_then(|()| {
        // A program may bring a libibverbs of its own, so not finding the system's is no error here.
        let verbs = Library::of_this_process().ok();
        let provider_dir = verbs.as_ref().and_then(|verbs| verbs.provider_dir.as_deref());
        let library = match (front.provider, front.lib) {
            (false, _) => None,
            (true, Some(lib)) => Some(given(lib)?),
            (true, None) => Some(default_library(PROVIDER, provider_dir)?),
        };
        if let Some(library) = &library {
            check_links(library, verbs.as_ref().and_then(|verbs| verbs.number))?;
            check_loads(library)?;
        }
        let bed = match front.bed {
            None => None,
            Some(Some(lib)) => Some(given(lib)?),
            Some(None) => Some(default_library(BED, provider_dir)?),
        };
        bed.iter().try_for_each(|bed| check_loads(bed))?;
        Ok((library, bed))
    });
    let (library, bed) = match checked {
        Ok(libraries) => libraries,
        Err(trouble) => return failed(OWN_FAILURE, &trouble),
    };
    if let Some(warning) = cannot_preload(&program) {
        eprintln!("holdfast: {warning}");
    }

    let mut command = Command::new(&program);
    command.arg0(name).args(rest);
    for (key, value) in variables(library.as_deref(), bed.as_deref(), |name| env::var_os(name)) {
        command.env(key, value);
    }
    for (key, value) in &front.environment {
        command.env(key, value);
    }
    let error = command.exec();
    let trouble = Trouble::new(
        format!("cannot start {}: {error}", program.display()),
        "Check that it is a program of this machine and that its interpreter is there",
    );
    failed(NOT_EXECUTABLE, &trouble)
}

/// The two variables, ours in front of what they hold.
fn variables(
    library: Option<&Path>,
    bed: Option<&Path>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let mut preload = set("LD_PRELOAD");
    for ours in [bed, library].into_iter().flatten() {
        preload = Some(in_front(ours.as_os_str(), preload, b": "));
    }
    let mut variables: Vec<_> = preload.map(|value| ("LD_PRELOAD", value)).into_iter().collect();
    if let Some(library) = library {
        // libibverbs adds "-rdmavNN.so" by itself, and reads the older name only if the newer is not set.
        let drivers = set("RDMAV_DRIVERS").or_else(|| set("IBV_DRIVERS"));
        variables.push(("RDMAV_DRIVERS", in_front(stem(library).as_os_str(), drivers, b":;")));
    }
    variables
}

/// The library as `RDMAV_DRIVERS` names it.
fn stem(library: &Path) -> PathBuf {
    let name = library.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    library.with_file_name(name.split_once("-rdmav").map_or(name, |(stem, _)| stem))
}

fn in_front(ours: &OsStr, theirs: Option<OsString>, separators: &[u8]) -> OsString {
    let mut value = ours.to_owned();
    let rest = theirs.unwrap_or_default();
    // Not twice, as when a program under `holdfast run` runs it again.
    let rest: Vec<&[u8]> = rest
        .as_bytes()
        .split(|byte| separators.contains(byte))
        .filter(|item| !item.is_empty() && *item != ours.as_bytes())
        .collect();
    for item in rest {
        value.push(":");
        value.push(OsStr::from_bytes(item));
    }
    value
}

/// The program's file, as execvp would find it.
fn find(name: &OsStr) -> Result<PathBuf, (u8, Trouble)> {
    let shown = Path::new(name).display();
    let mut found = None;
    if name.as_bytes().contains(&b'/') {
        found = Some(PathBuf::from(name));
    } else {
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        for dir in env::split_paths(&path) {
            let file = dir.join(name);
            match fs::metadata(&file) {
                Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
                    found = Some(file);
                    break;
                }
                Ok(meta) if meta.is_file() => found = found.or(Some(file)),
                _ => {}
            }
        }
    }
    let missing = |error: &dyn std::fmt::Display| {
        (
            NOT_FOUND,
            Trouble::new(
                format!("cannot find the program {shown}: {error}"),
                "Check its name, or give its whole path",
            ),
        )
    };
    let file = found.ok_or_else(|| missing(&"it is in no directory of PATH"))?;
    match fs::metadata(&file) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Ok(file),
        Ok(_) => Err((
            NOT_EXECUTABLE,
            Trouble::new(
                format!("{} is not an executable file", file.display()),
                format!("Make it one: chmod +x {}", file.display()),
            ),
        )),
        Err(error) => Err(missing(&error)),
    }
}

/// An error if the kernel would start `program` with privileges its caller lacks: the dynamic linker and libibverbs then
/// ignore both variables, and the program would be served by stock without a word.
fn refuse_privileged(program: &Path) -> Result<(), Trouble> {
    let Ok(meta) = fs::metadata(program) else { return Ok(()) };
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let mut capabilities = [0_u8; 64];
    let has_capabilities =
        rustix::fs::getxattr(program, "security.capability", &mut capabilities[..]).is_ok();
    let gains = if meta.mode() & 0o4000 != 0 && meta.uid() != uid.as_raw() {
        "is setuid"
    } else if meta.mode() & 0o2010 == 0o2010 && meta.gid() != gid.as_raw() {
        "is setgid"
    } else if has_capabilities && !uid.is_root() {
        "has file capabilities"
    } else {
        return Ok(());
    };
    let shown = program.display();
    Err(Trouble::new(
        format!(
            "{shown} {gains}: the dynamic linker ignores LD_PRELOAD in it and libibverbs RDMAV_DRIVERS, so stock would serve it"
        ),
        format!(
            "Become that user first and run 'holdfast run -- CMD' there (for sudo: sudo holdfast run -- CMD), or make holdfast \
             the system's default with 'holdfast enable', which holds for {shown} too"
        ),
    ))
}

/// Why the dynamic linker will not preload anything into `program` itself; what it starts may still be reached.
fn cannot_preload(program: &Path) -> Option<String> {
    let bytes = fs::read(program).ok()?;
    let header = bytes.strip_prefix(b"\x7fELF")?;
    let shown = program.display();
    let own = fs::read("/proc/self/exe").ok()?;
    if header.first() != own.get(4) || bytes.get(18..20) != own.get(18..20) {
        return Some(format!(
            "{shown} is a program of another machine type: holdfast cannot serve it, only what it starts"
        ));
    }
    let word = |at: usize, len: usize| {
        let field = bytes.get(at..at.checked_add(len)?)?;
        Some(field.iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    let (table, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
    let interpreted =
        (0..count).any(|index| word(table.saturating_add(index.saturating_mul(size)), 4) == Some(PT_INTERP));
    (!interpreted).then(|| {
        format!("{shown} is statically linked, so nothing can be preloaded: holdfast serves only the programs that it starts")
    })
}

/// The program header that names the dynamic linker.
const PT_INTERP: usize = 3;

fn given(lib: &Path) -> Result<PathBuf, Trouble> {
    // As for RDMAV_DRIVERS, the ending may be left off.
    let file = if lib.extension().is_some_and(|ext| ext == "so") {
        lib.to_owned()
    } else {
        lib.with_extension("so")
    };
    fs::canonicalize(&file).map(|_| absolute(&file)).map_err(|error| {
        Trouble::new(
            format!("--lib {}: {error}", file.display()),
            "'make build' makes target/holdfast/libholdfast.so",
        )
    })
}

/// libibverbs looks for the library under a name of its own.
fn check_links(library: &Path, number: Option<u32>) -> Result<(), Trouble> {
    let Some(number) = number else { return Ok(()) };
    let mut name = stem(library).into_os_string();
    name.push(format!("-rdmav{number}.so"));
    if Path::new(&name).exists() {
        return Ok(());
    }
    Err(Trouble::new(
        format!("this system's libibverbs wants {}, which is not there", Path::new(&name).display()),
        "'make build' and 'make install' put these links beside the library; a number they lack is that of an rdma-core which \
         this holdfast does not know",
    ))
}

fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

/// Our libraries, the option that names another, and what it is an option of.
type Ours = (&'static str, &'static str);
const PROVIDER: Ours = ("libholdfast.so", "holdfast run --lib");
const BED: Ours = ("libholdfast_sim.so", "holdfast sim --bed");

fn default_library((name, option): Ours, provider_dir: Option<&Path>) -> Result<PathBuf, Trouble> {
    let exe = env::current_exe().ok();
    let beside = exe.as_deref().and_then(Path::parent);
    let looked: Vec<PathBuf> =
        [beside, provider_dir].into_iter().flatten().map(|dir| dir.join(name)).collect();
    looked.iter().find(|file| file.is_file()).cloned().ok_or_else(|| {
        let names: Vec<String> = looked.iter().map(|file| file.display().to_string()).collect();
        Trouble::new(
            format!("{name} was not found (looked for {})", names.join(", ")),
            format!("Run 'make install', or name it: {option} /path/to/{name} -- CMD"),
        )
    })
}

/// Has the dynamic linker preload `library` into a copy of this command, which then looks whether it is there: a library
/// that cannot be preloaded is only a warning of the linker's, and the program would go on with stock.
fn check_loads(library: &Path) -> Result<(), Trouble> {
    if library.as_os_str().as_bytes().iter().any(|byte| b": ;".contains(byte)) {
        return Err(Trouble::new(
            format!(
                "{} holds a blank, ':' or ';', which LD_PRELOAD and RDMAV_DRIVERS split lists at",
                library.display()
            ),
            "Put the library into a directory without these",
        ));
    }
    let fail = |why: String| {
        Trouble::new(
            format!("{} cannot be loaded: {why}", library.display()),
            "Build it on (or for) this system with 'make build', or name another with --lib",
        )
    };
    let child = env::current_exe().and_then(|exe| {
        Command::new(exe)
            .arg(IS_LOADED)
            .arg(library)
            .env("LD_PRELOAD", library)
            .env_remove("RDMAV_DRIVERS")
            .env_remove("HOLDFAST_LOG")
            .stdin(Stdio::null())
            .output()
    });
    match child {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Err(fail(if said.is_empty() { output.status.to_string() } else { said.join("; ") }))
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// The hidden command of [`check_loads`]'s copy.
pub(crate) const IS_LOADED: &str = "is-loaded";

/// Whether the file `library` is mapped into this process.
pub(crate) fn is_loaded(library: &Path) -> ExitCode {
    let mapped = || -> io::Result<bool> {
        let real = fs::canonicalize(library)?;
        let maps = fs::read("/proc/self/maps")?;
        Ok(maps.split(|byte| *byte == b'\n').any(|line| line.ends_with(real.as_os_str().as_bytes())))
    };
    match mapped() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(env: &[(&str, &str)]) -> [String; 2] {
        let get = |name: &str| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value))
        };
        let variables = variables(Some(Path::new("/h/libholdfast.so")), None, get);
        let values = variables.into_iter().map(|(_, value)| value.into_string().unwrap());
        values.collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn the_bed_stands_behind_the_provider_and_goes_without_it() {
        let (ours, bed) = (Path::new("/h/libholdfast.so"), Path::new("/h/libholdfast_sim.so"));
        let none = |_: &str| None;
        let both = variables(Some(ours), Some(bed), none);
        assert_eq!(both[0], ("LD_PRELOAD", "/h/libholdfast.so:/h/libholdfast_sim.so".into()));
        assert_eq!(both[1].0, "RDMAV_DRIVERS");
        assert_eq!(variables(None, Some(bed), none), [("LD_PRELOAD", "/h/libholdfast_sim.so".into())]);
    }

    #[test]
    fn ours_comes_first_and_theirs_stay() {
        assert_eq!(with(&[]), ["/h/libholdfast.so", "/h/libholdfast"]);
        assert_eq!(with(&[("LD_PRELOAD", "/a.so /b.so")])[0], "/h/libholdfast.so:/a.so:/b.so");
        assert_eq!(with(&[("RDMAV_DRIVERS", "mlx5;/x/libfoo")])[1], "/h/libholdfast:mlx5:/x/libfoo");
        assert_eq!(with(&[("IBV_DRIVERS", "mlx5")])[1], "/h/libholdfast:mlx5");
        assert_eq!(with(&[("RDMAV_DRIVERS", "a"), ("IBV_DRIVERS", "b")])[1], "/h/libholdfast:a");
        let twice = [("LD_PRELOAD", "/h/libholdfast.so:/a.so"), ("RDMAV_DRIVERS", "/h/libholdfast")];
        assert_eq!(with(&twice), ["/h/libholdfast.so:/a.so", "/h/libholdfast"]);
    }

    #[test]
    fn a_program_is_found_as_execvp_finds_it() {
        assert!(find(OsStr::new("sh")).unwrap().ends_with("sh"));
        assert_eq!(find(OsStr::new("/nonexistent")).unwrap_err().0, NOT_FOUND);
        assert_eq!(find(OsStr::new("no-such-program")).unwrap_err().0, NOT_FOUND);
        assert_eq!(find(OsStr::new("/etc/passwd")).unwrap_err().0, NOT_EXECUTABLE);
        assert_eq!(find(OsStr::new("/etc")).unwrap_err().0, NOT_EXECUTABLE);
    }

    #[test]
    fn a_static_program_is_told_from_a_dynamic_one() {
        assert_eq!(cannot_preload(Path::new("/proc/self/exe")), None);
        assert_eq!(cannot_preload(Path::new("/etc/passwd")), None, "a script's interpreter decides");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("static");
        let mut bytes = fs::read("/proc/self/exe").unwrap();
        bytes[56] = 0;
        bytes[57] = 0;
        fs::write(&file, &bytes).unwrap();
        assert!(cannot_preload(&file).unwrap().contains("statically"));
        bytes[18] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(cannot_preload(&file).unwrap().contains("machine"));
        for len in [4, 5, 20, 40, 60, 64] {
            fs::write(&file, &bytes[..len]).unwrap();
            let _ = cannot_preload(&file);
        }
    }

    #[test]
    fn a_program_that_gains_privileges_is_refused() {
        if !rustix::process::getuid().is_root() {
            // Only root can make a file that gains somebody else's; the suite runs as root where it counts.
            let su = Path::new("/bin/su");
            assert!(!su.exists() || refuse_privileged(su).is_err());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_eq!(refuse_privileged(&file), Ok(()), "setuid to oneself gains nothing");
        std::os::unix::fs::chown(&file, Some(1), Some(0)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        let trouble = refuse_privileged(&file).unwrap_err().to_string();
        assert!(trouble.contains("setuid") && trouble.contains("holdfast enable"), "{trouble}");
    }

    #[test]
    fn the_links_that_libibverbs_wants_are_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libholdfast.so");
        assert_eq!(stem(&dir.path().join("libholdfast-rdmav34.so")), stem(&library));
        assert!(check_links(&library, Some(34)).unwrap_err().to_string().contains("libholdfast-rdmav34.so"));
        fs::write(dir.path().join("libholdfast-rdmav34.so"), "").unwrap();
        assert_eq!(check_links(&library, Some(34)), Ok(()));
        assert_eq!(check_links(&library, None), Ok(()));
    }

    #[test]
    fn a_library_that_lists_would_split_is_refused() {
        assert!(check_loads(Path::new("/a b/libholdfast.so")).unwrap_err().to_string().contains("blank"));
    }
}
