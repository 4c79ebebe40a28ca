//! What the program finds under `/sys/class/infiniband` and `/sys/class/infiniband_verbs`: a tree of real files, made when
//! it is first asked for and removed at exit.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::driver;

const CLASSES: [&[u8]; 2] = [b"/sys/class/infiniband", b"/sys/class/infiniband_verbs"];
const NODES: &[u8] = b"/dev/infiniband/uverbs";

/// The `dev` number of our nodes: that of `/dev/null`, which is what stands behind an opened one.
const NULL_DEVICE: &str = "1:3";

static TREE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Which uverbs device a path names, if it is one of ours: `/dev/infiniband/uverbsN`.
pub(crate) fn node(path: &CStr) -> Option<u32> {
    let number = path.to_bytes().strip_prefix(NODES)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Where a path of the class directories really is.
pub(crate) fn translate(path: &CStr) -> Option<CString> {
    let bytes = path.to_bytes();
    let ours = CLASSES.iter().any(|class| {
        bytes.strip_prefix(*class).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    });
    if !ours {
        return None;
    }
    let tree = TREE.get_or_init(|| make().ok()).as_ref()?;
    let rest = bytes.strip_prefix(b"/sys/")?;
    CString::new(tree.join(OsStr::from_bytes(rest)).as_os_str().as_bytes()).ok()
}

/// Removes the tree.
pub(crate) fn remove() {
    if let Some(Some(tree)) = TREE.get() {
        // Nobody is left to hear of a failure.
        let _ = fs::remove_dir_all(tree);
    }
}

fn make() -> io::Result<PathBuf> {
    let root = std::env::temp_dir().join(format!("holdfast-sim-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&root)?;
    let write = |path: &Path, text: &str| {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, format!("{text}\n"))
    };
    write(Path::new("class/infiniband_verbs/abi_version"), "6")?;
    fs::create_dir_all(root.join("class/infiniband"))?;
    for device in driver::list() {
        let pci = PathBuf::from(format!("devices/pci0000:00/0000:00:{:02x}.0", device.index + 1));
        let verbs = pci.join("infiniband_verbs").join(&device.node);
        let ib = pci.join("infiniband").join(&device.name);
        for (name, text) in [("vendor", "0x15b3"), ("device", "0x101b"), ("numa_node", "-1")] {
            write(&pci.join(name), text)?;
        }
        write(&pci.join("modalias"), "pci:v000015B3d0000101Bsv000015B3sd00000028bc02sc07i00")?;
        let guid = device.guid.to_be_bytes().map(|byte| format!("{byte:02x}"));
        let guid = guid.chunks(2).map(|pair| pair.concat()).collect::<Vec<_>>().join(":");
        for (name, text) in [("ibdev", device.name.as_str()), ("dev", NULL_DEVICE), ("abi_version", "1")] {
            write(&verbs.join(name), text)?;
        }
        for (name, text) in [
            ("node_type", "1: CA"),
            ("node_guid", guid.as_str()),
            ("sys_image_guid", guid.as_str()),
            ("fw_ver", driver::FIRMWARE),
            ("hca_type", "MT4123"),
            ("board_id", "MT_0000000000"),
            ("node_desc", "holdfast native bed"),
        ] {
            write(&ib.join(name), text)?;
        }
        for path in [&verbs, &ib] {
            symlink("../..", root.join(path).join("device"))?;
        }
        symlink(Path::new("../..").join(&verbs), root.join("class/infiniband_verbs").join(&device.node))?;
        symlink(Path::new("../..").join(&ib), root.join("class/infiniband").join(&device.name))?;
    }
    Ok(root)
}
