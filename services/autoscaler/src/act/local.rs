//! Orders to the supervisors of `portalis up`. Input: their pools and a decision. Output: `SetWorkers` to those whose
//! number changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::{Bus, Headers};
use schemas::fleet::{Control, ControlReply, PoolInfo, ScaleDecision};
use schemas::{subjects, wire};

use super::{ActError, Actuator, Pool};
use crate::beats::SUPERVISOR;
use crate::decide::Limits;
use crate::observe::Observer;

/// A supervisor answers from memory; one that takes longer than a tick is not well.
const ORDER_TIMEOUT: Duration = Duration::from_secs(1);

/// What each supervisor said of each model at the last look.
type Known = BTreeMap<String, Vec<(String, PoolInfo)>>;

/// Orders over the bus.
#[derive(Debug)]
pub struct Local {
    bus: Bus,
    known: Mutex<Known>,
}

impl Local {
    /// Orders over this connection.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self {
            bus,
            known: Mutex::default(),
        }
    }

    async fn order(&self, supervisor: &str, order: &Control) -> Result<ControlReply, ActError> {
        let wire = |source| ActError::Wire {
            supervisor: supervisor.to_owned(),
            source,
        };
        let body = wire::encode(order).map_err(wire)?;
        let subject = subjects::control(SUPERVISOR, supervisor);
        let answer = self
            .bus
            .request(&subject, Headers::new(), body.into(), ORDER_TIMEOUT)
            .await
            .map_err(|source| ActError::Bus {
                supervisor: supervisor.to_owned(),
                source,
            })?;
        match wire::decode(&answer.payload).map_err(wire)? {
            ControlReply::Refused(reason) => Err(ActError::Refused {
                supervisor: supervisor.to_owned(),
                reason,
            }),
            reply => Ok(reply),
        }
    }
}

impl Actuator for Local {
    async fn pools(&self, observer: &Arc<Observer>) -> Result<Vec<Pool>, ActError> {
        let mut known = Known::new();
        for supervisor in observer.supervisors() {
            // A supervisor that beats and does not answer makes the whole picture unknown: half a picture would shrink the fleet.
            if let ControlReply::Pools(pools) = self.order(&supervisor, &Control::DescribePool).await? {
                for pool in pools {
                    let entry = known.entry(pool.model.clone()).or_default();
                    entry.push((supervisor.clone(), pool));
                }
            }
        }
        let pools = known.iter().map(|(model, parts)| total(model, parts));
        let pools = pools.collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(pools)
    }

    async fn apply(&self, decision: &ScaleDecision) -> Result<(), ActError> {
        let parts = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&decision.model)
            .cloned()
            .unwrap_or_default();
        let orders = spread(&parts, decision.to);
        if orders.is_empty() {
            return Err(ActError::NoRoom {
                model: decision.model.clone(),
                to: decision.to,
            });
        }
        for (supervisor, workers) in orders {
            let order = Control::SetWorkers {
                model: decision.model.clone(),
                workers,
            };
            self.order(&supervisor, &order).await?;
        }
        Ok(())
    }
}

fn total(model: &str, parts: &[(String, PoolInfo)]) -> Pool {
    let sum = |of: fn(&PoolInfo) -> u32| parts.iter().fold(0_u32, |sum, (_, pool)| sum.saturating_add(of(pool)));
    Pool {
        model: model.to_owned(),
        wanted: sum(|pool| pool.wanted),
        limits: Limits {
            min: sum(|pool| pool.min),
            max: sum(|pool| pool.max),
        },
    }
}

/// Spreads a number of workers over supervisors within each one's limits, changing as little as possible; gives the
/// supervisors whose number changes.
fn spread(parts: &[(String, PoolInfo)], to: u32) -> Vec<(String, u32)> {
    let mut numbers: Vec<u32> = parts
        .iter()
        .map(|(_, pool)| pool.wanted.clamp(pool.min, pool.max.max(pool.min)))
        .collect();
    loop {
        let sum: u64 = numbers.iter().map(|&number| u64::from(number)).sum();
        let indices = 0..parts.len();
        let next = if sum < u64::from(to) {
            // The emptiest that has room takes one more.
            indices
                .filter(|&at| numbers[at] < parts[at].1.max)
                .min_by_key(|&at| numbers[at])
                .map(|at| (at, numbers[at] + 1))
        } else if sum > u64::from(to) {
            // The fullest that may gives one up.
            indices
                .filter(|&at| numbers[at] > parts[at].1.min)
                .max_by_key(|&at| numbers[at])
                .map(|at| (at, numbers[at] - 1))
        } else {
            None
        };
        let Some((at, number)) = next else { break };
        numbers[at] = number;
    }
    parts
        .iter()
        .zip(numbers)
        .filter(|((_, pool), number)| pool.wanted != *number)
        .map(|((supervisor, _), number)| (supervisor.clone(), number))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, wanted: u32, min: u32, max: u32) -> (String, PoolInfo) {
        let pool = PoolInfo {
            model: "m".to_owned(),
            wanted,
            running: wanted,
            min,
            max,
        };
        (name.to_owned(), pool)
    }

    #[test]
    fn workers_are_spread_within_each_ones_limits() {
        type Case<'a> = (&'a [(String, PoolInfo)], u32, &'a [(&'a str, u32)]);
        let cases: [Case<'_>; 6] = [
            (&[part("a", 1, 1, 4)], 3, &[("a", 3)]),
            (&[part("a", 1, 1, 4), part("b", 2, 1, 4)], 4, &[("a", 2)]),
            (&[part("a", 1, 1, 1), part("b", 2, 1, 4)], 5, &[("b", 4)]),
            (&[part("a", 1, 1, 4), part("b", 3, 1, 4)], 3, &[("b", 2)]),
            (&[part("a", 1, 1, 4), part("b", 1, 1, 4)], 0, &[]),
            (&[], 2, &[]),
        ];
        for (parts, to, expected) in cases {
            let orders = spread(parts, to);
            let orders: Vec<_> = orders.iter().map(|(name, number)| (name.as_str(), *number)).collect();
            assert_eq!(orders, expected, "{parts:?} to {to}");
        }
    }

    #[test]
    fn pools_of_one_model_are_one() {
        let pool = total("m", &[part("a", 1, 1, 4), part("b", 2, 0, 8)]);
        assert_eq!((pool.wanted, pool.limits), (3, Limits { min: 1, max: 12 }));
    }
}
