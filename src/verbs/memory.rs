//! Protection domains, memory regions, memory windows, address handles.
//!
//! What libibverbs fills in after the verb (context, pd, addr, length) is left to it; the rest of each C object is ours.
#![allow(unsafe_code, reason = "reads C's arguments and writes C's objects")]

use core::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_void, size_t};

use super::cast::{self, Fresh, WrObjects, non_null};
use super::{attr, context, domains, guard};
use crate::abi::public::*;
use crate::abi::wr::{self, SendWrs};
use crate::error::{Errno, Error, Step as _};
use crate::family::{Family, QueuePair as _};
use crate::ha::life::Life;
use crate::log;
use crate::sync::Locking;
use crate::uapi::mr::{Mr, Reg, RegDmabuf};
use crate::uapi::{self, Handle, Udata};

/// A destroy's answer; `None` where there is none: the device was taken away, and the object with it. Whatever a kernel says that
/// has lost its device, its files' end destroys what is left.
pub(crate) fn counted<T>(
    result: Result<T, Errno>,
    life: &Life,
    step: &'static str,
) -> Result<Option<T>, Error> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(Errno::EIO) => Ok(None),
        Err(_) if life.is_over() => Ok(None),
        Err(errno) => Err(Error::new(step, errno)),
    }
}

/// As [`counted`], of objects that have no events.
pub(crate) fn destroyed(result: Result<(), Errno>, life: &Life, step: &'static str) -> Result<(), Error> {
    counted(result, life, step).map(drop)
}

/// Our part of the context of a C object.
macro_rules! cx_of {
    ($family:ident, $object:expr) => {{
        // SAFETY: a live object; a single field is read.
        let context = unsafe { (*$object).context };
        // SAFETY: the object's family is that of its context, which outlives it.
        unsafe { $crate::verbs::context::of::<$family>(context) }
    }};
}

/// The command file behind a C object's context.
macro_rules! fd_of {
    ($family:ident, $object:expr) => {
        cx_of!($family, $object).device.fd
    };
}

/// The kernel's handle of a C object.
macro_rules! handle_of {
    ($object:expr) => {
        // SAFETY: a live object; a single field is read.
        Handle(unsafe { (*$object).handle })
    };
}
pub(crate) use {cx_of, handle_of};

/// Our part of a PD, and of a parent domain.
#[derive(Debug)]
pub(crate) struct Pd<F: Family> {
    pub(crate) part: F::Pd,
    /// A parent domain: the PD it stands for, and its thread domain or NULL.
    parent: Option<(*mut ibv_pd, *mut ibv_td)>,
    /// Parent domains of this PD, or QPs of this parent domain: it stays while there are any.
    pub(crate) users: AtomicU32,
}

impl<F: Family> Pd<F> {
    /// A PD, not a parent domain.
    pub(crate) fn new(part: F::Pd) -> Pd<F> {
        Pd { part, parent: None, users: AtomicU32::new(0) }
    }

    /// Whether it is a parent domain.
    pub(crate) fn is_parent_domain(&self) -> bool {
        self.parent.is_some()
    }
}

/// The family's part of the PD at `pd`.
///
/// # Safety
/// `pd` is a live PD of family `F` during `'a`.
pub(crate) unsafe fn pd_of<'a, F: Family>(pd: *mut ibv_pd) -> &'a Pd<F> {
    // SAFETY: the caller's word.
    unsafe { cast::body::<ibv_pd, Pd<F>>(pd) }
}

/// Whether objects of `pd` need locks.
pub(crate) fn locking<F: Family>(family: &F, pd: &Pd<F>) -> Locking {
    if family.is_single_threaded(Some(&pd.part)) {
        // SAFETY: the application's word for a thread domain (ibv_alloc_td(3)), or the family's own setting, which is one too.
        unsafe { Locking::no() }
    } else {
        Locking::YES
    }
}

/// `alloc_pd`.
///
/// # Safety
/// ibv_alloc_pd(3), by libibverbs, for a context of family `F`.
pub(crate) unsafe extern "C" fn alloc_pd<F: Family>(context: *mut ibv_context) -> *mut ibv_pd {
    guard::pointer_of("ibv_alloc_pd", || {
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fresh = Fresh::<ibv_pd, Pd<F>>::new()?;
        let created = cx.family.alloc_pd(&cx.device)?;
        // SAFETY: ours until `finish`.
        unsafe { (*fresh.head()).context = context };
        // SAFETY: as above.
        unsafe { (*fresh.head()).handle = created.handle.0 };
        Ok(fresh.finish(Pd::new(created.object)))
    })
}

/// `alloc_parent_domain`. Allocators of the application's own are not asked: as for stock where they say so themselves, the
/// default ones serve.
///
/// # Safety
/// ibv_alloc_parent_domain(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn alloc_parent_domain<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_parent_domain_init_attr,
) -> *mut ibv_pd {
    guard::pointer_of("ibv_alloc_parent_domain", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        let pd = non_null(attr.pd, "check the PD")?;
        let known = IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS
            | IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT
            | IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC;
        if attr.comp_mask & !IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT != 0 {
            let errno = if attr.comp_mask & !known != 0 { Errno::EINVAL } else { Errno::EOPNOTSUPP };
            return Err(Error::new("check the parent domain's comp_mask", errno));
        }
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        // SAFETY: the caller's word.
        let of = unsafe { pd_of::<F>(pd) };
        // SAFETY: the caller's word: NULL or a live thread domain.
        let td = unsafe { domains::td_of::<F>(attr.td) };
        let fresh = Fresh::<ibv_pd, Pd<F>>::new()?;
        // SAFETY: ours until `finish`.
        unsafe { (*fresh.head()).context = context };
        let handle = handle_of!(pd);
        // SAFETY: as above.
        unsafe { (*fresh.head()).handle = handle.0 };
        let part = cx.family.parent_domain(&of.part, td.map(|td| &td.part));
        // ORDER: Relaxed: a count; the application orders creating and destroying.
        of.users.fetch_add(1, Ordering::Relaxed);
        if let Some(td) = td {
            // ORDER: Relaxed, as above.
            td.users.fetch_add(1, Ordering::Relaxed);
        }
        Ok(fresh.finish(Pd { part, parent: Some((pd, attr.td)), users: AtomicU32::new(0) }))
    })
}

/// `dealloc_pd`, of parent domains too.
///
/// # Safety
/// ibv_dealloc_pd(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn dealloc_pd<F: Family>(pd: *mut ibv_pd) -> c_int {
    guard::errno_of("ibv_dealloc_pd", || {
        // SAFETY: the caller's word.
        let ours = unsafe { pd_of::<F>(pd) };
        // ORDER: Relaxed: a count; the application orders creating and destroying.
        if ours.users.load(Ordering::Relaxed) != 0 {
            return Err(Error::new("deallocate a PD in use", Errno::EBUSY));
        }
        match ours.parent {
            None => {
                let cx = cx_of!(F, pd);
                let freed = uapi::pd::dealloc(cx.device.fd, handle_of!(pd));
                destroyed(freed, &cx.device.life, "deallocate the PD")?;
            }
            Some((of, td)) => {
                // SAFETY: a PD stays while it has parent domains.
                let of = unsafe { pd_of::<F>(of) };
                // ORDER: Relaxed, as above.
                of.users.fetch_sub(1, Ordering::Relaxed);
                // SAFETY: as above, for thread domains.
                if let Some(td) = unsafe { domains::td_of::<F>(td) } {
                    // ORDER: Relaxed, as above.
                    td.users.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        // SAFETY: the kernel's side is gone; the application is done with it.
        unsafe { cast::free::<ibv_pd, Pd<F>>(pd) };
        Ok(())
    })
}

/// `alloc_null_mr`.
///
/// # Safety
/// ibv_alloc_null_mr(3), for a PD of family `F`.
pub(crate) unsafe extern "C" fn alloc_null_mr<F: Family>(pd: *mut ibv_pd) -> *mut ibv_mr {
    guard::pointer_of("ibv_alloc_null_mr", || {
        let lkey = cx_of!(F, pd).family.null_mr().step("find the null MR")?;
        let mr = new_mr(IBV_MR_TYPE_NULL_MR, 0, || Ok(Mr { handle: Handle(0), lkey, rkey: 0 }))?;
        // SAFETY: made just now, nobody else has it.
        let head = unsafe { &mut *mr };
        // ibv_alloc_null_mr calls the operation directly: nobody fills these for us.
        // SAFETY: the caller's word: a live PD.
        head.context = unsafe { (*pd).context };
        head.pd = pd;
        head.length = usize::MAX;
        Ok(mr)
    })
}

/// As [`new_mr`], of `length` bytes from address 0, by an operation that libibverbs calls directly: nobody fills the rest in for us.
///
/// # Safety
/// `pd` is a live PD.
pub(crate) unsafe fn new_mr_in(
    pd: *mut ibv_pd,
    length: usize,
    mr_type: u32,
    access: c_int,
    register: impl FnOnce() -> Result<Mr, Error>,
) -> Result<*mut ibv_mr, Error> {
    let mr = new_mr(mr_type, access, register)?;
    // SAFETY: made just now, nobody else has it.
    let head = unsafe { &mut *mr };
    // SAFETY: the caller's word.
    head.context = unsafe { (*pd).context };
    head.pd = pd;
    head.length = length;
    Ok(mr)
}

/// Makes the C object of a region that `register` gets from the kernel.
fn new_mr(
    mr_type: u32,
    access: c_int,
    register: impl FnOnce() -> Result<Mr, Error>,
) -> Result<*mut ibv_mr, Error> {
    let fresh = Fresh::<verbs_mr, ()>::new()?;
    let mr = register()?;
    let head = fresh.head();
    // SAFETY: ours until `finish`, nobody else has the address.
    let head = unsafe { &mut *head };
    head.ibv_mr.handle = mr.handle.0;
    head.ibv_mr.lkey = mr.lkey;
    head.ibv_mr.rkey = mr.rkey;
    head.mr_type = mr_type;
    head.access = access;
    Ok(fresh.finish(()).cast())
}

/// Memory that may not be locked is the usual cause of `ENOMEM`, and a program says no more than the errno.
fn say_why_not_locked(errno: Errno, length: size_t) {
    if errno == Errno::ENOMEM {
        log::warn!(
            "{length} bytes cannot be registered ({errno}); the limit on locked memory (ulimit -l) may be too low: \
             'holdfast doctor' tells"
        );
    }
}

/// `reg_mr`.
///
/// # Safety
/// ibv_reg_mr(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn reg_mr<F: Family>(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: size_t,
    hca_va: u64,
    access: c_int,
) -> *mut ibv_mr {
    guard::pointer_of("ibv_reg_mr", || {
        let start = addr.expose_provenance() as u64;
        // The kernel wants both to begin at the same offset in a page; what the address means is the application's choice.
        let request = Reg {
            pd: handle_of!(pd),
            start,
            length: length as u64,
            hca_va,
            access_flags: access.cast_unsigned(),
        };
        cx_of!(F, pd).usable()?;
        let fd = fd_of!(F, pd);
        new_mr(IBV_MR_TYPE_MR, access, || {
            uapi::mr::reg(fd, &request, Udata::none())
                .inspect_err(|errno| say_why_not_locked(*errno, length))
                .step("register the memory region")
        })
    })
}

/// `reg_dmabuf_mr`.
///
/// # Safety
/// ibv_reg_dmabuf_mr(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn reg_dmabuf_mr<F: Family>(
    pd: *mut ibv_pd,
    offset: u64,
    length: size_t,
    iova: u64,
    dmabuf_fd: c_int,
    access: c_int,
) -> *mut ibv_mr {
    guard::pointer_of("ibv_reg_dmabuf_mr", || {
        cx_of!(F, pd).usable()?;
        let fd = fd_of!(F, pd);
        let request = RegDmabuf {
            pd: handle_of!(pd),
            offset,
            length: length as u64,
            iova,
            fd: dmabuf_fd,
            access_flags: access.cast_unsigned(),
        };
        new_mr(IBV_MR_TYPE_DMABUF_MR, access, || {
            let registered = uapi::mr::reg_dmabuf(fd, &request, Udata::none());
            // Kernels before 5.12 lack the method: to the application that is the same as a driver without it.
            let registered = registered
                .map_err(|errno| if uapi::is_unsupported(errno) { Errno::EOPNOTSUPP } else { errno });
            registered.step("register the dma-buf")
        })
    })
}

/// `rereg_mr`. libibverbs checked the flags and writes `pd`, `addr` and `length` after success.
///
/// # Safety
/// ibv_rereg_mr(3), by libibverbs, for an MR of family `F`.
pub(crate) unsafe extern "C" fn rereg_mr<F: Family>(
    vmr: *mut verbs_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: size_t,
    access: c_int,
) -> c_int {
    guard::errno_of("ibv_rereg_mr", || {
        let mr: *mut ibv_mr = vmr.cast();
        cx_of!(F, mr).usable()?;
        let flags = flags.cast_unsigned();
        let pd = if flags & IBV_REREG_MR_CHANGE_PD != 0 {
            handle_of!(non_null(pd, "check the PD")?)
        } else {
            Handle(0)
        };
        let start = addr.expose_provenance() as u64;
        let to =
            Reg { pd, start, length: length as u64, hca_va: start, access_flags: access.cast_unsigned() };
        let (lkey, rkey) = uapi::mr::rereg(fd_of!(F, mr), handle_of!(mr), flags, &to, Udata::none())
            .step("reregister the memory region")?;
        // SAFETY: the application's own MR; nobody else writes it (ibv_rereg_mr(3)).
        unsafe { (*mr).lkey = lkey };
        // SAFETY: as above.
        unsafe { (*mr).rkey = rkey };
        if flags & IBV_REREG_MR_CHANGE_ACCESS != 0 {
            // SAFETY: as above.
            unsafe { (*vmr).access = access };
        }
        Ok(())
    })
}

/// `dereg_mr`.
///
/// # Safety
/// ibv_dereg_mr(3), by libibverbs, for an MR of family `F`.
pub(crate) unsafe extern "C" fn dereg_mr<F: Family>(vmr: *mut verbs_mr) -> c_int {
    guard::errno_of("ibv_dereg_mr", || {
        let mr: *mut ibv_mr = vmr.cast();
        // SAFETY: the caller's word; a single field is read.
        if unsafe { (*vmr).mr_type } != IBV_MR_TYPE_NULL_MR {
            let cx = cx_of!(F, mr);
            let freed = uapi::mr::dereg(cx.device.fd, handle_of!(mr));
            destroyed(freed, &cx.device.life, "deregister the memory region")?;
        }
        // SAFETY: the kernel's side is gone; the application is done with it.
        unsafe { cast::free::<verbs_mr, ()>(vmr) };
        Ok(())
    })
}

/// `advise_mr`.
///
/// # Safety
/// ibv_advise_mr(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn advise_mr<F: Family>(
    pd: *mut ibv_pd,
    advice: u32,
    flags: u32,
    sg_list: *mut ibv_sge,
    num_sges: u32,
) -> c_int {
    guard::errno_of("ibv_advise_mr", || {
        let count = c_int::try_from(num_sges).map_err(|_| Error::new("check the list", Errno::EINVAL))?;
        // SAFETY: the caller's word: `num_sges` entries.
        let list = unsafe { wr::sge_list(sg_list, count) }.step("check the list")?;
        let list: Vec<_> = list
            .iter()
            .map(|sge| uapi::wire::Sge { addr: sge.addr, length: sge.length, lkey: sge.lkey })
            .collect();
        cx_of!(F, pd).usable()?;
        let advised = uapi::mr::advise(fd_of!(F, pd), handle_of!(pd), advice, flags, &list);
        advised
            .map_err(|errno| if uapi::is_unsupported(errno) { Errno::EOPNOTSUPP } else { errno })
            .step("advise the MR")
    })
}

/// `alloc_mw`.
///
/// # Safety
/// ibv_alloc_mw(3), for a PD of family `F`.
pub(crate) unsafe extern "C" fn alloc_mw<F: Family>(pd: *mut ibv_pd, mw_type: u32) -> *mut ibv_mw {
    guard::pointer_of("ibv_alloc_mw", || {
        let kernel_type =
            u8::try_from(mw_type).map_err(|_| Error::new("check the MW type", Errno::EINVAL))?;
        cx_of!(F, pd).usable()?;
        let fresh = Fresh::<ibv_mw, ()>::new()?;
        let (handle, rkey) = uapi::mw::alloc(fd_of!(F, pd), handle_of!(pd), kernel_type, Udata::none())
            .step("allocate the memory window")?;
        // SAFETY: ours until `finish`, nobody else has the address.
        let head = unsafe { &mut *fresh.head() };
        // ibv_alloc_mw calls the operation directly: nobody fills these for us.
        // SAFETY: a live PD.
        head.context = unsafe { (*pd).context };
        head.pd = pd;
        head.type_ = mw_type;
        head.handle = handle.0;
        head.rkey = rkey;
        Ok(fresh.finish(()))
    })
}

/// `dealloc_mw`.
///
/// # Safety
/// ibv_dealloc_mw(3), for an MW of family `F`.
pub(crate) unsafe extern "C" fn dealloc_mw<F: Family>(mw: *mut ibv_mw) -> c_int {
    guard::errno_of("ibv_dealloc_mw", || {
        let cx = cx_of!(F, mw);
        let freed = uapi::mw::dealloc(cx.device.fd, handle_of!(mw));
        destroyed(freed, &cx.device.life, "deallocate the memory window")?;
        // SAFETY: the kernel's side is gone; the application is done with it.
        unsafe { cast::free::<ibv_mw, ()>(mw) };
        Ok(())
    })
}

/// `bind_mw`: a type 1 window, by a work request of ours.
///
/// # Safety
/// ibv_bind_mw(3), after libibverbs's own checks, for a QP and an MW of family `F`.
pub(crate) unsafe extern "C" fn bind_mw<F: Family>(
    qp: *mut ibv_qp,
    mw: *mut ibv_mw,
    bind: *mut ibv_mw_bind,
) -> c_int {
    guard::errno_of("ibv_bind_mw", || {
        // SAFETY: the caller's word; plain data.
        let bind = unsafe { *non_null(bind, "check the arguments")? };
        if bind.bind_info.mw_access_flags & IBV_ACCESS_ZERO_BASED != 0 {
            return Err(Error::new("check the access flags", Errno::EINVAL));
        }
        // SAFETY: the caller's word.
        let rkey = next_rkey(unsafe { (*mw).rkey });
        let mut wr = ibv_send_wr {
            wr_id: bind.wr_id,
            opcode: IBV_WR_BIND_MW,
            send_flags: bind.send_flags,
            ..ibv_send_wr::zeroed()
        };
        wr.tail = ibv_send_wr_tail { bind_mw: ibv_send_wr_bind_mw { mw, rkey, bind_info: bind.bind_info } };
        // SAFETY: a list of one, on our stack, without SGEs.
        let wrs = unsafe { SendWrs::from_ptr(&raw mut wr) };
        // SAFETY: the caller's word: the window and the region are alive and of this family.
        let objects = unsafe { WrObjects::<F>::new() };
        // SAFETY: the caller's word.
        let ours = unsafe { super::qp::ours::<F>(qp) };
        ours.queues.post_send(wrs, objects).map_err(|refused| refused.errno).step("post the bind")?;
        // The window has the new key from now on; if the bind completes in error the application puts the old one back.
        // SAFETY: the caller's word; ibv_bind_mw(3) makes the caller the only writer.
        unsafe { (*mw).rkey = rkey };
        Ok(())
    })
}

/// The key of the next bind: the last byte counts binds, the rest names the window (`ibv_inc_rkey`).
fn next_rkey(rkey: u32) -> u32 {
    (rkey & 0xffff_ff00) | (rkey.wrapping_add(1) & 0xff)
}

/// `create_ah`.
///
/// # Safety
/// ibv_create_ah(3), by libibverbs, for a PD of family `F`.
pub(crate) unsafe extern "C" fn create_ah<F: Family>(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    guard::pointer_of("ibv_create_ah", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        let cx = cx_of!(F, pd);
        cx.usable()?;
        let fresh = Fresh::<ibv_ah, F::Ah>::new()?;
        let created =
            cx.family.create_ah(&cx.device, handle_of!(pd), fresh.user_handle(), &attr::ah_command(&attr))?;
        // SAFETY: ours until `finish`.
        unsafe { (*fresh.head()).handle = created.handle.0 };
        Ok(fresh.finish(created.object))
    })
}

/// `destroy_ah`.
///
/// # Safety
/// ibv_destroy_ah(3), by libibverbs, for an AH of family `F`.
pub(crate) unsafe extern "C" fn destroy_ah<F: Family>(ah: *mut ibv_ah) -> c_int {
    guard::errno_of("ibv_destroy_ah", || {
        // SAFETY: the caller's word: an AH of family F.
        if F::ah_is_in_kernel(unsafe { cast::body::<ibv_ah, F::Ah>(ah) }) {
            let cx = cx_of!(F, ah);
            let freed = uapi::ah::destroy(cx.device.fd, handle_of!(ah));
            destroyed(freed, &cx.device.life, "destroy the address handle")?;
        }
        // SAFETY: the kernel's side is gone; the application is done with it.
        unsafe { cast::free::<ibv_ah, F::Ah>(ah) };
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::life::Sign;

    #[test]
    fn a_bind_counts_in_the_last_byte_only() {
        assert_eq!(next_rkey(0x1234_5600), 0x1234_5601);
        assert_eq!(next_rkey(0x1234_56ff), 0x1234_5600);
    }

    #[test]
    fn a_destroy_of_what_the_kernel_took_away_succeeds() {
        let life = Life::default();
        assert_eq!(destroyed(Err(Errno::EIO), &life, "t"), Ok(()));
        assert_eq!(destroyed(Err(Errno::EBUSY), &life, "t"), Err(Error::new("t", Errno::EBUSY)));
        life.note(Sign::Early);
        assert_eq!(destroyed(Err(Errno::ETIMEDOUT), &life, "t"), Ok(()));
    }
}
