//! What one fact means in money. Input: an event and the prices. Output: a row for the journal, or why there is none.

use std::collections::HashMap;
use std::sync::Arc;

use schemas::cost::{CostEvent, CostKind, DeviceTerms, computed_event_id, waste_event_id};
use schemas::ids::{MAX_MODEL_NAME_BYTES, is_token};
use schemas::money::{NanoUsd, Price};

use crate::prices::{Meter, Prices, Rates};

/// Longest id, key, device or reporter that is kept, in bytes; ours are below 64, a publisher's own may be longer.
const MAX_NAME_BYTES: usize = 256;
/// Most tokens or requests of one event. Far above a report of cached answers, and 9 million of them still fit in 64 bits.
const MAX_COUNT: u64 = 1_000_000_000_000;
/// Most device time of one event: a day, far above the longest deadline.
const MAX_COMPUTE_NS: u64 = 86_400_000_000_000;
/// Most that one event may cost: $100,000, which only a wrong price or a broken reporter reaches.
const MAX_COST: NanoUsd = NanoUsd(100_000_000_000_000);
/// Latest time of an event: the end of the year 9999, so that every time fits where it is shown.
const MAX_OCCURRED_AT_MS: u64 = 253_402_300_799_999;
/// Models whose rates are remembered; beyond it they are looked up anew, which is slower but never wrong.
const MAX_REMEMBERED_MODELS: usize = 4_096;

/// One row for the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The fact.
    pub event: CostEvent,
    /// What the tenant pays.
    pub cost: NanoUsd,
    /// What a cached answer would have cost on top.
    pub saved: NanoUsd,
    /// No price was found; the cost is missing, not zero.
    pub unpriced: bool,
    /// The price file it was priced with.
    pub price_version: Arc<str>,
}

/// Whether a fact is the one for which a request is paid; its id is the same for every attempt.
#[must_use]
pub fn is_paid_once(kind: CostKind) -> bool {
    matches!(kind, CostKind::Computed | CostKind::Cancelled)
}

impl Entry {
    /// Device time that this fact used in vain when its request is paid for already: nobody pays.
    ///
    /// The id is that under which a worker would report the same waste itself, so it is booked once.
    #[must_use]
    pub fn spent_twice(&self) -> Self {
        let mut event = self.event.clone();
        event.event_id = waste_event_id(&event.request_id, event.attempt, &event.reporter);
        event.kind = CostKind::Waste;
        Self {
            event: without_counts(event),
            cost: NanoUsd(0),
            saved: NanoUsd(0),
            unpriced: false,
            price_version: Arc::clone(&self.price_version),
        }
    }
}

/// Waste answers no request and gives no tokens to anybody.
fn without_counts(mut event: CostEvent) -> CostEvent {
    event.requests = 0;
    event.input_tokens = 0;
    event.output_tokens = 0;
    event
}

/// Why an event is not booked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its tenant is not the subject's.
    #[error("tenant {event:?} is not {subject:?}, the tenant of the subject")]
    Tenant {
        /// What the event says.
        event: String,
        /// What the subject says.
        subject: String,
    },
    /// A text is missing, too long or has letters that it may not have.
    #[error("field `{0}` is empty, too long or malformed")]
    Name(&'static str),
    /// Its id is not the one that follows from its request: it would be booked beside the same fact, or hide another.
    #[error("field `event_id` is not that of the request and attempt")]
    Id,
    /// A number is beyond what one event can be.
    #[error("field `{field}` is {value}, more than one event can be")]
    Number {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// It would cost more than any request can.
    #[error("costs {0} USD, more than one event can")]
    Cost(NanoUsd),
}

/// The prices, with the rates of models met before at hand.
#[derive(Debug)]
pub struct Booker {
    prices: Prices,
    version: Arc<str>,
    remembered: HashMap<String, Vec<(String, DeviceTerms, Arc<Rates>)>>,
}

impl Booker {
    /// Books at these prices.
    #[must_use]
    pub fn new(prices: Prices) -> Self {
        Self {
            version: prices.version().into(),
            prices,
            remembered: HashMap::new(),
        }
    }

    /// The row of an event that came on a subject of `tenant`.
    ///
    /// # Errors
    /// Why it cannot be booked.
    pub fn book(&mut self, tenant: &str, event: CostEvent) -> Result<Entry, Refusal> {
        check(tenant, &event)?;
        let rates = self.rates(&event.model, &event.device, event.terms);
        let (charge, saved) = match event.kind {
            CostKind::Computed | CostKind::Cancelled => (full_price(&rates, &event), NanoUsd(0)),
            CostKind::Cached => self.cached(&rates, &event),
            CostKind::Waste | CostKind::Unknown => (Some(NanoUsd(0)), NanoUsd(0)),
        };
        let cost = charge.unwrap_or_default();
        if cost.saturating_add(saved) > MAX_COST {
            return Err(Refusal::Cost(cost.saturating_add(saved)));
        }
        let event = if event.kind == CostKind::Waste {
            without_counts(event)
        } else {
            event
        };
        Ok(Entry {
            event,
            cost,
            saved,
            unpriced: charge.is_none(),
            price_version: Arc::clone(&self.version),
        })
    }

    /// Cost and savings of cached answers; together they are the full price.
    fn cached(&self, rates: &Rates, event: &CostEvent) -> (Option<NanoUsd>, NanoUsd) {
        // Nothing was computed, so only tokens tell what it would have cost.
        match token_price(rates, event) {
            Some(full) => {
                let cost = self.prices.cached_charge(full);
                (Some(cost), NanoUsd(full.0 - cost.0))
            }
            None => (self.prices.cached_is_free().then_some(NanoUsd(0)), NanoUsd(0)),
        }
    }

    fn rates(&mut self, model: &str, device: &str, terms: DeviceTerms) -> Arc<Rates> {
        let devices = self.remembered.get(model).map_or(&[][..], Vec::as_slice);
        let known = devices
            .iter()
            .find(|(known, known_terms, _)| known == device && *known_terms == terms);
        if let Some((_, _, rates)) = known {
            return Arc::clone(rates);
        }
        let rates = Arc::new(self.prices.rates(model, device, terms));
        // A publisher that invents a device for each event must not fill the memory.
        if devices.len() < 64 && self.remembered.len() < MAX_REMEMBERED_MODELS {
            let devices = self.remembered.entry(model.to_owned()).or_default();
            devices.push((device.to_owned(), terms, Arc::clone(&rates)));
        }
        rates
    }
}

/// The sum of all meters, `None` when a meter that was used has no price.
fn full_price(rates: &Rates, event: &CostEvent) -> Option<NanoUsd> {
    let Some(compute) = rates.at(Meter::Compute, event.occurred_at_ms) else {
        return token_price(rates, event);
    };
    // Device time pays for all that the device did; token prices, where there are any, come on top.
    let mut charges = vec![(compute, event.compute_ns)];
    charges.extend(token_charges(rates, event).into_iter().flatten());
    Some(Price::charge_all(&charges))
}

fn token_price(rates: &Rates, event: &CostEvent) -> Option<NanoUsd> {
    let [input, output] = token_charges(rates, event);
    let missing = (input.is_none() && event.input_tokens > 0) || (output.is_none() && event.output_tokens > 0);
    // An event without any token and without any price row has no price either.
    if missing || (input.is_none() && output.is_none()) {
        return None;
    }
    let charges: Vec<_> = [input, output].into_iter().flatten().collect();
    Some(Price::charge_all(&charges))
}

fn token_charges(rates: &Rates, event: &CostEvent) -> [Option<(Price, u64)>; 2] {
    let of = |meter, tokens| Some((rates.at(meter, event.occurred_at_ms)?, tokens));
    [
        of(Meter::InputTokens, event.input_tokens),
        of(Meter::OutputTokens, event.output_tokens),
    ]
}

/// Refuses what no honest reporter sends, so that nothing that is booked can overflow a sum or hide a tenant.
fn check(tenant: &str, event: &CostEvent) -> Result<(), Refusal> {
    if event.tenant != tenant {
        return Err(Refusal::Tenant {
            event: event.tenant.chars().take(64).collect(),
            subject: tenant.to_owned(),
        });
    }
    if !is_token(&event.tenant) {
        return Err(Refusal::Name("tenant"));
    }
    let fits = |text: &str, most: usize| !text.is_empty() && text.len() <= most && !text.contains('\0');
    let names = [
        ("event_id", &event.event_id, MAX_NAME_BYTES),
        ("key_id", &event.key_id, MAX_NAME_BYTES),
        ("model", &event.model, MAX_MODEL_NAME_BYTES),
        ("operation", &event.operation, MAX_NAME_BYTES),
        ("request_id", &event.request_id, MAX_NAME_BYTES),
        ("reporter", &event.reporter, MAX_NAME_BYTES),
    ];
    for (field, text, most) in names {
        if !fits(text, most) {
            return Err(Refusal::Name(field));
        }
    }
    // Cached answers have no device.
    if !event.device.is_empty() && !fits(&event.device, MAX_NAME_BYTES) {
        return Err(Refusal::Name("device"));
    }
    check_id(event)?;
    let numbers = [
        ("requests", event.requests, MAX_COUNT),
        ("input_tokens", event.input_tokens, MAX_COUNT),
        ("output_tokens", event.output_tokens, MAX_COUNT),
        ("compute_ns", event.compute_ns, MAX_COMPUTE_NS),
        ("queue_us", event.queue_us, MAX_OCCURRED_AT_MS),
        ("occurred_at_ms", event.occurred_at_ms, MAX_OCCURRED_AT_MS),
    ];
    for (field, value, most) in numbers {
        if value > most {
            return Err(Refusal::Number { field, value });
        }
    }
    Ok(())
}

/// The journal's key is the id within the request, so the id must follow from the request.
fn check_id(event: &CostEvent) -> Result<(), Refusal> {
    let derived = match event.kind {
        CostKind::Computed | CostKind::Cancelled => computed_event_id(&event.request_id),
        CostKind::Waste => waste_event_id(&event.request_id, event.attempt, &event.reporter),
        // The parts of a report's id are not in the event; a kind newer than this program has its own rule.
        CostKind::Cached | CostKind::Unknown => return Ok(()),
    };
    if derived == event.event_id {
        Ok(())
    } else {
        Err(Refusal::Id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    fn booker(rows: &str) -> Booker {
        Booker::new(Prices::parse(rows).unwrap())
    }

    const TOKENS: &str = "[[price]]\nmodel = \"*\"\nmeter = \"input_tokens\"\nusd_per_million_tokens = \"0.02\"\nvalid_from = 2024-01-01\n";
    const COMPUTE: &str =
        "[[price]]\nmodel = \"*\"\nmeter = \"compute\"\nusd_per_compute_hour = \"3.6\"\nvalid_from = 2024-01-01\n";

    fn event(kind: CostKind) -> CostEvent {
        let base = example::event(1);
        let event_id = match kind {
            CostKind::Waste => waste_event_id(&base.request_id, base.attempt, &base.reporter),
            _ => base.event_id,
        };
        CostEvent {
            event_id,
            kind,
            input_tokens: 100,
            compute_ns: 5_000_000,
            ..base
        }
    }

    fn booked(booker: &mut Booker, event: CostEvent) -> Entry {
        booker.book("demo", event).unwrap()
    }

    #[test]
    fn each_kind_is_charged_its_way() {
        let mut by_tokens = booker(TOKENS);
        let mut by_time = booker(COMPUTE);
        let mut by_both = booker(&format!("{TOKENS}{COMPUTE}"));
        for kind in [CostKind::Computed, CostKind::Cancelled] {
            assert_eq!(booked(&mut by_tokens, event(kind)).cost, NanoUsd(2_000));
            // $3.6 an hour is 1 nano-dollar per microsecond.
            assert_eq!(booked(&mut by_time, event(kind)).cost, NanoUsd(5_000));
            assert_eq!(booked(&mut by_both, event(kind)).cost, NanoUsd(7_000));
        }
        let cached = booked(&mut by_tokens, event(CostKind::Cached));
        assert_eq!(
            (cached.cost, cached.saved, cached.unpriced),
            (NanoUsd(0), NanoUsd(2_000), false)
        );
        let waste = booked(&mut by_both, event(CostKind::Waste));
        assert_eq!((waste.cost, waste.saved), (NanoUsd(0), NanoUsd(0)));
        assert_eq!(
            (waste.event.requests, waste.event.input_tokens, waste.event.compute_ns),
            (0, 0, 5_000_000)
        );
        let newer = booked(&mut by_both, event(CostKind::Unknown));
        assert_eq!((newer.cost, newer.unpriced), (NanoUsd(0), false));
    }

    #[test]
    fn a_missing_price_is_said() {
        let with_output = CostEvent {
            output_tokens: 1,
            ..event(CostKind::Computed)
        };
        assert!(
            booked(&mut booker(TOKENS), with_output.clone()).unpriced,
            "output has no price"
        );
        assert!(
            !booked(&mut booker(COMPUTE), with_output).unpriced,
            "device time covers tokens"
        );
        let early = CostEvent {
            occurred_at_ms: 0,
            ..event(CostKind::Computed)
        };
        let entry = booked(&mut booker(TOKENS), early.clone());
        assert_eq!((entry.unpriced, entry.cost), (true, NanoUsd(0)));
        let empty = CostEvent {
            input_tokens: 0,
            ..early
        };
        assert!(booked(&mut booker(TOKENS), empty).unpriced);
        let cached = CostEvent {
            output_tokens: 1,
            ..event(CostKind::Cached)
        };
        assert!(
            !booked(&mut booker(TOKENS), cached.clone()).unpriced,
            "free is known to be free"
        );
        let fraction = format!("cached_fraction = \"0.5\"\n{TOKENS}");
        assert!(booked(&mut booker(&fraction), cached).unpriced);
    }

    #[test]
    fn cost_and_savings_of_cached_answers_are_the_full_price() {
        let mut booker = booker(&format!("cached_fraction = \"0.333333333\"\n{TOKENS}"));
        for tokens in [0, 1, 7, 1_000, 999_999_999] {
            let entry = booked(
                &mut booker,
                CostEvent {
                    input_tokens: tokens,
                    ..event(CostKind::Cached)
                },
            );
            assert_eq!(entry.cost.0 + entry.saved.0, 20 * i64::try_from(tokens).unwrap());
        }
    }

    #[test]
    fn impossible_events_are_refused() {
        let good = event(CostKind::Computed);
        let change = |change: fn(&mut CostEvent)| {
            let mut event = good.clone();
            change(&mut event);
            event
        };
        let cases = [
            ("tenant", change(|event| event.tenant = "other".to_owned())),
            ("event_id", change(|event| event.event_id.clear())),
            ("event_id", change(|event| event.request_id = "another".to_owned())),
            ("event_id", change(|event| event.kind = CostKind::Waste)),
            ("key_id", change(|event| event.key_id = "k\0".to_owned())),
            ("model", change(|event| event.model = "m".repeat(257))),
            ("device", change(|event| event.device = "d".repeat(257))),
            ("requests", change(|event| event.requests = u64::MAX)),
            ("compute_ns", change(|event| event.compute_ns = MAX_COMPUTE_NS + 1)),
            ("occurred_at_ms", change(|event| event.occurred_at_ms = u64::MAX)),
        ];
        for (field, event) in cases {
            let refusal = booker(TOKENS).book("demo", event).unwrap_err().to_string();
            assert!(refusal.contains(field), "{refusal}");
        }
        let dear = TOKENS.replace("0.02", "9000000");
        let refusal = booker(&dear).book(
            "demo",
            CostEvent {
                input_tokens: MAX_COUNT,
                ..good.clone()
            },
        );
        assert!(matches!(refusal, Err(Refusal::Cost(_))));
        let odd = CostEvent {
            tenant: "A B".to_owned(),
            ..good
        };
        assert_eq!(booker(TOKENS).book("A B", odd), Err(Refusal::Name("tenant")));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_right() {
        let mut booker = booker(&format!(
            "{TOKENS}{}",
            COMPUTE.replace("model = \"*\"", "model = \"*\"\ndevice = \"gpu\"")
        ));
        for number in 0..200 {
            let device = format!("d{number}");
            assert_eq!(
                booked(
                    &mut booker,
                    CostEvent {
                        device,
                        ..event(CostKind::Computed)
                    }
                )
                .cost,
                NanoUsd(2_000)
            );
        }
        let gpu = CostEvent {
            device: "gpu".to_owned(),
            ..event(CostKind::Computed)
        };
        assert_eq!(booked(&mut booker, gpu).cost, NanoUsd(7_000));
        assert!(booker.remembered.values().all(|devices| devices.len() <= 64));
    }

    #[test]
    fn time_spent_twice_has_the_id_a_worker_would_give_it() {
        let entry = booked(&mut booker(TOKENS), event(CostKind::Computed));
        let waste = entry.spent_twice();
        assert_eq!(
            waste.event.event_id,
            waste_event_id(&entry.event.request_id, 1, &entry.event.reporter)
        );
        assert_eq!(
            (waste.event.kind, waste.cost, waste.event.requests),
            (CostKind::Waste, NanoUsd(0), 0)
        );
        assert_eq!(waste.event.compute_ns, entry.event.compute_ns);
        assert_eq!(entry.event.event_id, computed_event_id(&entry.event.request_id));
    }
}
