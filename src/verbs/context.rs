//! Contexts: opening, closing, and finding ours behind an `ibv_context`.
//!
//! libibverbs allocates the memory of a context and keeps its own part in front of the `ibv_context`; ours stands behind it
//! ([`Wrapper`]).
//!
//! Invariants:
//! - C1: a context made by [`alloc`] for family `F` lies in a `Wrapper<Context<F>>`, whole until [`free_context`].
//! - C2: the files are opened in this order: the application's async file first, then our own. The first async file of a
//!   uverbs file becomes the one that events of objects made by write commands go to.
#![allow(unsafe_code, reason = "builds and reads the C context")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use std::ffi::{CStr, c_char};
use std::os::fd::FromRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use super::channel::Channels;
pub(crate) use super::live::Kind;
use super::live::Live;
use super::{cast, guard, ops, watch};
use crate::abi::host::{Host, Wrapper};
use crate::abi::public::*;
use crate::config;
use crate::error::{Errno, Error, Step as _};
use crate::family::{Device, EventFile, Family, Opened};
use crate::ha::life::Life;
use crate::ha::watch::{DEVICE_FATAL, News, news};
use crate::log;
use crate::sync;
use crate::uapi::sys::{OwnedFd, process};
use crate::uapi::{self, CmdFd, DriverId};

/// Our part of a context.
#[derive(Debug)]
pub(crate) struct Context<F> {
    pub(crate) family: F,
    pub(crate) device: Device,
    pub(crate) host: &'static Host,
    /// Its objects.
    live: Mutex<Live>,
    /// Our own async file: it sees device events without taking them from the application.
    events: Mutex<Option<OwnedFd>>,
    /// A completion channel with no CQ: once the kernel takes the device away, it answers `EIO` and POLLERR for good.
    /// The kernel destroys what is newest first, so this one is kept the newest ([`Context::add`]): it tells before the
    /// application's channels are closed. It comes with the first CQ: who has none is owed nothing and sleeps on nothing, and
    /// many a program opens each device only to look at it.
    removal: Mutex<Option<OwnedFd>>,
    /// A CQ was made.
    first_cq: Once,
    /// Something newer came.
    pub(crate) stale: AtomicBool,
    /// The completion channels of its CQs.
    pub(crate) channels: Channels,
    /// The device's directory in sysfs, which goes with its node.
    pub(crate) node: Option<Node>,
    /// Our ends of pipes that the application has the other end of.
    open: Mutex<Vec<OwnedFd>>,
    /// An eventfd that counts its changes of phase, for a program that asked for one.
    pub(crate) changes: OnceLock<OwnedFd>,
    /// Memory of destroyed objects that an event still names: freed with the context.
    buried: Mutex<Vec<Buried>>,
}

/// Frees an object's memory when dropped.
struct Buried(Option<Box<dyn FnOnce() + Send>>);

impl core::fmt::Debug for Buried {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Buried")
    }
}

impl Drop for Buried {
    fn drop(&mut self) {
        if let Some(free) = self.0.take() {
            free();
        }
    }
}

impl<F> Context<F> {
    /// Ends an object whose events were all `acknowledged`; else only when the context is closed, so that whoever still
    /// acknowledges one finds the memory.
    ///
    /// # Safety
    /// The kernel's side of `object` is gone, the application is done with it, and `free` frees it.
    pub(crate) unsafe fn end<T: 'static>(&self, object: *mut T, acknowledged: bool, free: unsafe fn(*mut T)) {
        let at = object.expose_provenance();
        // SAFETY: the caller's word; done once.
        let free = move || unsafe { free(core::ptr::with_exposed_provenance_mut(at)) };
        if acknowledged {
            return free();
        }
        self.buried.lock().unwrap_or_else(PoisonError::into_inner).push(Buried(Some(Box::new(free))));
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new object.
    pub(crate) fn add<T>(&self, kind: Kind, object: *mut T)
    where
        F: Family,
    {
        let at = object.expose_provenance();
        let mut live = self.live();
        live.insert(kind, at);
        self.close_late(kind, at);
        drop(live);
        if kind == Kind::Cq {
            self.first_cq.call_once(|| self.make_removal());
        }
        // Only who sleeps on a channel minds.
        // ORDER: Relaxed: a hint.
        if !self.channels.is_empty() && !self.stale.swap(true, Ordering::Relaxed) {
            watch::kick();
        }
    }

    /// Makes our channel with no CQ; it is a help, not a need.
    fn make_removal(&self) {
        let mut removal = self.removal();
        let Some(channel) = wanted(uapi::event::create_comp_channel(self.device.fd), "completion channel")
        else {
            return;
        };
        // Under the lock: whoever lets go of the files of a device that is dying does so after this, or is seen here.
        if removal.is_none() && !self.device.life.is_over() {
            watch::watch(channel.as_raw(), 0);
            *removal = Some(channel);
        }
    }

    /// Our own async file.
    pub(crate) fn events(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `file` open as long as the context is.
    pub(crate) fn keep_open(&self, file: OwnedFd) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }

    /// Our channel with no CQ.
    pub(crate) fn removal(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.removal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a destroyed object.
    pub(crate) fn remove<T>(&self, kind: Kind, object: *mut T) {
        self.live().remove(kind, object.expose_provenance());
    }
}

/// Our part of an open context.
///
/// # Safety
/// `context` is an open context of family `F` (C1) and stays open during `'a`.
#[inline]
pub(crate) unsafe fn of<'a, F: Family>(context: *mut ibv_context) -> &'a Context<F> {
    // SAFETY: C1.
    let wrapper = unsafe { Wrapper::<Context<F>>::of(context) };
    // SAFETY: C1: whole, and only shared references are made of it.
    let ours = unsafe { &(*wrapper).ours };
    // SAFETY: C1: written when the context was opened.
    unsafe { ours.assume_init_ref() }
}

/// Our part of an open context in which an object is to be created: by now the application's async file is there.
///
/// # Safety
/// As for [`of`].
pub(crate) unsafe fn for_creating<'a, F: Family>(context: *mut ibv_context) -> &'a Context<F> {
    // SAFETY: the caller's word.
    let ours = unsafe { of::<F>(context) };
    if ours.device.events.fd().is_none() {
        // SAFETY: a single field, which libibverbs wrote before the context was handed out.
        ours.device.events.set(unsafe { (*context).async_fd });
    }
    ours
}

/// The files of C2.
struct Files {
    application: Option<OwnedFd>,
    events: Option<OwnedFd>,
}

/// A file of our own, where it could be made.
fn wanted(result: Result<OwnedFd, Errno>, what: &str) -> Option<OwnedFd> {
    result
        .inspect_err(|errno| {
            log::warn!("no {what} of our own ({errno}): removal of the device will be noticed later")
        })
        .ok()
}

/// Opens the files of C2; the second is a help, not a need. That of an imported context's application is opened
/// by libibverbs, and the first of the file was opened by whoever opened the context.
fn open_files(fd: CmdFd, how: How) -> Result<Files, Error> {
    let application = match how {
        How::Open => Some(uapi::event::alloc_async_fd(fd).step("allocate the async event file")?),
        How::Import => None,
    };
    let events = uapi::event::alloc_async_fd(fd).and_then(|file| {
        let flags = uapi::sys::status_flags(file.as_raw())?;
        uapi::sys::set_status_flags(file.as_raw(), flags | libc::O_NONBLOCK).map(|()| file)
    });
    Ok(Files { application, events: wanted(events, "async event file") })
}

/// `alloc_context` of family `F`: `cmd_fd` is ours from here on, closed on failure.
///
/// # Safety
/// Called by libibverbs with a device of ours and an open command file.
pub(crate) unsafe extern "C" fn alloc<F: Family>(
    device: *mut ibv_device,
    cmd_fd: libc::c_int,
    _private_data: *mut libc::c_void,
) -> *mut verbs_context {
    guard::pointer_of("ibv_open_device", || {
        // SAFETY: passed on from our own caller.
        unsafe { open::<F>(device, cmd_fd, How::Open) }.inspect_err(|error| report(F::NAME, error))
    })
}

/// `import_context` of family `F`: as [`alloc`], for a file whose context is open already.
///
/// # Safety
/// Called by libibverbs with a device of ours and a command file of it.
pub(crate) unsafe extern "C" fn import<F: Family>(
    device: *mut ibv_device,
    cmd_fd: libc::c_int,
) -> *mut verbs_context {
    guard::pointer_of("ibv_import_device", || {
        // SAFETY: passed on from our own caller.
        unsafe { open::<F>(device, cmd_fd, How::Import) }
    })
}

/// Whether a context is ours alone, or somebody else's too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Open,
    Import,
}

/// Says why a device could not be opened, and the way out where there is one to name.
fn report(family: &str, error: &Error) {
    let way_out = match error.errno {
        Errno::EACCES | Errno::EPERM => {
            "; the process needs read and write permission on /dev/infiniband/uverbs*"
        }
        Errno::EMFILE | Errno::ENFILE => "; raise the limit on open files (ulimit -n)",
        Errno::EIO | Errno::ENODEV | Errno::ENXIO => "; the device is being removed",
        Errno::EAGAIN => "; the device had a fatal error and may come back: try again in a few seconds",
        Errno::ENOMEM => "; the kernel is out of memory or the limit on locked memory (ulimit -l) is too low",
        Errno::ENOTTY | Errno::EPROTONOSUPPORT => "; holdfast needs kernel 5.10 or later",
        _ => "",
    };
    log::error!("cannot open the {family} device: {error}{way_out}");
}

unsafe fn open<F: Family>(
    device: *mut ibv_device,
    cmd_fd: libc::c_int,
    how: How,
) -> Result<*mut verbs_context, Error> {
    if cmd_fd < 0 {
        return Err(Error::new("take the command file", Errno::EBADF));
    }
    let fd = CmdFd::new(cmd_fd, DriverId(F::DRIVER_ID));
    // SAFETY: libibverbs opened it and gives it up.
    let cmd_fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(cmd_fd) };
    // It said why by itself.
    let host =
        Host::get().map_err(|_| Error::new("find a libibverbs that holdfast can serve", Errno::ENOSYS))?;
    // SAFETY: the device and the file are libibverbs's own, passed on from it.
    let wrapper = unsafe { host.alloc_context::<Context<F>>(device, cmd_fd, F::DRIVER_ID) }
        .step("allocate the context")?;
    // SAFETY: within the wrapper.
    let context = NonNull::from(unsafe { &mut (*wrapper.as_ptr()).context });
    // SAFETY: just allocated and not handed out.
    match unsafe { fill::<F>(host, device, wrapper, fd, how) } {
        Ok(()) => {
            // SAFETY: whole: filled just now.
            let ours: &Context<F> = unsafe { of::<F>(context.as_ptr()) };
            // SAFETY: it stays where it is until `free_context`, which forgets it first.
            let watched = unsafe { watch::register(ours) };
            // SAFETY: initialised, not handed out yet, and the operations are those of its family.
            unsafe { host.set_ops(context, &host.layout().table(&ops::table::<F>(watched))) };
            Ok(host.verbs_context(context).as_ptr())
        }
        Err(error) => {
            // SAFETY: allocated above and not handed out.
            unsafe { host.uninit_context(context) };
            // SAFETY: as above; `ours` was not written.
            unsafe { host.free_wrapper(wrapper) };
            Err(error)
        }
    }
}

/// The sysfs directory of the device whose command file is `fd`.
fn node_of(fd: libc::c_int) -> Option<Node> {
    let node = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let path = Path::new("/sys/class/infiniband_verbs").join(node.file_name()?);
    let inode = std::fs::metadata(&path).ok()?.ino();
    Some(Node { path, inode })
}

/// The sysfs directory of a device.
#[derive(Debug)]
pub(crate) struct Node {
    path: PathBuf,
    inode: u64,
}

impl Node {
    /// Whether it is gone: another device may have its name already.
    pub(crate) fn is_gone(&self) -> bool {
        std::fs::metadata(&self.path).map_or(true, |now| now.ino() != self.inode)
    }
}

/// Talks to the kernel and fills what the provider owes in the C context.
///
/// # Safety
/// `device` is the device being opened; `wrapper` is fresh and not shared.
unsafe fn fill<F: Family>(
    host: &'static Host,
    device: *mut ibv_device,
    mut wrapper: NonNull<Wrapper<Context<F>>>,
    fd: CmdFd,
    how: How,
) -> Result<(), Error> {
    let opened = match how {
        How::Open => F::open(fd, host.fork_ranges()),
        How::Import => F::import(fd, host.fork_ranges()),
    };
    let Opened { family, num_comp_vectors, core_support } = opened?;
    // The first call registers the process; where it cannot be made, each lock is taken by an exchange.
    if !sync::owners_are_allowed() {
        match process::membarrier() {
            Ok(()) => sync::allow_owners(process::pass_barrier),
            Err(errno) => log::debug!("no membarrier ({errno}): every thread locks queues alike"),
        }
    }
    let Files { application, events } = open_files(fd, how)?;
    // SAFETY: libibverbs's own device.
    let name: *const [c_char; 64] = unsafe { &raw const (*device).name };
    // SAFETY: NUL-terminated within its array.
    let name = unsafe { CStr::from_ptr(name.cast()) };
    let life: Arc<Life> = Arc::default();
    life.set_kick(Box::new(watch::kick));
    life.set_patience(config::get().flush_after);
    let ours = Device {
        fd,
        ibdev: name.to_string_lossy().into_owned(),
        events: EventFile::new(application.as_ref().map_or(-1, OwnedFd::as_raw)),
        life,
    };
    log::info!("{}: opened, served by holdfast ({}), private ABI {}", ours.ibdev, F::NAME, host.layout());
    // SAFETY: the caller's word.
    let wrapper = unsafe { wrapper.as_mut() };
    wrapper.context.async_fd = application.map_or(-1, OwnedFd::into_raw);
    wrapper.context.num_comp_vectors = num_comp_vectors.try_into().unwrap_or(i32::MAX);
    wrapper.ours.write(Context {
        family,
        device: ours,
        host,
        live: Mutex::default(),
        events: Mutex::new(events),
        removal: Mutex::default(),
        first_cq: Once::new(),
        stale: AtomicBool::new(false),
        channels: Channels::default(),
        node: node_of(fd.fd),
        open: Mutex::default(),
        changes: OnceLock::new(),
        buried: Mutex::default(),
    });
    // SAFETY: our own verbs_device begins with its ibv_device; every open writes the same value.
    unsafe { (*device.cast::<verbs_device>()).core_support = core_support };
    Ok(())
}

/// `free_context`.
///
/// Objects that the application forgot go with the context: the kernel destroys its side as the file is closed, and their
/// mappings, which would keep that file open, are released here. Their memory stays, so that a pointer to one still finds it.
///
/// # Safety
/// Called by libibverbs with a context of family `F`, which nobody uses any more.
pub(crate) unsafe extern "C" fn free_context<F: Family>(context: *mut ibv_context) {
    guard::nothing_of("ibv_close_device", || {
        // SAFETY: the caller's word.
        let ours = unsafe { of::<F>(context) };
        // SAFETY: it is there until the end of this.
        unsafe { watch::unregister(ours) };
        let forgotten = core::mem::take(&mut *ours.live());
        if forgotten.len() != 0 {
            log::warn!("{}: closed with {} queues and queue pairs alive", ours.device.ibdev, forgotten.len());
        }
        for (kind, at) in forgotten.iter(Kind::ALL) {
            match kind {
                // SAFETY: a live object of this kind (it was in the list), and the context's user is gone.
                Kind::Cq => unsafe {
                    core::ptr::with_exposed_provenance_mut::<super::cq::Cq<F>>(at).drop_in_place();
                },
                // SAFETY: as above.
                Kind::Srq => unsafe {
                    cast::drop_body::<verbs_srq, super::srq::Srq<F>>(core::ptr::with_exposed_provenance_mut(
                        at,
                    ))
                },
                // SAFETY: as above.
                Kind::Qp | Kind::Sharer => unsafe {
                    cast::drop_body::<super::qp::QpHead, super::qp::Qp<F>>(
                        core::ptr::with_exposed_provenance_mut(at),
                    )
                },
            }
        }
        let host = ours.host;
        // SAFETY: C1.
        let wrapper = unsafe { Wrapper::<Context<F>>::of(context) };
        // SAFETY: C1 ends here; nobody uses the context any more.
        let part = unsafe { &mut (*wrapper).ours };
        // SAFETY: as above.
        unsafe { part.assume_init_drop() };
        let (Some(context), Some(wrapper)) = (NonNull::new(context), NonNull::new(wrapper)) else { return };
        // SAFETY: made by `open` and closed once.
        unsafe { host.uninit_context(context) };
        // SAFETY: as above; our part was dropped.
        unsafe { host.free_wrapper(wrapper) };
    });
}

/// `async_event`: libibverbs shows every event it is about to hand to the application.
///
/// # Safety
/// Called by libibverbs with a context of family `F`.
pub(crate) unsafe extern "C" fn async_event<F: Family>(
    context: *mut ibv_context,
    event: *mut ibv_async_event,
) {
    guard::nothing_of("ibv_get_async_event", || {
        // SAFETY: the caller's word.
        let ours = unsafe { of::<F>(context) };
        // SAFETY: libibverbs filled it.
        let event_type = unsafe { (*event).event_type };
        log::info!("{}: async event {event_type}", ours.device.ibdev);
        if event_type == DEVICE_FATAL && (ours.events().is_none() || !watch::is_running()) {
            // Nobody else may hear of it.
            // SAFETY: libibverbs filled it.
            let element = unsafe { (*event).element };
            // SAFETY: the element of such an event is a port.
            let port = unsafe { element.port_num };
            if let News::Sign(sign) = news(event_type, u64::from(port.unsigned_abs())) {
                watch::sign(ours, sign);
            }
        }
        watch::look();
    });
}

/// The family that serves `context`; `None` for NULL and for contexts of other providers.
///
/// # Safety
/// `context` is NULL or an open context of any provider.
pub unsafe fn family_of(context: *const ibv_context) -> Option<&'static CStr> {
    if context.is_null() {
        return None;
    }
    // SAFETY: the caller's word; every device of libibverbs begins a verbs_device.
    let device = unsafe { (*context).device }.cast::<verbs_device>();
    if device.is_null() {
        return None;
    }
    // SAFETY: as above.
    let device_ops = unsafe { (*device).ops };
    super::device::family_of(device_ops)
}
