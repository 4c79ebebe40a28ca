//! The only system calls of the crate, and the one form in which pointers reach the kernel.
//!
//! [`Command`] is the soundness boundary. Invariants:
//! * `live`: the address in an attribute is that of a buffer borrowed for the command's lifetime `'a`, of `len` bytes.
//! * `way`: a buffer the kernel writes is borrowed mutably; the attribute's type in [`ids`] says which those are.
//! * `plain`: buffers are bytes, valid for any value the kernel may leave.
#![allow(
    unsafe_code,
    reason = "system calls take pointers; everything else in uapi is safe because this module owns them"
)]

use super::wire::{Attr, CmdHdr, IoctlHdr, PostSend, PostSendResp};
use super::{CmdFd, Handle, Udata, ids};
use crate::error::Errno;
use core::ffi::CStr;
use core::marker::PhantomData;
use core::ptr::NonNull;
use std::os::fd::RawFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `RDMA_VERBS_IOCTL`: `_IOWR(0x1b, 1, struct ib_uverbs_ioctl_hdr)`.
pub(super) const RDMA_VERBS_IOCTL: u32 = 0xc000_0000 | (size_of::<IoctlHdr>() as u32) << 16 | 0x1b << 8 | 1;
/// `UVERBS_ATTR_F_MANDATORY`.
pub(super) const MANDATORY: u16 = 1;
/// `UVERBS_ATTR_F_VALID_OUTPUT`.
pub(super) const VALID_OUTPUT: u16 = 2;
/// More attributes than any command has.
const MAX_ATTRS: usize = 24;

/// An ioctl method of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The object's kind, one of [`ids::object`].
    pub object: u16,
    /// The method's number in it.
    pub method: u16,
}

/// Attribute that the kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct In(pub u16);
/// Attribute that the kernel reads as one of its constants (8 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Const(pub u16);
/// Attribute that the kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out(pub u16);
/// Attribute that names an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idr(pub u16);
/// Attribute that receives the handle of the object made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewIdr(pub u16);
/// Attribute that is a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub u16);
/// Attribute that receives the descriptor made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFd(pub u16);

/// What goes over the wire: header and attributes in one piece.
#[derive(Clone, Copy)]
#[repr(C)]
struct Packet {
    hdr: IoctlHdr,
    attrs: [Attr; MAX_ATTRS],
}

/// An ioctl command being put together. Its buffers stay borrowed until it is called.
pub struct Command<'a> {
    packet: Packet,
    /// The first thing that could not be encoded.
    error: Option<Errno>,
    buffers: PhantomData<&'a mut [u8]>,
}

impl<'a> Command<'a> {
    /// A call of `method`, without attributes.
    #[must_use]
    pub fn new(method: Method) -> Command<'a> {
        let mut packet = Packet { hdr: IoctlHdr::default(), attrs: [Attr::default(); MAX_ATTRS] };
        packet.hdr.object_id = method.object;
        packet.hdr.method_id = method.method;
        Command { packet, error: None, buffers: PhantomData }
    }

    fn push(&mut self, attr_id: u16, len: usize, data: u64) -> &mut Self {
        let slot = self.packet.attrs.get_mut(usize::from(self.packet.hdr.num_attrs));
        match (slot, u16::try_from(len)) {
            (Some(slot), Ok(len)) => {
                *slot = Attr { attr_id, len, flags: MANDATORY, attr_data: 0, data };
                self.packet.hdr.num_attrs += 1;
            }
            // No attribute can say a length beyond 64 KiB.
            _ => self.error = Some(Errno::EINVAL),
        }
        self
    }

    /// `data` to the kernel; up to 8 bytes travel in the attribute itself.
    pub fn input(&mut self, id: In, data: &'a [u8]) -> &mut Self {
        let mut inline = [0; 8];
        match inline.get_mut(..data.len()) {
            Some(start) => {
                start.copy_from_slice(data);
                self.push(id.0, data.len(), u64::from_ne_bytes(inline))
            }
            None => self.push(id.0, data.len(), data.as_ptr().expose_provenance() as u64),
        }
    }

    /// `data` to the kernel, at most 8 bytes, so that nothing stays borrowed.
    fn inline<T: IntoBytes + Immutable>(&mut self, id: u16, data: T) -> &mut Self {
        const { assert!(size_of::<T>() <= 8) };
        let mut inline = [0; 8];
        for (to, from) in inline.iter_mut().zip(data.as_bytes()) {
            *to = *from;
        }
        self.push(id, size_of::<T>(), u64::from_ne_bytes(inline))
    }

    /// An 8-bit number to the kernel.
    pub fn input_u8(&mut self, id: In, value: u8) -> &mut Self {
        self.inline(id.0, value)
    }

    /// A 32-bit number to the kernel.
    pub fn input_u32(&mut self, id: In, value: u32) -> &mut Self {
        self.inline(id.0, value)
    }

    /// A 64-bit number to the kernel.
    pub fn input_u64(&mut self, id: In, value: u64) -> &mut Self {
        self.inline(id.0, value)
    }

    /// One of the kernel's constants.
    pub fn constant(&mut self, id: Const, value: u64) -> &mut Self {
        self.inline(id.0, value)
    }

    /// `data` from the kernel; it stays as it is where the kernel writes less.
    pub fn output<T: FromBytes + IntoBytes + ?Sized>(&mut self, id: Out, data: &'a mut T) -> &mut Self {
        let data = data.as_mut_bytes();
        self.push(id.0, data.len(), data.as_mut_ptr().expose_provenance() as u64)
    }

    /// The object `handle`.
    pub fn handle(&mut self, id: Idr, handle: Handle) -> &mut Self {
        self.push(id.0, 0, u64::from(handle.0))
    }

    /// Room for the handle of the object made: [`Answer::handle`].
    pub fn new_handle(&mut self, id: NewIdr) -> &mut Self {
        self.push(id.0, 0, 0)
    }

    /// The descriptor `fd`.
    pub fn fd(&mut self, id: Fd, fd: RawFd) -> &mut Self {
        self.push(id.0, 0, i64::from(fd).cast_unsigned())
    }

    /// Room for the descriptor made: [`Answer::fd`].
    pub fn new_fd(&mut self, id: NewFd) -> &mut Self {
        self.push(id.0, 0, 0)
    }

    /// Driver data, as far as there are any; the output is zeroed.
    pub fn udata(&mut self, drv: Udata<'a>) -> &mut Self {
        if !drv.input.is_empty() {
            self.input(ids::UHW_IN, drv.input);
        }
        if !drv.output.is_empty() {
            drv.output.fill(0);
            self.output(ids::UHW_OUT, drv.output);
        }
        self
    }

    /// Calls the kernel.
    ///
    /// # Errors
    /// `EINVAL` where a buffer exceeds 64 KiB; the kernel's; `EPROTO` where it reports success without having written the
    /// driver's answer.
    pub fn call(&mut self, cmd: CmdFd) -> Result<Answer, Errno> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let used = usize::from(self.packet.hdr.num_attrs);
        let length = size_of::<IoctlHdr>() + used * size_of::<Attr>();
        self.packet.hdr.length = u16::try_from(length).map_err(|_| Errno::EINVAL)?;
        self.packet.hdr.driver_id = cmd.driver_id.0;
        let arg = (&raw mut self.packet).cast::<libc::c_void>();
        // SAFETY: `arg` is a whole packet; its attributes hold by `live`, `way` and `plain`.
        let ret = unsafe { libc::ioctl(cmd.fd, libc::Ioctl::from(RDMA_VERBS_IOCTL), arg) };
        if ret != 0 {
            return Err(Errno::last());
        }
        let answer = Answer { packet: self.packet };
        // Numbers of other attributes mean something else in each method; this one is the same in all.
        if answer.find(ids::UHW_OUT.0).is_some() && !answer.wrote(ids::UHW_OUT) {
            return Err(Errno::EPROTO);
        }
        Ok(answer)
    }
}

/// What a successful call left in the attributes themselves.
pub struct Answer {
    packet: Packet,
}

impl Answer {
    fn find(&self, attr_id: u16) -> Option<&Attr> {
        let used = usize::from(self.packet.hdr.num_attrs);
        self.packet.attrs.iter().take(used).find(|attr| attr.attr_id == attr_id)
    }

    /// Whether the kernel says that it wrote `id`. It need not say so of an attribute that the method requires.
    #[must_use]
    pub fn wrote(&self, id: Out) -> bool {
        self.find(id.0).is_some_and(|attr| attr.flags & VALID_OUTPUT != 0)
    }

    /// The handle of the object made.
    ///
    /// # Errors
    /// `EPROTO` where it is none.
    pub fn handle(&self, id: NewIdr) -> Result<Handle, Errno> {
        let attr = self.find(id.0).ok_or(Errno::EPROTO)?;
        u32::try_from(attr.data).map(Handle).map_err(|_| Errno::EPROTO)
    }

    /// The descriptor made.
    ///
    /// # Errors
    /// `EPROTO` where it is none.
    pub fn fd(&self, id: NewFd) -> Result<OwnedFd, Errno> {
        let attr = self.find(id.0).ok_or(Errno::EPROTO)?;
        let fd = RawFd::try_from(attr.data.cast_signed()).map_err(|_| Errno::EPROTO)?;
        OwnedFd::new(fd).ok_or(Errno::EPROTO)
    }
}

/// A descriptor of ours, closed with its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnedFd(RawFd);

impl OwnedFd {
    /// Takes `fd`, unless it is negative.
    fn new(fd: RawFd) -> Option<OwnedFd> {
        (fd >= 0).then_some(OwnedFd(fd))
    }

    /// Takes the descriptor of a kernel answer.
    ///
    /// # Errors
    /// `EPROTO` where it is none.
    pub(super) fn from_kernel(fd: u32) -> Result<OwnedFd, Errno> {
        RawFd::try_from(fd).ok().and_then(OwnedFd::new).ok_or(Errno::EPROTO)
    }

    /// The number, still owned here.
    #[must_use]
    pub fn as_raw(&self) -> RawFd {
        self.0
    }

    /// The number, now the caller's to close.
    #[must_use]
    pub fn into_raw(self) -> RawFd {
        let fd = self.0;
        #[allow(clippy::mem_forget, reason = "the number outlives its owner: that is the point")]
        core::mem::forget(self);
        fd
    }
}

impl Drop for OwnedFd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// A mapping, unmapped with its owner.
#[derive(Debug)]
pub struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; a `Map` only hands out its address.
unsafe impl Send for Map {}
// SAFETY: as above: nothing is read or written through a `Map`.
unsafe impl Sync for Map {}

impl Map {
    /// The first byte; whoever uses it keeps the `Map`.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own; nothing of it is used after its owner.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// `-1` is a failure, described by `errno`.
fn check<T: PartialEq + From<i8>>(ret: T) -> Result<T, Errno> {
    if ret == T::from(-1) { Err(Errno::last()) } else { Ok(ret) }
}

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prot {
    /// `PROT_READ`.
    Read,
    /// `PROT_WRITE`.
    Write,
    /// `PROT_READ | PROT_WRITE`.
    ReadWrite,
}

fn mmap(fd: RawFd, len: usize, prot: Prot, flags: i32, offset: u64) -> Result<Map, Errno> {
    let prot = match prot {
        Prot::Read => libc::PROT_READ,
        Prot::Write => libc::PROT_WRITE,
        Prot::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: without MAP_FIXED the kernel places the mapping where nothing is.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), len, prot, flags, fd, offset) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    NonNull::new(start.cast()).map(|start| Map { start, len }).ok_or(Errno::ENOMEM)
}

/// `mmap(2)` of `fd`, shared.
///
/// # Errors
/// The kernel's.
pub fn map_device(fd: RawFd, len: usize, prot: Prot, offset: u64) -> Result<Map, Errno> {
    mmap(fd, len, prot, libc::MAP_SHARED, offset)
}

/// `mmap(2)` of zeroed private memory.
///
/// # Errors
/// The kernel's.
pub fn map_memory(len: usize) -> Result<Map, Errno> {
    mmap(-1, len, Prot::ReadWrite, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0)
}

/// `madvise(2)`: whether a forked child gets the pages of a range (`MADV_DOFORK`) or not (`MADV_DONTFORK`).
///
/// # Errors
/// The kernel's.
pub fn inherit_on_fork(addr: usize, len: usize, inherit: bool) -> Result<(), Errno> {
    let advice = if inherit { libc::MADV_DOFORK } else { libc::MADV_DONTFORK };
    let addr = core::ptr::with_exposed_provenance_mut(addr);
    // SAFETY: neither advice changes memory of this process.
    check(unsafe { libc::madvise(addr, len, advice) }).map(drop)
}

/// `open(2)`, close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn open(path: &CStr, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: `path` ends with a NUL.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })?;
    OwnedFd::new(fd).ok_or(Errno::EBADF)
}

/// `close(2)`.
pub fn close(fd: RawFd) {
    // SAFETY: a descriptor is a number.
    let _ = unsafe { libc::close(fd) };
}

/// `read(2)`: how many bytes came.
///
/// # Errors
/// The kernel's.
pub fn read(fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is borrowed for the call.
    let n = check(unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) })?;
    // More than asked for is no answer.
    usize::try_from(n).ok().filter(|n| *n <= buf.len()).ok_or(Errno::EPROTO)
}

/// `write(2)`: how many bytes went.
///
/// # Errors
/// The kernel's.
pub fn write(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is borrowed for the call.
    let n = check(unsafe { libc::write(fd, buf.as_ptr().cast(), buf.len()) })?;
    usize::try_from(n).map_err(|_| Errno::EPROTO)
}

/// `poll(2)`: how many entries have events. `timeout` in milliseconds, negative: for ever.
///
/// # Errors
/// The kernel's.
pub fn poll(fds: &mut [libc::pollfd], timeout: i32) -> Result<usize, Errno> {
    let n = libc::nfds_t::try_from(fds.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the array is borrowed for the call and has `n` entries.
    let n = check(unsafe { libc::poll(fds.as_mut_ptr(), n, timeout) })?;
    usize::try_from(n).map_err(|_| Errno::EPROTO)
}

/// `fcntl(2)`: the status flags (`O_NONBLOCK` and the like).
///
/// # Errors
/// The kernel's.
pub fn status_flags(fd: RawFd) -> Result<i32, Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fcntl(fd, libc::F_GETFL) })
}

/// `fcntl(2)`: sets the status flags.
///
/// # Errors
/// The kernel's.
pub fn set_status_flags(fd: RawFd, flags: i32) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }).map(drop)
}

/// `fcntl(2)`: a copy of `fd`, close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn dup(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointer.
    let fd = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
    OwnedFd::new(fd).ok_or(Errno::EBADF)
}

/// `dup3(2)`: `fd` under the number `over`, close-on-exec; what `over` was is closed.
///
/// # Errors
/// The kernel's.
pub fn dup_over(fd: RawFd, over: RawFd) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::dup3(fd, over, libc::O_CLOEXEC) }).map(drop)
}

/// `eventfd(2)`, close-on-exec. `flags`: `EFD_NONBLOCK`, `EFD_SEMAPHORE`.
///
/// # Errors
/// The kernel's.
pub fn eventfd(value: u32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointer.
    let fd = check(unsafe { libc::eventfd(value, flags | libc::EFD_CLOEXEC) })?;
    OwnedFd::new(fd).ok_or(Errno::EBADF)
}

/// `pipe2(2)`, close-on-exec: the end to read from, the end to write to.
///
/// # Errors
/// The kernel's.
pub fn pipe(flags: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [-1; 2];
    // SAFETY: the array has the two places that pipe2 fills.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), flags | libc::O_CLOEXEC) })?;
    let [from, to] = fds;
    OwnedFd::new(from).zip(OwnedFd::new(to)).ok_or(Errno::EBADF)
}

/// A write-form `POST_SEND`, and the place of its answer.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PostSendCmd {
    hdr: CmdHdr,
    cmd: PostSend,
}

/// `POST_SEND` by `write(2)`, the answer to `bad_wr`.
///
/// # Errors
/// The kernel's; `EPROTO` where it took less than the command.
pub(super) fn post_send(fd: RawFd, mut cmd: PostSend, resp: &mut PostSendResp) -> Result<(), Errno> {
    const IN_WORDS: u16 = (size_of::<PostSendCmd>() / 4) as u16;
    const OUT_WORDS: u16 = (size_of::<PostSendResp>() / 4) as u16;
    cmd.response = core::ptr::from_mut(resp).expose_provenance() as u64;
    let hdr = CmdHdr { command: ids::write::POST_SEND, in_words: IN_WORDS, out_words: OUT_WORDS };
    let cmd = PostSendCmd { hdr, cmd };
    // `resp` stays borrowed over the write, which fills it.
    let n = write(fd, cmd.as_bytes())?;
    if n == size_of::<PostSendCmd>() { Ok(()) } else { Err(Errno::EPROTO) }
}
