//! How much to pull. Input: slots, what is held and asked for per lane. Output: the next pulls. Pure.
//!
//! One pool of slots is split over the lanes: the less urgent ones may fill only a part of it, so there is always room
//! for somebody who waits; the sum of what is held and asked for never exceeds the pool.

use schemas::work::Lane;

/// Shares of the pool a lane may fill, in quarters: interactive all, batch half, background one.
const QUARTERS: [u32; 3] = [4, 2, 1];
/// A pull is worth sending for this part of a lane's room, so that credits go in groups and not one by one.
const GROUP: u32 = 4;

/// Held and asked-for requests of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneLoad {
    /// In the worker's hands.
    pub held: u32,
    /// Asked for, not come yet.
    pub outstanding: u32,
}

/// The pulls to send, by lane in the order of [`Lane::ALL`]; 0 = none.
#[must_use]
pub fn next_pulls(slots: u32, load: [LaneLoad; 3]) -> [u32; 3] {
    let used: u32 = load.iter().map(|lane| lane.held + lane.outstanding).sum();
    let mut free = slots.saturating_sub(used);
    let mut pulls = [0; 3];
    for (index, lane) in load.iter().enumerate() {
        let room = room(slots, index);
        let lower: u32 = (index + 1..3)
            .map(|lower| u32::from(load[lower].outstanding + load[lower].held == 0))
            .sum();
        // One slot stays for each lower lane that has none, so that none is shut out.
        let wanted = room
            .saturating_sub(lane.held + lane.outstanding)
            .min(free.saturating_sub(lower));
        if wanted > 0 && (lane.outstanding == 0 || wanted >= room / GROUP) {
            pulls[index] = wanted;
            free -= wanted;
        }
    }
    pulls
}

fn room(slots: u32, index: usize) -> u32 {
    (slots * QUARTERS[index] / 4).max(1)
}

/// The position of a lane in loads and pulls.
#[must_use]
pub fn position(lane: Lane) -> usize {
    match lane {
        Lane::Interactive => 0,
        Lane::Batch => 1,
        Lane::Background => 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(held: u32, outstanding: u32) -> LaneLoad {
        LaneLoad { held, outstanding }
    }

    #[test]
    fn an_idle_worker_asks_on_every_lane() {
        let pulls = next_pulls(64, [LaneLoad::default(); 3]);
        assert_eq!(pulls, [62, 1, 1]);
    }

    #[test]
    fn a_full_batch_lane_leaves_room_for_those_who_wait() {
        let pulls = next_pulls(64, [load(0, 10), load(32, 0), load(16, 0)]);
        assert_eq!(pulls, [0, 0, 0], "6 are free but a group is 16");
        assert_eq!(next_pulls(64, [load(0, 0), load(32, 0), load(16, 0)]), [16, 0, 0]);
    }

    proptest! {
        #[test]
        fn the_pool_is_never_exceeded_and_nobody_is_shut_out(
            slots in 3_u32..1000,
            numbers in prop::array::uniform6(0_u32..400),
        ) {
            let loads = [load(numbers[0], numbers[1]), load(numbers[2], numbers[3]), load(numbers[4], numbers[5])];
            let pulls = next_pulls(slots, loads);
            let used: u32 = numbers.iter().sum();
            let asked: u32 = pulls.iter().sum();
            if asked > 0 {
                prop_assert!(used + asked <= slots);
            }
            if used == 0 {
                prop_assert!(pulls.iter().all(|pull| *pull > 0));
            }
        }
    }
}
