//! Releases 64.x: buffers of the provider.

use super::v62;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    number: 64,
    releases: "64.x",
    verbs_context_size: 696,
    ops: v62::LAYOUT.ops.with(&[Op::alloc_buf, Op::free_buf]),
    grown: &[(Op::alloc_buf, -360), (Op::free_buf, -368)],
    ..Layout::after(&v62::LAYOUT)
};
