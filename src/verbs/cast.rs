//! `ibv_*` objects and ours: each C object of a holdfast context is the head of an [`Object`], whose body is ours; that of a completion
//! queue, whose head is longer or shorter as it was made, is the head of a [`Fronted`].
//!
//! Invariants:
//! - O1: a pointer that libibverbs hands to a verb of family `F` was made by the create verb of the same family (libibverbs
//!   dispatches by context), so it points at the head of the `Object`, or the `Fronted`, with that head and body.
//! - O2: an object lives from its create verb to its destroy verb; the application keeps the two apart from all other use
//!   of it (the manual page of each destroy verb).
//! - O3: the body is only reached through shared references; what changes in it is behind its own locks or atomics. The head
//!   is C's: single fields are read and written through the pointer, and no reference to it is ever made.
#![allow(unsafe_code, reason = "casts between C's objects and ours")]

use core::mem::offset_of;
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use crate::abi::public::*;
use crate::error::{Errno, Error};
use crate::family::{Family, Objects};

/// A C object and what we keep with it.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Object<H, B> {
    head: H,
    body: B,
}

/// A C object and, in front of it, what we keep with it: the body is found from the head whatever else is behind what all heads have.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Fronted<H, B> {
    body: B,
    head: H,
}

/// From the start of a [`Fronted`] to its head, which is the same for all heads.
pub(crate) const fn front<H, B>() -> usize {
    const { assert!(size_of::<B>().is_multiple_of(align_of::<H>())) };
    size_of::<B>()
}

/// A new object whose head is zeroed and whose body is not there yet: its address is known before the kernel is asked.
///
/// Freed on drop unless [`Fresh::finish`] made it whole.
pub(crate) struct Fresh<H, B> {
    head: NonNull<H>,
    body: NonNull<B>,
    start: NonNull<u8>,
    layout: Layout,
}

impl<H, B> Fresh<H, B> {
    const LAYOUT: Layout = Layout::new::<Object<H, B>>();
    const FRONTED: Layout = Layout::new::<Fronted<H, B>>();

    /// Memory for an [`Object`].
    pub(crate) fn new() -> Result<Fresh<H, B>, Error> {
        Self::with(Self::LAYOUT, offset_of!(Object<H, B>, head), offset_of!(Object<H, B>, body))
    }

    /// Memory for a [`Fronted`].
    pub(crate) fn fronted() -> Result<Fresh<H, B>, Error> {
        const { assert!(front::<H, B>() == offset_of!(Fronted<H, B>, head)) };
        Self::with(Self::FRONTED, front::<H, B>(), 0)
    }

    /// Memory as `layout` says, which has room for the head at `head` and for the body at `body`.
    fn with(layout: Layout, head: usize, body: usize) -> Result<Fresh<H, B>, Error> {
        const { assert!(size_of::<H>() > 0) };
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc(layout) };
        let start = NonNull::new(at).ok_or(Error::new("allocate the object", Errno::ENOMEM))?;
        // SAFETY: within what was allocated.
        let head = unsafe { start.add(head) }.cast::<H>();
        // SAFETY: as above.
        let body = unsafe { start.add(body) }.cast();
        // The head alone: the body is written whole, and glibc's calloc passes by what its thread freed just now.
        // SAFETY: as above.
        unsafe { head.write_bytes(0, 1) };
        Ok(Fresh { head, body, start, layout })
    }

    /// The C object: zeroed, to be filled through this pointer.
    pub(crate) fn head(&self) -> *mut H {
        self.head.as_ptr()
    }

    /// For `user_handle`: the kernel gives it back in events, where libibverbs takes it for the C object's address.
    pub(crate) fn user_handle(&self) -> u64 {
        self.head().expose_provenance() as u64
    }

    /// Puts the body in and gives the object to C.
    pub(crate) fn finish(self, body: B) -> *mut H {
        let head = self.head();
        // SAFETY: the body's place is ours, valid and not shared yet; the old bytes are no value.
        unsafe { self.body.write(body) };
        let _ = std::mem::ManuallyDrop::new(self);
        head
    }
}

impl<H, B> Drop for Fresh<H, B> {
    fn drop(&mut self) {
        // SAFETY: allocated in `with` with this layout, and never given away.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The body of the object at `head`.
///
/// # Safety
/// O1 and O2 hold for `head` during `'a`.
#[inline(always)]
pub(crate) unsafe fn body<'a, H, B>(head: *mut H) -> &'a B {
    let object: *mut Object<H, B> = head.cast();
    // SAFETY: O1, O2, O3.
    unsafe { &(*object).body }
}

/// Ends the object at `head`: the body is dropped and the memory freed.
///
/// # Safety
/// O1, and this is the end of O2: nobody uses the object any more.
pub(crate) unsafe fn free<H, B>(head: *mut H) {
    let object: *mut Object<H, B> = head.cast();
    // SAFETY: O1, and the caller's word that nobody else looks at it.
    unsafe { drop_body::<H, B>(head) };
    // SAFETY: allocated by `Fresh::new` with this layout.
    unsafe { dealloc(object.cast(), Fresh::<H, B>::LAYOUT) };
}

/// Drops the body but keeps the memory, for an object that the application forgot: whatever still points at it finds the
/// head as it was.
///
/// # Safety
/// O1; nobody uses the body any more.
pub(crate) unsafe fn drop_body<H, B>(head: *mut H) {
    let object: *mut Object<H, B> = head.cast();
    // SAFETY: O1.
    let at = unsafe { &raw mut (*object).body };
    // SAFETY: O1, and the caller's word.
    unsafe { at.drop_in_place() };
}

/// Where the body in front of `head` is.
#[inline(always)]
pub(crate) fn in_front<H, B>(head: *mut H) -> *mut B {
    // The head was never elsewhere: O1.
    head.wrapping_byte_sub(front::<H, B>()).cast()
}

/// Ends the [`Fronted`] at `head`, as [`free`] does an object, but for the body, which it gives.
///
/// # Safety
/// As for [`free`], and `H` is the head that it was made with.
pub(crate) unsafe fn take_fronted<H, B>(head: *mut H) -> B {
    let at: *mut B = in_front(head);
    // SAFETY: O1, and the caller's word that nobody else looks at it.
    let body = unsafe { at.read() };
    // SAFETY: allocated by `Fresh::fronted` with this layout.
    unsafe { dealloc(at.cast(), Fresh::<H, B>::FRONTED) };
    body
}

/// The pointer, or `EINVAL` for NULL.
pub(crate) fn non_null<T>(pointer: *mut T, what: &'static str) -> Result<*mut T, Error> {
    if pointer.is_null() { Err(Error::new(what, Errno::EINVAL)) } else { Ok(pointer) }
}

/// The objects that a send work request names; made on the word of ibv_post_send(3) that its pointers are valid.
pub(crate) struct WrObjects<F> {
    family: std::marker::PhantomData<fn() -> F>,
}

impl<F> Clone for WrObjects<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for WrObjects<F> {}

impl<F> WrObjects<F> {
    /// A resolver.
    ///
    /// # Safety
    /// It is only asked for pointers of work requests that the application posts on a QP of family `F`: each is NULL or
    /// a live object of the same context.
    #[inline(always)]
    pub(crate) unsafe fn new() -> WrObjects<F> {
        WrObjects { family: std::marker::PhantomData }
    }
}

impl<'a, F: Family> Objects<'a, F::Ah> for WrObjects<F> {
    #[inline(always)]
    fn ah(self, ah: *mut ibv_ah) -> Option<&'a F::Ah> {
        if ah.is_null() {
            return None;
        }
        // SAFETY: the word given to `new`: a live AH of this family, so O1 and O2.
        Some(unsafe { body::<ibv_ah, F::Ah>(ah) })
    }

    #[inline]
    fn mw(self, mw: *mut ibv_mw) -> Option<(u32, u32)> {
        if mw.is_null() {
            return None;
        }
        // SAFETY: the word given to `new`; a single field is read.
        let rkey = unsafe { (*mw).rkey };
        // SAFETY: as above.
        Some((rkey, unsafe { (*mw).type_ }))
    }

    #[inline]
    fn mr_lkey(self, mr: *mut ibv_mr) -> Option<u32> {
        // SAFETY: the word given to `new`; a single field is read.
        (!mr.is_null()).then(|| unsafe { (*mr).lkey })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_object_is_its_head_and_is_freed_with_its_body() {
        let token = Arc::new(());
        let fresh = Fresh::<ibv_pd, Arc<()>>::new().unwrap();
        assert_eq!(fresh.user_handle(), fresh.head() as u64);
        let head = fresh.finish(token.clone());
        // SAFETY: made above.
        assert!(Arc::ptr_eq(unsafe { body::<ibv_pd, Arc<()>>(head) }, &token));
        assert_eq!(Arc::strong_count(&token), 2);
        // SAFETY: made above; not used after.
        unsafe { free::<ibv_pd, Arc<()>>(head) };
        assert_eq!(Arc::strong_count(&token), 1);
    }

    #[test]
    fn a_body_in_front_is_found_from_heads_of_any_length() {
        fn made<H>(token: &Arc<()>) -> *mut H {
            let fresh = Fresh::<H, Arc<()>>::fronted().unwrap();
            assert_eq!(fresh.user_handle(), fresh.head() as u64);
            fresh.finish(token.clone())
        }
        let token = Arc::new(());
        let heads = (made::<ibv_cq>(&token), made::<ibv_cq_ex>(&token));
        for head in [heads.0, heads.1.cast()] {
            let body: *mut Arc<()> = in_front(head);
            // SAFETY: made above.
            assert!(Arc::ptr_eq(unsafe { &*body }, &token));
        }
        // SAFETY: made above; not used after.
        drop(unsafe { take_fronted::<ibv_cq, Arc<()>>(heads.0) });
        // SAFETY: as above.
        drop(unsafe { take_fronted::<ibv_cq_ex, Arc<()>>(heads.1) });
        assert_eq!(Arc::strong_count(&token), 1);
    }

    #[test]
    fn an_unfinished_object_leaves_nothing() {
        drop(Fresh::<ibv_qp_ex, String>::new().unwrap());
        drop(Fresh::<ibv_cq, String>::fronted().unwrap());
    }
}
