//! The wire that joins all devices of the process: lossless, unless a fault says otherwise.

/// What is wrong with the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) cut: bool,
    /// Nanoseconds that a message takes.
    pub(crate) delay: u64,
    /// Messages to lose, and answers to lose, from now on.
    pub(crate) drop_messages: u64,
    pub(crate) drop_answers: u64,
    /// Lose each n-th message; 0: none.
    pub(crate) drop_every: u64,
    carried: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    /// It arrives, but the answer does not.
    AnswerLost,
    Lost,
}

impl Wire {
    /// Decides on the next message. One between two ports of a device does not touch the wire.
    pub(crate) fn fate(&mut self, local: bool) -> Fate {
        if local {
            return Fate::Arrives;
        }
        self.carried += 1;
        let take = |left: &mut u64| {
            let lost = *left > 0;
            *left = left.saturating_sub(1);
            lost
        };
        if self.cut
            || take(&mut self.drop_messages)
            || self.drop_every > 0 && self.carried.is_multiple_of(self.drop_every)
        {
            Fate::Lost
        } else if take(&mut self.drop_answers) {
            Fate::AnswerLost
        } else {
            Fate::Arrives
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lost_as_told() {
        let mut wire = Wire { drop_messages: 1, drop_answers: 1, ..Wire::default() };
        assert_eq!(wire.fate(true), Fate::Arrives);
        assert_eq!(
            [wire.fate(false), wire.fate(false), wire.fate(false)],
            [Fate::Lost, Fate::AnswerLost, Fate::Arrives]
        );
        let mut wire = Wire { drop_every: 2, ..Wire::default() };
        assert_eq!([wire.fate(false), wire.fate(false)], [Fate::Arrives, Fate::Lost]);
        wire.cut = true;
        assert_eq!(wire.fate(false), Fate::Lost);
    }
}
