//! Work requests of the application, as safe views for the families.
//!
//! Two promises of the caller carry all of this, those of `ibv_post_send(3)` and `ibv_post_recv(3)`: the list and its
//! scatter/gather entries are valid and stay unchanged until the call returns, and so do the bytes of an entry when
//! `IBV_SEND_INLINE` is set. Whoever builds a view (`from_ptr`, `new`) vouches for them; the views vouch for the rest:
//!
//! * `W1`: the pointer is not null and the work request behind it is readable for `'a`.
//! * `W2`: nothing writes to it during `'a`.
//!
//! All reads are copies of single fields, inlined: the views cost nothing in a post.
#![allow(unsafe_code, reason = "reads the application's memory on the word of ibv_post_send(3)")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use super::public::{
    IBV_SEND_INLINE, ibv_ah, ibv_data_buf, ibv_mw, ibv_mw_bind_info, ibv_recv_wr, ibv_send_wr,
    ibv_send_wr_bind_mw, ibv_send_wr_tso, ibv_send_wr_ud, ibv_sge,
};
use crate::error::Errno;

/// A list of send work requests, from its first.
#[derive(Clone, Debug)]
pub struct SendWrs<'a> {
    next: *mut ibv_send_wr,
    list: PhantomData<&'a ibv_send_wr>,
}

impl<'a> SendWrs<'a> {
    /// The list beginning at `wr`; NULL is the empty list.
    ///
    /// # Safety
    /// The contract of `ibv_post_send(3)` for `wr`: each request reached through `next`, its `sg_list` of `num_sge`
    /// entries, and with `IBV_SEND_INLINE` (or `IBV_WR_TSO`) the bytes they (or `tso.hdr`) name, are readable and
    /// unchanged during `'a`.
    #[inline]
    #[must_use]
    pub unsafe fn from_ptr(wr: *mut ibv_send_wr) -> SendWrs<'a> {
        SendWrs { next: wr, list: PhantomData }
    }

    /// The next request, for `bad_wr`; NULL at the end.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_send_wr {
        self.next
    }

    /// The first request, and those behind it by [`SendWr::rest`]: to walk so needs no register for the next one meanwhile.
    #[inline(always)]
    #[must_use]
    pub fn first(&self) -> Option<SendWr<'a>> {
        Some(SendWr { ptr: NonNull::new(self.next)?, list: PhantomData })
    }

    /// The request, where there is exactly one.
    #[inline(always)]
    #[must_use]
    pub fn only(&self) -> Option<SendWr<'a>> {
        let wr = SendWr { ptr: NonNull::new(self.next)?, list: PhantomData };
        wr.raw().next.is_null().then_some(wr)
    }
}

impl<'a> Iterator for SendWrs<'a> {
    type Item = SendWr<'a>;

    #[inline]
    fn next(&mut self) -> Option<SendWr<'a>> {
        let ptr = NonNull::new(self.next)?;
        let wr = SendWr { ptr, list: PhantomData };
        self.next = wr.raw().next;
        Some(wr)
    }
}

/// One send work request.
#[derive(Clone, Copy, Debug)]
pub struct SendWr<'a> {
    ptr: NonNull<ibv_send_wr>,
    list: PhantomData<&'a ibv_send_wr>,
}

/// Where an RDMA read or write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rdma {
    /// Address in the peer's memory region.
    pub remote_addr: u64,
    /// Key of that region.
    pub rkey: u32,
}

/// What an atomic does, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// Address in the peer's memory region.
    pub remote_addr: u64,
    /// To compare with, or to add.
    pub compare_add: u64,
    /// To store when the comparison holds.
    pub swap: u64,
    /// Key of that region.
    pub rkey: u32,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ud {
    /// The address handle; not dereferenced here.
    pub ah: *mut ibv_ah,
    /// QP number of the receiver.
    pub remote_qpn: u32,
    /// Its Q_Key.
    pub remote_qkey: u32,
}

/// A memory window to bind.
#[derive(Clone, Copy)]
pub struct BindMw {
    /// The window; not dereferenced here.
    pub mw: *mut ibv_mw,
    /// The key it shall have.
    pub rkey: u32,
    /// To what it is bound, and how.
    pub bind_info: ibv_mw_bind_info,
}

/// A large send to be cut into segments.
#[derive(Clone, Copy, Debug)]
pub struct Tso<'a> {
    /// The headers of each segment.
    pub hdr: UserBytes<'a>,
    /// Bytes of payload in each segment.
    pub mss: u16,
}

impl<'a> SendWr<'a> {
    /// The one request at `wr`.
    ///
    /// # Safety
    /// As for [`SendWrs::from_ptr`], for this request alone.
    #[inline]
    #[must_use]
    pub unsafe fn from_ptr(wr: NonNull<ibv_send_wr>) -> SendWr<'a> {
        SendWr { ptr: wr, list: PhantomData }
    }

    #[inline]
    fn raw(&self) -> &'a ibv_send_wr {
        // SAFETY: W1, W2.
        unsafe { self.ptr.as_ref() }
    }

    /// For `bad_wr`.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_send_wr {
        self.ptr.as_ptr()
    }

    /// Those behind it in its list.
    #[inline(always)]
    #[must_use]
    pub fn rest(&self) -> SendWrs<'a> {
        SendWrs { next: self.raw().next, list: PhantomData }
    }

    /// The application's word for this request.
    #[inline]
    #[must_use]
    pub fn wr_id(&self) -> u64 {
        self.raw().wr_id
    }

    /// `IBV_WR_*`, unchecked.
    #[inline]
    #[must_use]
    pub fn opcode(&self) -> u32 {
        self.raw().opcode
    }

    /// `IBV_SEND_*`, unchecked.
    #[inline]
    #[must_use]
    pub fn send_flags(&self) -> u32 {
        self.raw().send_flags
    }

    /// The immediate data, in network byte order as the application stored it.
    #[inline]
    #[must_use]
    pub fn imm_data(&self) -> u32 {
        self.raw().imm_data
    }

    /// The key to invalidate: the bytes of the immediate data, in host order.
    #[inline]
    #[must_use]
    pub fn invalidate_rkey(&self) -> u32 {
        self.raw().imm_data
    }

    /// Destination of an RDMA read or write.
    #[inline]
    #[must_use]
    pub fn rdma(&self) -> Rdma {
        // SAFETY: plain integers, readable by W1; what they are worth depends on the opcode, which the caller checked.
        let rdma = unsafe { self.raw().wr.rdma };
        Rdma { remote_addr: rdma.remote_addr, rkey: rdma.rkey }
    }

    /// Operands of an atomic.
    #[inline]
    #[must_use]
    pub fn atomic(&self) -> Atomic {
        // SAFETY: as in `rdma`.
        let atomic = unsafe { self.raw().wr.atomic };
        Atomic {
            remote_addr: atomic.remote_addr,
            compare_add: atomic.compare_add,
            swap: atomic.swap,
            rkey: atomic.rkey,
        }
    }

    /// Destination of a datagram.
    #[inline]
    #[must_use]
    pub fn ud(&self) -> Ud {
        // SAFETY: as in `rdma`; a raw pointer may hold any value.
        let ibv_send_wr_ud { ah, remote_qpn, remote_qkey } = unsafe { self.raw().wr.ud };
        Ud { ah, remote_qpn, remote_qkey }
    }

    /// The XRC receiver's SRQ number.
    #[inline]
    #[must_use]
    pub fn remote_srqn(&self) -> u32 {
        self.raw().qp_type.remote_srqn
    }

    /// The window to bind.
    #[inline]
    #[must_use]
    pub fn bind_mw(&self) -> BindMw {
        // SAFETY: as in `rdma`; raw pointers may hold any value.
        let ibv_send_wr_bind_mw { mw, rkey, bind_info } = unsafe { self.raw().tail.bind_mw };
        BindMw { mw, rkey, bind_info }
    }

    /// The headers and the segment size of an `IBV_WR_TSO`.
    #[inline]
    #[must_use]
    pub fn tso(&self) -> Tso<'a> {
        // SAFETY: as in `rdma`.
        let ibv_send_wr_tso { hdr, hdr_sz, mss } = unsafe { self.raw().tail.tso };
        let len = if self.opcode() == super::public::IBV_WR_TSO { usize::from(hdr_sz) } else { 0 };
        // SAFETY: with this opcode the caller of `ibv_post_send` vouches for `hdr_sz` bytes at `hdr`; otherwise none.
        let hdr = unsafe { UserBytes::new(hdr.cast_const().cast(), len) };
        Tso { hdr, mss }
    }

    /// The entry of the scatter/gather list, where there is exactly one.
    #[inline(always)]
    #[must_use]
    pub fn only_sge(&self) -> Option<&'a ibv_sge> {
        let raw = self.raw();
        if raw.num_sge != 1 {
            return None;
        }
        // SAFETY: W1, W2 and the contract of `ibv_post_send`: an entry at `sg_list`.
        unsafe { raw.sg_list.as_ref() }
    }

    /// The entries of the scatter/gather list, where there are two.
    #[inline(always)]
    #[must_use]
    pub fn two_sges(&self) -> Option<&'a [ibv_sge; 2]> {
        let raw = self.raw();
        if raw.num_sge != 2 {
            return None;
        }
        // SAFETY: W1, W2 and the contract of `ibv_post_send`: two entries at `sg_list`.
        unsafe { raw.sg_list.cast::<[ibv_sge; 2]>().as_ref() }
    }

    /// The scatter/gather list.
    ///
    /// # Errors
    /// `EINVAL` when `num_sge` is negative, or positive with a NULL list.
    #[inline]
    pub fn sges(&self) -> Result<&'a [ibv_sge], Errno> {
        let raw = self.raw();
        // SAFETY: W1, W2 and the contract of `ibv_post_send`: `num_sge` entries at `sg_list`.
        unsafe { sge_list(raw.sg_list, raw.num_sge) }
    }

    /// The bytes of each entry of `sges`, which are this request's own; none without `IBV_SEND_INLINE`.
    #[inline(always)]
    pub fn inline_pieces(&self, sges: &'a [ibv_sge]) -> impl Iterator<Item = UserBytes<'a>> + use<'a> {
        let sges = if self.send_flags() & IBV_SEND_INLINE == 0 { &[] } else { sges };
        sges.iter().map(inline_piece)
    }

    /// The bytes of `sge`, which is one of this request's; `None` without `IBV_SEND_INLINE`.
    #[inline(always)]
    #[must_use]
    pub fn inline_piece(&self, sge: &'a ibv_sge) -> Option<UserBytes<'a>> {
        (self.send_flags() & IBV_SEND_INLINE != 0).then(|| inline_piece(sge))
    }

    /// The bytes to copy into the queue, entry by entry; `None` without `IBV_SEND_INLINE`.
    ///
    /// # Errors
    /// Those of [`Self::sges`].
    #[inline]
    pub fn inline_data(&self) -> Result<Option<InlineData<'a>>, Errno> {
        if self.send_flags() & IBV_SEND_INLINE == 0 {
            return Ok(None);
        }
        Ok(Some(InlineData { source: Source::Sges(self.sges()?) }))
    }
}

/// A list of receive work requests, from its first.
#[derive(Clone, Debug)]
pub struct RecvWrs<'a> {
    next: *mut ibv_recv_wr,
    list: PhantomData<&'a ibv_recv_wr>,
}

impl<'a> RecvWrs<'a> {
    /// The list beginning at `wr`; NULL is the empty list.
    ///
    /// # Safety
    /// The contract of `ibv_post_recv(3)` for `wr`: each request reached through `next` and its `sg_list` of `num_sge`
    /// entries are readable and unchanged during `'a`.
    #[inline]
    #[must_use]
    pub unsafe fn from_ptr(wr: *mut ibv_recv_wr) -> RecvWrs<'a> {
        RecvWrs { next: wr, list: PhantomData }
    }

    /// The next request, for `bad_wr`; NULL at the end.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_recv_wr {
        self.next
    }

    /// The request, where there is exactly one.
    #[inline(always)]
    #[must_use]
    pub fn only(&self) -> Option<RecvWr<'a>> {
        let wr = RecvWr { ptr: NonNull::new(self.next)?, list: PhantomData };
        wr.raw().next.is_null().then_some(wr)
    }
}

impl<'a> Iterator for RecvWrs<'a> {
    type Item = RecvWr<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecvWr<'a>> {
        let ptr = NonNull::new(self.next)?;
        let wr = RecvWr { ptr, list: PhantomData };
        self.next = wr.raw().next;
        Some(wr)
    }
}

/// One receive work request.
#[derive(Clone, Copy, Debug)]
pub struct RecvWr<'a> {
    ptr: NonNull<ibv_recv_wr>,
    list: PhantomData<&'a ibv_recv_wr>,
}

impl<'a> RecvWr<'a> {
    #[inline]
    fn raw(&self) -> &'a ibv_recv_wr {
        // SAFETY: W1, W2.
        unsafe { self.ptr.as_ref() }
    }

    /// For `bad_wr`.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut ibv_recv_wr {
        self.ptr.as_ptr()
    }

    /// The application's word for this request.
    #[inline]
    #[must_use]
    pub fn wr_id(&self) -> u64 {
        self.raw().wr_id
    }

    /// The entry of the scatter/gather list, where there is exactly one.
    #[inline(always)]
    #[must_use]
    pub fn only_sge(&self) -> Option<&'a ibv_sge> {
        let raw = self.raw();
        if raw.num_sge != 1 {
            return None;
        }
        // SAFETY: W1, W2 and the contract of `ibv_post_recv`: an entry at `sg_list`.
        unsafe { raw.sg_list.as_ref() }
    }

    /// The scatter/gather list.
    ///
    /// # Errors
    /// `EINVAL` when `num_sge` is negative, or positive with a NULL list.
    #[inline]
    pub fn sges(&self) -> Result<&'a [ibv_sge], Errno> {
        let raw = self.raw();
        // SAFETY: W1, W2 and the contract of `ibv_post_recv`: `num_sge` entries at `sg_list`.
        unsafe { sge_list(raw.sg_list, raw.num_sge) }
    }
}

/// The entries of a C scatter/gather list.
///
/// # Errors
/// `EINVAL` when `num_sge` is negative, or positive with a NULL list.
///
/// # Safety
/// A `list` that is not NULL holds `num_sge` readable entries, unchanged during `'a`.
#[inline]
pub unsafe fn sge_list<'a>(list: *const ibv_sge, num_sge: i32) -> Result<&'a [ibv_sge], Errno> {
    // Within the WR's own count: a list longer than memory cannot be had for an `i32` of 16-byte entries.
    match usize::try_from(num_sge) {
        Ok(0) => Ok(&[]),
        Ok(_) if list.is_null() => Err(Errno::EINVAL),
        // SAFETY: the caller's promise; 2^31 entries of 16 bytes stay below `isize::MAX`.
        Ok(count) => Ok(unsafe { core::slice::from_raw_parts(list, count) }),
        Err(_) => Err(Errno::EINVAL),
    }
}

/// Bytes in the application's memory that may be read once, by copying them out.
///
/// Never a `&[u8]`: the application may have other threads at those bytes, and may share them with a device.
///
/// * `U1`: `len` bytes at `ptr` are readable during `'a`; with `len` 0 `ptr` may be anything.
#[derive(Clone, Copy, Debug)]
pub struct UserBytes<'a> {
    ptr: *const u8,
    len: usize,
    owner: PhantomData<&'a u8>,
}

impl<'a> UserBytes<'a> {
    /// `len` bytes at `ptr`.
    ///
    /// # Safety
    /// `U1`.
    #[inline]
    #[must_use]
    pub const unsafe fn new(ptr: *const u8, len: usize) -> UserBytes<'a> {
        UserBytes { ptr, len, owner: PhantomData }
    }

    /// Bytes of our own, for callers that have them in hand.
    #[inline]
    #[must_use]
    pub const fn from_slice(bytes: &'a [u8]) -> UserBytes<'a> {
        UserBytes { ptr: bytes.as_ptr(), len: bytes.len(), owner: PhantomData }
    }

    /// How many.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where they are.
    #[inline(always)]
    #[must_use]
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `mid` bytes, and the rest; all and none when there are not that many.
    #[inline]
    #[must_use]
    pub fn split_at(self, mid: usize) -> (UserBytes<'a>, UserBytes<'a>) {
        let mid = mid.min(self.len);
        // Wrapping, for a `ptr` that may be anything when `len` is 0.
        let rest = UserBytes { ptr: self.ptr.wrapping_add(mid), len: self.len - mid, owner: PhantomData };
        (UserBytes { len: mid, ..self }, rest)
    }

    /// Writes the 4 bytes of `head`, in memory order, to `dst`, and behind them all of these bytes: by words of 8 where `dst`
    /// has them, the last one filled up with zeros. A reader of such words then finds each in one store, where bytes copied as they
    /// lie would leave every word to two of them, which a CPU does not forward to a load.
    ///
    /// # Safety
    /// `dst` is aligned to 8 and writable for `4 + len` bytes, rounded up to 8, and does not overlap these bytes.
    #[inline(always)]
    pub unsafe fn copy_headed(self, head: u32, dst: NonNull<u64>) {
        let UserBytes { ptr, len, .. } = self;
        let put = |word: usize, value: u64| {
            // SAFETY: the caller's word: each `word` below is one of those that hold the bytes.
            let at = unsafe { dst.add(word) };
            // SAFETY: as above.
            unsafe { at.write(value) };
        };
        /// The `T` at byte `at`.
        ///
        /// # Safety
        /// All of it is readable.
        #[inline(always)]
        unsafe fn read<T>(ptr: *const u8, at: usize) -> T {
            // SAFETY: the caller's word.
            let from = unsafe { ptr.add(at) };
            // SAFETY: as above; it needs no alignment, and T is a number.
            unsafe { from.cast::<T>().read_unaligned() }
        }
        // SAFETY: U1: only asked for 8 bytes that there are.
        let get = |at: usize| u64::from_le(unsafe { read(ptr, at) });
        let head = u64::from(u32::from_le(head));
        if len < 8 {
            let data = if len >= 4 {
                // SAFETY: U1: the first 4 and the last 4, which may overlap.
                let [low, high] = [0, len - 4].map(|at| u64::from(u32::from_le(unsafe { read(ptr, at) })));
                low | high << (8 * (len - 4))
            } else if len != 0 {
                // The first, the middle and the last, which may be one.
                let one = |at: usize| {
                    // SAFETY: U1: below `len`.
                    let byte: u8 = unsafe { read(ptr, at) };
                    u64::from(byte) << (8 * at)
                };
                one(0) | one(len / 2) | one(len - 1)
            } else {
                0
            };
            put(0, (head | data << 32).to_le());
            if len > 4 {
                put(1, (data >> 32).to_le());
            }
            return;
        }
        put(0, (head | get(0) << 32).to_le());
        if len <= 12 {
            put(1, (get(len - 8) >> (8 * (12 - len))).to_le());
            return;
        }
        // Word n holds the data from byte 8 * n - 4 on.
        put(1, get(4).to_le());
        let mut at = 12;
        while at + 16 <= len {
            leave_rolled();
            put((at + 4) / 8, get(at).to_le());
            put((at + 4) / 8 + 1, get(at + 8).to_le());
            at += 16;
        }
        if at + 8 <= len {
            put((at + 4) / 8, get(at).to_le());
            at += 8;
        }
        if at < len {
            // The last bytes, without one behind them: the end of 8 that there are.
            put((at + 4) / 8, (get(len - 8) >> (8 * (8 - (len - at)))).to_le());
        }
    }

    /// What [`UserBytes::copy_headed`] writes of no more than 12 bytes, as two words, the unused end of which is 0; `None` of more.
    #[inline(always)]
    #[must_use]
    pub fn short_headed(self, head: u32) -> Option<[u64; 2]> {
        if self.len > 12 {
            return None;
        }
        let mut words = [0; 2];
        // SAFETY: room for 16 bytes, of our own.
        unsafe { self.copy_headed(head, NonNull::from(&mut words).cast()) };
        Some(words)
    }

    /// Gives what [`UserBytes::copy_headed`] writes to `put`, by units of 16 bytes and their number, the unused end of the last 0. False of
    /// no more than 12 bytes, for which there is [`UserBytes::short_headed`].
    #[inline(always)]
    pub fn each_headed(self, head: u32, mut put: impl FnMut(u32, [u64; 2])) -> bool {
        let UserBytes { ptr, len, .. } = self;
        if len <= 12 {
            return false;
        }
        let get = |at: usize| {
            // SAFETY: U1: only asked for 8 bytes that there are.
            let from = unsafe { ptr.add(at) };
            // SAFETY: as above; it needs no alignment.
            u64::from_le(unsafe { from.cast::<u64>().read_unaligned() })
        };
        // The last `count` bytes, 8 at most, of which more than 12 there are.
        let last = |count: usize| (get(len - 8) >> (8 * (8 - count))).to_le();
        put(0, [(u64::from(u32::from_le(head)) | get(0) << 32).to_le(), get(4).to_le()]);
        let (mut at, mut unit) = (12, 1);
        while at + 16 <= len {
            leave_rolled();
            put(unit, [get(at).to_le(), get(at + 8).to_le()]);
            (at, unit) = (at + 16, unit + 1);
        }
        match len - at {
            0 => {}
            rest @ ..=8 => put(unit, [last(rest), 0]),
            rest => put(unit, [get(at).to_le(), last(rest - 8)]),
        }
        true
    }

    /// Copies all of them to `dst`.
    ///
    /// # Safety
    /// `dst` is writable for [`Self::len`] bytes and does not overlap them.
    #[inline]
    pub unsafe fn copy_to(self, dst: *mut u8) {
        if self.len != 0 {
            // SAFETY: U1, and the caller's promise for `dst`.
            unsafe { core::ptr::copy_nonoverlapping(self.ptr, dst, self.len) };
        }
    }
}

/// Keeps a loop that takes two or three turns from being unrolled for many: 14 instructions of 282, of a post of 64 bytes.
#[inline(always)]
fn leave_rolled() {
    // SAFETY: no instruction. The compiler does not unroll what might be a call.
    unsafe { core::arch::asm!("", options(nomem, nostack, preserves_flags)) };
}

/// The bytes that an entry of an inline request names.
#[inline(always)]
fn inline_piece(sge: &ibv_sge) -> UserBytes<'_> {
    // An address comes as an integer from C: the application's memory, exposed to us by the call.
    let ptr = core::ptr::with_exposed_provenance(sge.addr as usize);
    // SAFETY: with IBV_SEND_INLINE the caller of `ibv_post_send` vouches for the bytes of each entry.
    unsafe { UserBytes::new(ptr, sge.length as usize) }
}

/// The pieces of an inline message, in order.
#[derive(Clone, Copy, Debug)]
pub struct InlineData<'a> {
    source: Source<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Sges(&'a [ibv_sge]),
    One(UserBytes<'a>),
    Bufs(&'a [ibv_data_buf]),
}

impl<'a> InlineData<'a> {
    /// One piece, as of `ibv_wr_set_inline_data`.
    #[inline]
    #[must_use]
    pub fn one(bytes: UserBytes<'a>) -> InlineData<'a> {
        InlineData { source: Source::One(bytes) }
    }

    /// The pieces of an `ibv_wr_set_inline_data_list`.
    ///
    /// # Errors
    /// `EINVAL` for a NULL `list` with a `count`, or a count no list can have.
    ///
    /// # Safety
    /// `list` holds `count` entries, and each names readable bytes, all unchanged during `'a`.
    #[inline]
    pub unsafe fn from_bufs(list: *const ibv_data_buf, count: usize) -> Result<InlineData<'a>, Errno> {
        let bufs = match count {
            0 => &[],
            _ if list.is_null() || count > isize::MAX as usize / size_of::<ibv_data_buf>() => {
                return Err(Errno::EINVAL);
            }
            // SAFETY: the caller's promise; the size stays within `isize::MAX`.
            _ => unsafe { core::slice::from_raw_parts(list, count) },
        };
        Ok(InlineData { source: Source::Bufs(bufs) })
    }

    /// The only piece, where there is one by its making; cheaper than to walk.
    #[inline(always)]
    #[must_use]
    pub fn only(&self) -> Option<UserBytes<'a>> {
        match self.source {
            Source::One(bytes) => Some(bytes),
            Source::Sges([sge]) => Some(inline_piece(sge)),
            _ => None,
        }
    }

    /// The pieces, in order.
    #[inline(always)]
    pub fn pieces(&self) -> impl Iterator<Item = UserBytes<'a>> + use<'a> {
        let (sges, one, bufs): (&'a [ibv_sge], Option<UserBytes<'a>>, &'a [ibv_data_buf]) = match self.source
        {
            Source::Sges(sges) => (sges, None, &[]),
            Source::One(bytes) => (&[], Some(bytes), &[]),
            Source::Bufs(bufs) => (&[], None, bufs),
        };
        let sges = sges.iter().map(inline_piece);
        let bufs = bufs.iter().map(|buf| {
            // SAFETY: the promise given to `from_bufs`.
            unsafe { UserBytes::new(buf.addr.cast_const().cast(), buf.length) }
        });
        sges.chain(one).chain(bufs)
    }

    /// The sum of all lengths, saturating.
    #[inline(always)]
    #[must_use]
    pub fn len(&self) -> usize {
        match self.source {
            // At most 2^31 entries below 2^32 bytes: no overflow in 64 bits.
            Source::Sges(sges) => sges.iter().map(|sge| sge.length as usize).sum(),
            Source::One(bytes) => bytes.len(),
            Source::Bufs(bufs) => bufs.iter().fold(0, |sum, buf| usize::saturating_add(sum, buf.length)),
        }
    }

    /// Whether no byte is to be sent.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::public::{IBV_WR_SEND, IBV_WR_TSO, ibv_send_wr_rdma};

    fn sends(first: &mut ibv_send_wr) -> SendWrs<'_> {
        // SAFETY: the tests build valid lists that outlive the views.
        unsafe { SendWrs::from_ptr(first) }
    }

    #[test]
    fn a_list_is_walked_to_its_end_and_null_is_empty() {
        let mut second = ibv_send_wr { wr_id: 2, ..ibv_send_wr::zeroed() };
        let mut first = ibv_send_wr { wr_id: 1, next: &raw mut second, ..ibv_send_wr::zeroed() };
        let ids: Vec<u64> = sends(&mut first).map(|wr| wr.wr_id()).collect();
        assert_eq!(ids, [1, 2]);
        assert_eq!(sends(&mut first).nth(1).unwrap().as_ptr(), &raw mut second);
        // SAFETY: NULL is the empty list.
        assert_eq!(unsafe { SendWrs::from_ptr(core::ptr::null_mut()) }.count(), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { RecvWrs::from_ptr(core::ptr::null_mut()) }.count(), 0);
    }

    #[test]
    fn a_list_that_cannot_be_is_einval() {
        let mut sge = [ibv_sge { addr: 1, length: 2, lkey: 3 }; 2];
        let mut wr = ibv_send_wr { num_sge: -1, sg_list: sge.as_mut_ptr(), ..ibv_send_wr::zeroed() };
        let sges = |wr: &mut ibv_send_wr| sends(wr).next().unwrap().sges().map(<[ibv_sge]>::len);
        assert_eq!(sges(&mut wr), Err(Errno::EINVAL));
        wr.num_sge = 2;
        assert_eq!(sges(&mut wr), Ok(2));
        wr.sg_list = core::ptr::null_mut();
        assert_eq!(sges(&mut wr), Err(Errno::EINVAL));
        wr.num_sge = 0;
        assert_eq!(sges(&mut wr), Ok(0));
    }

    #[test]
    fn receive_requests_are_walked_alike() {
        let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
        let mut second = ibv_recv_wr { wr_id: 8, num_sge: 1, ..ibv_recv_wr::zeroed() };
        let mut first = ibv_recv_wr { wr_id: 7, next: &raw mut second, sg_list: &raw mut sge, num_sge: 1 };
        // SAFETY: a valid list of two.
        let mut list = unsafe { RecvWrs::from_ptr(&raw mut first) };
        let wr = list.next().unwrap();
        assert_eq!((wr.wr_id(), wr.as_ptr(), wr.sges()), (7, &raw mut first, Ok(&[sge][..])));
        assert_eq!(list.next().unwrap().sges(), Err(Errno::EINVAL));
        assert!(list.next().is_none());
    }

    #[test]
    fn operands_come_from_where_the_header_puts_them() {
        let mut wr = ibv_send_wr { opcode: IBV_WR_SEND, imm_data: 0x0102_0304, ..ibv_send_wr::zeroed() };
        wr.wr.rdma = ibv_send_wr_rdma { remote_addr: 0x1122, rkey: 9 };
        let view = sends(&mut wr).next().unwrap();
        assert_eq!(view.rdma(), Rdma { remote_addr: 0x1122, rkey: 9 });
        assert_eq!((view.imm_data(), view.invalidate_rkey()), (0x0102_0304, 0x0102_0304));
        assert_eq!(view.atomic().remote_addr, 0x1122);
        // Not a TSO request: whatever stands there names no header bytes.
        wr.tail.tso.hdr_sz = 40;
        assert!(sends(&mut wr).next().unwrap().tso().hdr.is_empty());
        wr.opcode = IBV_WR_TSO;
        assert_eq!(sends(&mut wr).next().unwrap().tso().hdr.len(), 40);
    }

    #[test]
    fn inline_bytes_are_only_for_inline_requests_and_come_in_order() {
        let (left, right) = (*b"hold", *b"fast!");
        let mut sge = [
            ibv_sge { addr: left.as_ptr().expose_provenance() as u64, length: 4, lkey: 0 },
            ibv_sge { addr: 1, length: 0, lkey: 0 },
            ibv_sge { addr: right.as_ptr().expose_provenance() as u64, length: 5, lkey: 0 },
        ];
        let mut wr = ibv_send_wr { num_sge: 3, sg_list: sge.as_mut_ptr(), ..ibv_send_wr::zeroed() };
        assert!(sends(&mut wr).next().unwrap().inline_data().unwrap().is_none());
        wr.send_flags = IBV_SEND_INLINE;
        let data = sends(&mut wr).next().unwrap().inline_data().unwrap().unwrap();
        assert_eq!((data.len(), data.is_empty()), (9, false));
        assert_eq!(gather(&data), b"holdfast!");

        let bufs = [
            ibv_data_buf { addr: left.as_ptr().cast_mut().cast(), length: 4 },
            ibv_data_buf { addr: right.as_ptr().cast_mut().cast(), length: 4 },
        ];
        // SAFETY: two valid entries.
        let data = unsafe { InlineData::from_bufs(bufs.as_ptr(), 2) }.unwrap();
        assert_eq!(gather(&data), b"holdfast");
        // SAFETY: refused before anything is read.
        let null = unsafe { InlineData::from_bufs(core::ptr::null(), 2) };
        assert_eq!(null.map(|data| data.len()), Err(Errno::EINVAL));
        assert_eq!(gather(&InlineData::one(UserBytes::from_slice(b"x"))), b"x");
    }

    #[test]
    fn a_split_never_reaches_past_the_end() {
        let bytes = UserBytes::from_slice(b"abc");
        let (head, tail) = bytes.split_at(2);
        assert_eq!(
            (gather(&InlineData::one(head)), gather(&InlineData::one(tail))),
            (b"ab".to_vec(), b"c".to_vec())
        );
        let (head, tail) = bytes.split_at(9);
        assert_eq!((head.len(), tail.len()), (3, 0));
    }

    #[test]
    fn bytes_behind_a_head_are_those_and_then_zeros() {
        let bytes: Vec<u8> = (1..=70).collect();
        for len in 0..=bytes.len() {
            let mut words = [u64::MAX; 10];
            let dst = NonNull::new(words.as_mut_ptr()).unwrap();
            let from = UserBytes::from_slice(&bytes[..len]);
            // SAFETY: 80 bytes of our own; at most 74 are needed.
            unsafe { from.copy_headed(0x0403_0201_u32.to_le(), dst) };
            let all: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let end = (4 + len).next_multiple_of(8);
            assert_eq!((&all[..4], &all[4..4 + len]), (&[1, 2, 3, 4][..], &bytes[..len]), "{len}");
            assert!(all[4 + len..end].iter().all(|byte| *byte == 0), "{len}");
            assert!(all[end..].iter().all(|byte| *byte == 0xff), "{len}");
            let mut units = vec![];
            let more = from.each_headed(0x0403_0201_u32.to_le(), |unit, two| {
                assert_eq!(unit as usize * 16, units.len(), "{len}");
                units.extend(two.iter().flat_map(|word| word.to_ne_bytes()));
            });
            let short = from.short_headed(0x0403_0201_u32.to_le());
            assert_eq!((more, short.is_some()), (len > 12, len <= 12));
            units.extend(short.iter().flatten().flat_map(|word| word.to_ne_bytes()));
            assert_eq!((&units[..4 + len], units.len()), (&all[..4 + len], (4 + len).next_multiple_of(16)));
            assert!(units[4 + len..].iter().all(|byte| *byte == 0), "{len}");
        }
    }

    fn gather(data: &InlineData<'_>) -> Vec<u8> {
        let mut out = vec![0; data.len()];
        let mut at = 0;
        for piece in data.pieces() {
            assert!(at + piece.len() <= out.len());
            // SAFETY: within `out`, as just checked.
            let dst = unsafe { out.as_mut_ptr().add(at) };
            // SAFETY: `piece.len()` bytes of room, in a buffer of our own.
            unsafe { piece.copy_to(dst) };
            at += piece.len();
        }
        out
    }
}
