//! The one table of subjects. Input: slugs, lanes, tenants, instance names (each a subject-safe token). Output: subjects,
//! and [`TABLE`], from which documents and broker permissions are made.

use crate::policy::partition;
use crate::work::Lane;

/// How a subject is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Kept in a JetStream stream.
    Stream,
    /// Core message, nobody answers.
    Publish,
    /// Core request with one reply.
    Request,
}

/// One row of the table.
pub struct Row {
    /// The subject with `<placeholders>`.
    pub subject: &'static str,
    /// How it is used.
    pub kind: Kind,
    /// Who publishes.
    pub publishers: &'static [&'static str],
    /// Who listens.
    pub listeners: &'static [&'static str],
    /// Type of the body.
    pub message: &'static str,
    /// Type of the reply, if any.
    pub reply: Option<&'static str>,
    /// What it is for.
    pub about: &'static str,
}

/// Everybody who beats.
const ALL: &[&str] = &[
    "gateway",
    "auth",
    "cache",
    "gpu-worker",
    "cost-accounting",
    "autoscaler",
];

/// Every subject of the mesh.
pub const TABLE: &[Row] = &[
    Row {
        subject: "portalis.v1.work.<model>.<lane>.<tenant>",
        kind: Kind::Stream,
        publishers: &["gateway", "publisher"],
        listeners: &["gpu-worker"],
        message: "Work",
        reply: Some("ReplyFrame"),
        about: "Work for a model, in the stream WORK_<model>. Headers: Portalis-Identity and Portalis-Reply are \
                needed; Portalis-Deadline, Nats-Msg-Id, Nats-TTL, traceparent and Content-Type may be set. \
                Replies go to Portalis-Reply in the format of the request.",
    },
    Row {
        subject: "portalis.v1.reply.<gateway>.<slot>",
        kind: Kind::Publish,
        publishers: &["gpu-worker"],
        listeners: &["gateway"],
        message: "ReplyBatch",
        reply: None,
        about: "Answers to a gateway: slot b carries coalesced frames of many requests, slots p<n> the broker's \
                acknowledgements of published work.",
    },
    Row {
        subject: "portalis.v1.cancel.worker.<worker>",
        kind: Kind::Publish,
        publishers: &["gateway", "publisher"],
        listeners: &["gpu-worker"],
        message: "Cancel",
        reply: None,
        about: "Stop what nobody waits for, at the worker that accepted it.",
    },
    Row {
        subject: "portalis.v1.cancel.model.<model>",
        kind: Kind::Publish,
        publishers: &["gateway", "publisher"],
        listeners: &["gpu-worker"],
        message: "Cancel",
        reply: None,
        about: "Stop what nobody waits for, at whichever worker has it.",
    },
    Row {
        subject: "portalis.v1.tokens.<model>",
        kind: Kind::Request,
        publishers: &["gateway", "publisher"],
        listeners: &["gpu-worker"],
        message: "TokensAsk",
        reply: Some("TokensReply"),
        about: "Texts to tokens and back, answered by any worker of the model beside its batches, without the queue. \
                The header Portalis-Identity is needed. Nothing is charged: no device time is used.",
    },
    Row {
        subject: "portalis.v1.auth.resolve.<partition>",
        kind: Kind::Request,
        publishers: &["gateway", "publisher"],
        listeners: &["auth"],
        message: "Resolve",
        reply: Some("Resolved"),
        about: "Who is this key? The partition is that of the key id.",
    },
    Row {
        subject: "portalis.v1.auth.hold.<partition>",
        kind: Kind::Request,
        publishers: &["gateway"],
        listeners: &["auth"],
        message: "Hold",
        reply: Some("Held"),
        about: "Permits for requests of a limited key.",
    },
    Row {
        subject: "portalis.v1.auth.revoked",
        kind: Kind::Publish,
        publishers: &["auth"],
        listeners: &["gateway", "gpu-worker", "cost-accounting"],
        message: "Revoked",
        reply: None,
        about: "A key was changed, disabled or deleted; grants of older versions are void.",
    },
    Row {
        subject: "portalis.v1.auth.keys.<verb>",
        kind: Kind::Request,
        publishers: &["portalis"],
        listeners: &["auth"],
        message: "CreateKey",
        reply: Some("KeysReply"),
        about: "Key administration: create (CreateKey), list (ListKeys), disable, enable, delete (NameKey).",
    },
    Row {
        subject: "portalis.v1.cache.get.<shard>",
        kind: Kind::Request,
        publishers: &["gateway"],
        listeners: &["cache"],
        message: "CacheGet",
        reply: Some("CacheFound"),
        about: "Look an answer up in the shared tier.",
    },
    Row {
        subject: "portalis.v1.cache.put.<shard>",
        kind: Kind::Publish,
        publishers: &["gateway"],
        listeners: &["cache"],
        message: "CachePut",
        reply: None,
        about: "Keep answers in the shared tier; many share a message.",
    },
    Row {
        subject: "portalis.v1.cache.purge",
        kind: Kind::Publish,
        publishers: &["portalis"],
        listeners: &["cache", "gateway"],
        message: "CachePurge",
        reply: None,
        about: "Forget answers.",
    },
    Row {
        subject: "portalis.v1.cache.held",
        kind: Kind::Publish,
        publishers: &["cache"],
        listeners: &["gateway"],
        message: "CacheHeld",
        reply: None,
        about: "What the shared tier holds newly, so that gateways ask only for that.",
    },
    Row {
        subject: "portalis.v1.cache.index",
        kind: Kind::Request,
        publishers: &["gateway"],
        listeners: &["cache"],
        message: "CacheIndex",
        reply: Some("CacheHeld"),
        about: "What the shared tier holds, asked once by a starting gateway.",
    },
    Row {
        subject: "portalis.v1.cost.<tenant>.<model>",
        kind: Kind::Stream,
        publishers: &["gpu-worker", "gateway"],
        listeners: &["cost-accounting"],
        message: "CostBatch",
        reply: None,
        about: "Priced facts, in the stream COST.",
    },
    Row {
        subject: "portalis.v1.usage.get",
        kind: Kind::Request,
        publishers: &["gateway", "portalis"],
        listeners: &["cost-accounting"],
        message: "UsageGet",
        reply: Some("UsageReport"),
        about: "What a key or a tenant used and what it cost.",
    },
    Row {
        subject: "portalis.v1.beat.<service>.<instance>",
        kind: Kind::Publish,
        publishers: ALL,
        listeners: &["autoscaler", "gateway", "portalis"],
        message: "Beat",
        reply: None,
        about: "Heartbeat, once a second.",
    },
    Row {
        subject: "portalis.v1.control.<service>.<instance>",
        kind: Kind::Request,
        publishers: &["autoscaler", "portalis"],
        listeners: ALL,
        message: "Control",
        reply: Some("ControlReply"),
        about: "Orders to one instance; the local supervisor listens as service `supervisor`.",
    },
    Row {
        subject: "portalis.v1.dead.<model>",
        kind: Kind::Stream,
        publishers: &["gpu-worker"],
        listeners: &["portalis"],
        message: "DeadLetter",
        reply: None,
        about: "Work that failed for good, in the stream DEAD.",
    },
    Row {
        subject: "portalis.v1.scale.<model>",
        kind: Kind::Stream,
        publishers: &["autoscaler"],
        listeners: &["portalis"],
        message: "ScaleDecision",
        reply: None,
        about: "Decisions of the autoscaler with their reasons, in the stream EVENTS.",
    },
];

/// Everything on the COST stream.
pub const COST_ALL: &str = "portalis.v1.cost.*.*";
/// Everything on the DEAD stream.
pub const DEAD_ALL: &str = "portalis.v1.dead.*";
/// Everything on the EVENTS stream.
pub const SCALE_ALL: &str = "portalis.v1.scale.*";
/// The broker's notes that a work message was delivered too often. The token after the kind is the stream; work
/// streams cannot be told apart by a wildcard, so the mover looks at the name.
pub const MAX_DELIVERIES_ADVISORIES: &str = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*";
/// Heartbeats of everybody.
pub const BEATS: &str = "portalis.v1.beat.>";
/// Heartbeats of workers.
pub const WORKER_BEATS: &str = "portalis.v1.beat.gpu-worker.*";
/// Key changes.
pub const REVOKED: &str = "portalis.v1.auth.revoked";
/// Every resolve partition.
pub const RESOLVE_ALL: &str = "portalis.v1.auth.resolve.*";
/// Every hold partition.
pub const HOLD_ALL: &str = "portalis.v1.auth.hold.*";
/// Every key administration verb.
pub const KEYS_ALL: &str = "portalis.v1.auth.keys.*";
/// Cache purge.
pub const CACHE_PURGE: &str = "portalis.v1.cache.purge";
/// Cache announcements.
pub const CACHE_HELD: &str = "portalis.v1.cache.held";
/// Cache index.
pub const CACHE_INDEX: &str = "portalis.v1.cache.index";
/// Usage of a key or a tenant.
pub const USAGE_GET: &str = "portalis.v1.usage.get";

/// Where work for a model is queued.
#[must_use]
pub fn work(slug: &str, lane: Lane, tenant: &str) -> String {
    format!("portalis.v1.work.{slug}.{}.{tenant}", lane.as_str())
}

/// All work of one lane of a model.
#[must_use]
pub fn work_lane_all(slug: &str, lane: Lane) -> String {
    format!("portalis.v1.work.{slug}.{}.*", lane.as_str())
}

/// All work of a model.
#[must_use]
pub fn work_all(slug: &str) -> String {
    format!("portalis.v1.work.{slug}.*.*")
}

/// What a work subject says: model slug, lane and tenant.
#[must_use]
pub fn parse_work(subject: &str) -> Option<(&str, Lane, &str)> {
    let mut tokens = subject.strip_prefix("portalis.v1.work.")?.split('.');
    let parsed = (tokens.next()?, Lane::parse(tokens.next()?)?, tokens.next()?);
    tokens.next().is_none().then_some(parsed)
}

/// What a gateway listens on for answers.
#[must_use]
pub fn reply_all(gateway: &str) -> String {
    format!("portalis.v1.reply.{gateway}.*")
}

/// Where a gateway's answers go, all requests in one message per worker step.
#[must_use]
pub fn reply_batch(gateway: &str) -> String {
    format!("portalis.v1.reply.{gateway}.b")
}

/// Where the broker acknowledges a gateway's published work.
#[must_use]
pub fn reply_publish_ack(gateway: &str, slot: u64) -> String {
    format!("portalis.v1.reply.{gateway}.p{slot}")
}

/// The last token of a reply subject: `b`, or the slot of a publish acknowledgement.
#[must_use]
pub fn parse_publish_ack_slot(subject: &str) -> Option<u64> {
    subject.rsplit('.').next()?.strip_prefix('p')?.parse().ok()
}

/// Whether answers to this subject are coalesced: it is a gateway's batch subject.
#[must_use]
pub fn is_reply_batch(subject: &str) -> bool {
    subject.starts_with("portalis.v1.reply.") && subject.ends_with(".b")
}

/// Where the answer to work that the command line replays goes.
#[must_use]
pub fn replay_inbox(request_id: &str) -> String {
    format!("_INBOX.portalis-replay.{request_id}")
}

/// Cancellation at one worker.
#[must_use]
pub fn cancel_worker(worker: &str) -> String {
    format!("portalis.v1.cancel.worker.{worker}")
}

/// Cancellation at every worker of a model.
#[must_use]
pub fn cancel_model(slug: &str) -> String {
    format!("portalis.v1.cancel.model.{slug}")
}

/// Texts to tokens and back.
#[must_use]
pub fn tokens(slug: &str) -> String {
    format!("portalis.v1.tokens.{slug}")
}

/// Who is this key?
#[must_use]
pub fn resolve(kid: &str) -> String {
    format!("portalis.v1.auth.resolve.{}", partition(kid))
}

/// Permits for requests of a key.
#[must_use]
pub fn hold(kid: &str) -> String {
    format!("portalis.v1.auth.hold.{}", partition(kid))
}

/// Key administration.
#[must_use]
pub fn keys(verb: &str) -> String {
    format!("portalis.v1.auth.keys.{verb}")
}

/// Look up in one shard of the shared cache tier.
#[must_use]
pub fn cache_get(shard: u32) -> String {
    format!("portalis.v1.cache.get.{shard}")
}

/// Keep in one shard of the shared cache tier.
#[must_use]
pub fn cache_put(shard: u32) -> String {
    format!("portalis.v1.cache.put.{shard}")
}

/// Priced facts of a tenant and model.
#[must_use]
pub fn cost(tenant: &str, slug: &str) -> String {
    format!("portalis.v1.cost.{tenant}.{slug}")
}

/// The tenant of a cost subject.
#[must_use]
pub fn parse_cost_tenant(subject: &str) -> Option<&str> {
    let mut tokens = subject.strip_prefix("portalis.v1.cost.")?.split('.');
    let tenant = tokens.next()?;
    tokens.next()?;
    tokens.next().is_none().then_some(tenant)
}

/// Heartbeats of one instance.
#[must_use]
pub fn beat(service: &str, instance: &str) -> String {
    format!("portalis.v1.beat.{service}.{instance}")
}

/// Orders to one instance.
#[must_use]
pub fn control(service: &str, instance: &str) -> String {
    format!("portalis.v1.control.{service}.{instance}")
}

/// Dead letters of a model.
#[must_use]
pub fn dead(slug: &str) -> String {
    format!("portalis.v1.dead.{slug}")
}

/// Scale decisions of a model.
#[must_use]
pub fn scale(slug: &str) -> String {
    format!("portalis.v1.scale.{slug}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_subjects_parse_back() {
        let subject = work("m", Lane::Batch, "t");
        assert_eq!(parse_work(&subject), Some(("m", Lane::Batch, "t")));
        for bad in [
            "portalis.v1.work.m.batch",
            "portalis.v1.work.m.x.t",
            "portalis.v1.work.m.batch.t.u",
            "x",
        ] {
            assert_eq!(parse_work(bad), None, "{bad}");
        }
    }

    #[test]
    fn reply_slots_parse_back() {
        assert_eq!(parse_publish_ack_slot(&reply_publish_ack("gateway-1", 42)), Some(42));
        assert_eq!(parse_publish_ack_slot(&reply_batch("gateway-1")), None);
        assert!(is_reply_batch(&reply_batch("gateway-1")));
        assert!(!is_reply_batch("_INBOX.b"));
        assert_eq!(parse_cost_tenant(&cost("t", "m")), Some("t"));
    }

    #[test]
    fn rows_are_unique() {
        let mut subjects: Vec<_> = TABLE.iter().map(|row| row.subject).collect();
        subjects.sort_unstable();
        subjects.dedup();
        assert_eq!(subjects.len(), TABLE.len());
    }
}
