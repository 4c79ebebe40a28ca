//! Releases 34.x: 33 and one operation.

use super::v33;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    number: 34,
    releases: "34.x",
    absent: &[c"ibv_import_dm", c"ibv_query_qp_data_in_order"],
    ops: v33::LAYOUT.ops.with(&[Op::reg_dmabuf_mr]),
    ..Layout::after(&v33::LAYOUT)
};
