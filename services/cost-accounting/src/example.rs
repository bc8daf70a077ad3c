//! Events for this crate's tests; those in `tests/it` take in this file by its path. Input: a number. Output: a well-formed
//! event of tenant `demo`.

use schemas::cost::{CostEvent, CostKind, DeviceTerms, computed_event_id};

/// The computed event of request number `number`: 10 tokens, 200 nano-dollars, 1 µs.
pub(crate) fn event(number: u64) -> CostEvent {
    let request_id = format!("request-{number}");
    CostEvent {
        event_id: computed_event_id(&request_id),
        kind: CostKind::Computed,
        tenant: "demo".to_owned(),
        key_id: "key".to_owned(),
        model: "all-minilm-l6-v2".to_owned(),
        operation: "embed".to_owned(),
        request_id,
        requests: 1,
        input_tokens: 10,
        output_tokens: 0,
        compute_ns: 1_000,
        queue_us: 5,
        attempt: 1,
        device: "cpu".to_owned(),
        terms: DeviceTerms::OnDemand,
        reporter: "gpu-worker-1".to_owned(),
        occurred_at_ms: 1_800_000_000_000,
    }
}
