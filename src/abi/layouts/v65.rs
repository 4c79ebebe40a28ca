//! Releases 65.x: completion counters.

use super::v64;
use crate::abi::layout::Layout;
use crate::abi::ops::Op;

pub(super) static LAYOUT: Layout = Layout {
    number: 65,
    releases: "65.x",
    ops: v64::LAYOUT.ops.with(&[Op::create_comp_cntr, Op::destroy_comp_cntr, Op::inc_comp_cntr, Op::inc_err_comp_cntr, Op::qp_attach_comp_cntr, Op::query_comp_cntr_caps, Op::read_comp_cntr, Op::read_err_comp_cntr, Op::set_comp_cntr, Op::set_err_comp_cntr]),
    ..Layout::after(&v64::LAYOUT)
};
