//! The descriptors of this process that are ours, and what stands behind each.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::driver::{self, ContextId};
use crate::event::EventFile;
use crate::netlink::Netlink;

/// What a descriptor of ours is.
#[derive(Clone, Debug)]
pub(crate) enum File {
    /// A uverbs device, opened.
    Command(Arc<Opened>),
    /// An event file.
    Event(Arc<EventFile>),
    /// An RDMA netlink socket.
    Netlink(Arc<Netlink>),
}

/// One opening of a device, and the device's number; the last descriptor of it that is closed ends it.
#[derive(Debug)]
pub(crate) struct Opened(pub(crate) ContextId, pub(crate) u32);

impl Drop for Opened {
    fn drop(&mut self) {
        driver::close(self.0);
    }
}

/// Holds the lock while the process forks.
pub(crate) fn before_fork() {
    let _held = ManuallyDrop::new(FILES.write());
}

/// Gives it back, in both processes.
#[allow(unsafe_code, reason = "the lock was taken by before_fork and its guard forgotten")]
pub(crate) fn after_fork() {
    // SAFETY: `before_fork` locked it, in this thread or the one that it is a copy of.
    unsafe { FILES.force_unlock_write() };
}

static FILES: RwLock<BTreeMap<RawFd, File>> = RwLock::new(BTreeMap::new());

/// A bit for each low descriptor that may be ours, so that calls on all others pay one load.
static KNOWN: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn bit(fd: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((KNOWN.get(fd / 64)?, 1 << (fd % 64)))
}

/// What stands behind a descriptor, if it is ours.
pub(crate) fn get(fd: RawFd) -> Option<File> {
    if fd < 0 {
        return None;
    }
    // ORDER: a program that uses a descriptor got it from us before, by whatever orders its threads.
    if bit(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit == 0) {
        return None;
    }
    FILES.read().get(&fd).cloned()
}

/// Makes a descriptor ours; what it was before is forgotten.
pub(crate) fn insert(fd: RawFd, file: File) {
    if let Some((word, bit)) = bit(fd) {
        // ORDER: as in `get`.
        word.fetch_or(bit, Ordering::Relaxed);
    }
    let before = FILES.write().insert(fd, file);
    drop(before);
}

/// As [`insert`], of a descriptor that is still ours to close.
pub(crate) fn insert_owned(fd: &OwnedFd, file: File) {
    insert(fd.as_raw_fd(), file);
}

/// The descriptor is closed, or becomes something else.
pub(crate) fn remove(fd: RawFd) {
    if get(fd).is_none() {
        return;
    }
    if let Some((word, bit)) = bit(fd) {
        // ORDER: as in `get`.
        word.fetch_and(!bit, Ordering::Relaxed);
    }
    // Dropped after the lock is given back: closing takes others.
    let before = FILES.write().remove(&fd);
    drop(before);
}

/// `to` is now the same file as `from`, whatever that is.
pub(crate) fn copied(from: RawFd, to: RawFd) {
    if from == to {
        return;
    }
    match get(from) {
        Some(file) => insert(to, file),
        None => remove(to),
    }
}
