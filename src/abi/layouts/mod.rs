//! The layouts, one file each; a new number is one file and one line here.

use core::ffi::CStr;

use super::layout::Layout;

/// Hands each private ABI number, its registration function and its layouts, oldest first, to the macro `$then`.
macro_rules! supported {
    ($then:ident) => {
        $then! {
            33 verbs_register_driver_33: v33;
            34 verbs_register_driver_34: v34 v35 v36 v44 v45;
            57 verbs_register_driver_57: v57;
            59 verbs_register_driver_59: v59 v62;
            64 verbs_register_driver_64: v64;
            65 verbs_register_driver_65: v65;
        }
    };
}
pub(crate) use supported;

macro_rules! declare {
    ($($number:literal $symbol:ident: $($layout:ident)+;)*) => {
        $($(mod $layout;)+)*

        /// Every layout, oldest first.
        pub static LAYOUTS: &[&Layout] = &[$($(&$layout::LAYOUT),+),*];

        /// Every private ABI number, oldest first, with its registration function.
        pub const NUMBERS: &[(u32, &CStr)] = &[$((
            $number,
            match CStr::from_bytes_with_nul(concat!(stringify!($symbol), "\0").as_bytes()) {
                Ok(symbol) => symbol,
                Err(_) => c"",
            },
        )),*];
    };
}
supported!(declare);

/// The registration function of `number`; empty for a number that is not supported.
#[must_use]
pub fn register_symbol(number: u32) -> &'static CStr {
    NUMBERS.iter().find(|(known, _)| *known == number).map_or(c"", |(_, symbol)| symbol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_own_symbol_and_at_least_one_layout() {
        for (number, symbol) in NUMBERS {
            assert_eq!(symbol.to_str(), Ok(&*format!("verbs_register_driver_{number}")));
            assert_eq!(register_symbol(*number), *symbol);
            assert!(LAYOUTS.iter().any(|layout| layout.number == *number), "{number}");
        }
        assert!(LAYOUTS.iter().all(|layout| !layout.register_symbol().is_empty()));
        assert!(LAYOUTS.is_sorted_by_key(|layout| layout.number));
        assert_eq!(register_symbol(66), c"");
    }

    #[test]
    fn each_layout_follows_the_one_before_it_in_the_list() {
        assert!(LAYOUTS[0].before.is_none());
        for pair in LAYOUTS.windows(2) {
            assert!(core::ptr::eq(pair[1].before.unwrap(), pair[0]), "{}", pair[1]);
        }
    }
}
