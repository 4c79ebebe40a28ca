//! The kernel's scripted twin: the functions of [`os`], answered from memory.
//!
//! A test installs a [`Kernel`] on its thread and tells it which calls to expect, in order, and what to answer. A call that
//! nobody expected fails the test, and so does an expected one that never came. [`Kernel::real`] lets a thread's calls
//! through to the system. What a script maps is real memory.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "not in the library: where a test goes wrong, it fails here"
)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "the fuzzer needs less of it than the tests"))]

use super::{Const, Fd, Idr, In, Method, NewFd, NewIdr, Out, Packet, VALID_OUTPUT, os};
use crate::error::Errno;
use crate::uapi::wire::{Attr, IoctlHdr};
use crate::uapi::{DriverId, Handle, ids};
use core::cell::{Cell, RefCell};
use core::ffi::CStr;
use core::ptr::NonNull;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

type OnIoctl = Box<dyn FnOnce(&mut Ioctl<'_>) -> Result<(), Errno> + Send>;
type OnRead = Box<dyn FnOnce(&mut [u8]) -> Result<usize, Errno> + Send>;
type OnWrite = Box<dyn FnOnce(&[u8]) -> Result<usize, Errno> + Send>;
type OnMmap = Box<dyn FnOnce(&mut [u8]) -> Result<(), Errno> + Send>;
type OnPoll = Box<dyn FnOnce(&mut [libc::pollfd]) -> Result<usize, Errno> + Send>;
type OnCall = Box<dyn FnOnce(&[i64]) -> Result<i64, Errno> + Send>;
type Serve = Box<dyn FnMut(&mut Ioctl<'_>) -> Result<(), Errno> + Send>;

enum Step {
    Ioctl(Method, OnIoctl),
    Read(RawFd, OnRead),
    Write(RawFd, OnWrite),
    Mmap(RawFd, u64, OnMmap),
    Poll(OnPoll),
    Call(&'static str, OnCall),
}

impl Step {
    fn name(&self) -> String {
        match self {
            Step::Ioctl(method, _) => format!("ioctl {method:?}"),
            Step::Read(fd, _) => format!("read of {fd}"),
            Step::Write(fd, _) => format!("write to {fd}"),
            Step::Mmap(fd, offset, _) => format!("mmap of {fd} at {offset:#x}"),
            Step::Poll(_) => "poll".into(),
            Step::Call(name, _) => (*name).into(),
        }
    }
}

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    serve: Option<Serve>,
    closed: Vec<RawFd>,
    unmapped: Vec<usize>,
}

#[derive(Clone)]
enum Mode {
    Real,
    Scripted(Arc<Mutex<Script>>),
}

thread_local! {
    static MODE: RefCell<Option<Mode>> = const { RefCell::new(None) };
    static OUTS: Cell<u32> = const { Cell::new(0) };
}

/// A kernel for the calls of this thread, until it is dropped.
pub(crate) struct Kernel {
    mode: Mode,
    /// The thread it serves is the one that made it.
    here: core::marker::PhantomData<*const ()>,
}

impl Kernel {
    fn install(mode: Mode) -> Kernel {
        MODE.with_borrow_mut(|slot| {
            assert!(slot.is_none(), "this thread has a kernel already");
            *slot = Some(mode.clone());
        });
        Kernel { mode, here: core::marker::PhantomData }
    }

    /// A kernel that answers what it is told to.
    pub(crate) fn scripted() -> Kernel {
        Kernel::install(Mode::Scripted(Arc::default()))
    }

    /// The system's kernel.
    pub(crate) fn real() -> Kernel {
        Kernel::install(Mode::Real)
    }

    /// Makes this kernel serve another thread too: call the closure there, and keep what it gives.
    pub(crate) fn share(&self) -> impl FnOnce() -> Kernel + Send + use<> {
        let mode = self.mode.clone();
        move || Kernel::install(mode)
    }

    fn script<T>(&self, f: impl FnOnce(&mut Script) -> T) -> T {
        match &self.mode {
            Mode::Real => panic!("the system's kernel takes no script"),
            Mode::Scripted(script) => f(&mut script.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn expect(&self, step: Step) -> &Kernel {
        self.script(|script| script.steps.push_back(step));
        self
    }

    /// Expects a call of `method`.
    pub(crate) fn ioctl(
        &self,
        method: Method,
        f: impl FnOnce(&mut Ioctl<'_>) -> Result<(), Errno> + Send + 'static,
    ) -> &Kernel {
        self.expect(Step::Ioctl(method, Box::new(f)))
    }

    /// Expects a write-form `command`.
    pub(crate) fn command(
        &self,
        command: u32,
        f: impl FnOnce(&mut Ioctl<'_>) -> Result<(), Errno> + Send + 'static,
    ) -> &Kernel {
        self.ioctl(ids::INVOKE_WRITE, move |io| {
            assert_eq!(io.constant(ids::WRITE_CMD), u64::from(command), "another write command");
            f(io)
        })
    }

    /// Expects a `read` of `fd`.
    pub(crate) fn read(
        &self,
        fd: RawFd,
        f: impl FnOnce(&mut [u8]) -> Result<usize, Errno> + Send + 'static,
    ) -> &Kernel {
        self.expect(Step::Read(fd, Box::new(f)))
    }

    /// Expects a `write` to `fd`.
    pub(crate) fn write(
        &self,
        fd: RawFd,
        f: impl FnOnce(&[u8]) -> Result<usize, Errno> + Send + 'static,
    ) -> &Kernel {
        self.expect(Step::Write(fd, Box::new(f)))
    }

    /// Expects an `mmap` of `fd` at `offset`; `f` fills the memory, zeroed before.
    pub(crate) fn mmap(
        &self,
        fd: RawFd,
        offset: u64,
        f: impl FnOnce(&mut [u8]) -> Result<(), Errno> + Send + 'static,
    ) -> &Kernel {
        self.expect(Step::Mmap(fd, offset, Box::new(f)))
    }

    /// Expects a `poll`.
    pub(crate) fn poll(
        &self,
        f: impl FnOnce(&mut [libc::pollfd]) -> Result<usize, Errno> + Send + 'static,
    ) -> &Kernel {
        self.expect(Step::Poll(Box::new(f)))
    }

    /// Expects one of the calls that take and give numbers only: `open` (flags), `fcntl`, `dup3`, `eventfd`, `pipe2`
    /// (gives the first of two descriptors, the other is the next number), `madvise`.
    pub(crate) fn call(
        &self,
        name: &'static str,
        f: impl FnOnce(&[i64]) -> Result<i64, Errno> + Send + 'static,
    ) -> &Kernel {
        self.expect(Step::Call(name, Box::new(f)))
    }

    /// Answers every ioctl that comes when no step is left.
    pub(crate) fn serve(
        &self,
        f: impl FnMut(&mut Ioctl<'_>) -> Result<(), Errno> + Send + 'static,
    ) -> &Kernel {
        self.script(|script| script.serve = Some(Box::new(f)));
        self
    }

    /// The descriptors closed so far.
    pub(crate) fn closed(&self) -> Vec<RawFd> {
        self.script(|script| script.closed.clone())
    }

    /// The lengths of the mappings undone so far.
    pub(crate) fn unmapped(&self) -> Vec<usize> {
        self.script(|script| script.unmapped.clone())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        MODE.with_borrow_mut(|slot| *slot = None);
        if let Mode::Scripted(script) = &self.mode
            && Arc::strong_count(script) == 1
            && !std::thread::panicking()
        {
            let left = script.lock().unwrap_or_else(PoisonError::into_inner);
            let left: Vec<String> = left.steps.iter().map(Step::name).collect();
            assert!(left.is_empty(), "expected kernel calls that never came: {left:?}");
        }
    }
}

/// The kernel of this thread.
fn here(call: &str) -> Mode {
    MODE.with_borrow(Clone::clone).unwrap_or_else(|| {
        panic!("{call}: no kernel on this thread; a test installs Kernel::scripted() or Kernel::real()")
    })
}

/// The next step of `script`, if `pick` takes it; otherwise the test fails.
fn next<T>(script: &Mutex<Script>, call: &str, pick: impl FnOnce(Step) -> Result<T, Step>) -> T {
    let step = script.lock().unwrap_or_else(PoisonError::into_inner).steps.pop_front();
    match step.map(pick) {
        Some(Ok(f)) => f,
        Some(Err(step)) => panic!("{call}, but the next expected call is: {}", step.name()),
        None => panic!("{call}, but no further call is expected"),
    }
}

/// An ioctl as the kernel sees it.
pub(crate) struct Ioctl<'a> {
    /// On which descriptor.
    pub(crate) fd: RawFd,
    packet: &'a mut Packet,
    outs: u32,
}

impl Ioctl<'_> {
    /// Whose device the caller thinks it is.
    pub(crate) fn driver_id(&self) -> DriverId {
        DriverId(self.packet.hdr.driver_id)
    }

    /// The packet's header.
    pub(crate) fn hdr(&self) -> IoctlHdr {
        self.packet.hdr
    }

    fn attrs(&self) -> impl Iterator<Item = &Attr> {
        self.packet.attrs().iter()
    }

    /// The attributes present, in numeric order.
    pub(crate) fn ids(&self) -> Vec<u16> {
        let mut ids: Vec<u16> = self.attrs().map(|attr| attr.attr_id).collect();
        ids.sort_unstable();
        ids
    }

    fn index(&self, id: u16) -> usize {
        let at = self.attrs().position(|attr| attr.attr_id == id);
        at.unwrap_or_else(|| panic!("attribute {id:#x} is not in {:x?}", self.ids()))
    }

    fn attr(&self, id: u16) -> Attr {
        self.packet.attrs()[self.index(id)]
    }

    fn attr_mut(&mut self, id: u16) -> &mut Attr {
        let at = self.index(id);
        &mut self.packet.attrs_mut()[at]
    }

    /// What attribute `id` says for its length.
    pub(crate) fn len(&self, id: u16) -> u16 {
        self.attr(id).len
    }

    /// What attribute `id` carries in itself.
    pub(crate) fn data(&self, id: u16) -> u64 {
        self.attr(id).data
    }

    /// The flags of attribute `id`.
    pub(crate) fn flags(&self, id: u16) -> u16 {
        self.attr(id).flags
    }

    /// The bytes of an input.
    pub(crate) fn input(&self, id: In) -> Vec<u8> {
        let attr = self.attr(id.0);
        let len = usize::from(attr.len);
        if len <= 8 {
            return attr.data.as_bytes()[..len].to_vec();
        }
        let start = core::ptr::with_exposed_provenance::<u8>(attr.data as usize);
        // SAFETY: by `live` of the caller's command, which is being called.
        unsafe { core::slice::from_raw_parts(start, len) }.to_vec()
    }

    /// An input read as a `T`, whose size it must have.
    pub(crate) fn read<T: FromBytes>(&self, id: In) -> T {
        T::read_from_bytes(&self.input(id))
            .unwrap_or_else(|_| panic!("attribute {:#x}: another length", id.0))
    }

    /// One of the kernel's constants, which takes 8 bytes.
    pub(crate) fn constant(&self, id: Const) -> u64 {
        let attr = self.attr(id.0);
        assert_eq!(attr.len, 8, "a constant takes 8 bytes");
        attr.data
    }

    /// The object an attribute names.
    pub(crate) fn handle(&self, id: Idr) -> Handle {
        let attr = self.attr(id.0);
        assert_eq!(attr.len, 0, "a handle has no length");
        Handle(u32::try_from(attr.data).unwrap())
    }

    /// The descriptor an attribute names.
    pub(crate) fn descriptor(&self, id: Fd) -> i64 {
        let attr = self.attr(id.0);
        assert_eq!(attr.len, 0, "a descriptor has no length");
        attr.data.cast_signed()
    }

    /// Writes the start of an output, as far as there is room, and flags it.
    pub(crate) fn output(&mut self, id: Out, data: &[u8]) {
        let at = self.index(id.0);
        assert_ne!(self.outs & 1 << at, 0, "attribute {:#x} is not an output", id.0);
        let attr = &mut self.packet.attrs_mut()[at];
        attr.flags |= VALID_OUTPUT;
        let len = data.len().min(usize::from(attr.len));
        let start = core::ptr::with_exposed_provenance_mut::<u8>(attr.data as usize);
        // SAFETY: by `live` and `way` of the caller's command, which is being called; `len` is within it.
        unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), start, len) };
    }

    /// As [`Self::output`], of a whole struct.
    pub(crate) fn answer<T: IntoBytes + Immutable>(&mut self, id: Out, data: &T) {
        self.output(id, data.as_bytes());
    }

    /// As [`Self::answer`], of the core's answer.
    pub(crate) fn respond<T: IntoBytes + Immutable>(&mut self, data: &T) -> Result<(), Errno> {
        self.answer(ids::CORE_OUT, data);
        Ok(())
    }

    /// Whether `id` is there.
    pub(crate) fn has(&self, id: u16) -> bool {
        self.attrs().any(|attr| attr.attr_id == id)
    }

    /// Gives the object made its handle.
    pub(crate) fn set_handle(&mut self, id: NewIdr, handle: u64) {
        self.attr_mut(id.0).data = handle;
    }

    /// Gives the descriptor made its number.
    pub(crate) fn set_fd(&mut self, id: NewFd, fd: i64) {
        self.attr_mut(id.0).data = fd.cast_unsigned();
    }

    /// Fills everything the kernel could write from `noise`, however little sense that makes.
    pub(crate) fn scribble(&mut self, noise: &mut impl FnMut() -> u8) {
        for at in 0..self.packet.attrs().len() {
            let attr = self.packet.attrs()[at];
            if self.outs & 1 << at != 0 {
                if !noise().is_multiple_of(8) {
                    let data: Vec<u8> = (0..attr.len).map(|_| noise()).collect();
                    self.output(Out(attr.attr_id), &data);
                }
            } else if attr.len == 0 {
                let mut data = 0_u64;
                for byte in data.as_mut_bytes().iter_mut().take(usize::from(noise() % 9)) {
                    *byte = noise();
                }
                self.packet.attrs_mut()[at].data = data;
            }
        }
    }
}

/// Which attributes of the next ioctl are outputs.
pub(super) fn announce(outs: u32) {
    OUTS.set(outs);
}

/// # Safety
/// That of [`os::ioctl`].
pub(super) unsafe fn ioctl(fd: RawFd, packet: &mut Packet) -> Result<(), Errno> {
    let method = Method { object: packet.hdr.object_id, method: packet.hdr.method_id };
    let call = format!("ioctl {method:?}");
    let script = match here(&call) {
        // SAFETY: the caller's promise.
        Mode::Real => return unsafe { os::ioctl(fd, packet) },
        Mode::Scripted(script) => script,
    };
    let mut io = Ioctl { fd, packet, outs: OUTS.take() };
    let serve = {
        let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
        if script.steps.is_empty() { script.serve.take() } else { None }
    };
    if let Some(mut serve) = serve {
        let ret = serve(&mut io);
        script.lock().unwrap_or_else(PoisonError::into_inner).serve = Some(serve);
        return ret;
    }
    let f = next(&script, &call, |step| match step {
        Step::Ioctl(expected, f) if expected == method => Ok(f),
        other => Err(other),
    });
    f(&mut io)
}

pub(super) fn read(fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
    let call = format!("read of {fd}");
    match here(&call) {
        Mode::Real => os::read(fd, buf),
        Mode::Scripted(script) => next(&script, &call, |step| match step {
            Step::Read(expected, f) if expected == fd => Ok(f),
            other => Err(other),
        })(buf),
    }
}

pub(super) fn write(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    let call = format!("write to {fd}");
    match here(&call) {
        Mode::Real => os::write(fd, buf),
        Mode::Scripted(script) => next(&script, &call, |step| match step {
            Step::Write(expected, f) if expected == fd => Ok(f),
            other => Err(other),
        })(buf),
    }
}

pub(super) fn command(fd: RawFd, buf: &[u8]) -> Result<usize, Errno> {
    if matches!(here("a command"), Mode::Real) { os::command(fd, buf) } else { write(fd, buf) }
}

pub(super) fn mmap(
    fd: RawFd,
    len: usize,
    prot: i32,
    flags: i32,
    offset: libc::off_t,
) -> Result<NonNull<u8>, Errno> {
    let call = format!("mmap of {fd} at {offset:#x}");
    let script = match here(&call) {
        Mode::Real => return os::mmap(fd, len, prot, flags, offset),
        Mode::Scripted(script) => script,
    };
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let start = os::mmap(-1, len, libc::PROT_READ | libc::PROT_WRITE, anonymous, 0)?;
    if flags & libc::MAP_ANONYMOUS == 0 {
        let f = next(&script, &call, |step| match step {
            Step::Mmap(a, b, f) if a == fd && i128::from(b) == i128::from(offset) => Ok(f),
            other => Err(other),
        });
        // SAFETY: the mapping above is `len` bytes, readable and writable, and nobody else's yet.
        f(unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), len) })?;
    }
    Ok(start)
}

/// # Safety
/// That of [`os::munmap`].
pub(super) unsafe fn munmap(start: NonNull<u8>, len: usize) {
    if let Some(Mode::Scripted(script)) = MODE.with_borrow(Clone::clone) {
        script.lock().unwrap_or_else(PoisonError::into_inner).unmapped.push(len);
    }
    // SAFETY: the caller's promise; what a script maps is a mapping too.
    unsafe { os::munmap(start, len) };
}

pub(super) fn poll(fds: &mut [libc::pollfd], timeout: i32) -> Result<usize, Errno> {
    match here("poll") {
        Mode::Real => os::poll(fds, timeout),
        Mode::Scripted(script) => next(&script, "poll", |step| match step {
            Step::Poll(f) => Ok(f),
            other => Err(other),
        })(fds),
    }
}

pub(super) fn close(fd: RawFd) {
    match MODE.with_borrow(Clone::clone) {
        Some(Mode::Real) => os::close(fd),
        Some(Mode::Scripted(script)) => {
            script.lock().unwrap_or_else(PoisonError::into_inner).closed.push(fd);
        }
        // A number from a script that is gone may be anybody's by now.
        None if std::thread::panicking() => {}
        None => panic!("close of {fd}: no kernel on this thread"),
    }
}

fn number(name: &'static str, args: &[i64], real: impl FnOnce() -> Result<i32, Errno>) -> Result<i32, Errno> {
    match here(name) {
        Mode::Real => real(),
        Mode::Scripted(script) => {
            let f = next(&script, name, |step| match step {
                Step::Call(expected, f) if expected == name => Ok(f),
                other => Err(other),
            });
            f(args).map(|n| i32::try_from(n).unwrap_or(i32::MIN))
        }
    }
}

pub(super) fn madvise(addr: usize, len: usize, advice: i32) -> Result<(), Errno> {
    let args = [addr as i64, len as i64, i64::from(advice)];
    number("madvise", &args, || os::madvise(addr, len, advice).map(|()| 0)).map(drop)
}

pub(super) fn open(path: &CStr, flags: i32) -> Result<RawFd, Errno> {
    number("open", &[i64::from(flags)], || os::open(path, flags))
}

pub(super) fn fcntl(fd: RawFd, cmd: i32, arg: i32) -> Result<i32, Errno> {
    number("fcntl", &[i64::from(fd), i64::from(cmd), i64::from(arg)], || os::fcntl(fd, cmd, arg))
}

pub(super) fn dup3(fd: RawFd, over: RawFd, flags: i32) -> Result<RawFd, Errno> {
    number("dup3", &[i64::from(fd), i64::from(over), i64::from(flags)], || os::dup3(fd, over, flags))
}

pub(super) fn eventfd(value: u32, flags: i32) -> Result<RawFd, Errno> {
    number("eventfd", &[i64::from(value), i64::from(flags)], || os::eventfd(value, flags))
}

pub(super) fn pipe2(flags: i32) -> Result<[RawFd; 2], Errno> {
    let mut fds = None;
    let first = number("pipe2", &[i64::from(flags)], || {
        let made = os::pipe2(flags)?;
        fds = Some(made);
        Ok(made[0])
    })?;
    Ok(fds.unwrap_or([first, first.wrapping_add(1)]))
}
