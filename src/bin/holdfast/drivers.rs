//! libibverbs's driver files: what they name, in which order that is loaded, and our lines in them.
//!
//! libibverbs reads every regular file of the directory, whatever its name, in the order `readdir` gives; each `driver`
//! line goes to the front of one list, which is then loaded from the front. So inside one file the last line is loaded
//! first, for certain, and between files the order is chance. Hence the rule of [`certain`]: holdfast comes before a
//! stock driver if, in each file that names the stock driver, a later line names holdfast.

use crate::system::{Root, Trouble};
use holdfast::config::Families;
use std::path::{Path, PathBuf};

/// A family, and the driver that rdma-core serves it with.
pub(crate) const STOCK: &[(Families, &str)] = &[(Families::RXE, "rxe"), (Families::MLX5, "mlx5")];

/// The driver's name in our own lines, when it is installed where libibverbs looks.
pub(crate) const OURS: &str = "holdfast";

/// One driver file.
#[derive(Debug, Clone)]
pub(crate) struct DriverFile {
    /// As its system names it.
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    /// What its `driver` lines name, in order.
    pub(crate) names: Vec<String>,
    /// Lines that libibverbs would complain about.
    pub(crate) bad: Vec<String>,
}

/// The driver files below `dir`, in the order libibverbs reads them.
pub(crate) fn read(root: &Root, dir: &Path) -> Result<Vec<DriverFile>, Trouble> {
    let fail = |path: &Path, error: std::io::Error| {
        Trouble::new(
            format!("cannot read {}: {error}", path.display()),
            "Make it readable (or run this as root); libibverbs has to read it too",
        )
    };
    let real = root.at(root.resolve(dir));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&real).map_err(|error| fail(dir, error))? {
        let name = entry.map_err(|error| fail(dir, error))?.file_name();
        let path = dir.join(name);
        let file = root.at(root.resolve(&path));
        if !file.is_file() {
            continue;
        }
        let bytes = std::fs::read(&file).map_err(|error| fail(&path, error))?;
        let (names, bad) = parse(&bytes);
        files.push(DriverFile { path, bytes, names, bad });
    }
    Ok(files)
}

/// The names of the `driver` lines, and the lines that are something else.
fn parse(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let (mut names, mut bad) = (Vec::new(), Vec::new());
    for line in String::from_utf8_lossy(bytes).split_inclusive('\n') {
        let line = line.trim_start_matches([' ', '\t']);
        if line.starts_with(['\n', '#']) {
            continue;
        }
        match line.split_once([' ', '\t', '\n']) {
            Some(("driver", rest)) => {
                let rest = rest.trim_start_matches([' ', '\t']);
                names.push(rest.split([' ', '\t', '\n']).next().unwrap_or_default().to_owned());
            }
            _ => bad.push(line.trim_end().to_owned()),
        }
    }
    (names, bad)
}

/// Every name in the order libibverbs loads them.
pub(crate) fn load_order(files: &[DriverFile]) -> Vec<(&str, &Path)> {
    let read =
        files.iter().flat_map(|file| file.names.iter().map(|name| (name.as_str(), file.path.as_path())));
    let mut order: Vec<_> = read.collect();
    order.reverse();
    order
}

/// Whether a `driver` line's `name` is `driver`, by that name or as an absolute path.
pub(crate) fn is(name: &str, driver: &str) -> bool {
    name == driver
        || name.starts_with('/')
            && Path::new(name).file_name().and_then(|file| file.to_str()?.strip_prefix("lib")) == Some(driver)
}

/// Who of holdfast and the stock driver `stock` is loaded first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// holdfast, whatever the order of the files.
    Holdfast,
    /// The stock driver, whatever the order of the files.
    Stock,
    /// Whom readdir's order favours: in some files the one comes first, in these the other.
    Chance { without: Vec<PathBuf>, holdfast: bool },
    /// No file names holdfast.
    OnlyStock,
    /// No file names the stock driver.
    OnlyHoldfast,
    /// No file names either.
    Neither,
}

/// Who of holdfast and `stock` these files load first.
pub(crate) fn first(files: &[DriverFile], stock: &str) -> First {
    let mut fronts = Vec::new();
    for file in files {
        let front = file.names.iter().rev().find(|name| is(name, OURS) || is(name, stock));
        fronts.extend(front.map(|name| (is(name, OURS), &file.path)));
    }
    let names = |driver: &str| files.iter().flat_map(|file| &file.names).any(|name| is(name, driver));
    match (names(OURS), names(stock)) {
        (false, false) => First::Neither,
        (false, true) => First::OnlyStock,
        (true, false) => First::OnlyHoldfast,
        (true, true) if fronts.iter().all(|(ours, _)| *ours) => First::Holdfast,
        (true, true) if fronts.iter().all(|(ours, _)| !*ours) => First::Stock,
        (true, true) => First::Chance {
            without: fronts.iter().filter(|(ours, _)| !*ours).map(|(_, path)| (*path).clone()).collect(),
            // The last file read is at the front of the list.
            holdfast: fronts.last().is_some_and(|(ours, _)| *ours),
        },
    }
}

/// Text of ours at the end of a file that is somebody else's.
///
/// The marks make it exact to take out again, whatever was written around it meanwhile.
pub(crate) struct Block;

const BEGIN: &str = "# begin holdfast: put here by \"holdfast enable\", taken out by \"holdfast disable\"";
/// The same, where the file's last line had no end: the newline before it is ours too.
const BEGIN_UNENDED: &str =
    "# begin holdfast: put here (with the end of the line above) by \"holdfast enable\"";
const END: &str = "# end holdfast";

impl Block {
    /// `bytes` without our text; an error says what is wrong with it.
    pub(crate) fn without(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(bytes.len());
        let (mut inside, mut unended) = (false, false);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = line.trim_ascii();
            let begins = text == BEGIN.as_bytes() || text == BEGIN_UNENDED.as_bytes();
            match (inside, begins, text == END.as_bytes()) {
                (false, true, _) => {
                    inside = true;
                    unended = text == BEGIN_UNENDED.as_bytes();
                }
                (true, false, true) => inside = false,
                (true, false, false) => {}
                (true, true, _) => return Err(format!("a second '{BEGIN}' comes before '{END}'")),
                (false, false, true) => {
                    return Err(format!("'{END}' comes with no '# begin holdfast' before it"));
                }
                (false, false, false) => {
                    // Somebody wrote on below: the newline that was ours now keeps two lines apart.
                    unended = false;
                    out.extend(line);
                }
            }
        }
        if unended && out.last() == Some(&b'\n') {
            out.pop();
        }
        if inside { Err(format!("'# begin holdfast' comes with no '{END}' after it")) } else { Ok(out) }
    }

    /// `bytes`, which hold no text of ours, with `lines` of ours at the end.
    pub(crate) fn with(bytes: &[u8], lines: &[String]) -> Vec<u8> {
        let ended = bytes.is_empty() || bytes.ends_with(b"\n");
        let mut out = bytes.to_vec();
        if !ended {
            out.push(b'\n');
        }
        for line in [if ended { BEGIN } else { BEGIN_UNENDED }]
            .into_iter()
            .chain(lines.iter().map(String::as_str))
            .chain([END])
        {
            out.extend(line.bytes());
            out.push(b'\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(name: &str, text: &str) -> DriverFile {
        let (names, bad) = parse(text.as_bytes());
        DriverFile { path: name.into(), bytes: text.into(), names, bad }
    }

    #[test]
    fn lines_are_read_as_libibverbs_reads_them() {
        let (names, bad) =
            parse(b"driver rxe\n\n  # driver no\n\tdriver\t /opt/x/libfoo  trailing\ndriver last");
        assert_eq!(names, ["rxe", "/opt/x/libfoo", "last"]);
        assert!(bad.is_empty());
        let (names, bad) = parse(b"drivers rxe\ndriver\nload foo\nfoo");
        assert_eq!(names, [""]);
        assert_eq!(bad, ["drivers rxe", "load foo", "foo"]);
    }

    #[test]
    fn the_last_line_of_the_last_file_is_loaded_first() {
        let files = [file("a", "driver one\ndriver two\n"), file("b", "driver three\n")];
        let order: Vec<&str> = load_order(&files).into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["three", "two", "one"]);
    }

    #[test]
    fn drivers_are_known_by_name_and_by_path() {
        assert!(is("rxe", "rxe") && is("/opt/x/librxe", "rxe"));
        assert!(!is("librxe", "rxe") && !is("/opt/x/rxe", "rxe") && !is("rxe2", "rxe"));
    }

    #[test]
    fn an_installed_file_is_behind_and_enabled_ones_are_in_front_in_any_order() {
        let shipped = include_str!("../../../providers.d/holdfast.driver");
        let stock = "driver rxe\n";
        let with = |text: &str| {
            String::from_utf8(Block::with(text.as_bytes(), &["driver holdfast".to_owned()])).unwrap()
        };
        let mut files = [file("h", shipped), file("r", stock), file("m", "driver mlx5\n")];
        assert!(files.iter().all(|file| file.bad.is_empty()));
        for _ in 0..3 {
            files.rotate_left(1);
            for (_, stock) in STOCK {
                assert_eq!(first(&files, stock), First::Stock, "{stock}");
            }
        }
        let mut files = [file("h", &with(shipped)), file("r", &with(stock)), file("m", "driver mlx5\n")];
        for _ in 0..3 {
            files.rotate_left(1);
            assert_eq!(first(&files, "rxe"), First::Holdfast);
            assert!(matches!(first(&files, "mlx5"), First::Chance { .. }), "its own file names no holdfast");
            let order = load_order(&files);
            let at = |name: &str| order.iter().position(|(known, _)| *known == name).unwrap();
            assert!(at("holdfast") < at("rxe"), "{order:?}");
        }
        let half = [file("h", shipped), file("r", &with(stock))];
        assert_eq!(first(&half, "rxe"), First::Chance { without: vec!["h".into()], holdfast: true });
        assert_eq!(first(&[file("r", stock)], "rxe"), First::OnlyStock);
        assert_eq!(first(&[file("h", "driver /opt/libholdfast\n")], "rxe"), First::OnlyHoldfast);
        assert_eq!(first(&[file("s", "driver siw\n")], "rxe"), First::Neither);
    }

    #[test]
    fn a_damaged_block_is_refused() {
        for text in [
            format!("driver rxe\n{BEGIN}\ndriver holdfast\n"),
            format!("driver rxe\n{END}\n"),
            format!("{BEGIN}\n{BEGIN}\n{END}\n"),
        ] {
            assert!(Block::without(text.as_bytes()).unwrap_err().contains("holdfast"), "{text}");
        }
    }

    #[test]
    fn lines_written_below_a_block_are_not_joined_to_the_one_above() {
        let mut with = Block::with(b"driver rxe", &["driver holdfast".to_owned()]);
        with.extend(b"driver siw\n");
        assert_eq!(Block::without(&with).unwrap(), b"driver rxe\ndriver siw\n");
    }

    proptest! {
        #[test]
        fn a_block_comes_out_as_if_it_had_never_been(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let lines = ["driver holdfast".to_owned()];
            let with = Block::with(&text, &lines);
            prop_assert_eq!(Block::without(&with).unwrap(), text);
        }

        #[test]
        fn what_others_write_around_a_block_stays(before in "([a-z #]{0,9}\n){0,4}", after in "([a-z #]{0,9}\n){0,4}") {
            let mut with = Block::with(before.as_bytes(), &["x".to_owned(), "y".to_owned()]);
            with.extend(after.bytes());
            prop_assert_eq!(Block::without(&with).unwrap(), format!("{before}{after}").into_bytes());
        }
    }
}
