//! Releases 44.x, still called 34: `ibv_qp_ex` got `wr_atomic_write`.

use super::v36;
use crate::abi::layout::Layout;

pub(super) static LAYOUT: Layout = Layout {
    releases: "44.x",
    present: &[c"ibv_import_dm", c"ibv_query_qp_data_in_order"],
    qp_ex_size: 352,
    ..Layout::after(&v36::LAYOUT)
};
