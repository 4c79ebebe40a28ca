//! What a guest is booted from: its kernel unpacked, and an initramfs made in memory.
//!
//! The ELF kernel inside vmlinuz is entered by PVH, since unpacking an xz kernel under emulation takes seconds; the
//! initramfs is busybox and the few modules that lead to the root, so there is no udev and no systemd.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::root::Root;

/// What the initramfs loads, before the root's own modprobe is in reach.
pub(crate) const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// The one kernel of a root.
fn release(root: &Root) -> Result<String> {
    let boot = root.fs().join("boot");
    let mut found: Vec<String> = fs::read_dir(&boot)
        .with_context(|| format!("reading {}", boot.display()))?
        .flatten()
        .filter_map(|e| Some(e.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(release), true) => Ok(release),
        (None, _) => bail!("no kernel in {}", boot.display()),
        (Some(_), false) => bail!("more than one kernel in {}", boot.display()),
    }
}

/// Unpacks the kernel beside the root.
pub(crate) fn unpack_kernel(root: &Root) -> Result<()> {
    let path = root.fs().join("boot").join(format!("vmlinuz-{}", release(root)?));
    let image = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is not a kernel image", path.display()))?;
    let elf = decompress(payload, &path)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("the payload of {} is not an ELF file", path.display());
    }
    fs::write(root.vmlinux(), elf).context("writing vmlinux")
}

/// The compressed kernel in a bzImage, by the offsets of the kernel's Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |offset: usize| {
        let bytes = image.get(offset..offset.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = usize::from(*image.get(0x1f1)?).checked_add(1)?;
    let start = sectors.checked_mul(512)?.checked_add(u32_at(0x248)?)?;
    // The last four bytes are the unpacked size, for formats that do not know it.
    let length = u32_at(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

fn decompress(data: &[u8], what: &Path) -> Result<Vec<u8>> {
    let mut command = match data {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Command::new("xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Command::new("zstd"),
        _ => bail!("{}: neither xz nor zstd", what.display()),
    };
    let mut child = command
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("unpacking {}", what.display()))?;
    let mut stdin = child.stdin.take().context("a pipe to the unpacker")?;
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(data));
        let output = child.wait_with_output();
        (writer.join(), output)
    });
    let (Ok(Ok(())), Ok(output)) = output else { bail!("unpacking {}: the pipe broke", what.display()) };
    if !output.status.success() {
        bail!("unpacking {}: {}", what.display(), output.status);
    }
    Ok(output.stdout)
}

/// Unpacks the modules of the initramfs, numbered in the order they are to be loaded.
pub(crate) fn unpack_modules(root: &Root) -> Result<()> {
    let tree = root.fs().join("lib/modules").join(release(root)?);
    let read = |name: &str| {
        let path = tree.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, EARLY_MODULES)?;
    fs::create_dir_all(root.modules()).context("creating the module directory")?;
    for (n, file) in order.iter().enumerate() {
        let path = tree.join(file);
        let mut data = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if !data.starts_with(b"\x7fELF") {
            data = decompress(&data, &path)?;
        }
        fs::write(root.modules().join(format!("{n:02}-{}.ko", stem(file))), data)
            .context("writing a module")?;
    }
    Ok(())
}

/// The name of a module, as modprobe has it.
fn stem(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// The files to load for these modules, each after what it depends on.
fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let files: BTreeMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (stem(file), (file, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let Some((file, needs)) = files.get(*module) else {
            if builtin.lines().any(|line| stem(line) == *module) {
                continue;
            }
            bail!("the kernel has no module {module}");
        };
        // depmod writes the direct dependencies first: the reverse is an order to load them in.
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !order.iter().any(|o| o == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// An archive in the kernel's initramfs format (cpio, newc).
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    count: u32,
}

impl Cpio {
    pub(crate) fn dir(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    pub(crate) fn file(&mut self, name: &str, executable: bool, data: &[u8]) {
        self.entry(name, if executable { 0o100_755 } else { 0o100_644 }, data);
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.count += 1;
        let fields = [self.count, mode, 0, 0, 1, 0, size(data.len()), 0, 0, 0, 0, size(name.len() + 1), 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The format has 32 bits for a size; a larger file would be cut short, and the guest then say so.
fn size(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Writes the initramfs of one run: `conf` is read by the guest's first two scripts, `command` by the second.
pub(crate) fn write_initramfs(root: &Root, path: &Path, conf: &str, command: &str) -> Result<()> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "modules", "dev", "proc", "sys", "lower", "rw", "root"] {
        cpio.dir(dir);
    }
    let busybox = root.fs().join("bin/busybox");
    cpio.file(
        "bin/busybox",
        true,
        &fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?,
    );
    let mut modules: Vec<PathBuf> =
        fs::read_dir(root.modules()).context("reading the modules")?.flatten().map(|e| e.path()).collect();
    modules.sort_unstable();
    for module in modules {
        let name = module.file_name().context("a module has a name")?.to_string_lossy().into_owned();
        cpio.file(&format!("modules/{name}"), false, &fs::read(&module).context("reading a module")?);
    }
    cpio.file("init", true, include_bytes!("../init/init.sh"));
    cpio.file("stage2", false, include_bytes!("../init/stage2.sh"));
    cpio.file("hca", true, include_bytes!("../init/hca.sh"));
    cpio.file("conf", false, conf.as_bytes());
    cpio.file("command", false, command.as_bytes());
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).context("the initramfs's mode")?;
    file.write_all(&cpio.finish()).context("writing the initramfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                       kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz\n\
                       kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n";

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let order =
            load_order(DEP, "kernel/drivers/virtio/virtio_pci.ko\n", &["virtio_pci", "9pnet_virtio", "9p"]);
        let stems: Vec<String> = order.unwrap().iter().map(|f| stem(f)).collect();
        assert_eq!(stems, ["netfs", "9pnet", "9pnet_virtio", "9p"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error() {
        assert!(load_order(DEP, "", &["overlay"]).is_err());
    }

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut cpio = Cpio::default();
        cpio.dir("a");
        cpio.file("a/b", false, b"hello");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Name sizes count the NUL; names and data are padded to four bytes.
        let header = |at: usize| std::str::from_utf8(&bytes[at..at + 110]).unwrap().to_owned();
        assert!(header(0).starts_with("07070100000001000041ed"), "{}", header(0));
        let second = 110 + 2;
        assert_eq!(&header(second)[54..62], "00000005");
        assert_eq!(&bytes[second + 110..second + 114], b"a/b\0");
        assert_eq!(&bytes[second + 116..second + 121], b"hello");
        assert_eq!(&bytes[second + 124..second + 130], b"070701");
    }

    #[test]
    fn an_image_that_is_too_short_has_no_payload() {
        let mut image = vec![0_u8; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&8_u32.to_le_bytes());
        assert_eq!(payload(&image).map(<[u8]>::len), Some(4));
        image[0x248..0x24c].copy_from_slice(&0x1000_u32.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"MZ"), None);
    }
}
