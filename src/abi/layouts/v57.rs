//! Releases 57.x and 58.x: another number, the same layout.

use super::v45;
use crate::abi::layout::Layout;

pub(super) static LAYOUT: Layout = Layout {
    number: 57,
    releases: "57.x and 58.x",
    ..Layout::after(&v45::LAYOUT)
};
