//! The uAPI as we write it, against the C headers.

use super::{ids, rxe, wire};

/// Every struct we lay out.
fn layouts() -> impl Iterator<Item = &'static wire::Layout> {
    wire::LAYOUTS.iter().chain(rxe::LAYOUTS).chain(rxe::WR_LAYOUTS)
}

#[test]
fn fields_follow_each_other_to_the_end() {
    for layout in layouts() {
        let mut end = 0;
        for (name, offset, size) in layout.fields {
            assert_eq!(*offset, end, "{}.{name} {:?}", layout.name, layout.since);
            end += size;
        }
        assert_eq!(end, layout.size, "{}", layout.name);
        assert_eq!(layout.size % layout.align, 0, "{}", layout.name);
    }
}

#[test]
fn no_number_has_two_values() {
    let tables = [ids::OBJECTS, ids::METHODS, ids::ATTRS, ids::WRITE_CMDS];
    let mut seen = std::collections::HashMap::new();
    for number in tables.into_iter().flatten() {
        assert_eq!(*seen.entry(number.name).or_insert(number.value), number.value, "{}", number.name);
    }
}
