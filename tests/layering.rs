//! Holds the direction of the source tree: each module names only modules that stand to its right.
//!
//! `register, capi -> verbs -> {mlx5, rxe} -> family -> {ha, hw} -> uapi -> abi -> {error, log, config, sync}`
//!
//! The checker reads the source as text, without comments and literals, and looks for paths that begin with `crate::`
//! (groups included) or climb to the crate's root by `super::`. It also holds where `unsafe` may be lifted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

use std::fmt;
use std::path::{Path, PathBuf};

/// The modules, left to right. Modules of one step do not name each other, with the exceptions of [`SIBLINGS`].
const STEPS: &[&[&str]] = &[
    &["register", "capi"],
    &["verbs"],
    &["mlx5", "rxe"],
    &["family"],
    &["hw", "ha"],
    &["uapi"],
    &["abi"],
    &["error", "log", "config", "sync"],
];

/// `(who, whom)` within one step.
const SIBLINGS: &[(&str, &str)] = &[("config", "log"), ("sync", "config")];

/// Files and folders that may lift `unsafe_code`.
const UNSAFE: &[&str] =
    &["register.rs", "register/", "abi/", "uapi/sys.rs", "uapi/sys/", "hw/", "verbs/", "capi/", "sync.rs"];

/// Modules of tests and of loom's models: they play the other side of shared memory, and the one thread that uses a lock. They are not
/// in the library.
const NOT_IN_THE_LIBRARY: &[&str] = &["/tests.rs", "/models.rs"];

/// Words that a module has no business to say.
const FORBIDDEN: &[(&str, &[&str])] = &[("ha", &["libc", "nix", "rustix", "hw", "uapi", "abi"])];

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Unknown(String),
    Direction { from: String, to: String },
    Unsafe,
    Word { module: String, word: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unknown(module) => {
                write!(f, "module '{module}' has no place in tests/layering.rs; give it one")
            }
            Fault::Direction { from, to } => {
                write!(f, "'{from}' may not use 'crate::{to}': it does not stand to its right")
            }
            Fault::Unsafe => write!(f, "unsafe_code is lifted here; only {} may", UNSAFE.join(", ")),
            Fault::Word { module, word } => write!(f, "'{module}' may not name '{word}'"),
        }
    }
}

fn step(module: &str) -> Option<usize> {
    STEPS.iter().position(|step| step.contains(&module))
}

fn may_use(from: &str, to: &str) -> bool {
    from == to || step(from) < step(to) || SIBLINGS.contains(&(from, to))
}

/// `text` without comments, and with empty string and character literals.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            quoted(rest)
        } else if let Some(len) = raw_string(rest).filter(|_| !out.ends_with(is_word)) {
            len
        } else if first == '\'' {
            character(rest)
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.push(' ');
        rest = &rest[skipped..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn quoted(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let after =
        text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + len)
}

/// A character literal's length, or 1 for the quote of a lifetime.
fn character(text: &str) -> usize {
    let body = &text[1..];
    if let Some(escaped) = body.strip_prefix('\\') {
        return escaped.char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 3);
    }
    match body.char_indices().nth(1) {
        Some((at, '\'')) => at + 2,
        _ => 1,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Words, `::` and single punctuation marks.
fn tokens(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        out.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    out
}

/// What the path or group that begins at `tokens` names first: one module, or each of a group's.
fn heads<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    if tokens.first() != Some(&"{") {
        return tokens.first().copied().into_iter().collect();
    }
    let (mut depth, mut heads, mut expect) = (0, Vec::new(), false);
    for token in tokens {
        match *token {
            "{" => {
                depth += 1;
                expect = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            "," => expect = depth == 1,
            name => {
                if expect {
                    heads.push(name);
                }
                expect = false;
            }
        }
    }
    heads
}

/// The faults of one file; `path` is relative to `src/`.
fn check(path: &str, text: &str) -> Vec<Fault> {
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
    let module = parts[0];
    let mut faults = Vec::new();
    if step(module).is_none() {
        return vec![Fault::Unknown(module.to_owned())];
    }
    let text = strip(text);
    let tokens = tokens(&text);
    let at = |index: usize| tokens.get(index).copied().unwrap_or_default();
    for index in 0..tokens.len() {
        let mut next = index;
        if at(index) == "crate" && at(index + 1) == "::" {
            next += 2;
        } else if at(index) == "super" && (index == 0 || at(index - 1) != "::") {
            while at(next) == "super" && at(next + 1) == "::" {
                next += 2;
            }
            // In a file of `a/b.rs` the second `super` is the root. A module inside the file needs one more, so for
            // those only names that are modules of ours are believed.
            if next - index < 2 * parts.len() {
                continue;
            }
        }
        if next == index {
            continue;
        }
        for to in heads(&tokens[next..]) {
            if step(to).is_some() && !may_use(module, to) {
                faults.push(Fault::Direction { from: module.to_owned(), to: to.to_owned() });
            } else if step(to).is_none() && at(index) == "crate" && at(next + 1) == "::" {
                faults.push(Fault::Unknown(to.to_owned()));
            }
        }
    }
    let lifted = tokens.windows(3).any(|three| matches!(three, ["allow" | "expect", "(", "unsafe_code"]));
    if lifted
        && !NOT_IN_THE_LIBRARY.iter().any(|name| path.ends_with(name))
        && !UNSAFE.iter().any(|allowed| path.starts_with(allowed))
    {
        faults.push(Fault::Unsafe);
    }
    for (_, words) in FORBIDDEN.iter().filter(|(who, _)| *who == module) {
        for word in words.iter().filter(|word| tokens.contains(word)) {
            faults.push(Fault::Word { module: module.to_owned(), word: (*word).to_owned() });
        }
    }
    faults
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_module_uses_only_what_stands_to_its_right() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut faults = Vec::new();
    let mut checked = 0;
    for file in &files {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap();
        // The crate's root names all; the command is another crate.
        if path == "lib.rs" || path.starts_with("bin/") {
            continue;
        }
        checked += 1;
        let text = std::fs::read_to_string(file).unwrap();
        faults.extend(check(path, &text).into_iter().map(|fault| format!("src/{path}: {fault}")));
    }
    assert!(checked > 3, "only {checked} files were found under {}", src.display());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn direction(from: &str, to: &str) -> Vec<Fault> {
    vec![Fault::Direction { from: from.to_owned(), to: to.to_owned() }]
}

#[test]
fn the_checker_sees_what_goes_left_or_sideways() {
    assert_eq!(check("rxe/cq.rs", "use crate::verbs::guard;"), direction("rxe", "verbs"));
    assert_eq!(check("rxe/cq.rs", "fn f() { crate::mlx5::x() }"), direction("rxe", "mlx5"));
    assert_eq!(check("uapi/sys.rs", "use crate::{error::Errno, hw::{map, dma}};"), direction("uapi", "hw"));
    assert_eq!(check("error.rs", "use crate::log;"), direction("error", "log"));
    assert_eq!(check("log.rs", "use crate :: { config };"), direction("log", "config"));
    assert_eq!(check("abi/mod.rs", "pub(in crate::uapi) fn f() {}"), direction("abi", "uapi"));
    assert_eq!(check("abi/layouts/v34.rs", "use super::super::super::rxe::Cq;"), direction("abi", "rxe"));
    assert_eq!(check("hw.rs", "type T = super::family::Map;"), direction("hw", "family"));
}

#[test]
fn the_checker_lets_the_right_direction_pass() {
    for (path, text) in [
        ("rxe/cq.rs", "use crate::{abi, error::Errno, hw::Map, rxe::wqe};"),
        ("register.rs", "use crate::verbs;"),
        ("config.rs", "use crate::log::{self, Level};"),
        ("abi/layouts/v34.rs", "use super::super::public; use super::Layout;"),
        ("log.rs", "mod tests { use super::*; }"),
        ("uapi/sys.rs", "// use crate::verbs;\n/* crate::rxe /* nested */ crate::rxe */ fn f() {}"),
        (
            "uapi/sys.rs",
            "const T: &str = \"crate::verbs\"; const R: &str = r#\"crate::\"verbs\"#; const Q: char = '\"';",
        ),
        ("uapi/sys.rs", "fn f<'a>(x: &'a str) -> char { '\\'' } // crate::verbs"),
    ] {
        assert_eq!(check(path, text), [], "{path}: {text}");
    }
}

#[test]
fn a_new_module_needs_a_place() {
    assert_eq!(check("util.rs", ""), [Fault::Unknown("util".into())]);
    assert_eq!(check("log.rs", "use crate::util::x;"), [Fault::Unknown("util".into())]);
}

#[test]
fn unsafe_is_lifted_only_where_the_house_says() {
    let lifted = "#![allow(unsafe_code, reason = \"x\")]";
    assert_eq!(check("rxe/cq.rs", lifted), [Fault::Unsafe]);
    assert_eq!(check("uapi/cmd.rs", lifted), [Fault::Unsafe]);
    for path in ["verbs/cq.rs", "uapi/sys.rs", "hw/map.rs", "register.rs", "rxe/tests.rs"] {
        assert_eq!(check(path, lifted), [], "{path}");
    }
}

#[test]
fn ha_names_no_syscall_and_no_hardware() {
    let word = Fault::Word { module: "ha".into(), word: "libc".into() };
    assert_eq!(check("ha/gate.rs", "use libc::c_int;"), [word]);
    assert_eq!(check("hw/map.rs", "use libc::c_int;"), []);
}
