//! What news mean, and how long to wait for the next.

use std::time::Duration;

use super::life::{Life, Phase, Sign};

/// `IBV_EVENT_DEVICE_FATAL`.
pub const DEVICE_FATAL: u32 = 8;
/// `IBV_EVENT_PORT_ERR`.
const PORT_ERR: u32 = 10;

/// Between the closing of our channel and the final FATAL the kernel only destroys objects; should the event be lost, which
/// happens where the kernel has no memory for it, this is long enough.
pub const AFTER_REMOVING: Duration = Duration::from_secs(2);

/// What an async event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Of death.
    Sign(Sign),
    /// Look whether the device's node is still there.
    Look,
    /// Of something else.
    Other,
}

/// What the event `event_type` about `element` tells.
#[must_use]
pub fn news(event_type: u32, element: u64) -> News {
    match event_type {
        // The driver names a port; the kernel, as it disassociates, none.
        DEVICE_FATAL if element == 0 => News::Sign(Sign::Final),
        DEVICE_FATAL => News::Sign(Sign::Early),
        PORT_ERR => News::Look,
        _ => News::Other,
    }
}

/// How long a context may still wait for its final sign: `None` where it waits for none.
#[must_use]
pub fn remaining(life: &Life) -> Option<Duration> {
    if life.phase() != Phase::Dying {
        return None;
    }
    let [since, ..] = life.ages();
    let patience = life.patience().saturating_sub(Duration::from_nanos(since.unwrap_or(0)));
    // An early sign may have come long before.
    let removal = life.removing().map(|age| AFTER_REMOVING.saturating_sub(age));
    Some(removal.map_or(patience, |removal| removal.min(patience)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fatal_events_are_told_apart_by_their_element() {
        assert_eq!(news(8, 0), News::Sign(Sign::Final));
        assert_eq!(news(8, 1), News::Sign(Sign::Early));
        assert_eq!(news(10, 1), News::Look);
        assert_eq!(news(9, 1), News::Other);
    }

    #[test]
    fn only_the_dying_wait_and_not_for_ever() {
        let life = Life::default();
        life.set_patience(Duration::ZERO);
        assert_eq!(remaining(&life), None);
        life.note(Sign::Early);
        assert_eq!(remaining(&life), Some(Duration::ZERO));
        life.set_patience(Duration::from_secs(3600));
        let long = remaining(&life).unwrap();
        assert!(long > Duration::from_secs(3000) && long <= Duration::from_secs(3600), "{long:?}");
        life.note(Sign::WaitOver);
        assert_eq!(remaining(&life), None);
    }

    #[test]
    fn a_removal_is_waited_for_briefly_whatever_was_told_before_it() {
        for before in [None, Some(Sign::Early), Some(Sign::Forced)] {
            let life = Life::default();
            before.map(|sign| life.note(sign));
            assert_eq!(life.removing(), None);
            life.note(Sign::Removing);
            let left = remaining(&life).unwrap();
            assert!(left <= AFTER_REMOVING, "{left:?} after {before:?}");
            // Counted from the removal, and not again when it is told twice.
            while remaining(&life).unwrap() >= left {
                std::thread::yield_now();
            }
            life.note(Sign::Removing);
            assert!(remaining(&life).unwrap() < left);
            life.set_patience(Duration::ZERO);
            assert_eq!(remaining(&life), Some(Duration::ZERO));
        }
    }
}
