//! The libibverbs of this process: finding it, and the four private functions holdfast binds in it.
//!
//! Everything is looked up on a handle of libibverbs itself, never in the global scope: there our own interposers would
//! be found, and a library that was loaded `RTLD_LOCAL` would not.
//!
//! Nothing here may be called on a path of a message; all of it belongs to opening a device.
//!
//! * `H1`: a [`Handle`] keeps its library loaded until it is dropped, and that of the process for ever; symbols from it
//!   are valid as long.
//! * `H2`: the prototypes of the four functions are the same in every release from 33 to 65.
//! * `H3`: a [`Host`] exists only after detection and self-check agreed on its layout.
#![allow(unsafe_code, reason = "calls into libibverbs, through addresses dlsym gave")]

use core::ffi::{CStr, c_int, c_void};
use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ptr::NonNull;
use std::ffi::{CString, OsStr};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::detect::{self, Detected, Probe, Scratch, Unknown};
use super::layout::{Layout, OpTable};
use super::public::{
    VERBS_QP_EX, ibv_context, ibv_device, ibv_qp, verbs_context, verbs_device, verbs_device_ops,
};
use crate::error::Errno;
use crate::log;

/// What every program's libibverbs is called.
const SONAME: &CStr = c"libibverbs.so.1";

/// `verbs_register_driver_N`.
pub type RegisterDriver = unsafe extern "C" fn(*const verbs_device_ops);
type InitAndAllocContext =
    unsafe extern "C" fn(*mut ibv_device, c_int, usize, *mut verbs_context, u32) -> *mut c_void;
type SetOps = unsafe extern "C" fn(*mut verbs_context, *const c_void);
type UninitContext = unsafe extern "C" fn(*mut verbs_context);
type QpToQpEx = unsafe extern "C" fn(*mut ibv_qp) -> *mut c_void;

/// A loaded libibverbs.
#[derive(Debug)]
pub struct Handle(NonNull<c_void>);

// SAFETY: a handle of dlopen is a name; dlsym and dlclose may be called with it from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: ours, from dlopen, not used again. Its error would be of no use to anybody.
        unsafe { libc::dlclose(self.0.as_ptr()) };
    }
}

impl Handle {
    /// The libibverbs this process has already loaded, in whatever scope; never loads one.
    #[must_use]
    pub fn loaded() -> Option<Handle> {
        quiet(Handle::open(SONAME, libc::RTLD_NOLOAD | libc::RTLD_LAZY))
    }

    /// The library at `path`, loaded for a look.
    ///
    /// # Errors
    /// What dlerror says.
    pub fn load(path: &Path) -> Result<Handle, String> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        Handle::open(&name, libc::RTLD_NOW | libc::RTLD_LOCAL).ok_or_else(last_dl_error)
    }

    fn open(name: &CStr, flags: c_int) -> Option<Handle> {
        // SAFETY: a C string and flags; with RTLD_NOLOAD nothing is run, otherwise the constructors of a library the
        // user named.
        NonNull::new(unsafe { libc::dlopen(name.as_ptr(), flags) }).map(Handle)
    }

    /// The address of `symbol` in the library.
    #[must_use]
    pub fn symbol(&self, symbol: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: H1 and a C string.
        quiet(NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), symbol.as_ptr()) }))
    }

    fn required(&self, symbol: &'static CStr) -> Result<NonNull<c_void>, Unknown> {
        self.symbol(symbol).ok_or(Unknown::Function { name: symbol.to_str().unwrap_or_default() })
    }

    /// `verbs_register_driver_<number>` of the library.
    #[must_use]
    pub fn register_driver(&self, number: u32) -> Option<RegisterDriver> {
        let symbol = super::layouts::register_symbol(number);
        if symbol.is_empty() {
            return None;
        }
        // SAFETY: H2.
        self.symbol(symbol)
            .map(|address| unsafe { core::mem::transmute::<NonNull<c_void>, RegisterDriver>(address) })
    }

    /// `symbol` in the objects searched after ours: where a call would have gone without us.
    pub(crate) fn next(symbol: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: a C string; the loader finds out by itself which object asks.
        quiet(NonNull::new(unsafe { libc::dlsym(libc::RTLD_NEXT, symbol.as_ptr()) }))
    }

    /// The file it was loaded from.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let address = self.symbol(c"ibv_get_device_list")?;
        object_of(address.as_ptr()).map(|(_, path)| path)
    }
}

/// The base address and file of the object that `address` lies in.
#[must_use]
pub(crate) fn object_of(address: *const c_void) -> Option<(usize, PathBuf)> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked about; `info` is ours.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    if found == 0 {
        return None;
    }
    // SAFETY: zeroed is a valid Dl_info, and dladdr filled it.
    let info = unsafe { info.assume_init() };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gives a C string that lives as long as the object, which holds `address`.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some((info.dli_fbase.addr(), PathBuf::from(OsStr::from_bytes(name.to_bytes()))))
}

/// `found`, with nothing left behind for the program's next dlerror when it was not.
fn quiet<T>(found: Option<T>) -> Option<T> {
    if found.is_none() {
        // SAFETY: no arguments; the text is not used.
        unsafe { libc::dlerror() };
    }
    found
}

fn last_dl_error() -> String {
    // SAFETY: no arguments; the text is valid until this thread's next dl call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: a C string, see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Beyond this nothing of a `verbs_qp` is looked for.
const PROBED: usize = 1024;

impl Probe for Handle {
    fn has(&self, symbol: &CStr) -> bool {
        self.symbol(symbol).is_some()
    }

    fn comp_mask(&self) -> Option<usize> {
        let address = self.symbol(c"ibv_qp_to_qp_ex")?;
        // SAFETY: its public prototype, the same in every release.
        let to_qp_ex = unsafe { core::mem::transmute::<NonNull<c_void>, QpToQpEx>(address) };
        let mut qp = Box::new([0_u64; PROBED / size_of::<u64>()]);
        // The second half is never asked for: it is what a longer verbs_qp than any known may still read.
        (0..qp.len() / 2).find_map(|at| {
            if let Some(word) = qp.get_mut(at) {
                *word = u64::from(VERBS_QP_EX);
            }
            // SAFETY: it reads one word of the QP, tests a bit, and returns an address it does not follow; the buffer
            // is zeroed, aligned and larger than any verbs_qp.
            let found = unsafe { to_qp_ex(qp.as_mut_ptr().cast()) };
            if let Some(word) = qp.get_mut(at) {
                *word = 0;
            }
            (!found.is_null()).then_some(at * size_of::<u64>())
        })
    }
}

type ForkRange = unsafe extern "C" fn(*mut c_void, usize) -> c_int;

/// `ibv_dontfork_range` and `ibv_dofork_range`, public functions of every release: they keep pages that a device uses from
/// forked children once the program called `ibv_fork_init`, and count ranges that share a page. The default does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForkRanges {
    dont: Option<ForkRange>,
    r#do: Option<ForkRange>,
}

impl ForkRanges {
    /// A forked child does not get these bytes.
    ///
    /// # Errors
    /// The library's.
    pub fn keep(self, start: NonNull<u8>, len: usize) -> Result<(), Errno> {
        let Some(function) = self.dont else { return Ok(()) };
        // SAFETY: H2; the range is not accessed, and what children get of it is all that changes.
        match unsafe { function(start.as_ptr().cast(), len) } {
            0 => Ok(()),
            errno => Err(Errno::new(errno)),
        }
    }

    /// Takes [`ForkRanges::keep`] back.
    pub fn release(self, start: NonNull<u8>, len: usize) {
        if let Some(function) = self.r#do {
            // SAFETY: as above.
            unsafe { function(start.as_ptr().cast(), len) };
        }
    }
}

/// What holdfast binds in a libibverbs.
#[derive(Clone, Copy, Debug)]
struct Functions {
    init_and_alloc_context: InitAndAllocContext,
    set_ops: SetOps,
    uninit_context: UninitContext,
}

impl Functions {
    fn bind(handle: &Handle) -> Result<Functions, Unknown> {
        let init = handle.required(c"_verbs_init_and_alloc_context")?;
        let set_ops = handle.required(c"verbs_set_ops")?;
        let uninit = handle.required(c"verbs_uninit_context")?;
        Ok(Functions {
            // SAFETY: H2.
            init_and_alloc_context: unsafe {
                core::mem::transmute::<NonNull<c_void>, InitAndAllocContext>(init)
            },
            // SAFETY: H2.
            set_ops: unsafe { core::mem::transmute::<NonNull<c_void>, SetOps>(set_ops) },
            // SAFETY: H2.
            uninit_context: unsafe { core::mem::transmute::<NonNull<c_void>, UninitContext>(uninit) },
        })
    }
}

/// Room in front of the `ibv_context` of a [`Wrapper`]: what a `verbs_context` may grow to, and more.
pub const HEADROOM: usize = 1024;

/// What libibverbs allocates for an open device, with our part behind it.
///
/// The `verbs_context` of this library ends with `context` and begins inside `headroom`, where its size puts it; so
/// `context` and `ours` stand where they do whatever the layout.
#[repr(C)]
pub struct Wrapper<T> {
    headroom: [u64; HEADROOM / 8],
    /// The public part.
    pub context: ibv_context,
    /// Ours; zeroed bytes until the provider writes it.
    pub ours: MaybeUninit<T>,
}

const _: () = assert!(offset_of!(Wrapper<u8>, context) == HEADROOM);

impl<T> Wrapper<T> {
    /// The wrapper around a context of this provider.
    ///
    /// # Safety
    /// `context` is one that [`Host::alloc_context`] made with this `T`.
    #[inline]
    #[must_use]
    pub const unsafe fn of(context: *mut ibv_context) -> *mut Wrapper<T> {
        // SAFETY: the caller's promise: `context` is the field of a wrapper.
        unsafe { context.byte_sub(offset_of!(Wrapper<T>, context)).cast() }
    }
}

/// The libibverbs of this process, understood.
#[derive(Debug)]
pub struct Host {
    handle: Handle,
    detected: Detected,
    functions: Functions,
}

/// Why holdfast serves nothing in this process.
#[derive(Debug)]
pub struct Declined {
    path: Option<PathBuf>,
    why: Option<Unknown>,
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(why), path) = (&self.why, &self.path) else {
            return write!(f, "no libibverbs is loaded in this process");
        };
        let path = path.as_deref().unwrap_or(Path::new("libibverbs.so.1"));
        write!(
            f,
            "{}: {why}. Supported are the private ABIs {} as rdma-core released them. The stock providers serve; \
             'holdfast doctor' tells more, a newer holdfast may help, and HOLDFAST=off silences this",
            path.display(),
            detect::supported(),
        )
    }
}

impl core::error::Error for Declined {}

static HOST: OnceLock<Result<Host, Declined>> = OnceLock::new();

impl Host {
    /// The libibverbs of this process. The first call looks, checks, and says in one line on stderr when it is one that
    /// holdfast does not serve.
    ///
    /// # Errors
    /// Why it does not.
    pub fn get() -> Result<&'static Host, &'static Declined> {
        HOST.get_or_init(|| {
            let handle = Handle::loaded().ok_or(Declined { path: None, why: None })?;
            let path = handle.path();
            match Host::from_handle(handle) {
                Ok(host) => {
                    let at = path.as_deref().unwrap_or(Path::new("libibverbs.so.1")).display();
                    log::info!("{at}: private ABI {}", host.detected.layout);
                    Ok(host)
                }
                Err(why) => {
                    let declined = Declined { path, why: Some(why) };
                    log::notice(format_args!("{declined}"));
                    Err(declined)
                }
            }
        })
        .as_ref()
    }

    fn from_handle(handle: Handle) -> Result<Host, Unknown> {
        let detected = detect::detect(&handle)?;
        let functions = Functions::bind(&handle)?;
        let scratch = scratch(&functions, detected.layout).map_err(|errno| Unknown::Scratch { errno })?;
        detect::check(detected.layout, &scratch)?;
        Ok(Host { handle, detected, functions })
    }

    /// Its layout.
    #[must_use]
    pub fn layout(&self) -> &'static Layout {
        self.detected.layout
    }

    /// How many bytes of an `ibv_port_attr` its `query_port` may write.
    #[must_use]
    pub fn port_attr_size(&self) -> usize {
        self.detected.port_attr_size
    }

    /// The file it was loaded from.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.handle.path()
    }

    /// `_verbs_init_and_alloc_context`: a zeroed wrapper with libibverbs's own part in place.
    ///
    /// `cmd_fd` passes to the context, which [`Self::uninit_context`] closes; on failure it is closed here.
    ///
    /// # Errors
    /// `errno` as the library left it: `ENOMEM`.
    ///
    /// # Safety
    /// `device` is the one libibverbs asks to open, and `cmd_fd` is its descriptor.
    pub unsafe fn alloc_context<T>(
        &self,
        device: *mut ibv_device,
        cmd_fd: OwnedFd,
        driver_id: u32,
    ) -> Result<NonNull<Wrapper<T>>, Errno> {
        // SAFETY: the caller's promises, and H3.
        let wrapper = unsafe {
            alloc(&self.functions, self.layout(), device, cmd_fd, size_of::<Wrapper<T>>(), driver_id)
        }?;
        Ok(wrapper.cast())
    }

    /// The `verbs_context` that ends with `context`: what `alloc_context` and `import_context` return.
    #[must_use]
    pub fn verbs_context(&self, context: NonNull<ibv_context>) -> NonNull<verbs_context> {
        // SAFETY: nothing is accessed; in a wrapper the headroom is larger than this.
        unsafe { context.byte_sub(self.layout().before_context()) }.cast()
    }

    /// `verbs_set_ops`: the library calls `table` from now on for this context; what is NULL there stays as it was.
    ///
    /// # Safety
    /// `context` is alive, from [`Self::alloc_context`], and no other thread uses it; each function of the table may be
    /// called with objects of that context.
    pub unsafe fn set_ops(&self, context: NonNull<ibv_context>, table: &OpTable) {
        if table.number() != self.layout().number || table.slots().len() != self.layout().ops.len() {
            log::error!("a table of operations for private ABI {} was not installed", table.number());
            return;
        }
        let context = self.verbs_context(context).as_ptr();
        // SAFETY: the caller's promises; the library reads as many words as its layout has operations, H3.
        unsafe { (self.functions.set_ops)(context, table.slots().as_ptr().cast()) };
    }

    /// What keeps a device's pages from forked children.
    #[must_use]
    pub fn fork_ranges(&self) -> ForkRanges {
        let find = |symbol| {
            let address = self.handle.symbol(symbol)?;
            // SAFETY: H2, for its public prototype.
            Some(unsafe { core::mem::transmute::<NonNull<c_void>, ForkRange>(address) })
        };
        ForkRanges { dont: find(c"ibv_dontfork_range"), r#do: find(c"ibv_dofork_range") }
    }

    /// `verbs_uninit_context`: frees libibverbs's part and closes `cmd_fd` and `async_fd` where they are not -1.
    ///
    /// # Safety
    /// `context` is from [`Self::alloc_context`] and used no more, but for [`Self::free_wrapper`].
    pub unsafe fn uninit_context(&self, context: NonNull<ibv_context>) {
        let context = self.verbs_context(context).as_ptr();
        // SAFETY: the caller's promise.
        unsafe { (self.functions.uninit_context)(context) };
    }

    /// Gives the memory of a wrapper back.
    ///
    /// # Safety
    /// It is from [`Self::alloc_context`] with this `T`, after [`Self::uninit_context`]; `ours` was dropped or needs no drop.
    pub unsafe fn free_wrapper<T>(&self, wrapper: NonNull<Wrapper<T>>) {
        // SAFETY: the library allocated it with calloc, and the caller's promise.
        unsafe { libc::free(wrapper.as_ptr().cast()) };
    }
}

/// `_verbs_init_and_alloc_context` for a wrapper of `size` bytes.
///
/// # Safety
/// `device` begins a `verbs_device` that outlives the context, and the layout is that of the library.
unsafe fn alloc(
    functions: &Functions,
    layout: &Layout,
    device: *mut ibv_device,
    cmd_fd: OwnedFd,
    size: usize,
    driver_id: u32,
) -> Result<NonNull<c_void>, Errno> {
    // In C this argument is an offset, dressed as a pointer.
    let offset = core::ptr::without_provenance_mut(HEADROOM - layout.before_context());
    // SAFETY: the caller's promises; `size` covers the verbs_context at `offset`.
    let wrapper =
        unsafe { (functions.init_and_alloc_context)(device, cmd_fd.into_raw_fd(), size, offset, driver_id) };
    NonNull::new(wrapper).ok_or_else(Errno::last)
}

/// The self-check's view of a library: a context of a device that does not exist, with markers for operations.
///
/// The library probes the descriptor with one ioctl, which an eventfd refuses, and closes it in the end.
fn scratch(functions: &Functions, layout: &'static Layout) -> Result<Scratch, Errno> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut device = Box::new(verbs_device::zeroed());
    // One reference of ours beside the context's: the device is never the library's to release.
    device.refcount = 1;
    let device = Box::into_raw(device);
    // SAFETY: a zeroed verbs_device, freed only after the context; the layout is that of the library, or the check
    // that follows finds out: a verbs_context of another size still fits between HEADROOM and the wrapper's end.
    let wrapper =
        unsafe { alloc(functions, layout, device.cast(), fd, size_of::<Wrapper<[u64; HEADROOM / 8]>>(), 0) };
    let seen = wrapper.map(|wrapper| {
        // SAFETY: allocated above, of that size and zeroed but for what the library wrote.
        let context = unsafe { wrapper.byte_add(HEADROOM) };
        // SAFETY: as above.
        let verbs_context = unsafe { context.byte_sub(layout.before_context()) }.cast();
        let seen = read_scratch(functions, layout, verbs_context, context);
        // SAFETY: initialised above, used no more. It closes the descriptor.
        unsafe { (functions.uninit_context)(verbs_context.as_ptr()) };
        // SAFETY: of calloc, used no more.
        unsafe { libc::free(wrapper.as_ptr()) };
        seen
    });
    // SAFETY: from `Box::into_raw`, and the context that referred to it is gone.
    drop(unsafe { Box::from_raw(device) });
    seen
}

/// Installs markers in a scratch context and reads back where they arrived.
fn read_scratch(
    functions: &Functions,
    layout: &'static Layout,
    verbs_context: NonNull<verbs_context>,
    context: NonNull<c_void>,
) -> Scratch {
    let word_at = |distance: isize| -> *const c_void {
        // SAFETY: callers stay within the wrapper, HEADROOM before `context` and as much after it.
        let at = unsafe { context.byte_offset(distance) };
        // SAFETY: as above; aligned, and zeroed or written by the library.
        unsafe { at.cast::<*const c_void>().read() }
    };
    // The library wrote its size at a fixed distance from the end, wherever its own idea of the size puts that.
    let first = size_of::<ibv_context>().cast_signed() - Layout::SZ;
    let sz = (first..first + HEADROOM.cast_signed())
        .step_by(size_of::<usize>())
        .find(|size| word_at(size - first - before(layout)).addr().cast_signed() == *size);
    let mut seen = Scratch { sz: sz.map_or(0, isize::cast_unsigned), operations: 0, mirrors: Vec::new() };
    if seen.sz != layout.verbs_context_size {
        // Nothing else is where it could be found.
        return seen;
    }
    let table = OpTable::of_markers(detect::markers());
    // SAFETY: the context is ours alone; the table has more words than any library reads, and none is ever called.
    unsafe { (functions.set_ops)(verbs_context.as_ptr(), table.slots().as_ptr().cast()) };
    seen.mirrors = layout
        .mirrors()
        .filter(|(op, distance)| layout.op_index(*op).is_some() && -*distance <= before(layout))
        .map(|(op, distance)| (op, word_at(distance)))
        .collect();

    let private = word_at(Layout::PRIV).cast_mut();
    // SAFETY: the library allocated it with calloc.
    let size = unsafe { libc::malloc_usable_size(private) };
    let words = size.saturating_sub(Layout::PRIV_OPS) / size_of::<usize>();
    seen.operations = (0..words.min(detect::MARKERS))
        .take_while(|at| {
            // SAFETY: within the allocation, as its size says.
            let word = unsafe { private.cast_const().byte_add(Layout::PRIV_OPS + at * size_of::<usize>()) };
            // SAFETY: as above; aligned, and calloc zeroed it.
            let word = unsafe { word.cast::<*const c_void>().read() };
            detect::marker_index(word) == Some(*at)
        })
        .count();
    seen
}

/// [`Layout::before_context`], to compare distances with.
fn before(layout: &Layout) -> isize {
    layout.before_context().cast_signed()
}

/// A libibverbs, looked at from outside.
#[derive(Debug)]
pub struct Description {
    /// The file.
    pub path: PathBuf,
    /// Its private ABI number, if it is a known one.
    pub number: Option<u32>,
    /// Its layout, checked on a scratch context; or why holdfast would decline it.
    pub layout: Result<Detected, Unknown>,
}

/// Looks at the libibverbs at `path` (a file, or a name for the loader to find) without registering anything.
///
/// # Errors
/// What the loader says when it cannot be loaded.
pub fn describe(path: &Path) -> Result<Description, String> {
    let handle = Handle::load(path)?;
    let path = handle.path().unwrap_or_else(|| path.to_owned());
    let number = detect::number(&handle);
    let layout = Host::from_handle(handle).map(|host| host.detected);
    Ok(Description { path, number, layout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_found_leaves_no_error_for_the_programs_dlerror() {
        let libc = Handle::load(Path::new("libc.so.6")).unwrap();
        assert!(libc.symbol(c"dlsym").is_some());
        assert!(libc.symbol(c"holdfast_has_no_such_symbol").is_none());
        // SAFETY: no arguments.
        assert!(unsafe { libc::dlerror() }.is_null());
        assert!(Handle::next(c"holdfast_has_no_such_symbol").is_none());
        // SAFETY: no arguments.
        assert!(unsafe { libc::dlerror() }.is_null());
    }

    #[test]
    fn an_address_is_traced_to_its_object() {
        let libc = Handle::load(Path::new("libc.so.6")).unwrap();
        let address = libc.symbol(c"dlsym").unwrap().as_ptr();
        let (base, path) = object_of(address).unwrap();
        assert!(base < address.addr() && path.to_str().unwrap().contains("libc"), "{}", path.display());
        assert_eq!(object_of(core::ptr::without_provenance(16)), None);
    }

    #[test]
    fn a_program_without_libibverbs_is_told_so() {
        let declined = Declined { path: None, why: None };
        assert!(declined.to_string().contains("no libibverbs is loaded"));
    }
}
