//! Which queue gives the next flushed completion of a CQ.
//!
//! Each queue lists what it owes and strikes off what it gave, so that a work request cannot be given twice. This only walks
//! round the queues, and remembers when all of them were found empty: with ten thousand of them an empty poll does not ask
//! each one again until a further post was kept.

use super::life::Life;

/// One CQ's walk round the queues that complete to it.
#[derive(Debug, Default)]
pub struct Flush {
    /// The queue that gave the last one: a queue is emptied before the next is asked.
    at: u32,
    /// [`Life::kept`] before the walk that found nothing, and 1 more; 0: there was none. (As bytes, which leave no gap: each CQ has one.)
    empty: [u8; 8],
}

impl Flush {
    /// The next completion of `queues` queues: `take` asks one of them.
    pub fn next<T>(&mut self, life: &Life, queues: u32, mut take: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let kept = (life.kept() + 1).to_ne_bytes();
        if self.empty == kept {
            return None;
        }
        for _ in 0..queues {
            if self.at >= queues {
                self.at = 0;
            }
            if let Some(found) = take(self.at) {
                return Some(found);
            }
            self.at += 1;
        }
        self.empty = kept;
        None
    }

    /// The queues changed places, or one came.
    pub fn again(&mut self) {
        *self = Flush::default();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_is_given_once_and_in_its_queues_order(
            queues in prop::collection::vec(0_u32..5, 0..6),
            later in prop::collection::vec((0_usize..6, 0_u32..4), 0..6),
        ) {
            let life = Life::default();
            let mut owed: Vec<std::collections::VecDeque<u32>> =
                queues.iter().map(|count| (0..*count).collect()).collect();
            let mut posted: Vec<u32> = queues.clone();
            let mut given: Vec<Vec<u32>> = vec![Vec::new(); owed.len()];
            let mut flush = Flush::default();
            let mut drain = |owed: &mut Vec<std::collections::VecDeque<u32>>, given: &mut Vec<Vec<u32>>| {
                let count = owed.len() as u32;
                while let Some((at, wr)) =
                    flush.next(&life, count, |at| Some((at as usize, owed[at as usize].pop_front()?)))
                {
                    given[at].push(wr);
                }
                let mut asked = false;
                let again: Option<()> = flush.next(&life, count, |_| { asked = true; None });
                assert!(again.is_none() && !asked, "nobody is asked again before a post");
            };
            drain(&mut owed, &mut given);
            for (at, count) in later {
                if at < owed.len() && count != 0 {
                    for _ in 0..count {
                        owed[at].push_back(posted[at]);
                        posted[at] += 1;
                    }
                    life.keep();
                }
                drain(&mut owed, &mut given);
            }
            for (at, given) in given.iter().enumerate() {
                prop_assert_eq!(given, &(0..posted[at]).collect::<Vec<u32>>());
            }
        }
    }
}
