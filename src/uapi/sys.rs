//! The only system calls of the crate, and the one form in which pointers reach the kernel.
//!
//! [`Command`] is the soundness boundary. Invariants:
//! * `live`: the address in an attribute is that of a buffer borrowed for the command's lifetime `'a`, of `len` bytes.
//! * `way`: a buffer the kernel writes is borrowed mutably; the attribute's type in [`ids`] says which those are.
//! * `plain`: buffers are bytes, valid for any value the kernel may leave.
//! * `filled`: the first `num_attrs` attributes of a packet are there. The kernel reads the header, and does not write it.
//!
//! In unit tests (and under a fuzzer) the calls do not reach the system but a script: `twin`.
#![allow(
    unsafe_code,
    reason = "system calls take pointers; everything else in uapi is safe because this module owns them"
)]

mod os;
pub mod process;
#[cfg(any(test, fuzzing))]
pub(crate) mod twin;

#[cfg(not(any(test, fuzzing)))]
use os as kernel;
#[cfg(any(test, fuzzing))]
use twin as kernel;

use super::wire::{Attr, CmdHdr, IoctlHdr, PostSend, PostSendResp, ReqNotifyCq};
use super::{CmdFd, Handle, Udata, ids};
use crate::error::Errno;
use core::ffi::CStr;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
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

/// What goes over the wire: header and attributes in one piece. (Room that is not used is not written: most commands have few, and 400
/// bytes of zeroes were the longest way of a short one.)
#[derive(Clone, Copy)]
#[repr(C)]
struct Packet {
    hdr: IoctlHdr,
    attrs: [MaybeUninit<Attr>; MAX_ATTRS],
}

impl Packet {
    /// Those that are there.
    fn attrs(&self) -> &[Attr] {
        let room = self.attrs.get(..usize::from(self.hdr.num_attrs)).unwrap_or_default();
        // SAFETY: `filled`.
        unsafe { core::slice::from_raw_parts(room.as_ptr().cast(), room.len()) }
    }

    /// As [`Packet::attrs`].
    #[cfg(any(test, fuzzing))]
    fn attrs_mut(&mut self) -> &mut [Attr] {
        let room = self.attrs.get_mut(..usize::from(self.hdr.num_attrs)).unwrap_or_default();
        // SAFETY: `filled`.
        unsafe { core::slice::from_raw_parts_mut(room.as_mut_ptr().cast(), room.len()) }
    }
}

/// An ioctl command being put together. Its buffers stay borrowed until it is called.
pub struct Command<'a> {
    packet: Packet,
    /// The first thing that could not be encoded.
    error: Option<Errno>,
    /// Which attributes, by index, success must have flagged as written.
    expected: u32,
    /// Which attribute, by index, receives the object or the descriptor made; none beyond the last.
    made: usize,
    /// Which attributes the kernel writes through, so that its twin cannot write through another.
    #[cfg(any(test, fuzzing))]
    outs: u32,
    buffers: PhantomData<&'a mut [u8]>,
}

impl<'a> Command<'a> {
    /// A call of `method`, without attributes.
    #[must_use]
    pub fn new(method: Method) -> Command<'a> {
        let mut packet = Packet { hdr: IoctlHdr::default(), attrs: [MaybeUninit::uninit(); MAX_ATTRS] };
        packet.hdr.object_id = method.object;
        packet.hdr.method_id = method.method;
        Command {
            packet,
            error: None,
            expected: 0,
            made: usize::MAX,
            #[cfg(any(test, fuzzing))]
            outs: 0,
            buffers: PhantomData,
        }
    }

    fn push(&mut self, attr_id: u16, len: usize, data: u64) -> &mut Self {
        let slot = self.packet.attrs.get_mut(usize::from(self.packet.hdr.num_attrs));
        match (slot, u16::try_from(len)) {
            (Some(slot), Ok(len)) => {
                slot.write(Attr { attr_id, len, flags: MANDATORY, attr_data: 0, data });
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
        #[cfg(any(test, fuzzing))]
        {
            self.outs |= 1 << self.packet.hdr.num_attrs;
        }
        self.push(id.0, data.len(), data.as_mut_ptr().expose_provenance() as u64)
    }

    /// As [`Self::output`], of an attribute that the method does not require: a success that left it out is no success.
    pub fn expect_output<T: FromBytes + IntoBytes + ?Sized>(
        &mut self,
        id: Out,
        data: &'a mut T,
    ) -> &mut Self {
        self.expected |= 1 << self.packet.hdr.num_attrs;
        self.output(id, data)
    }

    /// The object `handle`.
    pub fn handle(&mut self, id: Idr, handle: Handle) -> &mut Self {
        self.push(id.0, 0, u64::from(handle.0))
    }

    /// Room for the handle of the object made: [`Answer::handle`].
    pub fn new_handle(&mut self, id: NewIdr) -> &mut Self {
        self.made = usize::from(self.packet.hdr.num_attrs);
        self.push(id.0, 0, 0)
    }

    /// The descriptor `fd`.
    pub fn fd(&mut self, id: Fd, fd: RawFd) -> &mut Self {
        self.push(id.0, 0, i64::from(fd).cast_unsigned())
    }

    /// Room for the descriptor made: [`Answer::fd`].
    pub fn new_fd(&mut self, id: NewFd) -> &mut Self {
        self.made = usize::from(self.packet.hdr.num_attrs);
        self.push(id.0, 0, 0)
    }

    /// Driver data, as far as there are any; the output is zeroed.
    pub fn udata(&mut self, drv: Udata<'a>) -> &mut Self {
        if !drv.input.is_empty() {
            self.input(ids::UHW_IN, drv.input);
        }
        if !drv.output.is_empty() {
            drv.output.fill(0);
            self.expect_output(ids::UHW_OUT, drv.output);
        }
        self
    }

    /// Calls the kernel.
    ///
    /// # Errors
    /// `EINVAL` where a buffer exceeds 64 KiB; the kernel's; `EPROTO` where it reports success without having written what
    /// [`Self::expect_output`] or [`Self::udata`] expects.
    pub fn call(&mut self, cmd: CmdFd) -> Result<Answer, Errno> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let length = size_of::<IoctlHdr>() + size_of_val(self.packet.attrs());
        self.packet.hdr.length = u16::try_from(length).map_err(|_| Errno::EINVAL)?;
        self.packet.hdr.driver_id = cmd.driver_id.0;
        #[cfg(any(test, fuzzing))]
        twin::announce(self.outs);
        // SAFETY: the attributes hold by `live`, `way` and `plain`, and `num_attrs` of them are filled.
        unsafe { kernel::ioctl(cmd.fd, &mut self.packet) }?;
        for (at, attr) in self.packet.attrs().iter().enumerate() {
            if self.expected & 1 << at != 0 && attr.flags & VALID_OUTPUT == 0 {
                return Err(Errno::EPROTO);
            }
        }
        Ok(Answer { made: self.packet.attrs().get(self.made).copied() })
    }
}

/// What a successful call left in the attributes themselves: what it made, if that was asked for. (The whole packet would be 400 bytes
/// that each call copies twice.)
pub struct Answer {
    made: Option<Attr>,
}

impl Answer {
    fn find(&self, attr_id: u16) -> Result<&Attr, Errno> {
        self.made.as_ref().filter(|attr| attr.attr_id == attr_id).ok_or(Errno::EPROTO)
    }

    /// The handle of the object made.
    ///
    /// # Errors
    /// `EPROTO` where it is none.
    pub fn handle(&self, id: NewIdr) -> Result<Handle, Errno> {
        let attr = self.find(id.0)?;
        u32::try_from(attr.data).map(Handle).map_err(|_| Errno::EPROTO)
    }

    /// The descriptor made.
    ///
    /// # Errors
    /// `EPROTO` where it is none.
    pub fn fd(&self, id: NewFd) -> Result<OwnedFd, Errno> {
        let attr = self.find(id.0)?;
        let fd = RawFd::try_from(attr.data.cast_signed()).map_err(|_| Errno::EPROTO)?;
        OwnedFd::new(fd)
    }
}

/// A descriptor of ours, closed with its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnedFd(RawFd);

impl OwnedFd {
    /// Takes `fd`, unless it is negative.
    fn new(fd: RawFd) -> Result<OwnedFd, Errno> {
        if fd >= 0 { Ok(OwnedFd(fd)) } else { Err(Errno::EPROTO) }
    }

    /// Takes the descriptor of a kernel answer.
    ///
    /// # Errors
    /// `EPROTO` where it is none.
    pub(super) fn from_kernel(fd: u32) -> Result<OwnedFd, Errno> {
        OwnedFd::new(fd.cast_signed())
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
    /// The first byte, at the start of a page; whoever uses it keeps the `Map`.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never so, as an empty mapping cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own; nothing of it is used after its owner.
        unsafe { kernel::munmap(self.start, self.len) };
    }
}

fn map(fd: RawFd, len: usize, prot: Prot, flags: i32, offset: u64) -> Result<Map, Errno> {
    let prot = match prot {
        Prot::Read => libc::PROT_READ,
        Prot::Write => libc::PROT_WRITE,
        Prot::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    kernel::mmap(fd, len, prot, flags, offset).map(|start| Map { start, len })
}

/// `mmap(2)` of `fd`, shared.
///
/// # Errors
/// The kernel's; `EOVERFLOW` for an offset that no file has.
pub fn map_device(fd: RawFd, len: usize, prot: Prot, offset: u64) -> Result<Map, Errno> {
    map(fd, len, prot, libc::MAP_SHARED, offset)
}

/// `mmap(2)` of zeroed private memory.
///
/// # Errors
/// The kernel's.
pub fn map_memory(len: usize) -> Result<Map, Errno> {
    map(-1, len, Prot::ReadWrite, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0)
}

/// `madvise(2)`: whether a forked child gets the pages of a range (`MADV_DOFORK`) or not (`MADV_DONTFORK`).
///
/// # Errors
/// The kernel's.
pub fn inherit_on_fork(addr: usize, len: usize, inherit: bool) -> Result<(), Errno> {
    kernel::madvise(addr, len, if inherit { libc::MADV_DOFORK } else { libc::MADV_DONTFORK })
}

/// `open(2)`, close-on-exec; nothing is created.
///
/// # Errors
/// The kernel's.
pub fn open(path: &CStr, flags: i32) -> Result<OwnedFd, Errno> {
    kernel::open(path, flags | libc::O_CLOEXEC).and_then(OwnedFd::new)
}

/// `close(2)`.
pub fn close(fd: RawFd) {
    kernel::close(fd);
}

/// `read(2)`: how many bytes came.
///
/// # Errors
/// The kernel's; `EPROTO` where it tells of more bytes than there is room.
pub fn read(fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
    let n = kernel::read(fd, buf)?;
    if n <= buf.len() { Ok(n) } else { Err(Errno::EPROTO) }
}

/// `write(2)`: how many bytes went.
///
/// # Errors
/// The kernel's.
pub fn write(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    kernel::write(fd, buf)
}

/// `poll(2)`: how many entries have events. `timeout` in milliseconds, negative: for ever.
///
/// # Errors
/// The kernel's.
pub fn poll(fds: &mut [libc::pollfd], timeout: i32) -> Result<usize, Errno> {
    kernel::poll(fds, timeout)
}

/// `poll(2)` of `fd` alone, without waiting: which of `events`, and of the errors that are always told, hold.
#[must_use]
pub fn ready(fd: RawFd, events: i16) -> i16 {
    let mut fds = [libc::pollfd { fd, events, revents: 0 }];
    let ready = poll(&mut fds, 0);
    let [libc::pollfd { revents, .. }] = fds;
    if ready.is_ok() { revents } else { 0 }
}

/// `fcntl(2)`: the status flags (`O_NONBLOCK` and the like).
///
/// # Errors
/// The kernel's.
pub fn status_flags(fd: RawFd) -> Result<i32, Errno> {
    kernel::fcntl(fd, libc::F_GETFL, 0)
}

/// `fcntl(2)`: sets the status flags.
///
/// # Errors
/// The kernel's.
pub fn set_status_flags(fd: RawFd, flags: i32) -> Result<(), Errno> {
    kernel::fcntl(fd, libc::F_SETFL, flags).map(drop)
}

/// `fcntl(2)`: a copy of `fd`, close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn dup(fd: RawFd) -> Result<OwnedFd, Errno> {
    kernel::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0).and_then(OwnedFd::new)
}

/// `dup3(2)`: `fd` under the number `over`, inherited at exec or not; what `over` was is closed.
///
/// # Errors
/// The kernel's.
pub fn dup_over(fd: RawFd, over: RawFd, close_on_exec: bool) -> Result<(), Errno> {
    kernel::dup3(fd, over, if close_on_exec { libc::O_CLOEXEC } else { 0 }).map(drop)
}

/// `eventfd(2)`, close-on-exec. `flags`: `EFD_NONBLOCK`, `EFD_SEMAPHORE`.
///
/// # Errors
/// The kernel's.
pub fn eventfd(value: u32, flags: i32) -> Result<OwnedFd, Errno> {
    kernel::eventfd(value, flags | libc::EFD_CLOEXEC).and_then(OwnedFd::new)
}

/// Adds 1 to what an eventfd counts. It only fails where the count is full, and nobody has looked for as long.
pub fn count(eventfd: RawFd) {
    let _ = write(eventfd, &1_u64.to_ne_bytes());
}

/// `pipe2(2)`, close-on-exec: the end to read from, the end to write to.
///
/// # Errors
/// The kernel's.
pub fn pipe(flags: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let [from, to] = kernel::pipe2(flags | libc::O_CLOEXEC)?;
    let from = OwnedFd::new(from)?;
    Ok((from, OwnedFd::new(to)?))
}

/// A write-form `POST_SEND`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PostSendCmd {
    hdr: CmdHdr,
    cmd: PostSend,
}

/// A write-form `REQ_NOTIFY_CQ`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ReqNotifyCqCmd {
    hdr: CmdHdr,
    cmd: ReqNotifyCq,
}

/// `REQ_NOTIFY_CQ` by `write(2)`: armed before each sleep, so it goes the short way.
///
/// # Errors
/// The kernel's; `EPROTO` where it took less than the command.
pub(super) fn req_notify_cq(fd: RawFd, cmd: ReqNotifyCq) -> Result<(), Errno> {
    const IN_WORDS: u16 = (size_of::<ReqNotifyCqCmd>() / 4) as u16;
    let hdr = CmdHdr { command: ids::write::REQ_NOTIFY_CQ, in_words: IN_WORDS, out_words: 0 };
    let cmd = ReqNotifyCqCmd { hdr, cmd };
    let n = kernel::command(fd, cmd.as_bytes())?;
    if n == size_of::<ReqNotifyCqCmd>() { Ok(()) } else { Err(Errno::EPROTO) }
}

/// `POST_SEND` by `write(2)`, the answer to `resp`.
///
/// # Errors
/// The kernel's; `EPROTO` where it took less than the command.
pub(super) fn post_send(fd: RawFd, mut cmd: PostSend, resp: &mut PostSendResp) -> Result<(), Errno> {
    const IN_WORDS: u16 = (size_of::<PostSendCmd>() / 4) as u16;
    const OUT_WORDS: u16 = (size_of::<PostSendResp>() / 4) as u16;
    // The write below fills `resp`, which stays borrowed until it is done.
    cmd.response = core::ptr::from_mut(resp).expose_provenance() as u64;
    let hdr = CmdHdr { command: ids::write::POST_SEND, in_words: IN_WORDS, out_words: OUT_WORDS };
    let cmd = PostSendCmd { hdr, cmd };
    let n = kernel::command(fd, cmd.as_bytes())?;
    if n == size_of::<PostSendCmd>() { Ok(()) } else { Err(Errno::EPROTO) }
}
