//! Fixed values of the messages about work and keys. Input: nothing. Output: entries with examples; their golden
//! bytes lie in `schemas/tests/golden/` and never change.

use serde_bytes::ByteBuf;

use super::registry::{Entry, read};
use super::{generate_examples, ranking_examples, service_examples};
use crate::dead::DeadLetter;
use crate::error::{ErrorCode, Failure};
use crate::identity::{AUDIENCE, Claims, ISSUER, Jwk};
use crate::ids::RequestId;
use crate::policy::{
    CreateKey, Grant, Held, Hold, KeyInfo, KeyState, KeysReply, ListKeys, NameKey, RequestLimit, Resolve, Resolved,
    Revoked, Scope,
};
use crate::reply::{Accepted, Done, EmbedPart, Frame, ReplyBatch, ReplyFrame, Usage};
use crate::vector::Vector;
use crate::wire::WireError;
use crate::work::{Cancel, EmbedInput, EmbedTask, InputType, Lane, Task, Truncate, Work};

pub(super) const MODEL: &str = "all-minilm-l6-v2";
pub(super) const TENANT: &str = "demo";
pub(super) const KID: &str = "4k9Qz1T7bXwA";
/// 2026-01-01T00:00:00Z in milliseconds.
pub(super) const NOW_MS: u64 = 1_767_225_600_000;

pub(super) fn entries() -> Vec<Result<Entry, WireError>> {
    let mut entries = work();
    entries.extend(ranking_examples::tokens());
    entries.extend(keys());
    entries.extend(service_examples::cache());
    entries.extend(service_examples::cost());
    entries.extend(service_examples::fleet());
    entries
}

pub(super) fn request_id() -> RequestId {
    RequestId::from_bytes([
        0x01, 0x9b, 0x76, 0xda, 0xe0, 0x00, 0x70, 0x00, 0x80, 0x00, 0, 0, 0, 0, 0, 0x01,
    ])
}

/// A frame of the example request.
pub(super) fn frame(sequence: u32, frame: Frame) -> ReplyFrame {
    ReplyFrame {
        request_id: request_id(),
        attempt: 1,
        sequence,
        frame,
    }
}

fn work() -> Vec<Result<Entry, WireError>> {
    let embed = |inputs, truncate, input_type| Work {
        request_id: request_id(),
        model: MODEL.to_owned(),
        submitted_at_ms: NOW_MS,
        task: Task::Embed(EmbedTask {
            inputs,
            truncate,
            input_type,
        }),
    };
    let texts = vec![EmbedInput::Text("The mesh carries work.".to_owned())];
    let tokens = vec![EmbedInput::Tokens(vec![1_996, 15_949, 7_883])];
    let part = |first, values: &[f32]| EmbedPart {
        first,
        vectors: vec![Vector(values.to_vec())],
    };
    let accepted = frame(
        0,
        Frame::Accepted(Accepted {
            worker: "gpu-worker-3f9a1c2b".to_owned(),
            ack_subject: format!("$JS.ACK.WORK_{MODEL}.interactive.1.7.7.{NOW_MS}000000.0"),
        }),
    );
    let done = frame(
        2,
        Frame::Done(Done {
            embed: part(1, &[-0.25, 0.75]),
            usage: Usage {
                input_tokens: 8,
                queue_us: 850,
                compute_ns: 4_200_000,
                ..Usage::default()
            },
            ..Done::default()
        }),
    );
    let failure = Failure::new(ErrorCode::InputTooLong, "input 1 has 300 tokens, the limit is 256").param("input[1]");
    let batch = ReplyBatch {
        frames: vec![accepted.clone(), done.clone()],
    };
    let mut works = vec![
        ("", embed(texts, Truncate::None, None)),
        ("tokens", embed(tokens, Truncate::End, Some(InputType::Query))),
    ];
    works.extend(generate_examples::work());
    works.push(("rank", ranking_examples::work()));
    let mut frames = vec![
        ("", accepted),
        ("part", frame(1, Frame::Part(part(0, &[0.5, -0.5])))),
        ("done", done),
        ("failed", frame(1, Frame::Failed(failure))),
    ];
    frames.extend(generate_examples::frames());
    frames.push(("done_rank", ranking_examples::frame()));
    vec![
        read(works),
        read(frames),
        read(vec![("", batch)]),
        read(vec![(
            "",
            Cancel {
                request_ids: vec![request_id()],
            },
        )]),
        read(vec![("", dead_letter())]),
    ]
}

fn dead_letter() -> DeadLetter {
    DeadLetter {
        subject: format!("portalis.v1.work.{MODEL}.interactive.{TENANT}"),
        stream: format!("WORK_{MODEL}"),
        stream_sequence: 7,
        deliveries: 3,
        reason: "delivered 3 times without an answer".to_owned(),
        died_at_ms: NOW_MS,
        headers: vec![("Portalis-Request-Id".to_owned(), request_id().to_string())],
        payload: ByteBuf::from(vec![0xc1]),
    }
}

fn grant() -> Grant {
    Grant {
        kid: KID.to_owned(),
        tenant: TENANT.to_owned(),
        models: vec!["*".to_owned()],
        scopes: vec![Scope::Inference, Scope::UsageRead],
        priority_ceiling: Lane::Interactive,
        request_limit: Some(limit()),
        policy_version: 1,
        identity: "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl".to_owned(),
        identity_expires_at_ms: NOW_MS + 60_000,
    }
}

fn limit() -> RequestLimit {
    RequestLimit {
        per_minute: 600,
        burst: 100,
    }
}

fn keys() -> Vec<Result<Entry, WireError>> {
    let info = key_info();
    let denied = || Failure::new(ErrorCode::InvalidKey, "the API key is not valid");
    let created = KeysReply::Created {
        key: "(shown once)".to_owned(),
        info: info.clone(),
    };
    let listed = KeysReply::Listed {
        keys: vec![info.clone()],
        more: false,
    };
    vec![
        read(vec![(
            "",
            Resolve {
                kid: KID.to_owned(),
                key_sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
            },
        )]),
        read(vec![
            ("", Resolved::Granted(grant())),
            ("denied", Resolved::Denied(denied())),
        ]),
        read(vec![("", hold())]),
        read(vec![("", held())]),
        read(vec![(
            "",
            Revoked {
                kid: KID.to_owned(),
                policy_version: 2,
            },
        )]),
        read(vec![("", create_key())]),
        read(vec![(
            "",
            ListKeys {
                tenant: Some(TENANT.to_owned()),
                after: None,
            },
        )]),
        read(vec![("", NameKey { kid: KID.to_owned() })]),
        read(vec![
            ("", created),
            ("listed", listed),
            (
                "changed",
                KeysReply::Changed(KeyInfo {
                    state: KeyState::Disabled,
                    ..info
                }),
            ),
            (
                "failed",
                KeysReply::Failed(Failure::new(ErrorCode::InvalidField, "no such key")),
            ),
        ]),
        read(vec![("", claims())]),
        read(vec![("", jwk())]),
    ]
}

fn key_info() -> KeyInfo {
    KeyInfo {
        kid: KID.to_owned(),
        tenant: TENANT.to_owned(),
        name: "laptop".to_owned(),
        state: KeyState::Active,
        models: vec!["*".to_owned()],
        scopes: vec![Scope::Inference],
        request_limit: Some(limit()),
        priority_ceiling: Lane::Interactive,
        created_at_ms: NOW_MS,
        expires_at_ms: None,
        policy_version: 1,
    }
}

fn hold() -> Hold {
    Hold {
        kid: KID.to_owned(),
        least: 1,
        most: 10,
    }
}

fn held() -> Held {
    Held {
        granted: 10,
        valid_ms: 1_000,
        remaining: 90,
        reset_ms: 1_000,
        retry_after_ms: 0,
    }
}

fn create_key() -> CreateKey {
    CreateKey {
        tenant: TENANT.to_owned(),
        name: "laptop".to_owned(),
        models: vec!["all-*".to_owned()],
        scopes: vec![Scope::Inference],
        request_limit: Some(limit()),
        priority_ceiling: Lane::Batch,
        expires_at_ms: Some(NOW_MS + 86_400_000),
    }
}

fn claims() -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        aud: AUDIENCE.to_owned(),
        sub: KID.to_owned(),
        tnt: TENANT.to_owned(),
        mdl: vec!["*".to_owned()],
        scp: vec![Scope::Inference],
        pri: Lane::Interactive,
        ver: 1,
        iat: NOW_MS / 1_000,
        exp: NOW_MS / 1_000 + 60,
    }
}

fn jwk() -> Jwk {
    Jwk {
        kty: "OKP".to_owned(),
        crv: "Ed25519".to_owned(),
        alg: "EdDSA".to_owned(),
        kid: "2026-01".to_owned(),
        // The public key of RFC 8037, appendix A.
        x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".to_owned(),
        expires_at_s: NOW_MS / 1_000 + 3_600,
    }
}
