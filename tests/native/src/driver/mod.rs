//! The kernel's part: devices, contexts, and the commands that make and destroy objects. What the kernel's mlx5 drivers
//! would tell the device is told to it in its own language (`firmware`).

use std::collections::{BTreeMap, HashMap};
use std::mem::ManuallyDrop;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use vhca::host::Host;

use crate::attrs::{Attrs, Write};
use crate::clock::Clock;
use crate::config::{Config, Engine};
use crate::event::{Counter, EventFile, Kind};
use crate::files::{self, File};
use crate::uapi::{attr, method, object, write};
use crate::{Errno, engine, sysfs};

mod control;
mod cq;
mod device;
mod dispatch;
mod firmware;
mod memory;
mod multicast;
mod objects;
mod pages;
mod qp;
mod srq;
mod transitions;
mod xrc;

pub(crate) use control::control;
pub(crate) use cq::Cq;
pub(crate) use device::{FIRMWARE, QPS, gid};
pub(crate) use pages::{map, moved, unmapped};
pub(crate) use qp::Qp;
pub(crate) use srq::Srq;

/// One opening of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ContextId(u64);

/// A command that the device does not answer: it is tried again when something changed.
const HANGS: Errno = Errno(i32::MAX);

/// A device, as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) node: String,
    /// The device's own, and its port's, which a subnet manager may change.
    pub(crate) guid: u64,
    pub(crate) port_guid: u64,
    pub(crate) lid: u16,
    pub(crate) up: bool,
    /// Changes with each probe, as the kernel's own index does.
    pub(crate) index: u32,
}

/// A device, as the kernel knows it.
#[derive(Debug)]
struct Device {
    /// It is registered: it has a node, and can be opened.
    present: bool,
    /// It was found to be in error; its commands fail, or are faked.
    in_error: bool,
    /// Its driver waits for commands that hang before it goes.
    leaving: Option<control::Leave>,
    /// Commands that wait for an answer.
    hanging: u32,
    index: u32,
    guid: u64,
    eqn: u32,
    clock: Option<Clock>,
}

/// What an object has to do with events: the program's name for it, and where they go.
#[derive(Debug)]
pub(crate) struct Affiliated {
    user_handle: u64,
    file: Weak<EventFile>,
    reported: Counter,
}

impl Affiliated {
    fn new(user_handle: u64, file: Weak<EventFile>) -> Affiliated {
        Affiliated { user_handle, file, reported: Counter::default() }
    }

    /// Takes back what was not read, and says how much was.
    fn end(&self) -> u32 {
        if let Some(file) = self.file.upgrade() {
            file.forget(&self.reported);
        }
        // ORDER: counted under the file's lock, which was just taken.
        self.reported.load(Ordering::Relaxed)
    }
}

/// What a handle names.
#[derive(Debug)]
pub(crate) enum Object {
    Pd(memory::Pd),
    Mr(memory::Mr),
    Mw(memory::Mw),
    Cq(Cq),
    Srq(Srq),
    Qp(Qp),
    /// A queue pair of an XRC domain that was opened a second time.
    Shared(xrc::Shared),
    Xrcd(xrc::Xrcd),
    Ah,
    Uar(pages::Uar),
    /// An event file: not named by a handle, but destroyed in its turn.
    Events(Kind, Weak<EventFile>),
}

/// What one opening has.
#[derive(Debug)]
pub(crate) struct Context {
    device: usize,
    objects: objects::Objects,
    last_handle: u32,
    /// The answer to GET_CONTEXT, once there was one.
    ucontext: Option<crate::uapi::AllocUcontextResp>,
    /// The device went away under it.
    gone: bool,
    /// The first async file that there was: where events of objects go that name no other.
    default_async: Option<Weak<EventFile>>,
    maps: Vec<pages::Map>,
}

impl Context {
    fn insert(&mut self, object: Object) -> u32 {
        self.last_handle += 1;
        self.objects.insert(self.last_handle, object);
        self.last_handle
    }

    fn pd(&self, handle: u32) -> Result<&memory::Pd, Errno> {
        match self.objects.get(handle) {
            Some(Object::Pd(pd)) => Ok(pd),
            _ => Err(Errno(libc::ENOENT)),
        }
    }

    fn cq(&self, handle: u32) -> Result<&Cq, Errno> {
        match self.objects.get(handle) {
            Some(Object::Cq(cq)) => Ok(cq),
            _ => Err(Errno(libc::ENOENT)),
        }
    }

    fn srq(&self, handle: u32) -> Result<&Srq, Errno> {
        match self.objects.get(handle) {
            Some(Object::Srq(srq)) => Ok(srq),
            _ => Err(Errno(libc::ENOENT)),
        }
    }

    fn xrcd(&self, handle: u32) -> Result<&xrc::Xrcd, Errno> {
        match self.objects.get(handle) {
            Some(Object::Xrcd(xrcd)) => Ok(xrcd),
            _ => Err(Errno(libc::ENOENT)),
        }
    }

    /// The async event file that an object named, or else the context's first.
    fn event_file(&self, fd: Option<i32>) -> Result<Weak<EventFile>, Errno> {
        match fd {
            None => Ok(self.default_async.clone().unwrap_or_default()),
            Some(fd) => self.own_file(Kind::Async, fd),
        }
    }

    /// An event file of this context by its descriptor.
    fn own_file(&self, kind: Kind, fd: i32) -> Result<Weak<EventFile>, Errno> {
        let Some(File::Event(file)) = files::get(fd) else { return Err(Errno(libc::EBADF)) };
        let is_it = |object: &Object| {
            matches!(object, Object::Events(known, events)
                if *known == kind && std::ptr::eq(events.as_ptr(), Arc::as_ptr(&file)))
        };
        if !self.objects.values().any(is_it) {
            return Err(Errno(libc::EBADF));
        }
        Ok(Arc::downgrade(&file))
    }

    /// Makes an event file.
    fn make_file(&mut self, kind: Kind) -> Result<(OwnedFd, Weak<EventFile>), Errno> {
        // Those that the program closed are no more.
        self.objects.forget_closed_files();
        let (file, fd) = EventFile::new(kind)?;
        let known = Arc::downgrade(&file);
        self.insert(Object::Events(kind, known.clone()));
        files::insert_owned(&fd, File::Event(file));
        Ok((fd, known))
    }

    /// The async event files.
    fn asyncs(&self) -> impl Iterator<Item = Arc<EventFile>> {
        self.objects.values().filter_map(|object| match object {
            Object::Events(Kind::Async, file) => file.upgrade(),
            _ => None,
        })
    }
}

/// Which commands are not answered though the device is well.
#[derive(Debug, Default)]
struct Refusals {
    asyncs: control::Refusal,
    channels: control::Refusal,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) config: Config,
    pub(crate) host: Host,
    devices: Vec<Device>,
    contexts: BTreeMap<ContextId, Context>,
    /// Objects by device and number, for events and the null engine.
    by_cqn: HashMap<(usize, u32), (ContextId, u32)>,
    by_qpn: HashMap<(usize, u32), (ContextId, u32)>,
    by_srqn: HashMap<(usize, u32), (ContextId, u32)>,
    domains: xrc::Domains,
    /// The last index given to a device, and the last variant to a memory key.
    last_index: u32,
    last_variant: u8,
    /// Objects are being taken down whether the device answers or not.
    forcing: bool,
    refusals: Refusals,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);
/// Something changed that a hanging command may have waited for.
static CHANGED: Condvar = Condvar::new();
/// Never the same twice, in a forked process either.
static LAST_CONTEXT: AtomicU64 = AtomicU64::new(0);

/// Takes the lock of everything, and lets commands and events take effect before it is given back.
pub(crate) fn with<T>(work: impl FnOnce(&mut Driver) -> T) -> T {
    let mut guard = lock();
    let driver = made(&mut guard);
    let result = work(driver);
    driver.settle();
    result
}

fn lock() -> MutexGuard<'static, Option<Driver>> {
    DRIVER.lock()
}

/// Makes the journal on disk complete, as the process ends: not where a thread that ends with it keeps the lock.
pub(crate) fn complete_journal() {
    if let Some(Some(driver)) = DRIVER.try_lock_for(Duration::from_secs(1)).as_deref_mut() {
        driver.host.flush_journal();
    }
}

fn made<'a>(guard: &'a mut MutexGuard<'_, Option<Driver>>) -> &'a mut Driver {
    guard.get_or_insert_with(|| {
        engine::watch_forks();
        Driver::new()
    })
}

/// Holds the lock while the process forks.
pub(crate) fn before_fork() {
    let _held = ManuallyDrop::new(lock());
}

/// Gives the lock back in the parent.
#[allow(unsafe_code, reason = "the lock was taken by before_fork and its guard forgotten")]
pub(crate) fn after_fork_in_parent() {
    // SAFETY: `before_fork` locked it, in this thread.
    unsafe { DRIVER.force_unlock() };
}

/// Gives the lock back in the child, which has no devices of its own yet: what its parent opened belongs to the parent.
#[allow(unsafe_code, reason = "the lock was taken by before_fork and its guard forgotten")]
pub(crate) fn after_fork_in_child() {
    // SAFETY: `before_fork` locked it, in the thread that this one is a copy of; there is no other.
    let driver = unsafe { &mut *DRIVER.data_ptr() };
    // Nothing of it is given back: the parent has it.
    let _held = ManuallyDrop::new(driver.take());
    // A lock that is given back may go straight to a thread that waits for it, which the child does not have.
    while DRIVER.is_locked() {
        // SAFETY: as above.
        unsafe { DRIVER.force_unlock() };
    }
}

/// The devices there are.
pub(crate) fn list() -> Vec<Listed> {
    with(|driver| driver.list())
}

/// The device of a uverbs number, if it is there.
pub(crate) fn exists(number: u32) -> bool {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    with(|driver| driver.devices.get(number).is_some_and(|device| device.present))
}

/// Is RDMA netlink there?
pub(crate) fn has_netlink() -> bool {
    with(|driver| driver.config.netlink)
}

/// Opens a device by its uverbs number.
pub(crate) fn open(number: u32) -> Result<ContextId, Errno> {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let (id, engine) = with(|driver| {
        if !driver.devices.get(number).is_some_and(|device| device.present) {
            return Err(Errno(libc::ENOENT));
        }
        // ORDER: only the number matters.
        let id = ContextId(LAST_CONTEXT.fetch_add(1, Ordering::Relaxed));
        driver.contexts.insert(
            id,
            Context {
                device: number,
                objects: objects::Objects::default(),
                last_handle: 0,
                ucontext: None,
                gone: false,
                default_async: None,
                maps: Vec::new(),
            },
        );
        Ok((id, driver.config.engine))
    })?;
    if engine == Engine::Live {
        engine::start();
    }
    Ok(id)
}

/// The last descriptor of a context is closed: all its objects go, the newest first.
pub(crate) fn close(id: ContextId) {
    with(|driver| {
        driver.destroy_all(id, 0);
        driver.contexts.remove(&id);
    });
}

/// Runs a command, which waits while the device does not answer.
fn patiently(mut command: impl FnMut(&mut Driver) -> Result<(), Errno>, id: ContextId) -> Result<(), Errno> {
    let mut guard = lock();
    let end = Instant::now() + made(&mut guard).config.patience;
    let mut waiting = false;
    loop {
        let driver = made(&mut guard);
        let result = command(driver);
        driver.settle();
        let device = driver.contexts.get(&id).map(|context| context.device);
        if result != Err(HANGS) {
            if waiting {
                driver.hanging(device, -1);
            }
            return result;
        }
        if !waiting {
            driver.hanging(device, 1);
            waiting = true;
        }
        if CHANGED.wait_until(&mut guard, end).timed_out() {
            made(&mut guard).hanging(device, -1);
            return Err(Errno(libc::ETIMEDOUT));
        }
    }
}

/// `RDMA_VERBS_IOCTL`.
pub(crate) fn ioctl(id: ContextId, address: u64) -> Result<(), Errno> {
    let mut attrs = Attrs::read(address)?;
    patiently(|driver| driver.call(id, &mut attrs), id)
}

/// `write(2)` of a command.
pub(crate) fn write_command(id: ContextId, bytes: &[u8]) -> Result<(), Errno> {
    let command = crate::attrs::WriteCommand::parse(bytes)?;
    patiently(
        |driver| {
            let mut call = command.call();
            driver.write(id, command.number, command.room(), &mut call)?;
            command.answer(&call)
        },
        id,
    )
}

impl Driver {
    fn new() -> Driver {
        // A setting that is wrong, or a journal that cannot be written, is no reason to run without it unnoticed.
        let config = Config::read().unwrap_or_else(|why| engine::give_up(&why));
        let slot = if config.engine == Engine::Live { engine::join(config.net.as_deref()) } else { None };
        let mut host = Host::new(config.journal.as_deref())
            .unwrap_or_else(|error| engine::give_up(&format!("the journal cannot be written: {error}")));
        if slot.is_some() {
            host.join();
        }
        let mut driver = Driver {
            host,
            devices: Vec::new(),
            contexts: BTreeMap::new(),
            by_cqn: HashMap::new(),
            by_qpn: HashMap::new(),
            by_srqn: HashMap::new(),
            domains: xrc::Domains::default(),
            last_index: 0,
            last_variant: 0,
            forcing: false,
            refusals: Refusals::default(),
            config,
        };
        for _ in 0..driver.config.devices {
            driver.add_device(slot.unwrap_or(0));
        }
        if let Some(script) = driver.config.script.clone() {
            driver.run_script(&script);
        }
        driver
    }

    fn list(&self) -> Vec<Listed> {
        let listed = |(number, device): (usize, &Device)| {
            let (port_guid, lid, up) = self.host.port(number)?;
            Some(Listed {
                number,
                name: format!("mlx5_{number}"),
                node: format!("uverbs{number}"),
                guid: device.guid,
                port_guid,
                lid,
                up,
                index: device.index,
            })
            .filter(|_| device.present)
        };
        self.devices.iter().enumerate().filter_map(listed).collect()
    }

    fn run_script(&mut self, path: &std::path::Path) {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| engine::give_up(&format!("{}: {error}", path.display())));
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Err(why) = self.control(line) {
                engine::give_up(&format!("{}: '{line}': {why}", path.display()));
            }
        }
    }

    /// A context whose device is there and which got its answer to GET_CONTEXT.
    fn context(&mut self, id: ContextId) -> Result<&mut Context, Errno> {
        let context = self.contexts.get_mut(&id).ok_or(Errno(libc::EIO))?;
        if context.gone {
            return Err(Errno(libc::EIO));
        }
        if context.ucontext.is_none() {
            return Err(Errno(libc::EINVAL));
        }
        Ok(context)
    }

    fn device_of(&self, id: ContextId) -> Result<usize, Errno> {
        self.contexts.get(&id).map(|context| context.device).ok_or(Errno(libc::EIO))
    }

    fn hanging(&mut self, device: Option<usize>, by: i32) {
        if let Some(device) = device.and_then(|device| self.devices.get_mut(device)) {
            device.hanging = device.hanging.saturating_add_signed(by);
        }
        self.leave_when_idle();
    }

    fn call(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        const MLX5: u32 = 1;
        if attrs.header.driver_id() != MLX5 && attrs.header.driver_id() != 0 {
            return Err(Errno(libc::EINVAL));
        }
        match (attrs.header.object_id, attrs.header.method_id) {
            (object::DEVICE, method::INVOKE_WRITE) => self.invoke_write(id, attrs),
            (object::DEVICE, method::GET_CONTEXT) => self.get_context(id, attrs),
            (object::DEVICE, method::QUERY_CONTEXT) => self.query_context(id, attrs),
            (object::DEVICE, method::QUERY_PORT) => self.query_port(id, attrs),
            (object::DEVICE, method::QUERY_GID_TABLE) => self.query_gid_table(id, attrs),
            (object::DEVICE, method::QUERY_GID_ENTRY) => self.query_gid_entry(id, attrs),
            (object::ASYNC_EVENT, method::ASYNC_EVENT_ALLOC) => {
                let fd = self.alloc_async(id)?;
                let fd = fd.into_raw_fd().cast_unsigned();
                attrs.answer(attr::ASYNC_EVENT_ALLOC_FD_HANDLE, fd.into())
            }
            (object::CQ, method::CREATE) => self.create_cq(id, attrs),
            (object::QP, method::CREATE) => self.create_qp(id, attrs),
            (object::SRQ, method::CREATE) => self.create_srq(id, attrs),
            (object::CQ | object::QP | object::SRQ, method::DESTROY)
            | (object::PD, method::PD_DESTROY)
            | (object::MR, method::MR_DESTROY)
            | (object::MW, method::MW_DESTROY)
            | (object::AH, method::AH_DESTROY)
            | (object::XRCD, method::XRCD_DESTROY) => {
                let handle = attrs.handle(attr::DESTROY_HANDLE)?;
                let response = self.destroy(id, attrs.header.object_id, handle, libc::ENOENT)?;
                attrs.output(attr::DESTROY_RESP, &response)
            }
            (object::UAR, method::UAR_OBJ_DESTROY) => {
                let handle = attrs.handle(attr::UAR_OBJ_DESTROY_HANDLE)?;
                self.destroy(id, object::UAR, handle, libc::ENOENT).map(drop)
            }
            (object::PD, method::PD_QUERY) => self.query_pd(id, attrs),
            (object::MR, method::QUERY_MR) => self.query_mr(id, attrs),
            (object::UAR, method::UAR_OBJ_ALLOC) => self.alloc_uar(id, attrs),
            (object::DEVX, method::DEVX_OTHER) => {
                self.context(id)?;
                device::no_capabilities(attrs)
            }
            _ => Err(Errno(libc::EPROTONOSUPPORT)),
        }
    }

    /// A command of the write form, carried by an ioctl.
    fn invoke_write(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let command = attrs.number32(attr::WRITE_CMD)?;
        let mut call = Write {
            input: attrs.bytes_or_none(attr::CORE_IN)?.unwrap_or_default(),
            udata_in: attrs.udata_in().to_vec(),
            udata_room: attrs.room(attr::UHW_OUT),
            ..Write::default()
        };
        self.write(id, command, attrs.room(attr::CORE_OUT), &mut call)?;
        if !call.output.is_empty() {
            attrs.output(attr::CORE_OUT, &call.output)?;
        }
        attrs.udata_out(&call.udata_out)
    }

    /// A command of the write form. `room`: for its answer.
    fn write(&mut self, id: ContextId, command: u32, room: usize, call: &mut Write) -> Result<(), Errno> {
        let destroys = match command {
            write::DEALLOC_PD => object::PD,
            write::DEREG_MR => object::MR,
            write::DEALLOC_MW => object::MW,
            write::DESTROY_AH => object::AH,
            write::CLOSE_XRCD => object::XRCD,
            write::DESTROY_CQ => object::CQ,
            write::DESTROY_QP => object::QP,
            write::DESTROY_SRQ => object::SRQ,
            _ => object::DEVICE,
        };
        if destroys != object::DEVICE {
            // Those with an answer begin with where it goes.
            let handle = match destroys {
                object::CQ | object::QP | object::SRQ => call.input::<crate::uapi::Destroy>().handle,
                _ => call.input::<u32>(),
            };
            call.output = self.destroy(id, destroys, handle, libc::EINVAL)?;
            return Ok(());
        }
        match command {
            // Without room for the answer: a question whether commands come this way. It is asked before there is a context.
            write::QUERY_DEVICE if room == 0 => Err(Errno(libc::ENOSPC)),
            write::GET_CONTEXT => self.get_context_write(id, call),
            write::QUERY_DEVICE => self.query_device(id, call),
            write::EX_QUERY_DEVICE => self.query_device_ex(id, call),
            write::QUERY_PORT => self.query_port_write(id, call),
            write::ALLOC_PD => self.alloc_pd(id, call),
            write::CREATE_AH => self.create_ah(id, call),
            write::REG_MR => self.reg_mr(id, call),
            write::REREG_MR => self.rereg_mr(id, call),
            write::ALLOC_MW => self.alloc_mw(id, call),
            write::CREATE_COMP_CHANNEL => self.create_channel(id, call),
            write::RESIZE_CQ => self.resize_cq(id, call),
            write::EX_MODIFY_CQ => self.modify_cq(id, call),
            write::QUERY_QP => self.query_qp(id, call),
            write::MODIFY_QP | write::EX_MODIFY_QP => self.modify_qp(id, command, call),
            write::OPEN_QP => self.open_qp(id, call),
            write::ATTACH_MCAST => self.attach(id, call),
            write::DETACH_MCAST => self.detach(id, call),
            write::MODIFY_SRQ => self.modify_srq(id, call),
            write::QUERY_SRQ => self.query_srq(id, call),
            write::OPEN_XRCD => self.open_xrcd(id, call),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    fn alloc_async(&mut self, id: ContextId) -> Result<OwnedFd, Errno> {
        self.context(id)?;
        self.refusals.asyncs.ask()?;
        let context = self.context(id)?;
        let (fd, file) = context.make_file(Kind::Async)?;
        context.default_async.get_or_insert(file);
        Ok(fd)
    }

    fn create_channel(&mut self, id: ContextId, call: &mut Write) -> Result<(), Errno> {
        self.context(id)?;
        self.refusals.channels.ask()?;
        let (fd, _) = self.context(id)?.make_file(Kind::Completion)?;
        let fd = fd.into_raw_fd().cast_unsigned();
        call.answer(&crate::uapi::CreateCompChannelResp { fd });
        Ok(())
    }

    /// Any destroy command: works after the device is gone, too. `missing`: the error for a handle that names nothing.
    fn destroy(&mut self, id: ContextId, kind: u16, handle: u32, missing: i32) -> Result<Vec<u8>, Errno> {
        let context = self.contexts.get_mut(&id).ok_or(Errno(libc::EIO))?;
        let (gone, device) = (context.gone, context.device);
        let object = context.objects.get(handle).filter(|object| kind_of(object) == kind);
        let object = object.ok_or(Errno(missing))?;
        if !gone {
            if context.is_used(handle, object) {
                return Err(Errno(libc::EBUSY));
            }
            self.take_down(id, device, handle)?;
        }
        let object = self.contexts.get_mut(&id).and_then(|context| context.objects.remove(handle));
        Ok(object.map(|object| self.last_words(id, &object)).unwrap_or_default())
    }

    /// Destroys all objects of a context, the newest first, whatever depends on what: event files, too, where the final
    /// event is queued so often, and channels end.
    fn destroy_all(&mut self, id: ContextId, finals: usize) {
        let Some(context) = self.contexts.get(&id) else { return };
        if context.gone {
            return;
        }
        let device = context.device;
        let mut left: Vec<u32> = context.objects.iter().map(|(handle, _)| handle).collect();
        left.reverse();
        // An object that something else still uses has its turn again; nobody waits for a device that does not answer.
        self.forcing = true;
        loop {
            let before = left.len();
            left.retain(|handle| self.take_away(id, device, *handle, finals).is_err());
            if left.is_empty() || left.len() == before {
                break;
            }
        }
        self.forcing = false;
        // One that the device would not give up keeps no hold on memory that the program now has back.
        let objects = self.contexts.get(&id).map(|context| &context.objects);
        let stuck =
            objects.into_iter().flat_map(|objects| left.iter().filter_map(|handle| objects.get(*handle)));
        let ranges: Vec<_> = stuck.flat_map(ranges_of).collect();
        self.release(device, &ranges);
    }

    /// As [`Driver::take_down`], with what the program can see of it.
    fn take_away(&mut self, id: ContextId, device: usize, handle: u32, finals: usize) -> Result<(), Errno> {
        match self.contexts.get(&id).and_then(|context| context.objects.get(handle)) {
            Some(Object::Events(kind, file)) => {
                if let Some(file) = file.upgrade() {
                    match kind {
                        Kind::Async => (0..finals).for_each(|_| file.push(&dispatch::FINAL_FATAL, None)),
                        Kind::Completion => file.close(),
                    }
                }
            }
            Some(object) => {
                dispatch::forget_events(object);
                self.take_down(id, device, handle)?;
            }
            None => {}
        }
        Ok(())
    }

    /// The device's part of a destroy.
    fn take_down(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let Some(object) = self.contexts.get(&id).and_then(|context| context.objects.get(handle)) else {
            return Ok(());
        };
        match kind_of(object) {
            object::PD => self.free_pd(id, device, handle),
            object::MR | object::MW => self.free_key(id, device, handle),
            object::CQ => self.free_cq(id, device, handle),
            object::SRQ => self.free_srq(id, device, handle),
            object::QP => self.free_qp(id, device, handle),
            object::XRCD => self.free_xrcd(id, device, handle),
            object::UAR => self.free_uar(id, device, handle),
            _ => Ok(()),
        }
    }

    /// What a destroyed object reports.
    fn last_words(&mut self, id: ContextId, object: &Object) -> Vec<u8> {
        use zerocopy::IntoBytes as _;
        let device = self.contexts.get(&id).map_or(0, |context| context.device);
        match object {
            Object::Cq(cq) => {
                self.by_cqn.remove(&(device, cq.number));
                cq.end().as_bytes().to_vec()
            }
            Object::Qp(qp) => {
                self.by_qpn.remove(&(device, qp.number));
                qp.affiliated.end().as_bytes().to_vec()
            }
            Object::Shared(shared) => shared.affiliated.end().as_bytes().to_vec(),
            Object::Srq(srq) => {
                self.by_srqn.remove(&(device, srq.number));
                srq.affiliated.end().as_bytes().to_vec()
            }
            _ => Vec::new(),
        }
    }

    /// Runs the commands that became due, and hands events on, until there are none.
    pub(crate) fn settle(&mut self) {
        loop {
            let due = self.host.due();
            for line in &due {
                if let Err(why) = self.control(line) {
                    self.host.note_fault(0, &format!("'{line}' was refused: {why}"));
                }
            }
            let mut any = !due.is_empty();
            for device in 0..self.devices.len() {
                for raised in self.host.events(device) {
                    self.dispatch(device, &raised);
                    any = true;
                }
            }
            if !any {
                break;
            }
        }
    }

    /// Has nobody a device open?
    pub(crate) fn is_idle(&self) -> bool {
        self.contexts.is_empty()
    }

    /// One look of the engine; how long nothing will be due.
    pub(crate) fn run(&mut self) -> Duration {
        let pause = self.host.run();
        let cycles = self.host.clock();
        self.devices.iter().filter_map(|device| device.clock.as_ref()).for_each(|clock| clock.show(cycles));
        pause
    }

    /// A queue pair by its number, with its context: for the null engine.
    pub(crate) fn queue_pair(&mut self, number: u32) -> Option<(&mut Context, u32)> {
        let devices = 0..self.devices.len();
        let (id, handle) = devices.filter_map(|device| self.by_qpn.get(&(device, number)).copied()).next()?;
        Some((self.contexts.get_mut(&id)?, handle))
    }
}

/// The program's memory that a queue is made of.
fn ranges_of(object: &Object) -> Vec<(u64, u64)> {
    match object {
        Object::Cq(cq) => cq.ranges().to_vec(),
        Object::Qp(qp) => qp.ranges(),
        Object::Srq(srq) => srq.ranges.to_vec(),
        _ => Vec::new(),
    }
}

/// The kind of object that commands know it as.
fn kind_of(object: &Object) -> u16 {
    match object {
        Object::Pd(_) => object::PD,
        Object::Mr(_) => object::MR,
        Object::Mw(_) => object::MW,
        Object::Cq(_) => object::CQ,
        Object::Srq(_) => object::SRQ,
        Object::Qp(_) | Object::Shared(_) => object::QP,
        Object::Xrcd(_) => object::XRCD,
        Object::Ah => object::AH,
        Object::Uar(_) => object::UAR,
        // Nobody can name it.
        Object::Events(..) => u16::MAX,
    }
}

impl Context {
    /// Does another object of the context need this one?
    fn is_used(&self, handle: u32, object: &Object) -> bool {
        let attached = matches!(object, Object::Qp(qp) if !qp.groups.is_empty());
        attached || self.objects.is_needed(handle)
    }

    /// A queue pair and one of its completion queues, for the null engine.
    pub(crate) fn with_cq(&mut self, qp: u32, receive: bool) -> Option<(&mut Qp, &mut Cq)> {
        let Some(Object::Qp(found)) = self.objects.get(qp) else { return None };
        let cq = if receive { found.receive_cq } else { found.send_cq }?;
        let mut parts = (None, None);
        for (handle, object) in self.objects.iter_mut() {
            match object {
                Object::Qp(object) if handle == qp => parts.0 = Some(object),
                Object::Cq(object) if handle == cq => parts.1 = Some(object),
                _ => {}
            }
        }
        parts.0.zip(parts.1)
    }

    /// The shared receive queue of a queue pair, likewise.
    pub(crate) fn srq_of(&mut self, qp: u32) -> Option<&mut Srq> {
        let Some(Object::Qp(found)) = self.objects.get(qp) else { return None };
        let srq = found.srq?;
        match self.objects.get_mut(srq) {
            Some(Object::Srq(srq)) => Some(srq),
            _ => None,
        }
    }
}

/// The tree in sysfs follows what devices there are.
fn show(driver: &Driver) {
    sysfs::update(&driver.list());
}
