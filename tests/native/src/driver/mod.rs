//! The kernel's part: devices, contexts, and the commands that make and destroy objects.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};

use crate::Errno;
use crate::attrs::{Attrs, Write};
use crate::uapi::{attr, method, object, write};

mod device;
mod queues;
mod resources;

/// The firmware version that all devices say they have.
pub(crate) const FIRMWARE: &str = "22.35.1000";

/// One opening of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContextId(u64);

/// A device, as sysfs shows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) guid: u64,
}

/// A completion queue.
#[derive(Debug)]
pub(crate) struct Cq {
    pub(crate) buffer: u64,
    pub(crate) record: u64,
    pub(crate) size: u32,
    pub(crate) entry: u32,
    /// Completions written.
    pub(crate) producer: u32,
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Qp {
    pub(crate) number: u32,
    pub(crate) receive_queue: u64,
    pub(crate) send_queue: u64,
    pub(crate) record: u64,
    /// Blocks of 64 bytes.
    pub(crate) send_size: u32,
    pub(crate) receive_size: u32,
    pub(crate) receive_shift: u32,
    pub(crate) uidx: u32,
    pub(crate) uar: u32,
    pub(crate) send_cq: u32,
    pub(crate) receive_cq: u32,
    /// Blocks, and receives, consumed.
    pub(crate) sent: u16,
    pub(crate) received: u16,
    state: u8,
}

/// A doorbell page.
#[derive(Debug)]
pub(crate) struct Uar {
    pub(crate) page: u32,
    /// Where the program has it, once it does.
    pub(crate) address: u64,
}

/// What a handle names.
#[derive(Debug)]
pub(crate) enum Object {
    Pd,
    Mr,
    Cq(Cq),
    Qp(Qp),
    Uar(Uar),
}

/// What one opening has.
#[derive(Debug, Default)]
pub(crate) struct Context {
    objects: BTreeMap<u32, Object>,
    last_handle: u32,
    allocated: bool,
}

impl Context {
    fn insert(&mut self, object: Object) -> u32 {
        self.last_handle += 1;
        self.objects.insert(self.last_handle, object);
        self.last_handle
    }

    fn remove(&mut self, handle: u32, is_kind: impl Fn(&Object) -> bool) -> Result<Object, Errno> {
        if !self.objects.get(&handle).is_some_and(is_kind) {
            return Err(Errno(libc::ENOENT));
        }
        self.objects.remove(&handle).ok_or(Errno(libc::ENOENT))
    }

    fn cq(&self, handle: u32) -> Result<&Cq, Errno> {
        match self.objects.get(&handle) {
            Some(Object::Cq(cq)) => Ok(cq),
            _ => Err(Errno(libc::ENOENT)),
        }
    }

    fn has_pd(&self, handle: u32) -> Result<(), Errno> {
        match self.objects.get(&handle) {
            Some(Object::Pd) => Ok(()),
            _ => Err(Errno(libc::ENOENT)),
        }
    }
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    contexts: BTreeMap<ContextId, Context>,
    last_context: u64,
    numbers: Numbers,
}

/// The last numbers given out, of each kind.
#[derive(Debug)]
struct Numbers {
    pd: u32,
    mkey: u32,
    cq: u32,
    qp: u32,
    uar: u32,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers { pd: 0, mkey: 0x1000, cq: 0x40, qp: 0x100, uar: 0 }
    }
}

fn next(number: &mut u32) -> u32 {
    *number += 1;
    *number
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Takes the lock of everything.
pub(crate) fn with<T>(work: impl FnOnce(&mut Driver) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Driver>> = DRIVER.lock();
    work(guard.get_or_insert_default())
}

/// The devices there are.
pub(crate) fn list() -> Vec<Listed> {
    vec![Listed { index: 0, name: "mlx5_0".to_owned(), node: "uverbs0".to_owned(), guid: device::guid(0) }]
}

/// Is there a device of this uverbs number?
pub(crate) fn exists(number: u32) -> bool {
    list().iter().any(|device| device.index == number)
}

/// Opens a device by its uverbs number.
pub(crate) fn open(number: u32) -> Result<ContextId, Errno> {
    if !exists(number) {
        return Err(Errno(libc::ENOENT));
    }
    with(|driver| {
        driver.last_context += 1;
        let id = ContextId(driver.last_context);
        driver.contexts.insert(id, Context::default());
        Ok(id)
    })
}

/// The last descriptor of a context is closed: all its objects go.
pub(crate) fn close(id: ContextId) {
    with(|driver| drop(driver.contexts.remove(&id)));
}

/// `RDMA_VERBS_IOCTL`.
pub(crate) fn ioctl(id: ContextId, address: u64) -> Result<(), Errno> {
    let mut attrs = Attrs::read(address)?;
    with(|driver| driver.call(id, &mut attrs))
}

/// `mmap(2)`: notes where the program has a doorbell page. The mapping itself is anonymous memory.
pub(crate) fn mapped(id: ContextId, offset: u64, address: u64) -> Result<(), Errno> {
    with(|driver| {
        let page = offset / resources::PAGE;
        let context = driver.contexts.get_mut(&id).ok_or(Errno(libc::EIO))?;
        let uar = context.objects.values_mut().find_map(|object| match object {
            Object::Uar(uar) if resources::page_offset(uar.page) == page * resources::PAGE => Some(uar),
            _ => None,
        });
        uar.ok_or(Errno(libc::EINVAL))?.address = address;
        Ok(())
    })
}

impl Driver {
    fn context(&mut self, id: ContextId) -> Result<&mut Context, Errno> {
        self.contexts.get_mut(&id).filter(|context| context.allocated).ok_or(Errno(libc::EINVAL))
    }

    fn call(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        match (attrs.header.object_id, attrs.header.method_id) {
            (object::DEVICE, method::INVOKE_WRITE) => self.invoke_write(id, attrs),
            (object::DEVICE, method::GET_CONTEXT) => self.get_context(id, attrs),
            (object::DEVICE, method::QUERY_PORT) => device::query_port(attrs),
            (object::ASYNC_EVENT, method::ASYNC_EVENT_ALLOC) => self.alloc_async(id, attrs),
            (object::CQ, method::CREATE) => self.create_cq(id, attrs),
            (object::CQ, method::DESTROY) => self.destroy_cq(id, attrs),
            (object::QP, method::CREATE) => self.create_qp(id, attrs),
            (object::QP, method::DESTROY) => self.destroy_qp(id, attrs),
            (object::PD, method::PD_DESTROY) => {
                self.destroy(id, attrs, |object| matches!(object, Object::Pd))
            }
            (object::MR, method::MR_DESTROY) => {
                self.destroy(id, attrs, |object| matches!(object, Object::Mr))
            }
            (object::UAR, method::UAR_OBJ_ALLOC) => self.alloc_uar(id, attrs),
            (object::UAR, method::UAR_OBJ_DESTROY) => self.free_uar(id, attrs),
            (object::DEVX, method::DEVX_OTHER) => device::no_capabilities(attrs),
            _ => Err(Errno(libc::EPROTONOSUPPORT)),
        }
    }

    /// A command of the write form, carried by an ioctl.
    fn invoke_write(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        let command = attrs.number32(attr::WRITE_CMD)?;
        let mut call =
            Write { input: attrs.bytes_or_none(attr::CORE_IN)?.unwrap_or_default(), ..Write::default() };
        self.write(id, command, attrs.room(attr::CORE_OUT), &mut call)?;
        let (core, udata) = (call.output, call.udata_out);
        if !core.is_empty() {
            attrs.output(attr::CORE_OUT, &core)?;
        }
        attrs.udata_out(&udata)
    }

    /// A command of the write form. `room`: for its answer.
    fn write(&mut self, id: ContextId, command: u32, room: usize, call: &mut Write) -> Result<(), Errno> {
        match command {
            // Without room for the answer: a question whether commands come this way. It is asked before there is a context.
            write::QUERY_DEVICE if room == 0 => Err(Errno(libc::ENOSPC)),
            write::QUERY_DEVICE => device::query(call),
            write::EX_QUERY_DEVICE => device::query_ex(call),
            write::QUERY_PORT => device::query_port_write(call),
            write::ALLOC_PD => self.alloc_pd(id, call),
            write::REG_MR => self.reg_mr(id, call),
            write::MODIFY_QP | write::EX_MODIFY_QP => self.modify_qp(id, command, call),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// All queue pairs, with their contexts' other objects out of the way: for the engine.
    pub(crate) fn queue_pair(&mut self, number: u32) -> Option<(&mut Context, u32)> {
        self.contexts.values_mut().find_map(|context| {
            let handle = context.objects.iter().find_map(|(handle, object)| match object {
                Object::Qp(qp) if qp.number == number => Some(*handle),
                _ => None,
            })?;
            Some((context, handle))
        })
    }
}

impl Context {
    /// A queue pair and one of its completion queues, for the engine.
    pub(crate) fn with_cq(&mut self, qp: u32, receive: bool) -> Option<(&mut Qp, &mut Cq)> {
        let Some(Object::Qp(found)) = self.objects.get(&qp) else { return None };
        let cq = if receive { found.receive_cq } else { found.send_cq };
        let mut parts = (None, None);
        for (handle, object) in &mut self.objects {
            match object {
                Object::Qp(object) if *handle == qp => parts.0 = Some(object),
                Object::Cq(object) if *handle == cq => parts.1 = Some(object),
                _ => {}
            }
        }
        parts.0.zip(parts.1)
    }

    /// Where the program has a doorbell page.
    pub(crate) fn page_address(&self, page: u32) -> u64 {
        let found = self.objects.values().find_map(|object| match object {
            Object::Uar(uar) if uar.page == page => Some(uar.address),
            _ => None,
        });
        found.unwrap_or(0)
    }
}
