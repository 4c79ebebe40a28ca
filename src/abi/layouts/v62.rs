//! Releases 62.x and 63.x, still called 59: device memory is exported, port speeds are told.

use super::v59;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    releases: "62.x and 63.x",
    present: &[c"ibv_dm_export_dmabuf_fd"],
    verbs_context_size: 680,
    ops: v59::LAYOUT.ops.with(&[Op::dm_export_dmabuf_fd, Op::query_port_speed]),
    grown: &[(Op::dm_export_dmabuf_fd, -352)],
    ..Layout::after(&v59::LAYOUT)
};
