//! Releases 59.x to 61.x: DMA handles.

use super::v57;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    number: 59,
    releases: "59.x to 61.x",
    absent: &[c"ibv_dm_export_dmabuf_fd"],
    verbs_context_size: 672,
    ops: v57::LAYOUT.ops.with(&[Op::alloc_dmah, Op::dealloc_dmah, Op::reg_mr_ex]),
    grown: &[(Op::alloc_dmah, -328), (Op::dealloc_dmah, -336), (Op::reg_mr_ex, -344)],
    ..Layout::after(&v57::LAYOUT)
};
