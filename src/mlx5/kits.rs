//! The parts of objects that the kernel destroyed, for other ones: to take them apart and to put such parts together again was half
//! of what it takes to unmake a queue and to make one outside of the kernel, mostly for locks and for counts of who has what.
//!
//! As of [`Pages`](crate::hw::dma::Pages), what was given back last is handed out first, and as it was left, and the first makes room.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::uapi::sys::process;

/// The parts of each are a `T`.
#[derive(Debug)]
pub(super) struct Kits<T> {
    /// In which process the rings are, as [`process::number`] says.
    process: u32,
    kept: Mutex<Kept<T>>,
}

#[derive(Debug)]
struct Kept<T> {
    /// Each with the bytes of its rings.
    kits: VecDeque<(usize, T)>,
    /// Of all of them.
    len: usize,
}

impl<T> Kits<T> {
    /// How many are kept at most, and how many bytes.
    const KEPT: usize = 64;
    const KEPT_LEN: usize = 4 << 20;

    pub(super) fn new() -> Kits<T> {
        let kept = Kept { kits: VecDeque::new(), len: 0 };
        Kits { process: process::number(), kept: Mutex::new(kept) }
    }

    fn kept(&self) -> Option<MutexGuard<'_, Kept<T>>> {
        // A forked child may have none of the rings.
        let ours = self.process == process::number();
        ours.then(|| self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.kept().map_or(0, |kept| kept.kits.len())
    }

    /// The last one that `fits`.
    pub(super) fn take(&self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut kept = self.kept()?;
        let at = kept.kits.iter().rposition(|(_, kit)| fits(kit))?;
        let (len, kit) = kept.kits.remove(at)?;
        kept.len -= len;
        Some(kit)
    }

    /// Keeps `kit`, whose rings have `len` bytes, and which nobody uses.
    pub(super) fn give_back(&self, kit: T, len: usize) {
        if len > Kits::<T>::KEPT_LEN {
            return;
        }
        let Some(mut kept) = self.kept() else { return };
        // Without memory for that it is taken apart.
        if kept.kits.try_reserve(1).is_err() {
            return;
        }
        kept.kits.push_back((len, kit));
        kept.len += len;
        while let Some(over) = kept.over() {
            // Taken apart while nobody waits for it.
            drop(kept);
            drop(over);
            kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Kept<T> {
    /// The first, where there are too many, or too many bytes.
    fn over(&mut self) -> Option<T> {
        if self.kits.len() <= Kits::<T>::KEPT && self.len <= Kits::<T>::KEPT_LEN {
            return None;
        }
        let (len, first) = self.kits.pop_front()?;
        self.len -= len;
        Some(first)
    }
}
