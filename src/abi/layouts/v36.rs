//! Releases 36.x to 43.x, still called 34: one operation more. No function tells it from the two that follow; the place of
//! `verbs_qp.comp_mask` does.

use super::v35;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    releases: "36.x to 43.x",
    present: &[c"ibv_import_dm", c"ibv_query_qp_data_in_order"],
    ops: v35::LAYOUT.ops.with(&[Op::query_qp_data_in_order]),
    ..Layout::after(&v35::LAYOUT)
};
