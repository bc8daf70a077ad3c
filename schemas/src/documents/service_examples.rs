//! Fixed values of the messages about cache, cost and fleet. Input: nothing. Output: entries with examples.

use serde_bytes::ByteBuf;

use super::generate_examples::{self, WRITER};
use super::message_examples::{KID, MODEL, NOW_MS, TENANT, request_id};
use super::ranking_examples::RANKER;
use super::registry::{Entry, read};
use crate::cache::{
    CacheFound, CacheGet, CacheHeld, CacheIndex, CacheKey, CachePurge, CachePut, CachedEmbeddings, CachedRanking,
    KeptAnswer,
};
use crate::cost::{CostBatch, CostEvent, CostKind, DeviceTerms, UsageGet, UsageReport};
use crate::fleet::{
    Beat, Control, ControlReply, InstanceState, ModelCard, Operation, PoolInfo, ScaleDecision, ScaleInputs,
    ScaleReason, WorkerBeat,
};
use crate::money::NanoUsd;
use crate::vector::Vector;
use crate::wire::WireError;

pub(super) fn cache() -> Vec<Result<Entry, WireError>> {
    let key = || CacheKey {
        tenant: TENANT.to_owned(),
        digest: ByteBuf::from((0..32).collect::<Vec<u8>>()),
    };
    let body = || ByteBuf::from(b"answer".to_vec());
    let fingerprints = ByteBuf::from(key().fingerprint().to_le_bytes().to_vec());
    vec![
        read(vec![("", CacheGet { key: key() })]),
        read(vec![
            (
                "",
                CacheFound {
                    body: Some(body()),
                    ttl_ms: 60_000,
                },
            ),
            ("miss", CacheFound { body: None, ttl_ms: 0 }),
        ]),
        read(vec![(
            "",
            CachePut {
                answers: vec![KeptAnswer {
                    key: key(),
                    body: body(),
                    ttl_ms: 60_000,
                }],
            },
        )]),
        read(vec![
            (
                "",
                CachePurge {
                    tenant: Some(TENANT.to_owned()),
                },
            ),
            ("all", CachePurge { tenant: None }),
        ]),
        read(vec![("", CacheHeld { fingerprints })]),
        read(vec![("", CacheIndex { limit: 60_000 })]),
        read(vec![("", cached())]),
        read(vec![(
            "",
            CachedRanking {
                scores: vec![-1.5, 4.25],
                input_tokens: 24,
            },
        )]),
        read(vec![("", generate_examples::cached())]),
    ]
}

fn cached() -> CachedEmbeddings {
    CachedEmbeddings {
        vectors: vec![Vector(vec![0.5, -0.5])],
        input_tokens: 8,
    }
}

pub(super) fn cost() -> Vec<Result<Entry, WireError>> {
    let event = CostEvent {
        event_id: crate::cost::computed_event_id(&request_id().to_string()),
        kind: CostKind::Computed,
        tenant: TENANT.to_owned(),
        key_id: KID.to_owned(),
        model: MODEL.to_owned(),
        operation: "embed".to_owned(),
        request_id: request_id().to_string(),
        requests: 1,
        input_tokens: 8,
        output_tokens: 0,
        compute_ns: 4_200_000,
        queue_us: 850,
        attempt: 1,
        device: "cpu".to_owned(),
        terms: DeviceTerms::OnDemand,
        reporter: "gpu-worker-3f9a1c2b".to_owned(),
        occurred_at_ms: NOW_MS,
    };
    let report = UsageReport {
        requests: 2,
        computed: 1,
        cached: 1,
        unpriced: 0,
        input_tokens: 16,
        output_tokens: 0,
        compute_ns: 4_200_000,
        cost: NanoUsd(160),
        saved: NanoUsd(160),
        wasted_ns: 0,
        as_of_ms: NOW_MS,
    };
    let get = UsageGet {
        key_id: Some(KID.to_owned()),
        tenant: TENANT.to_owned(),
        start_s: None,
        end_s: None,
    };
    vec![
        read(vec![("", CostBatch { events: vec![event] })]),
        read(vec![("", get)]),
        read(vec![("", report)]),
    ]
}

pub(super) fn fleet() -> Vec<Result<Entry, WireError>> {
    let beat = |service: &str, worker| Beat {
        service: service.to_owned(),
        instance: format!("{service}-3f9a1c2b"),
        version: "0.1.0".to_owned(),
        started_at_ms: NOW_MS,
        state: InstanceState::Ready,
        worker,
    };
    let pool = PoolInfo {
        model: MODEL.to_owned(),
        wanted: 2,
        running: 1,
        min: 1,
        max: 4,
    };
    let set_workers = Control::SetWorkers {
        model: MODEL.to_owned(),
        workers: 2,
    };
    vec![
        read(vec![
            ("", beat("gpu-worker", Some(worker_beat()))),
            ("service", beat("cache", None)),
        ]),
        read(vec![
            ("", Control::Drain),
            ("set_workers", set_workers),
            ("describe_pool", Control::DescribePool),
        ]),
        read(vec![
            ("", ControlReply::Accepted),
            ("pools", ControlReply::Pools(vec![pool])),
            ("refused", ControlReply::Refused("at most 4 workers".to_owned())),
        ]),
        read(vec![("", scale_decision())]),
        read(vec![
            ("", model_card()),
            ("generate", writer_card()),
            ("rank", ranker_card()),
        ]),
    ]
}

fn worker_beat() -> WorkerBeat {
    WorkerBeat {
        model: MODEL.to_owned(),
        slots: 64,
        in_hand: 3,
        waiting_tokens: 120,
        finished_total: 1_000,
        tokens_total: 24_000,
        busy_ns_total: 9_000_000_000,
        batch_us: 12_000,
        device: "cpu".to_owned(),
        pid: 4_242,
    }
}

fn scale_decision() -> ScaleDecision {
    ScaleDecision {
        model: MODEL.to_owned(),
        from: 1,
        to: 2,
        reason: ScaleReason::Backlog,
        observed: ScaleInputs {
            queued: 180,
            in_hand: 64,
            oldest_ms: 900,
            ready_workers: 1,
            starting_workers: 0,
            busy: 0.75,
        },
        decided_at_ms: NOW_MS,
    }
}

fn model_card() -> ModelCard {
    ModelCard {
        name: MODEL.to_owned(),
        slug: crate::ids::model_slug(MODEL),
        operations: vec![Operation::Embed],
        family: "bert".to_owned(),
        dimensions: 384,
        max_tokens: 256,
        max_context: 0,
        revision: "blake3:0123456789abcdef".to_owned(),
        precision: "f32".to_owned(),
        parameters: 22_713_216,
        variable_dimensions: false,
        asymmetric: false,
        created_s: NOW_MS / 1_000,
    }
}

fn ranker_card() -> ModelCard {
    ModelCard {
        name: RANKER.to_owned(),
        slug: crate::ids::model_slug(RANKER),
        operations: vec![Operation::Rank],
        dimensions: 0,
        max_tokens: 512,
        ..model_card()
    }
}

fn writer_card() -> ModelCard {
    ModelCard {
        name: WRITER.to_owned(),
        slug: crate::ids::model_slug(WRITER),
        operations: vec![Operation::Generate],
        family: "llama".to_owned(),
        dimensions: 0,
        max_tokens: 1_024,
        max_context: 1_024,
        parameters: 4_100_000,
        ..model_card()
    }
}
