//! One request in the worker's hands. Input: a message from the queue and its parsed parts. Output: how far it is, what it
//! took, and the frames and cost event that end it. Pure but for the message it owns.

use std::sync::Arc;

use bus::Job;
use engine::TokenIds;
use schemas::cost::{CostEvent, CostKind, computed_event_id};
use schemas::identity::Claims;
use schemas::ids::RequestId;
use schemas::reply::{Done, EmbedPart, Frame, ReplyFrame, Usage};
use schemas::vector::Vector;
use schemas::wire::Format;
use schemas::work::Lane;

/// Vectors of one frame, in bytes: far below the broker's message limit, so that a frame and its framing always fit.
const MAX_PART_BYTES: usize = 256 * 1024;

/// Where and how a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// The caller's reply subject.
    pub subject: String,
    /// The format it wrote in.
    pub format: Format,
}

/// What a request is about, before it is tokenized.
#[derive(Debug)]
pub struct Request {
    /// Who asked what, once.
    pub request_id: RequestId,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// Who pays.
    pub claims: Arc<Claims>,
    /// Its lane.
    pub lane: Lane,
    /// When it reached the mesh, Unix milliseconds.
    pub submitted_at_ms: u64,
    /// When nobody waits any more, Unix milliseconds; `None` = never.
    pub deadline_ms: Option<u64>,
    /// Its trace, when a log of this detail is kept.
    pub trace_id: Option<String>,
}

/// A request in hand.
#[derive(Debug)]
pub struct Held {
    /// The message; settling it is the last thing that happens.
    pub job: Job,
    /// What it is about.
    pub request: Request,
    /// Token ids of the inputs; taken when computed.
    pub tokens: Vec<Option<TokenIds>>,
    vectors: Vec<Vector>,
    computed: usize,
    input_tokens: u64,
    compute_ns: u64,
    queue_us: Option<u64>,
    next_sequence: u32,
    /// Nobody waits any more; what is being computed is the last of it.
    pub cancelled: bool,
    /// Its vectors are scores, of one value each.
    ranks: bool,
    /// It is computed alone: it was delivered before, or a batch with it failed.
    pub alone: bool,
}

impl Held {
    /// A request that was just taken from the queue.
    #[must_use]
    pub fn new(job: Job, request: Request, ranks: bool) -> Self {
        // Work that was delivered before may have killed a worker: its neighbours shall not pay for that.
        let alone = job.delivered() > 1;
        Self {
            job,
            request,
            tokens: Vec::new(),
            vectors: Vec::new(),
            computed: 0,
            input_tokens: 0,
            compute_ns: 0,
            queue_us: None,
            next_sequence: 0,
            cancelled: false,
            ranks,
            alone,
        }
    }

    /// Takes the token ids of its inputs.
    pub fn on_tokens(&mut self, tokens: Vec<TokenIds>) {
        self.vectors = vec![Vector::default(); tokens.len()];
        self.tokens = tokens.into_iter().map(Some).collect();
    }

    /// Notes the start of a batch with it, for its queue wait.
    pub fn on_started(&mut self, now_ms: u64) -> u64 {
        let wait_us = now_ms.saturating_sub(self.request.submitted_at_ms) * 1_000;
        *self.queue_us.get_or_insert(wait_us)
    }

    /// Takes one vector and what it took.
    pub fn on_vector(&mut self, index: usize, values: &[f32], tokens: u64) {
        if let Some(slot) = self.vectors.get_mut(index) {
            *slot = Vector(values.to_vec());
            self.computed += 1;
            self.input_tokens += tokens;
        }
    }

    /// Adds its share of a batch's time.
    pub fn on_share(&mut self, share_ns: u64) {
        self.compute_ns += share_ns;
    }

    /// Whether every input is computed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.computed == self.tokens.len()
    }

    /// Whether anything was computed for it.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.compute_ns > 0
    }

    /// Delivery attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        u32::try_from(self.job.delivered()).unwrap_or(u32::MAX)
    }

    /// The next frame of its answer.
    pub fn frame(&mut self, frame: Frame) -> ReplyFrame {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        ReplyFrame {
            request_id: self.request.request_id,
            attempt: self.attempt(),
            sequence,
            frame,
        }
    }

    /// The frames of the whole answer: parts of bounded size, then the end, with which all scores come.
    pub fn answer(&mut self) -> Vec<ReplyFrame> {
        let vectors = std::mem::take(&mut self.vectors);
        let usage = self.usage();
        if self.ranks {
            let done = Done {
                scores: vectors.iter().filter_map(|score| score.0.first().copied()).collect(),
                usage,
                ..Done::default()
            };
            return vec![self.frame(Frame::Done(done))];
        }
        let dimensions = vectors.first().map_or(1, |vector| vector.0.len()).max(1);
        let per_part = (MAX_PART_BYTES / (dimensions * size_of::<f32>())).max(1);
        let mut parts: Vec<EmbedPart> = Vec::new();
        let mut rest = vectors.into_iter().peekable();
        let mut first = 0_u32;
        while rest.peek().is_some() {
            let vectors: Vec<Vector> = rest.by_ref().take(per_part).collect();
            let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
            parts.push(EmbedPart { first, vectors });
            first = first.saturating_add(count);
        }
        let last = parts.pop().unwrap_or_default();
        let mut frames: Vec<ReplyFrame> = parts.into_iter().map(|part| self.frame(Frame::Part(part))).collect();
        frames.push(self.frame(Frame::Done(Done {
            embed: last,
            usage,
            ..Done::default()
        })));
        frames
    }

    fn usage(&self) -> Usage {
        Usage {
            input_tokens: self.input_tokens,
            queue_us: self.queue_us.unwrap_or_default(),
            compute_ns: self.compute_ns,
            ..Usage::default()
        }
    }

    /// What was spent on it.
    #[must_use]
    pub fn spent(&self) -> Spent {
        Spent {
            operation: if self.ranks { "rank" } else { "embed" },
            attempt: self.attempt(),
            input_tokens: self.input_tokens,
            output_tokens: 0,
            compute_ns: self.compute_ns,
            queue_us: self.queue_us.unwrap_or_default(),
        }
    }
}

/// What was spent on a request so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// What was done, as the price list names it.
    pub operation: &'static str,
    /// Which delivery this was, from 1.
    pub attempt: u32,
    /// Tokens in.
    pub input_tokens: u64,
    /// Tokens out.
    pub output_tokens: u64,
    /// Its share of the device's busy time.
    pub compute_ns: u64,
    /// From submission to the start of its first batch.
    pub queue_us: u64,
}

impl Request {
    /// The fact to be booked about it.
    #[must_use]
    pub fn cost(&self, kind: CostKind, spent: Spent, model: &str, (report, now_ms): (&Reporter, u64)) -> CostEvent {
        let request_id = self.request_id.to_string();
        CostEvent {
            // One id for computed and cancelled: a request pays once, whichever is told first.
            event_id: match kind {
                CostKind::Waste => schemas::cost::waste_event_id(&request_id, spent.attempt, &report.instance),
                _ => computed_event_id(&request_id),
            },
            kind,
            tenant: self.claims.tnt.clone(),
            key_id: self.claims.sub.clone(),
            model: model.to_owned(),
            operation: spent.operation.to_owned(),
            request_id,
            requests: u64::from(kind != CostKind::Waste),
            input_tokens: spent.input_tokens,
            output_tokens: spent.output_tokens,
            compute_ns: spent.compute_ns,
            queue_us: spent.queue_us,
            attempt: spent.attempt,
            device: report.device.clone(),
            terms: report.terms,
            reporter: report.instance.clone(),
            occurred_at_ms: now_ms,
        }
    }
}

/// Who reports costs.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// This worker.
    pub instance: String,
    /// What it runs on.
    pub device: String,
    /// Terms of the device.
    pub terms: schemas::cost::DeviceTerms,
}

/// Divides a batch's time by weights, exactly: the shares sum to the time (largest remainder method).
#[must_use]
pub fn shares(time_ns: u64, weights: &[u64]) -> Vec<u64> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if total == 0 {
        return equal_shares(time_ns, weights.len());
    }
    let product = |weight: u64| u128::from(time_ns) * u128::from(weight);
    // Each share is at most the time, so it fits.
    let mut shares: Vec<u64> = weights
        .iter()
        .map(|weight| u64::try_from(product(*weight) / total).unwrap_or(time_ns))
        .collect();
    let missing = time_ns - shares.iter().sum::<u64>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(product(weights[*index]) % total));
    for index in order.into_iter().take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        shares[index] += 1;
    }
    shares
}

fn equal_shares(time_ns: u64, count: usize) -> Vec<u64> {
    let count_ns = count as u64;
    (0..count_ns)
        .map(|index| time_ns / count_ns + u64::from(index < time_ns % count_ns))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_sum_exactly_and_are_fair(
            time_ns in 0_u64..1 << 45,
            weights in prop::collection::vec(0_u64..10_000, 1..300),
        ) {
            let parts = shares(time_ns, &weights);
            prop_assert_eq!(parts.iter().sum::<u64>(), time_ns);
            let total: u64 = weights.iter().sum();
            if total > 0 {
                for (part, weight) in parts.iter().zip(&weights) {
                    let exact = u128::from(time_ns) * u128::from(*weight) / u128::from(total);
                    prop_assert!(u128::from(*part) - exact <= 1);
                }
            }
        }
    }
}
