//! What the program finds under `/sys/class/infiniband` and `/sys/class/infiniband_verbs`: a tree of real files, made when
//! it is first asked for, kept up with the devices, and removed at exit.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::driver::{self, Listed};
use crate::next;

const CLASSES: [&[u8]; 2] = [b"/sys/class/infiniband", b"/sys/class/infiniband_verbs"];
const NODES: &[u8] = b"/dev/infiniband/uverbs";
/// Nodes by number, for those who look for one whose name they do not trust.
const BY_NUMBER: &[u8] = b"/dev/char/231:";

/// Device numbers of our nodes, as the kernel gives them.
pub(crate) const MAJOR: u32 = 231;
pub(crate) const FIRST_MINOR: u32 = 192;

/// A tree, and what of each device it shows.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    shown: BTreeMap<usize, Listed>,
    /// Says that it is in use.
    _lock: fs::File,
}

/// The tree, and the process that made it.
static TREE: Mutex<Option<Tree>> = Mutex::new(None);
static MAKER: AtomicU32 = AtomicU32::new(0);

/// Which uverbs device a path names, if it is one of ours.
pub(crate) fn node(path: &CStr) -> Option<u32> {
    let bytes = path.to_bytes();
    let parse = |number: &[u8]| std::str::from_utf8(number).ok()?.parse::<u32>().ok();
    match bytes.strip_prefix(NODES) {
        Some(number) => parse(number),
        None => parse(bytes.strip_prefix(BY_NUMBER)?)?.checked_sub(FIRST_MINOR),
    }
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
    let tree = tree()?;
    let rest = bytes.strip_prefix(b"/sys/")?;
    CString::new(tree.join(OsStr::from_bytes(rest)).as_os_str().as_bytes()).ok()
}

/// The tree, made if there is none yet.
fn tree() -> Option<PathBuf> {
    // Asked for before the lock: the devices' own is taken for it.
    if TREE.lock().is_none() {
        let devices = driver::list();
        let mut tree = TREE.lock();
        if tree.is_none() {
            *tree = make(&devices).ok();
            // ORDER: looked at again only by this process's own end.
            MAKER.store(std::process::id(), Ordering::Relaxed);
        }
    }
    TREE.lock().as_ref().map(|tree| tree.root.clone())
}

/// Lets the tree follow the devices that there are.
pub(crate) fn update(devices: &[Listed]) {
    if let Some(tree) = TREE.lock().as_mut() {
        // A tree that cannot be kept up shows what was there before.
        let _ = tree.fill(devices);
    }
}

/// Removes the tree, if this process made it.
pub(crate) fn remove() {
    // ORDER: as in `tree`.
    if MAKER.load(Ordering::Relaxed) != std::process::id() {
        return;
    }
    if let Some(tree) = TREE.lock().take() {
        // Nobody is left to hear of a failure.
        let _ = fs::remove_dir_all(tree.root);
    }
}

/// A forked child makes its own.
pub(crate) fn after_fork_in_child() {
    if let Some(mut tree) = TREE.try_lock() {
        *tree = None;
    }
}

fn make(devices: &[Listed]) -> io::Result<Tree> {
    // Where it costs least, if that is allowed.
    let places = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    let root = places.iter().map(|place| make_root(place)).find(|root| root.is_ok());
    let (root, lock) = root.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))?;
    for class in ["infiniband", "infiniband_verbs"] {
        fs::create_dir_all(root.join("class").join(class))?;
    }
    write(&root, "class/infiniband_verbs/abi_version", "6")?;
    let mut tree = Tree { root, shown: BTreeMap::new(), _lock: lock };
    tree.fill(devices)?;
    Ok(tree)
}

const NAME: &str = "holdfast-sim-";
/// A file that the process which made a tree keeps locked.
const LOCK: &str = "lock";

fn make_root(place: &Path) -> io::Result<(PathBuf, fs::File)> {
    let root = place.join(format!("{NAME}{}", std::process::id()));
    // What processes that were killed left behind: nobody holds its lock. Another user's is not in the way.
    for entry in fs::read_dir(place)?.flatten() {
        let is_tree = entry.file_name().to_str().is_some_and(|name| name.starts_with(NAME));
        if is_tree && fs::File::open(entry.path().join(LOCK)).is_ok_and(|lock| next::lock(&lock)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    fs::DirBuilder::new().mode(0o700).create(&root)?;
    let lock = fs::File::create_new(root.join(LOCK))?;
    next::lock(&lock);
    Ok((root, lock))
}

fn write(root: &Path, name: impl AsRef<Path>, text: &str) -> io::Result<()> {
    let path = root.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, format!("{text}\n"))
}

/// Words of 16 bits, as sysfs shows GUIDs and GIDs.
fn words(bytes: &[u8]) -> String {
    let word = |pair: &[u8]| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(2).map(word).collect::<Vec<_>>().join(":")
}

impl Tree {
    fn fill(&mut self, devices: &[Listed]) -> io::Result<()> {
        let gone: Vec<usize> = self
            .shown
            .keys()
            .filter(|known| !devices.iter().any(|device| device.number == **known))
            .copied()
            .collect();
        for number in gone {
            if let Some(device) = self.shown.get(&number) {
                for link in links(device) {
                    fs::remove_file(self.root.join(link))?;
                }
            }
            self.shown.remove(&number);
        }
        for device in devices {
            if self.shown.get(&device.number) != Some(device) {
                show(&self.root, device)?;
                self.shown.insert(device.number, device.clone());
            }
        }
        Ok(())
    }
}

/// The names by which a device is found.
fn links(device: &Listed) -> [PathBuf; 2] {
    [Path::new("class/infiniband_verbs").join(&device.node), Path::new("class/infiniband").join(&device.name)]
}

fn show(root: &Path, device: &Listed) -> io::Result<()> {
    let bus = device.number + 1;
    let pci = PathBuf::from(format!("devices/pci0000:00/0000:{bus:02x}:00.0"));
    let verbs = pci.join("infiniband_verbs").join(&device.node);
    let ib = pci.join("infiniband").join(&device.name);
    let minor = FIRST_MINOR as usize + device.number;
    let guid = words(&device.guid.to_be_bytes());
    let (port, link) = (&ib.join("ports/1"), if device.up { "5: LinkUp" } else { "3: Disabled" });
    let files = [
        (pci.join("vendor"), "0x15b3".to_owned()),
        (pci.join("device"), "0x1019".to_owned()),
        (pci.join("class"), "0x020700".to_owned()),
        (pci.join("numa_node"), "-1".to_owned()),
        (pci.join("modalias"), "pci:v000015B3d00001019sv000015B3sd00000008bc02sc07i00".to_owned()),
        (verbs.join("ibdev"), device.name.clone()),
        (verbs.join("dev"), format!("{MAJOR}:{minor}")),
        (verbs.join("abi_version"), "1".to_owned()),
        (ib.join("node_type"), "1: CA".to_owned()),
        (ib.join("node_guid"), guid.clone()),
        (ib.join("sys_image_guid"), guid),
        (ib.join("node_desc"), String::new()),
        (ib.join("fw_ver"), driver::FIRMWARE.to_owned()),
        (ib.join("hw_rev"), "0".to_owned()),
        (ib.join("hca_type"), "MT4121".to_owned()),
        (ib.join("board_id"), "HFT0000000001".to_owned()),
        (port.join("cap_mask"), "0x02510868".to_owned()),
        (port.join("lid"), format!("{:#x}", device.lid)),
        (port.join("lid_mask_count"), "0".to_owned()),
        (port.join("sm_lid"), "0x1".to_owned()),
        (port.join("sm_sl"), "0".to_owned()),
        (port.join("link_layer"), "InfiniBand".to_owned()),
        (port.join("state"), if device.up { "4: ACTIVE" } else { "1: DOWN" }.to_owned()),
        (port.join("phys_state"), link.to_owned()),
        (port.join("rate"), "50 Gb/sec (2X EDR)".to_owned()),
        (port.join("gids/0"), words(&driver::gid(device.port_guid))),
    ];
    let others = (1..8).map(|gid| (port.join(format!("gids/{gid}")), words(&[0; 16])));
    let pkey = |at: usize| if at == 0 { "0xffff" } else { "0x0000" };
    let pkeys = (0..128).map(|at| (port.join(format!("pkeys/{at}")), pkey(at).to_owned()));
    let fresh = !root.join(port).exists();
    for (name, text) in files {
        // Most of it is as it was when the device was here before.
        let text = format!("{text}\n");
        if fresh || fs::read_to_string(root.join(&name)).ok().as_ref() != Some(&text) {
            write(root, name, text.trim_end_matches('\n'))?;
        }
    }
    if fresh {
        for (name, text) in others.chain(pkeys) {
            write(root, name, &text)?;
        }
        for path in [&verbs, &ib] {
            symlink("../..", root.join(path).join("device"))?;
        }
    } else {
        // A device that came back is a new one: libibverbs goes by the time.
        fs::File::open(root.join(&ib))?.set_modified(SystemTime::now())?;
    }
    for (link, to) in links(device).iter().zip([&verbs, &ib]) {
        match symlink(Path::new("../..").join(to), root.join(link)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
