//! Medians and quartiles.

/// Where the middle of some figures lies, and how far they spread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
    pub(crate) greatest: f64,
    /// How many lie further from the quartiles than half again their distance (Tukey's fences).
    pub(crate) outliers: usize,
}

/// The value that a share of `sorted` lies below, between two neighbours where it falls there.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let index = at as usize;
    let low = sorted.get(index).copied().unwrap_or(f64::NAN);
    let high = sorted.get(index + 1).copied().unwrap_or(low);
    low + (high - low) * at.fract()
}

impl Spread {
    /// Of at least one figure.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
        let reach = 1.5 * (high - low);
        Spread {
            least: quantile(&sorted, 0.0),
            low,
            median: quantile(&sorted, 0.5),
            high,
            greatest: quantile(&sorted, 1.0),
            outliers: sorted.iter().filter(|value| **value < low - reach || **value > high + reach).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_between_neighbours_and_outliers_beyond_the_fences() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0, 5.0, 100.0]);
        assert_eq!((spread.least, spread.median, spread.greatest), (1.0, 3.5, 100.0));
        assert_eq!((spread.low, spread.high, spread.outliers), (2.25, 4.75, 1));
        let one = Spread::of([7.0]);
        assert_eq!((one.low, one.median, one.high, one.outliers), (7.0, 7.0, 7.0, 0));
    }
}
