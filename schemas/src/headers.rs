//! Names of the headers that travel with bus messages. Input: nothing. Output: constants.

/// Broker-side duplicate key: `<request id>:<attempt>` on work, event id on cost.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Broker-side time to live of a queued message, e.g. `30s`; work leaves the queue unpaid when it passes.
pub const TTL: &str = "Nats-TTL";
/// W3C trace context, crosses every hop.
pub const TRACEPARENT: &str = "traceparent";
/// Unix time in milliseconds after which nobody waits for the answer.
pub const DEADLINE: &str = "Portalis-Deadline";
/// Signed identity of the caller (EdDSA JWT made by auth).
pub const IDENTITY: &str = "Portalis-Identity";
/// Subject on which the worker answers.
pub const REPLY: &str = "Portalis-Reply";
/// `application/msgpack` (default) or `application/json`.
pub const CONTENT_TYPE: &str = "Content-Type";
/// Client's request id, for logs.
pub const REQUEST_ID: &str = "Portalis-Request-Id";
