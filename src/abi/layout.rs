//! A layout: everything private that differs from one libibverbs to another, as data.
//!
//! The private ABI number does not fix the layout (34 has five, 59 has two). What does differ is little: which
//! operations exist, and so their places in the table; how far `verbs_context` has grown in front; and where
//! `verbs_qp.comp_mask` stands. All of it is here; which layout a library has is found by [`super::detect`]. Each layout
//! is one file under `layouts/` that says what changed from the one before, and `tests/abi_layouts.rs` holds them
//! against data read from the headers of each release.
//!
//! Constant in all of them, so not here but in [`super::public`]: the public structs, `verbs_device_ops`,
//! `verbs_device`, `verbs_match_ent`, `verbs_mr`, `verbs_srq`, and `verbs_sysfs_dev` up to `ibdev_idx`.

use core::ffi::{CStr, c_void};
use core::fmt;

use super::ops::{Op, Ops};
use super::public::{ibv_context, ibv_context_ops};

pub use super::layouts::LAYOUTS;

/// The operations a libibverbs has.
///
/// libibverbs keeps its table sorted by name, and so does [`Op`]: the place of an operation is the number of those
/// before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OpSet(u128);

const _: () = assert!(Op::ALL.len() <= 128);

impl OpSet {
    /// No operation.
    pub const EMPTY: OpSet = OpSet(0);

    const fn bit(op: Op) -> u128 {
        1 << op as u8
    }

    /// These and `ops`.
    #[must_use]
    pub const fn with(mut self, mut ops: &[Op]) -> OpSet {
        while let [op, rest @ ..] = ops {
            self.0 |= OpSet::bit(*op);
            ops = rest;
        }
        self
    }

    /// Whether `op` is one of them.
    #[must_use]
    pub const fn contains(self, op: Op) -> bool {
        self.0 & OpSet::bit(op) != 0
    }

    /// The place of `op` in the table.
    #[must_use]
    pub const fn index(self, op: Op) -> Option<usize> {
        if self.contains(op) { Some((self.0 & (OpSet::bit(op) - 1)).count_ones() as usize) } else { None }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// In the order of the table.
    pub fn iter(self) -> impl Iterator<Item = Op> {
        Op::ALL.iter().copied().filter(move |op| self.contains(*op))
    }
}

impl fmt::Debug for OpSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Op::name)).finish()
    }
}

/// One private ABI layout.
#[derive(Clone, Copy)]
pub struct Layout {
    /// The private ABI number: of the symbol version, the registration function and the plug-in's file name.
    pub number: u32,
    /// The rdma-core releases that have it, as users write them.
    pub releases: &'static str,
    /// Public functions its libraries have, and those of older layouts of the same number do not.
    pub present: &'static [&'static CStr],
    /// Public functions its libraries do not have yet, and those of newer layouts of the same number do.
    pub absent: &'static [&'static CStr],
    /// `sizeof(struct verbs_context)`. It grows in front: its end, the `ibv_context`, is where all else is counted from.
    pub verbs_context_size: usize,
    /// `sizeof(struct ibv_qp_ex)`, which is where `verbs_qp.comp_mask` stands.
    pub qp_ex_size: usize,
    /// The members of `struct verbs_context_ops`.
    pub ops: OpSet,
    /// Operations that `verbs_set_ops` also writes to the public part of the context, new in this layout: at which
    /// distance from the `ibv_context`. See [`Layout::mirrors`].
    pub grown: &'static [(Op, isize)],
    /// The layout before this one.
    pub before: Option<&'static Layout>,
}

impl Layout {
    /// Distance of `verbs_context.sz` from the `ibv_context`, in every layout.
    pub const SZ: isize = -8;
    /// Distance of `verbs_context.priv` from the `ibv_context`, in every layout.
    pub const PRIV: isize = -112;
    /// Where the table of operations begins in `*verbs_context.priv`, in every layout.
    pub const PRIV_OPS: usize = 24;

    /// What follows `before`, unchanged until said otherwise; how to recognise it is always said.
    #[must_use]
    pub const fn after(before: &'static Layout) -> Layout {
        Layout { present: &[], absent: &[], grown: &[], before: Some(before), ..*before }
    }

    /// The registration function, `verbs_register_driver_N`.
    #[must_use]
    pub fn register_symbol(&self) -> &'static CStr {
        super::layouts::register_symbol(self.number)
    }

    /// The place of `op` in the table of this libibverbs, if it has it.
    #[must_use]
    pub const fn op_index(&self, op: Op) -> Option<usize> {
        self.ops.index(op)
    }

    /// Where `verbs_qp.comp_mask` stands.
    #[must_use]
    pub const fn comp_mask(&self) -> usize {
        self.qp_ex_size
    }

    /// Whether this libibverbs has `wr_atomic_write` in its `ibv_qp_ex`; elsewhere that slot is `comp_mask`'s.
    #[must_use]
    pub const fn has_wr_atomic_write(&self) -> bool {
        self.qp_ex_size >= 352
    }

    /// Whether this libibverbs has `wr_flush` in its `ibv_qp_ex`; elsewhere that slot is `comp_mask`'s.
    #[must_use]
    pub const fn has_wr_flush(&self) -> bool {
        self.qp_ex_size >= 360
    }

    /// Distance of the `verbs_context` from the `ibv_context` that ends it, in bytes, downwards.
    #[must_use]
    pub const fn before_context(&self) -> usize {
        self.verbs_context_size - size_of::<ibv_context>()
    }

    /// The table `verbs_set_ops` of this libibverbs expects; operations that it does not have are left out.
    #[must_use]
    pub fn table(&self, ops: &Ops) -> OpTable {
        OpTable { layout: self.number, slots: self.ops.iter().map(|op| ops.address(op)).collect() }
    }

    /// Operations that `verbs_set_ops` writes not only to its private table: at which distance from the `ibv_context`
    /// they can be read back.
    pub fn mirrors(&self) -> impl Iterator<Item = (Op, isize)> {
        let chain = core::iter::successors(Some(self), |layout| layout.before);
        chain.flat_map(|layout| layout.grown).chain(CONTEXT_OPS).copied()
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rdma-core {})", self.number, self.releases)
    }
}

/// A table of operations for one libibverbs.
pub struct OpTable {
    layout: u32,
    slots: Box<[*const c_void]>,
}

impl OpTable {
    /// A table of any words, for the self-check.
    pub(super) fn of_markers(slots: Box<[*const c_void]>) -> OpTable {
        OpTable { layout: 0, slots }
    }

    /// The addresses, in the order of the library; NULL where nothing is implemented.
    #[must_use]
    pub fn slots(&self) -> &[*const c_void] {
        &self.slots
    }

    /// The private ABI number it was made for.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.layout
    }
}

macro_rules! context_ops {
    ($($op:ident $field:ident,)*) => {
        /// The mirrors in `ibv_context.ops`, the same in every layout.
        const CONTEXT_OPS: &[(Op, isize)] = &[$((
            Op::$op,
            (core::mem::offset_of!(ibv_context, ops) + core::mem::offset_of!(ibv_context_ops, $field)).cast_signed(),
        ),)*];
    };
}

context_ops! {
    alloc_mw alloc_mw,
    alloc_pd _compat_alloc_pd,
    async_event _compat_async_event,
    attach_mcast _compat_attach_mcast,
    bind_mw bind_mw,
    cq_event _compat_cq_event,
    create_ah _compat_create_ah,
    create_cq _compat_create_cq,
    create_qp _compat_create_qp,
    create_srq _compat_create_srq,
    dealloc_mw dealloc_mw,
    dealloc_pd _compat_dealloc_pd,
    dereg_mr _compat_dereg_mr,
    destroy_ah _compat_destroy_ah,
    destroy_cq _compat_destroy_cq,
    destroy_qp _compat_destroy_qp,
    destroy_srq _compat_destroy_srq,
    detach_mcast _compat_detach_mcast,
    modify_qp _compat_modify_qp,
    modify_srq _compat_modify_srq,
    poll_cq poll_cq,
    post_recv post_recv,
    post_send post_send,
    post_srq_recv post_srq_recv,
    query_qp _compat_query_qp,
    query_srq _compat_query_srq,
    reg_mr _compat_reg_mr,
    req_notify_cq req_notify_cq,
    rereg_mr _compat_rereg_mr,
    resize_cq _compat_resize_cq,
}
