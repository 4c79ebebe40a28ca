//! `holdfast enable` and `holdfast disable`: which provider a system loads first.
//!
//! What is changed is text at the end of files, between two marks: `driver holdfast` in each driver file that names the
//! family's stock driver (in [`crate::drivers`] why that decides), and `families = ...` in `/etc/holdfast.conf` where the
//! families are chosen. Driver files are configuration files of the distribution's packages, and package managers keep an
//! administrator's lines in such files when they upgrade; nothing is moved, so nothing can be lost.
//!
//! Every file is replaced by one rename, with its owner, mode and time, so a crash leaves each file old or new. All
//! the changes together are found again by looking at the files: there is no record that could disagree with them, and
//! doing it again completes whatever was left half done.

use crate::drivers::{self, Block, DriverFile, First, OURS, STOCK};
use crate::library::Library;
use crate::system::{Root, Trouble, say};
use holdfast::config::{self, Families};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `holdfast enable`.
#[derive(clap::Args)]
pub(crate) struct EnableArgs {
    /// Only for these device families, comma separated [default: all that this release drives]
    #[arg(long, value_name = "LIST", value_parser = chosen)]
    families: Option<Families>,
    /// A library outside the provider directory: an absolute path without "-rdmavNN.so", as for RDMAV_DRIVERS
    #[arg(long, value_name = "PATH")]
    lib: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Options of `holdfast disable`.
#[derive(clap::Args)]
pub(crate) struct DisableArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// The system below this directory instead of the running one
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Directory of driver files [default: the one libibverbs was built to read]
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Say what would be changed and change nothing
    #[arg(long)]
    dry_run: bool,
}

fn chosen(text: &str) -> Result<Families, String> {
    match Families::parse(text) {
        Ok(families) if families.is_empty() => {
            Err("no family is left; 'holdfast disable' is for that".to_owned())
        }
        Ok(families) => Ok(families),
        Err((_, what)) => Err(what),
    }
}

/// A file, as it is and as it is to be.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    /// As its system names it.
    path: PathBuf,
    before: Option<Vec<u8>>,
    /// `None`: the file goes.
    after: Option<Vec<u8>>,
}

/// What is wanted.
#[derive(Debug, Clone)]
enum Goal {
    Enabled { families: Option<Families>, driver: String },
    Disabled,
}

/// `holdfast enable`.
pub(crate) fn enable(args: &EnableArgs) -> Result<ExitCode, Trouble> {
    let root = Root::new(&args.common.root);
    let library = Library::find(&root, &[])?;
    let driver = match &args.lib {
        Some(lib) => named(&root, lib, &library)?,
        None => installed(&root, &library)?,
    };
    let dir = args.common.config_dir.clone().unwrap_or_else(|| library.config_dir.clone());
    let goal = Goal::Enabled { families: args.families, driver };
    let done = reach(&root, &dir, &goal, args.common.dry_run)?;
    report(&done, args.common.dry_run, "enabled");
    if args.common.dry_run {
        return Ok(ExitCode::SUCCESS);
    }

    let files = drivers::read(&root, &dir)?;
    for (family, stock) in wanted(&goal) {
        match drivers::first(&files, stock) {
            First::Holdfast | First::OnlyHoldfast => say(format_args!(
                "{}: holdfast is loaded first; stock '{stock}' stays behind it for what holdfast declines.",
                family.names()
            )),
            other => {
                return Err(Trouble::new(
                    format!("the files were written, yet holdfast is not in front of '{stock}' ({other:?})"),
                    "Run 'holdfast enable' again: something else is changing these files",
                ));
            }
        }
    }
    let configured = config::read(|_| None, &root.at(config::FILE)).0.families;
    let missing = wanted_families(&goal).difference(configured);
    if !missing.is_empty() {
        return Err(Trouble::new(
            format!("{} tells holdfast to leave {} alone", config::FILE, missing.names()),
            format!(
                "Remove its 'families' line, or choose here: holdfast enable --families {}",
                wanted_families(&goal).names()
            ),
        ));
    }
    say(
        "Not reached: programs that already run; programs in containers, which have driver files of their own; programs \
         started with RDMAV_DRIVERS or LD_PRELOAD naming another provider; and, for the devices of a vendor library they \
         link themselves (libmlx5 and the like), programs that link one: those need 'holdfast run'.",
    );
    Ok(ExitCode::SUCCESS)
}

/// `holdfast disable`.
pub(crate) fn disable(args: &DisableArgs) -> Result<ExitCode, Trouble> {
    let root = Root::new(&args.common.root);
    let dir = match (&args.common.config_dir, Library::find(&root, &[])) {
        (Some(dir), _) => dir.clone(),
        (None, Ok(library)) => library.config_dir,
        // libibverbs may have been removed since; what we wrote is still to go.
        (None, Err(_)) => PathBuf::from("/etc/libibverbs.d"),
    };
    let done = reach(&root, &dir, &Goal::Disabled, args.common.dry_run)?;
    report(&done, args.common.dry_run, "disabled");
    Ok(ExitCode::SUCCESS)
}

fn report(done: &[Change], dry_run: bool, state: &str) {
    if done.is_empty() {
        say(format_args!("Already {state}: nothing to change."));
    }
    for Change { path, before, after } in done {
        let verb = match (before, after, dry_run) {
            (None, _, false) => "created",
            (_, None, false) => "removed",
            (_, _, false) => "changed",
            (None, _, true) => "would create",
            (_, None, true) => "would remove",
            (_, _, true) => "would change",
        };
        say(format_args!("{verb} {}", path.display()));
    }
}

fn wanted_families(goal: &Goal) -> Families {
    match goal {
        Goal::Enabled { families, .. } => families.unwrap_or(Families::all()),
        Goal::Disabled => Families::empty(),
    }
}

fn wanted(goal: &Goal) -> Vec<(Families, &'static str)> {
    let families = wanted_families(goal);
    STOCK.iter().filter(|(family, _)| families.contains(*family)).copied().collect()
}

/// The `driver` name of a library given by path, if libibverbs will find it there.
fn named(root: &Root, lib: &Path, library: &Library) -> Result<String, Trouble> {
    let text = lib.to_str().filter(|text| text.starts_with('/') && !text.contains(char::is_whitespace));
    let Some(text) = text else {
        return Err(Trouble::new(
            format!("--lib {} cannot stand in a driver file", lib.display()),
            "Give an absolute path without blanks: libibverbs splits the line at them",
        ));
    };
    if let Some((stem, _)) = text.split_once("-rdmav") {
        return Err(Trouble::new(
            format!(
                "--lib {text} is a whole file name, and libibverbs would add '-rdmavNN.so' to it once more"
            ),
            format!("Give --lib {stem}"),
        ));
    }
    if !drivers::is(text, OURS) {
        return Err(Trouble::new(
            format!("--lib {text} is not a path that ends in '/libholdfast'"),
            "Name the library that 'make build' made: DIR/target/holdfast/libholdfast",
        ));
    }
    let file = format!("{text}{}", suffix(library)?);
    exists(root, Path::new(&file)).map(|()| text.to_owned())
}

fn installed(root: &Root, library: &Library) -> Result<String, Trouble> {
    let suffix = suffix(library)?;
    let Some(dir) = &library.provider_dir else {
        return Err(Trouble::new(
            format!("{} was built without a provider directory", library.path.display()),
            "Give the library's place: holdfast enable --lib /path/to/libholdfast",
        ));
    };
    exists(root, &dir.join(format!("lib{OURS}{suffix}"))).map(|()| OURS.to_owned())
}

fn suffix(library: &Library) -> Result<String, Trouble> {
    match library.number {
        Some(number) => Ok(format!("-rdmav{number}.so")),
        None => Err(Trouble::new(
            format!(
                "{} does not tell which plug-ins it loads; it may be built with its providers inside",
                library.path.display()
            ),
            "Such a library loads no plug-in from driver files: use 'holdfast run'",
        )),
    }
}

fn exists(root: &Root, file: &Path) -> Result<(), Trouble> {
    if root.at(root.resolve(file)).is_file() {
        return Ok(());
    }
    Err(Trouble::new(
        format!("{} is not there, so libibverbs would load the stock provider only", file.display()),
        "Run 'make install' first (if this libibverbs is newer than all that holdfast knows, a newer holdfast is needed)",
    ))
}

/// Changes what has to be changed for `goal`, and returns it.
fn reach(root: &Root, dir: &Path, goal: &Goal, dry_run: bool) -> Result<Vec<Change>, Trouble> {
    let real = root.at(root.resolve(dir));
    let held = File::open(&real).map_err(|error| {
        Trouble::new(
            format!("cannot open {}: {error}", dir.display()),
            "libibverbs reads its driver files there; install ibverbs-providers (Fedora: libibverbs), or give --config-dir",
        )
    });
    let held = match (held, goal) {
        (Ok(held), _) => Some(held),
        (Err(trouble), Goal::Enabled { .. }) => return Err(trouble),
        (Err(_), Goal::Disabled) => None,
    };
    if let Some(held) = &held
        && held.try_lock().is_err()
    {
        return Err(Trouble::new(
            format!("another 'holdfast enable' or 'disable' is changing {}", dir.display()),
            "Wait for it to end and try again",
        ));
    }
    let files = if held.is_some() { drivers::read(root, dir)? } else { Vec::new() };
    let changes = plan(root, &files, goal)?;
    if !dry_run {
        for left_over in [real.as_path(), &root.at("/etc")] {
            let _ = fs::remove_dir_all(left_over.join(STAGE));
        }
        for change in &changes {
            apply(root, change)?;
        }
    }
    Ok(changes)
}

/// What differs from `goal`, in the order to change it: the configuration before the driver files when enabling, so that
/// a family which was not chosen is never taken for a moment; the other way round when disabling.
fn plan(root: &Root, files: &[DriverFile], goal: &Goal) -> Result<Vec<Change>, Trouble> {
    let mut changes = Vec::new();
    let stocks = wanted(goal);
    let mut planned: Vec<DriverFile> = Vec::new();
    for file in files {
        let path = &file.path;
        let bare = Block::without(&file.bytes).map_err(|what| damaged(path, &what))?;
        let names = file.names.iter().any(|name| stocks.iter().any(|(_, stock)| drivers::is(name, stock)));
        let after = match goal {
            Goal::Enabled { driver, .. } if names => Block::with(&bare, &[format!("driver {driver}")]),
            _ => bare,
        };
        let link = fs::symlink_metadata(root.at(path)).is_ok_and(|meta| meta.is_symlink());
        if after != file.bytes && link {
            return Err(Trouble::new(
                format!("{} is a symbolic link: what it points to belongs to something else", path.display()),
                "Replace it by a copy of that file and run this again",
            ));
        }
        planned.push(DriverFile { bytes: after, ..file.clone() });
    }
    if let Goal::Enabled { .. } = goal {
        for (family, stock) in &stocks {
            if !files.iter().any(|file| file.names.iter().any(|name| drivers::is(name, stock))) {
                return Err(Trouble::new(
                    format!(
                        "no driver file names '{stock}' (for {}), nor is holdfast.driver there",
                        family.names()
                    ),
                    "Run 'make install', which brings holdfast.driver, and install the stock providers (Debian: \
                     ibverbs-providers), so that there is something to fall back to",
                ));
            }
        }
    }
    for (before, after) in files.iter().zip(planned) {
        if before.bytes != after.bytes {
            changes.push(Change {
                path: after.path,
                before: Some(before.bytes.clone()),
                after: Some(after.bytes),
            });
        }
    }
    let conf = conf(root, goal)?;
    match goal {
        Goal::Enabled { .. } => changes.splice(0..0, conf).for_each(drop),
        Goal::Disabled => changes.extend(conf),
    }
    Ok(changes)
}

fn conf(root: &Root, goal: &Goal) -> Result<Option<Change>, Trouble> {
    let path = PathBuf::from(config::FILE);
    let before = match fs::read(root.at(&path)) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(Trouble::new(
                format!("cannot read {}: {error}", path.display()),
                "Make it readable, or run this as root",
            ));
        }
    };
    let bare = Block::without(before.as_deref().unwrap_or_default()).map_err(|what| damaged(&path, &what))?;
    let after = match goal {
        Goal::Enabled { families: Some(families), .. } => {
            Some(Block::with(&bare, &[format!("families = {}", families.names())]))
        }
        // A file of which nothing is left was ours.
        _ if bare.is_empty() && before.as_deref().is_some_and(|bytes| !bytes.is_empty()) => None,
        _ if before.is_none() => None,
        _ => Some(bare),
    };
    Ok((before != after).then_some(Change { path, before, after }))
}

fn damaged(path: &Path, what: &str) -> Trouble {
    Trouble::new(
        format!("{}: {what}; somebody edited the lines between holdfast's marks", path.display()),
        "Remove the mark and our lines beside it by hand, then run this again; nothing was changed",
    )
}

/// Where a file is written before it takes its place. A folder, since libibverbs reads any *file* it finds.
const STAGE: &str = ".holdfast-new";

fn apply(root: &Root, change: &Change) -> Result<(), Trouble> {
    let path = root.at(&change.path);
    let fail = |error: io::Error| {
        let way_out = match error.kind() {
            io::ErrorKind::PermissionDenied => "Run it as root (sudo)",
            io::ErrorKind::ReadOnlyFilesystem => {
                "The file system is read-only: use 'holdfast run', or change the image"
            }
            _ => "Run it again when that is solved: it goes on where it stopped",
        };
        Trouble::new(format!("cannot change {}: {error}", change.path.display()), way_out)
    };
    let parent = path.parent().unwrap_or(Path::new("/"));
    match &change.after {
        None => fs::remove_file(&path).map_err(fail)?,
        Some(bytes) => {
            let stage = parent.join(STAGE);
            fs::create_dir(&stage).map_err(fail)?;
            let written = replace(&stage.join("file"), &path, bytes);
            let _ = fs::remove_dir_all(&stage);
            written.map_err(fail)?;
        }
    }
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

fn replace(new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    match fs::symlink_metadata(path) {
        Ok(meta) => {
            chown(new, Some(meta.uid()), Some(meta.gid()))?;
            file.set_permissions(meta.permissions())?;
            file.set_times(fs::FileTimes::new().set_modified(meta.modified()?))?;
        }
        Err(_) => file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?,
    }
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library;
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const LIB: &str = "/usr/lib/x86_64-linux-gnu";
    const DRIVERS: &str = "/etc/libibverbs.d";

    /// A system with the driver files of Debian 12's ibverbs-providers and holdfast installed.
    fn debian() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(root.at(DRIVERS)).unwrap();
        library::tests::fake(&root, LIB, "44.0", 34);
        fs::create_dir_all(root.at(format!("{LIB}/libibverbs"))).unwrap();
        fs::write(root.at(format!("{LIB}/libibverbs/libholdfast-rdmav34.so")), "").unwrap();
        for name in [
            "bnxt_re",
            "cxgb4",
            "efa",
            "erdma",
            "hfi1verbs",
            "hns",
            "ipathverbs",
            "irdma",
            "mana",
            "mlx4",
            "mlx5",
            "mthca",
            "ocrdma",
            "qedr",
            "rxe",
            "siw",
            "vmw_pvrdma",
        ] {
            fs::write(root.at(format!("{DRIVERS}/{name}.driver")), format!("driver {name}\n")).unwrap();
        }
        let shipped = include_str!("../../../providers.d/holdfast.driver");
        fs::write(root.at(format!("{DRIVERS}/holdfast.driver")), shipped).unwrap();
        (dir, root)
    }

    fn goal(families: Option<Families>) -> Goal {
        Goal::Enabled { families, driver: OURS.to_owned() }
    }

    fn to(root: &Root, goal: &Goal) -> Result<Vec<String>, Trouble> {
        let changes = reach(root, Path::new(DRIVERS), goal, false)?;
        Ok(changes
            .into_iter()
            .map(|change| change.path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect())
    }

    /// Every file below the root: mode, time, bytes.
    fn snapshot(root: &Root) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
        fn walk(dir: &Path, out: &mut BTreeMap<PathBuf, (u32, i64, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                if meta.is_dir() {
                    out.insert(path.clone(), (meta.mode(), 0, Vec::new()));
                    walk(&path, out);
                } else {
                    out.insert(
                        path.clone(),
                        (meta.mode(), meta.mtime_nsec() + meta.mtime(), fs::read(&path).unwrap()),
                    );
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(&root.at("/"), &mut out);
        out
    }

    fn rxe(root: &Root) -> First {
        drivers::first(&drivers::read(root, Path::new(DRIVERS)).unwrap(), "rxe")
    }

    fn mlx5(root: &Root) -> First {
        drivers::first(&drivers::read(root, Path::new(DRIVERS)).unwrap(), "mlx5")
    }

    #[test]
    fn enable_puts_holdfast_first_and_disable_restores_every_byte() {
        let (_dir, root) = debian();
        fs::set_permissions(root.at(format!("{DRIVERS}/rxe.driver")), fs::Permissions::from_mode(0o640))
            .unwrap();
        let before = snapshot(&root);
        assert_eq!(rxe(&root), First::Stock);
        let mut changed = to(&root, &goal(None)).unwrap();
        changed.sort();
        assert_eq!(changed, ["holdfast.driver", "mlx5.driver", "rxe.driver"]);
        assert_eq!((rxe(&root), mlx5(&root)), (First::Holdfast, First::Holdfast));
        assert_eq!(to(&root, &goal(None)).unwrap(), [""; 0], "a second time there is nothing to do");
        assert_eq!(to(&root, &Goal::Disabled).unwrap().len(), 3);
        assert_eq!(snapshot(&root), before);
        assert_eq!(to(&root, &Goal::Disabled).unwrap(), [""; 0]);
        assert_eq!(rxe(&root), First::Stock);
    }

    #[test]
    fn chosen_families_are_written_down_and_taken_back() {
        let (_dir, root) = debian();
        let before = snapshot(&root);
        assert_eq!(
            to(&root, &goal(Some(Families::RXE))).unwrap()[0],
            "holdfast.conf",
            "before the driver files"
        );
        let conf = || config::read(|_| None, &root.at(config::FILE)).0.families;
        assert_eq!(conf(), Families::RXE);
        assert!(matches!(mlx5(&root), First::Chance { .. }), "which the settings make stock's");
        assert_eq!(
            to(&root, &goal(Some(Families::MLX5))).unwrap().len(),
            3,
            "the settings and two drivers' files: holdfast's own names holdfast last already"
        );
        assert_eq!((conf(), mlx5(&root)), (Families::MLX5, First::Holdfast));
        assert!(matches!(rxe(&root), First::Chance { .. }));
        let all = to(&root, &goal(None)).unwrap();
        assert_eq!(all, ["holdfast.conf", "rxe.driver"], "all families need no line");
        assert!(!root.at(config::FILE).exists());
        to(&root, &goal(Some(Families::RXE))).unwrap();
        to(&root, &Goal::Disabled).unwrap();
        assert_eq!(snapshot(&root), before);

        fs::write(root.at(config::FILE), "log = info:/var/log/holdfast.log\nfamilies = none").unwrap();
        let before = snapshot(&root);
        to(&root, &goal(Some(Families::RXE))).unwrap();
        assert_eq!(conf(), Families::RXE, "the choice made here is the later line");
        to(&root, &Goal::Disabled).unwrap();
        assert_eq!(snapshot(&root), before);
    }

    #[test]
    fn a_crash_after_any_step_leaves_what_a_second_run_completes_or_undoes() {
        let (_dir, root) = debian();
        let before = snapshot(&root);
        let wanted = goal(Some(Families::RXE));
        let files = drivers::read(&root, Path::new(DRIVERS)).unwrap();
        let steps = plan(&root, &files, &wanted).unwrap().len();
        assert_eq!(steps, 3);
        for stop in 0..=steps {
            for finish in [&wanted, &Goal::Disabled] {
                let files = drivers::read(&root, Path::new(DRIVERS)).unwrap();
                for change in plan(&root, &files, &wanted).unwrap().iter().take(stop) {
                    apply(&root, change).unwrap();
                }
                // The crash came while the next file was being written.
                let stage = root.at(DRIVERS).join(STAGE);
                fs::create_dir(&stage).unwrap();
                fs::write(stage.join("file"), "driver rx").unwrap();
                let files = drivers::read(&root, Path::new(DRIVERS)).unwrap();
                assert!(files.iter().all(|file| file.bad.is_empty()), "libibverbs sees none of it");
                to(&root, finish).unwrap();
                assert!(!stage.exists());
                assert_eq!(rxe(&root) == First::Holdfast, !matches!(finish, Goal::Disabled), "after {stop}");
                to(&root, &Goal::Disabled).unwrap();
                assert_eq!(snapshot(&root), before, "after {stop}");
            }
        }
    }

    #[test]
    fn what_an_upgrade_or_an_administrator_changed_meanwhile_stays() {
        let (_dir, root) = debian();
        to(&root, &goal(None)).unwrap();
        let path = root.at(format!("{DRIVERS}/rxe.driver"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("# mine\n{text}driver /opt/other/libother\n")).unwrap();
        to(&root, &Goal::Disabled).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\ndriver rxe\ndriver /opt/other/libother\n");

        to(&root, &goal(None)).unwrap();
        fs::write(&path, "driver rxe\n").unwrap();
        assert!(matches!(rxe(&root), First::Chance { .. }), "a package manager put its own file back");
        assert_eq!(to(&root, &goal(None)).unwrap(), ["rxe.driver"]);
        assert_eq!(rxe(&root), First::Holdfast);
        fs::remove_file(&path).unwrap();
        to(&root, &Goal::Disabled).unwrap();
        assert!(!path.exists(), "a removed file is not brought back");
    }

    #[test]
    fn another_place_of_the_library_goes_into_the_line() {
        let (_dir, root) = debian();
        let library = Library::find(&root, &[]).unwrap();
        let refusal = |path: &str| named(&root, Path::new(path), &library).unwrap_err().to_string();
        assert!(refusal("target/libholdfast").contains("absolute path"));
        assert!(refusal("/a b/libholdfast").contains("blanks"));
        assert!(refusal("/opt/libholdfast-rdmav34.so").contains("Give --lib /opt/libholdfast."));
        assert!(refusal("/opt/libother").contains("libholdfast"));
        assert!(refusal("/opt/libholdfast").contains("/opt/libholdfast-rdmav34.so is not there"));
        fs::create_dir_all(root.at("/opt")).unwrap();
        fs::write(root.at("/opt/libholdfast-rdmav34.so"), "").unwrap();
        let driver = named(&root, Path::new("/opt/libholdfast"), &library).unwrap();
        to(&root, &Goal::Enabled { families: None, driver }).unwrap();
        assert_eq!(rxe(&root), First::Holdfast);
        assert_eq!(to(&root, &goal(None)).unwrap().len(), 3, "from there to the installed one");
        assert_eq!(rxe(&root), First::Holdfast);
    }

    #[test]
    fn what_cannot_be_done_is_refused_before_anything_is_changed() {
        let (_dir, root) = debian();
        let library = Library::find(&root, &[]).unwrap();
        assert_eq!(installed(&root, &library).unwrap(), OURS);
        fs::remove_file(root.at(format!("{LIB}/libibverbs/libholdfast-rdmav34.so"))).unwrap();
        assert!(installed(&root, &library).unwrap_err().to_string().contains("make install"));

        let path = root.at(format!("{DRIVERS}/rxe.driver"));
        to(&root, &goal(None)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let half = text.replace("# end holdfast\n", "");
        fs::write(&path, &half).unwrap();
        let before = snapshot(&root);
        for wanted in [&goal(None), &Goal::Disabled] {
            let trouble = to(&root, wanted).unwrap_err().to_string();
            assert!(trouble.contains("rxe.driver") && trouble.contains("by hand"), "{trouble}");
        }
        assert_eq!(snapshot(&root), before);

        fs::remove_file(&path).unwrap();
        fs::write(root.at("/etc/elsewhere"), "driver rxe\n").unwrap();
        symlink("../elsewhere", &path).unwrap();
        assert!(to(&root, &goal(None)).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(&path).unwrap();
        fs::remove_file(root.at(format!("{DRIVERS}/holdfast.driver"))).unwrap();
        assert!(to(&root, &goal(None)).unwrap_err().to_string().contains("make install"));

        let held = File::open(root.at(DRIVERS)).unwrap();
        held.lock().unwrap();
        assert!(to(&root, &Goal::Disabled).unwrap_err().to_string().contains("another"));
    }

    #[test]
    fn disable_works_when_libibverbs_is_gone() {
        let (_dir, root) = debian();
        to(&root, &goal(Some(Families::RXE))).unwrap();
        fs::remove_dir_all(root.at(DRIVERS)).unwrap();
        assert_eq!(to(&root, &Goal::Disabled).unwrap(), ["holdfast.conf"]);
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let (_dir, root) = debian();
        let before = snapshot(&root);
        assert_eq!(reach(&root, Path::new(DRIVERS), &goal(None), true).unwrap().len(), 3);
        assert_eq!(snapshot(&root), before);
    }
}
