//! Releases 35.x, still called 34: device memory is imported.

use super::v34;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    releases: "35.x",
    present: &[c"ibv_import_dm"],
    absent: &[c"ibv_query_qp_data_in_order"],
    ops: v34::LAYOUT.ops.with(&[Op::import_dm, Op::unimport_dm]),
    ..Layout::after(&v34::LAYOUT)
};
