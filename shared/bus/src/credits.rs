//! How many messages the broker still owes us. Pure: pulls, messages, statuses and the time go in; exact counts and
//! ended pulls come out.
//!
//! A consumer serves its waiting pulls in turn and a message does not say which pull it answers, so credits are counted
//! per consumer: asked − received − what the broker's closing status names as unused. That sum is exact. Single pulls
//! are kept only to know when one can no longer be alive; then the sum is capped by what the living ones asked for.

use std::time::Duration;

use tokio::time::Instant;

/// How long after its end a pull may still be answered: the broker's closing status is on its way.
const END_SLACK: Duration = Duration::from_secs(1);

/// Why credits came back unused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// The pull's time was over; the queue had nothing more.
    Expired,
    /// The consumer or its stream does not exist (any more): create it again.
    NoConsumer,
    /// The broker refused or ended the pull.
    Refused {
        /// Status, e.g. 409.
        status: u16,
        /// The broker's text.
        description: String,
    },
    /// Neither a message nor a heartbeat came: the pull is lost.
    Lost,
    /// The connection was lost, and with it all pulls.
    Disconnected,
}

/// What one pull asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) batch: u32,
    pub(crate) expires: Duration,
    /// Zero: none.
    pub(crate) heartbeat: Duration,
}

#[derive(Debug)]
struct Pull {
    id: u64,
    batch: u64,
    ends_at: Instant,
    heartbeat: Duration,
    last_sign: Instant,
}

/// Credits of one consumer.
#[derive(Debug)]
pub(crate) struct Credits {
    outstanding: u64,
    pulls: Vec<Pull>,
    last_message: Instant,
}

impl Credits {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            outstanding: 0,
            pulls: Vec::new(),
            last_message: now,
        }
    }

    /// Messages that may still come.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// A pull was sent.
    pub(crate) fn asked(&mut self, id: u64, ask: Ask, now: Instant) {
        // Without heartbeats only the end of its time shows that a pull is gone.
        let heartbeat = if ask.heartbeat.is_zero() {
            ask.expires
        } else {
            ask.heartbeat
        };
        let batch = u64::from(ask.batch);
        self.pulls.push(Pull {
            id,
            batch,
            ends_at: now + ask.expires,
            heartbeat,
            last_sign: now,
        });
        self.outstanding += batch;
    }

    /// A message came; `false` when none was owed.
    pub(crate) fn received(&mut self, now: Instant) -> bool {
        self.last_message = now;
        if self.outstanding == 0 {
            return false;
        }
        self.outstanding -= 1;
        if self.outstanding == 0 {
            self.pulls.clear();
        }
        true
    }

    /// The broker says that a pull is alive.
    pub(crate) fn heartbeat(&mut self, id: u64, now: Instant) {
        if let Some(pull) = self.pulls.iter_mut().find(|pull| pull.id == id) {
            pull.last_sign = now;
        }
    }

    /// The broker ended a pull; `unused` is what its status names. Gives the credits that came back,
    /// or `None` for a pull that is not known (any more).
    pub(crate) fn ended(&mut self, id: u64, unused: Option<u64>) -> Option<u64> {
        let at = self.pulls.iter().position(|pull| pull.id == id)?;
        let pull = self.pulls.swap_remove(at);
        // A status without a number ends the whole pull; it cannot give back more than is owed.
        let back = unused.unwrap_or(pull.batch).min(pull.batch).min(self.outstanding);
        self.outstanding -= back;
        Some(back + self.cap())
    }

    /// Drops pulls that cannot be alive any more; gives the credits that were lost with them.
    pub(crate) fn sweep(&mut self, now: Instant) -> u64 {
        let last_message = self.last_message;
        self.pulls.retain(|pull| {
            // Two heartbeats may be missed; while messages come, the broker sends none.
            let silent_since = pull.last_sign.max(last_message);
            now < pull.ends_at + END_SLACK && now < silent_since + pull.heartbeat * 2 + END_SLACK
        });
        self.cap()
    }

    /// All pulls are gone; gives the credits that were outstanding.
    pub(crate) fn clear(&mut self) -> u64 {
        self.pulls.clear();
        std::mem::take(&mut self.outstanding)
    }

    /// Living pulls owe at most what they asked for; gives what is over.
    fn cap(&mut self) -> u64 {
        let most: u64 = self.pulls.iter().map(|pull| pull.batch).sum();
        let over = self.outstanding.saturating_sub(most);
        self.outstanding -= over;
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRES: Duration = Duration::from_secs(5);
    const BEAT: Duration = Duration::from_secs(1);

    fn ask(batch: u32, expires: Duration) -> Ask {
        Ask {
            batch,
            expires,
            heartbeat: BEAT,
        }
    }

    #[test]
    fn the_sum_is_exact_whichever_pull_is_served() {
        let now = Instant::now();
        let mut credits = Credits::new(now);
        credits.asked(1, ask(8, EXPIRES), now);
        credits.asked(2, ask(4, EXPIRES), now);
        for _ in 0..5 {
            assert!(credits.received(now));
        }
        assert_eq!(credits.outstanding(), 7);
        // Three went to pull 2, two to pull 1.
        assert_eq!(credits.ended(2, Some(1)), Some(1));
        assert_eq!(credits.outstanding(), 6);
        assert_eq!(credits.ended(2, Some(1)), None, "a pull ends once");
        assert_eq!(credits.ended(1, Some(6)), Some(6));
        assert_eq!(credits.outstanding(), 0);
        assert!(!credits.received(now), "nothing is owed");
    }

    #[test]
    fn a_status_without_a_number_gives_back_all_of_the_pull() {
        let now = Instant::now();
        let mut credits = Credits::new(now);
        credits.asked(1, ask(5, EXPIRES), now);
        credits.asked(2, ask(5, EXPIRES), now);
        for _ in 0..3 {
            assert!(credits.received(now));
        }
        assert_eq!(credits.ended(1, None), Some(5));
        assert_eq!(credits.ended(2, None), Some(2));
        assert_eq!(credits.outstanding(), 0);
    }

    #[test]
    fn silent_pulls_are_lost_and_living_ones_are_not() {
        let start = Instant::now();
        let mut credits = Credits::new(start);
        let long = Duration::from_secs(60);
        credits.asked(1, ask(8, long), start);
        credits.asked(2, ask(8, long), start);
        let later = start + Duration::from_millis(2_500);
        credits.heartbeat(2, later);
        assert_eq!(credits.sweep(later), 0);
        let later = start + Duration::from_millis(3_500);
        assert_eq!(credits.sweep(later), 8, "pull 1 gave no sign");
        assert_eq!(credits.outstanding(), 8);
        assert_eq!(credits.sweep(later + long), 8);
        assert_eq!(credits.outstanding(), 0);
    }

    #[test]
    fn a_fulfilled_pull_ends_without_a_word() {
        let start = Instant::now();
        let mut credits = Credits::new(start);
        credits.asked(1, ask(2, EXPIRES), start);
        assert!(credits.received(start) && credits.received(start));
        assert_eq!(credits.sweep(start + EXPIRES * 2), 0);
        credits.asked(2, ask(2, EXPIRES), start + EXPIRES * 2);
        assert_eq!(credits.outstanding(), 2);
        assert_eq!(credits.clear(), 2);
    }
}
