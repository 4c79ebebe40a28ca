//! A system's files, below `/` or below another root, and how trouble with them is told.

use std::fmt;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

/// What is wrong, and the way out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) what: String,
    pub(crate) way_out: String,
}

impl Trouble {
    pub(crate) fn new(what: impl Into<String>, way_out: impl Into<String>) -> Trouble {
        Trouble { what: what.into(), way_out: way_out.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}.", self.what.trim_end_matches('.'), self.way_out.trim_end_matches('.'))
    }
}

/// Prints to stdout. A reader who went away (`| head`) is no reason to stop in the middle of work.
pub(crate) fn say(text: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Where a system's files are.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

/// As many links in a row as the kernel follows.
const LINKS: usize = 40;

impl Root {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// The system's `path` as we have to name it. Nothing climbs out of the root.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let mut out = self.0.clone();
        out.extend(path.as_ref().components().filter(|part| matches!(part, Component::Normal(_))));
        out
    }

    /// `path`, as the system names it, with every symbolic link followed inside the root.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        let mut whole = path.to_owned();
        for _ in 0..LINKS {
            match self.follow(&whole) {
                Ok(next) => whole = next,
                Err(done) => return done,
            }
        }
        path.to_owned()
    }

    /// `path` with its first link replaced by what that points to; an error is the path when it has none.
    fn follow(&self, path: &Path) -> Result<PathBuf, PathBuf> {
        let mut done = PathBuf::from("/");
        let mut parts = path.components();
        while let Some(part) = parts.next() {
            match part {
                Component::ParentDir => {
                    done.pop();
                }
                Component::Normal(name) => {
                    done.push(name);
                    if let Ok(target) = std::fs::read_link(self.at(&done)) {
                        done.pop();
                        return Ok(done.join(target).join(parts.as_path()));
                    }
                }
                _ => {}
            }
        }
        Err(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        std::fs::create_dir_all(root.at("/usr/lib/x")).unwrap();
        std::fs::write(root.at("/usr/lib/x/libibverbs.so.1.14.44.0"), "").unwrap();
        symlink("usr/lib", root.at("/lib")).unwrap();
        symlink("libibverbs.so.1.14.44.0", root.at("/usr/lib/x/libibverbs.so.1")).unwrap();
        symlink("/lib/../lib/x/libibverbs.so.1", root.at("/usr/absolute")).unwrap();
        symlink("loop", root.at("/loop")).unwrap();
        let real = Path::new("/usr/lib/x/libibverbs.so.1.14.44.0");
        assert_eq!(root.resolve(Path::new("/lib/x/libibverbs.so.1")), real);
        assert_eq!(root.resolve(Path::new("/usr/absolute")), real);
        assert_eq!(root.resolve(Path::new("/../../usr/absolute")), real);
        assert_eq!(root.resolve(Path::new("/loop")), Path::new("/loop"));
        assert_eq!(root.at("/../../etc"), dir.path().join("etc"));
    }
}
