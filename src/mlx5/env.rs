//! The environment variables of libmlx5 that holdfast obeys, read once, when a context is opened.

use std::ffi::OsString;

use crate::error::{Errno, Error};

/// `MLX5_DEF_TOT_UUARS`.
const TOTAL_UUARS: i64 = 16;
/// Registers where nothing is said: twice as many, eight pages of the device's more. So 20 queue pairs, not 4, ring a doorbell of their
/// own, under no lock, and two threads on two of them do not wait for each other (a fifth of the cycles).
const OUR_TOTAL_UUARS: i64 = 32;
/// Registers of a page.
const UUARS_PER_PAGE: i64 = 2;
/// `MLX5_MAX_BFREGS`.
const MAX_UUARS: i64 = 512;
/// `MLX5_MED_BFREGS_TSHOLD`: above this many shared registers the rest are for one QP each.
const MEDIUM_UUARS: i64 = 12;

/// What was asked for; the defaults where nothing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Env {
    /// `MLX5_TOTAL_UUARS`: registers for doorbells, all together.
    pub(super) total_uuars: usize,
    /// `MLX5_NUM_LOW_LAT_UUARS`: those of them that one QP has alone.
    pub(super) low_lat_uuars: usize,
    /// `MLX5_SHUT_UP_BF`: no BlueFlame.
    pub(super) shut_up_bf: bool,
    /// `MLX5_POST_SEND_PREFER_BF`: BlueFlame for WQEs without inline data too.
    pub(super) prefer_bf: bool,
    /// `MLX5_SINGLE_THREADED`: no locks.
    pub(super) single_threaded: bool,
    /// `MLX5_CQE_SIZE`; `None` for a size that does not exist.
    pub(super) cqe_size: Option<u32>,
    /// `MLX5_SCATTER_TO_CQE`: small messages come inside of the completion.
    pub(super) scatter_to_cqe: bool,
}

impl Env {
    /// Those of this process.
    pub(super) fn of_process() -> Result<Env, Error> {
        Env::read(|name| std::env::var_os(name))
    }

    /// Those that `get` gives.
    ///
    /// # Errors
    /// As stock: `EINVAL` for numbers that cannot be, `ENOMEM` for too many registers.
    pub(super) fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Env, Error> {
        let number = |name: &str| get(name).map(|value| atoi(&value.to_string_lossy()));
        // Anything but "0" is yes, for those that are on by being there.
        let flag = |name: &str, default: bool| get(name).map_or(default, |value| value != "0");
        let step = "read MLX5_TOTAL_UUARS and MLX5_NUM_LOW_LAT_UUARS";
        let low = number("MLX5_NUM_LOW_LAT_UUARS");
        let default = if low.is_some() { TOTAL_UUARS } else { OUR_TOTAL_UUARS };
        let total = number("MLX5_TOTAL_UUARS").unwrap_or(default);
        if total < 1 {
            return Err(Error::new(step, Errno::EINVAL));
        }
        if total > MAX_UUARS {
            return Err(Error::new(step, Errno::ENOMEM));
        }
        let total = (total + UUARS_PER_PAGE - 1) / UUARS_PER_PAGE * UUARS_PER_PAGE;
        let low = low.unwrap_or(4);
        if low < 0 {
            return Err(Error::new(step, Errno::EINVAL));
        }
        let low = low.max(total - MEDIUM_UUARS);
        if low > total - 1 {
            return Err(Error::new(step, Errno::ENOMEM));
        }
        let cqe_size = match number("MLX5_CQE_SIZE").unwrap_or(64) {
            64 => Some(64),
            128 => Some(128),
            _ => None,
        };
        Ok(Env {
            // Both between 0 and MAX_UUARS.
            total_uuars: total as usize,
            low_lat_uuars: low as usize,
            shut_up_bf: flag("MLX5_SHUT_UP_BF", false),
            prefer_bf: flag("MLX5_POST_SEND_PREFER_BF", true),
            single_threaded: get("MLX5_SINGLE_THREADED").is_some_and(|value| value == "1"),
            cqe_size,
            scatter_to_cqe: flag("MLX5_SCATTER_TO_CQE", true),
        })
    }
}

/// As C's: the number that the text begins with, or 0.
fn atoi(text: &str) -> i64 {
    let text = text.trim_start();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '-' || c == '+')).unwrap_or(text.len());
    text.get(..digits).unwrap_or_default().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Env, Errno> {
        let get = |name: &str| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value))
        };
        Env::read(get).map_err(|error| error.errno)
    }

    #[test]
    fn defaults_are_those_of_stock_with_more_registers() {
        let env = with(&[]).unwrap();
        assert_eq!((env.total_uuars, env.low_lat_uuars, env.cqe_size), (32, 20, Some(64)));
        let stock = with(&[("MLX5_TOTAL_UUARS", "16")]).unwrap();
        assert_eq!((stock.total_uuars, stock.low_lat_uuars), (16, 4));
        assert!(env.prefer_bf && env.scatter_to_cqe && !env.shut_up_bf && !env.single_threaded);
    }

    #[test]
    fn what_was_asked_for_is_taken() {
        let env = with(&[
            ("MLX5_TOTAL_UUARS", "7"),
            ("MLX5_NUM_LOW_LAT_UUARS", "1x"),
            ("MLX5_SHUT_UP_BF", "1"),
            ("MLX5_POST_SEND_PREFER_BF", "0"),
            ("MLX5_SINGLE_THREADED", "1"),
            ("MLX5_CQE_SIZE", "128"),
            ("MLX5_SCATTER_TO_CQE", "0"),
        ])
        .unwrap();
        assert_eq!((env.total_uuars, env.low_lat_uuars, env.cqe_size), (8, 1, Some(128)));
        assert!(!env.prefer_bf && !env.scatter_to_cqe && env.shut_up_bf && env.single_threaded);
        assert_eq!(with(&[("MLX5_TOTAL_UUARS", "64")]).unwrap().low_lat_uuars, 52);
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_as_by_stock() {
        assert_eq!(with(&[("MLX5_TOTAL_UUARS", "0")]), Err(Errno::EINVAL));
        assert_eq!(with(&[("MLX5_TOTAL_UUARS", "nonsense")]), Err(Errno::EINVAL));
        assert_eq!(with(&[("MLX5_TOTAL_UUARS", "1000000")]), Err(Errno::ENOMEM));
        assert_eq!(with(&[("MLX5_NUM_LOW_LAT_UUARS", "-1")]), Err(Errno::EINVAL));
        assert_eq!(with(&[("MLX5_NUM_LOW_LAT_UUARS", "16")]), Err(Errno::ENOMEM));
        assert_eq!(with(&[("MLX5_CQE_SIZE", "96")]).unwrap().cqe_size, None);
    }
}
