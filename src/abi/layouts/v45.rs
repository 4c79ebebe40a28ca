//! Releases 45.x to 56.x, still called 34: `ibv_qp_ex` got `wr_flush`.

use super::v44;
use crate::abi::layout::Layout;

pub(super) static LAYOUT: Layout = Layout {
    releases: "45.x to 56.x",
    present: &[c"ibv_import_dm", c"ibv_query_qp_data_in_order"],
    qp_ex_size: 360,
    ..Layout::after(&v44::LAYOUT)
};
