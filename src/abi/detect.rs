//! Which layout a libibverbs has, and whether it keeps it.
//!
//! Three steps, each weaker alone: the number, told by the one registration function a library exports; then, inside
//! a number, public functions that came with a layout, and the place of `verbs_qp.comp_mask`, which is asked for
//! (`ibv_qp_to_qp_ex` does nothing but read that word); and before a device is bound the self-check: on a scratch context
//! a table of markers is installed, and where they arrive must be where the layout says. A library that a vendor changed under an
//! upstream number fails there.
//!
//! This module decides; [`super::host`] asks the library.

use core::ffi::{CStr, c_void};
use core::fmt;

use super::layout::{LAYOUTS, Layout};
use super::layouts::NUMBERS;
use super::ops::Op;
use super::public::{PORT_ATTR_SIZE_MIN, ibv_port_attr};

/// What can be asked of a libibverbs without changing anything.
pub trait Probe {
    /// Whether the library itself exports `symbol`.
    fn has(&self, symbol: &CStr) -> bool;

    /// Where `verbs_qp.comp_mask` stands, as `ibv_qp_to_qp_ex` shows.
    fn comp_mask(&self) -> Option<usize>;
}

/// What a libibverbs was found to be.
#[derive(Clone, Copy, Debug)]
pub struct Detected {
    /// Its layout.
    pub layout: &'static Layout,
    /// The size of the `ibv_port_attr` it hands to `query_port`: no byte beyond may be written.
    pub port_attr_size: usize,
}

/// Why a libibverbs is not one that holdfast can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No registration function of a known number.
    Number,
    /// A known number with a layout that is not.
    Layout {
        /// The number.
        number: u32,
        /// Where `verbs_qp.comp_mask` was found.
        comp_mask: Option<usize>,
    },
    /// A function that a provider needs is not exported.
    Function {
        /// Its name.
        name: &'static str,
    },
    /// The layout says one thing, the scratch context another.
    SelfCheck {
        /// The layout that was to be.
        layout: &'static str,
        /// Its number.
        number: u32,
        /// What did not agree.
        what: Disagreement,
    },
    /// The scratch context could not be made.
    Scratch {
        /// The `errno` left behind.
        errno: crate::error::Errno,
    },
}

/// What a scratch context showed that its layout does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// `sizeof(struct verbs_context)`.
    ContextSize {
        /// By the library.
        found: usize,
        /// By the layout.
        expected: usize,
    },
    /// The number of operations.
    Operations {
        /// By the library.
        found: usize,
        /// By the layout.
        expected: usize,
    },
    /// The place of an operation in the table.
    Place {
        /// Which.
        op: Op,
        /// By the library; `None` when something else stands where it is mirrored.
        found: Option<usize>,
        /// By the layout.
        expected: usize,
    },
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disagreement::ContextSize { found, expected } => {
                write!(f, "its verbs_context has {found} bytes instead of {expected}")
            }
            Disagreement::Operations { found, expected } => {
                write!(f, "it has {found} operations instead of {expected}")
            }
            Disagreement::Place { op, found: Some(found), expected } => {
                write!(f, "operation {} is number {found} instead of {expected}", op.name())
            }
            Disagreement::Place { op, found: None, expected } => {
                write!(f, "operation {} is not number {expected}", op.name())
            }
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::Number => write!(f, "it registers no provider of a known private ABI"),
            Unknown::Layout { number, comp_mask: Some(at) } => {
                write!(f, "private ABI {number}, but with an unknown layout (verbs_qp.comp_mask at {at})")
            }
            Unknown::Layout { number, comp_mask: None } => {
                write!(f, "private ABI {number}, but with an unknown layout (verbs_qp.comp_mask not found)")
            }
            Unknown::Function { name } => write!(f, "it does not export {name}"),
            Unknown::SelfCheck { layout, number, what } => {
                write!(f, "private ABI {number} as of rdma-core {layout}, but {what}: a changed build")
            }
            Unknown::Scratch { errno } => write!(f, "no scratch context could be made in it: {errno}"),
        }
    }
}

impl core::error::Error for Unknown {}

/// The private ABI numbers that are supported, for messages.
#[must_use]
pub fn supported() -> String {
    let numbers: Vec<String> = NUMBERS.iter().map(|(number, _)| number.to_string()).collect();
    numbers.join(", ")
}

/// The private ABI number of a library.
#[must_use]
pub fn number(probe: &impl Probe) -> Option<u32> {
    NUMBERS.iter().find(|(_, symbol)| probe.has(symbol)).map(|(number, _)| *number)
}

/// The layout of a library.
///
/// # Errors
/// [`Unknown::Number`] and [`Unknown::Layout`].
pub fn detect(probe: &impl Probe) -> Result<Detected, Unknown> {
    let number = number(probe).ok_or(Unknown::Number)?;
    let comp_mask = probe.comp_mask();
    let layout = LAYOUTS
        .iter()
        .find(|layout| {
            layout.number == number
                && comp_mask == Some(layout.comp_mask())
                && layout.present.iter().all(|symbol| probe.has(symbol))
                && !layout.absent.iter().any(|symbol| probe.has(symbol))
        })
        .ok_or(Unknown::Layout { number, comp_mask })?;
    // Came with 49.0, together with the last field of `ibv_port_attr`.
    let grown = number > 34 || probe.has(c"ibv_wr_opcode_str");
    let port_attr_size = if grown { size_of::<ibv_port_attr>() } else { PORT_ATTR_SIZE_MIN };
    Ok(Detected { layout, port_attr_size })
}

/// What a scratch context showed after [`markers`] were installed.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// `verbs_context.sz`.
    pub sz: usize,
    /// How many markers the private table holds, counted from its beginning.
    pub operations: usize,
    /// For each mirrored operation the word found there.
    pub mirrors: Vec<(Op, *const c_void)>,
}

/// More words than any libibverbs has operations.
pub const MARKERS: usize = 256;

/// The first marker; a page that nobody maps.
const FIRST_MARKER: usize = 0x10;

/// A table of [`MARKERS`] distinct words that are no functions.
#[must_use]
pub fn markers() -> Box<[*const c_void]> {
    (0..MARKERS).map(|at| core::ptr::without_provenance(FIRST_MARKER + at)).collect()
}

/// The place of a marker in the table, if it is one.
#[must_use]
pub fn marker_index(word: *const c_void) -> Option<usize> {
    word.addr().checked_sub(FIRST_MARKER).filter(|at| *at < MARKERS)
}

/// Whether a scratch context is as `layout` says.
///
/// # Errors
/// [`Unknown::SelfCheck`] with the first thing that does not agree.
pub fn check(layout: &'static Layout, scratch: &Scratch) -> Result<(), Unknown> {
    let disagree = |what| Err(Unknown::SelfCheck { layout: layout.releases, number: layout.number, what });
    if scratch.sz != layout.verbs_context_size {
        return disagree(Disagreement::ContextSize {
            found: scratch.sz,
            expected: layout.verbs_context_size,
        });
    }
    if scratch.operations != layout.ops.len() {
        return disagree(Disagreement::Operations { found: scratch.operations, expected: layout.ops.len() });
    }
    for (op, word) in &scratch.mirrors {
        let Some(expected) = layout.op_index(*op) else { continue };
        let found = marker_index(*word);
        if found != Some(expected) {
            return disagree(Disagreement::Place { op: *op, found, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Vec<&'static CStr>, Option<usize>);

    impl Probe for Fake {
        fn has(&self, symbol: &CStr) -> bool {
            self.0.contains(&symbol)
        }
        fn comp_mask(&self) -> Option<usize> {
            self.1
        }
    }

    const DM: &CStr = c"ibv_import_dm";
    const ORDER: &CStr = c"ibv_query_qp_data_in_order";
    const EXPORT: &CStr = c"ibv_dm_export_dmabuf_fd";
    const STR: &CStr = c"ibv_wr_opcode_str";
    const R34: &CStr = c"verbs_register_driver_34";
    const R59: &CStr = c"verbs_register_driver_59";

    #[test]
    fn each_release_is_recognised() {
        for (symbols, comp_mask, number, releases, port) in [
            (vec![c"verbs_register_driver_33"], 344, 33, "33.x", 52),
            (vec![R34], 344, 34, "34.x", 52),
            (vec![R34, DM], 344, 34, "35.x", 52),
            (vec![R34, DM, ORDER], 344, 34, "36.x to 43.x", 52),
            (vec![R34, DM, ORDER], 352, 34, "44.x", 52),
            (vec![R34, DM, ORDER], 360, 34, "45.x to 56.x", 52),
            (vec![R34, DM, ORDER, STR], 360, 34, "45.x to 56.x", 56),
            (vec![c"verbs_register_driver_57", DM, ORDER, STR], 360, 57, "57.x and 58.x", 56),
            (vec![R59, DM, ORDER, STR], 360, 59, "59.x to 61.x", 56),
            (vec![R59, DM, ORDER, STR, EXPORT], 360, 59, "62.x and 63.x", 56),
            (vec![c"verbs_register_driver_64", DM, ORDER, STR, EXPORT], 360, 64, "64.x", 56),
            (vec![c"verbs_register_driver_65", DM, ORDER, STR, EXPORT], 360, 65, "65.x", 56),
        ] {
            let found = detect(&Fake(symbols, Some(comp_mask))).unwrap();
            let got = (found.layout.number, found.layout.releases, found.port_attr_size);
            assert_eq!(got, (number, releases, port));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_and_named() {
        let refused = |symbols, comp_mask| detect(&Fake(symbols, comp_mask)).unwrap_err();
        let text = refused(vec![c"verbs_register_driver_66", DM], Some(360)).to_string();
        assert!(text.contains("no provider of a known private ABI"), "{text}");
        assert_eq!(refused(vec![R34], Some(352)), Unknown::Layout { number: 34, comp_mask: Some(352) });
        assert!(refused(vec![R34, DM, ORDER], Some(368)).to_string().contains("at 368"));
        assert_eq!(
            refused(vec![R34, ORDER], Some(344)),
            Unknown::Layout { number: 34, comp_mask: Some(344) }
        );
        let none = refused(vec![R59, EXPORT], None);
        assert!(none.to_string().contains("59") && none.to_string().contains("not found"), "{none}");
    }

    fn honest(layout: &'static Layout) -> Scratch {
        let words = markers();
        let word = |op| layout.op_index(op).map(|at| words[at]);
        Scratch {
            sz: layout.verbs_context_size,
            operations: layout.ops.len(),
            mirrors: layout.mirrors().filter_map(|(op, _)| Some((op, word(op)?))).collect(),
        }
    }

    #[test]
    fn an_honest_library_passes_and_no_other_layout_does() {
        for layout in LAYOUTS {
            let scratch = honest(layout);
            assert!(scratch.mirrors.len() > 60, "{layout}");
            assert_eq!(check(layout, &scratch), Ok(()));
            for other in LAYOUTS.iter().filter(|other| other.ops != layout.ops) {
                assert!(check(other, &scratch).is_err(), "a library of {layout} passes for {other}");
            }
        }
    }

    #[test]
    fn a_changed_build_under_an_upstream_number_is_told() {
        let layout = LAYOUTS[4];
        let told = |change: &dyn Fn(&mut Scratch)| {
            let mut scratch = honest(layout);
            change(&mut scratch);
            check(layout, &scratch).unwrap_err().to_string()
        };
        assert!(told(&|scratch| scratch.sz += 8).contains("656 bytes instead of 648"));
        assert!(told(&|scratch| scratch.operations += 1).contains("77 operations instead of 76"));
        // One operation of the vendor's in place of one of upstream's: the count holds, the places do not.
        let moved = told(&|scratch| {
            for (_, word) in scratch.mirrors.iter_mut().skip(20) {
                *word = word.wrapping_byte_add(1);
            }
        });
        assert!(moved.contains("instead of") && moved.contains("operation"), "{moved}");
        let garbage = told(&|scratch| scratch.mirrors[3].1 = core::ptr::without_provenance(0x7000_0000));
        assert!(garbage.contains("is not number"), "{garbage}");
    }

    #[test]
    fn markers_are_distinct_and_never_null() {
        let words = markers();
        assert!(
            words.iter().enumerate().all(|(at, word)| marker_index(*word) == Some(at) && !word.is_null())
        );
        assert_eq!(marker_index(core::ptr::null()), None);
        assert_eq!(marker_index(core::ptr::without_provenance(FIRST_MARKER + MARKERS)), None);
    }
}
