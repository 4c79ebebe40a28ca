//! Which objects of a context are alive, found by kind and address.
//!
//! Changed with every queue that is made or unmade, walked through when the device dies: hash tables whose hash is a multiplication,
//! since nobody chooses addresses to do harm. With a `BTreeSet` it was a quarter of what destroying a CQ takes outside of the kernel.

use core::hash::{BuildHasherDefault, Hasher};
use std::collections::HashSet;

/// The kinds that have mappings of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Cq,
    Srq,
    Qp,
    /// A QP whose doorbell is shared with others, and closed in its place.
    Sharer,
}

impl Kind {
    /// Those whose gates are closed one by one when the device dies.
    pub(crate) const ALONE: &[Kind] = &[Kind::Cq, Kind::Srq, Kind::Qp];
    /// All.
    pub(crate) const ALL: &[Kind] = &[Kind::Cq, Kind::Srq, Kind::Qp, Kind::Sharer];
}

/// An address, multiplied, and both halves of the product put together.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, at: usize) {
        // The table takes the lowest bits and the highest, and each half is good for one of these.
        let product = u128::from(self.0 ^ at as u64) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

type Addresses = HashSet<usize, BuildHasherDefault<AddressHasher>>;

/// The objects.
#[derive(Debug, Default)]
pub(crate) struct Live {
    cqs: Addresses,
    srqs: Addresses,
    qps: Addresses,
    sharers: Addresses,
}

impl Live {
    fn of(&self, kind: Kind) -> &Addresses {
        match kind {
            Kind::Cq => &self.cqs,
            Kind::Srq => &self.srqs,
            Kind::Qp => &self.qps,
            Kind::Sharer => &self.sharers,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Addresses {
        match kind {
            Kind::Cq => &mut self.cqs,
            Kind::Srq => &mut self.srqs,
            Kind::Qp => &mut self.qps,
            Kind::Sharer => &mut self.sharers,
        }
    }

    pub(crate) fn insert(&mut self, kind: Kind, at: usize) {
        self.of_mut(kind).insert(at);
    }

    pub(crate) fn remove(&mut self, kind: Kind, at: usize) {
        self.of_mut(kind).remove(&at);
    }

    pub(crate) fn contains(&self, kind: Kind, at: usize) -> bool {
        self.of(kind).contains(&at)
    }

    /// Those of `kinds`, in their order.
    pub(crate) fn iter(&self, kinds: &'static [Kind]) -> impl Iterator<Item = (Kind, usize)> {
        kinds.iter().flat_map(|kind| self.of(*kind).iter().map(|at| (*kind, *at)))
    }

    pub(crate) fn len(&self) -> usize {
        Kind::ALL.iter().map(|kind| self.of(*kind).len()).sum()
    }

    /// How many are completion queues.
    pub(crate) fn cqs(&self) -> usize {
        self.cqs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_and_go_by_kind() {
        let mut live = Live::default();
        live.insert(Kind::Qp, 64);
        live.insert(Kind::Cq, 32);
        live.insert(Kind::Srq, 64);
        live.insert(Kind::Qp, 96);
        live.insert(Kind::Sharer, 128);
        live.remove(Kind::Cq, 64);
        live.remove(Kind::Qp, 96);
        assert!(live.contains(Kind::Srq, 64) && !live.contains(Kind::Cq, 64) && !live.contains(Kind::Qp, 96));
        let alone = [(Kind::Cq, 32), (Kind::Srq, 64), (Kind::Qp, 64)];
        assert!(live.iter(Kind::ALONE).eq(alone));
        assert!(live.iter(Kind::ALL).eq(alone.into_iter().chain([(Kind::Sharer, 128)])));
        assert_eq!((live.len(), live.cqs()), (4, 1));
    }

    #[test]
    fn addresses_that_are_aligned_are_spread() {
        for align in [16, 64, 208, 896, 4096] {
            let hash = |at: usize| {
                let mut hasher = AddressHasher::default();
                hasher.write_usize(0x7f00_0000_0000 + at * align);
                hasher.finish()
            };
            // Of 1024 in as many places a random function would fill 647.
            let places: HashSet<u64> = (0..1024).map(|at| hash(at) & 1023).collect();
            let tags: HashSet<u64> = (0..1024).map(|at| hash(at) >> 57).collect();
            assert!(places.len() > 512 && tags.len() > 64, "{align}: {} {}", places.len(), tags.len());
        }
    }
}
