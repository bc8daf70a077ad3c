//! Streams and consumers as asked for. Input: plain data from `schemas::streams`. Output: they exist, and the broker's
//! echo equals what was asked, field by field: an old server answers "ok" and ignores what it does not know.

use schemas::streams::{Ack, BucketSpec, ConsumerSpec, Retention, Storage, StreamSpec};
use serde_json::{Map, Value, json};

use crate::jetstream::{Refused, code, field};
use crate::{Bus, JetStreamError};

const NANOS_PER_MS: u64 = 1_000_000;
/// How long the marker of an expired key stays, so that a watcher that was away sees it.
const MARKER_TTL_NANOS: u64 = 10 * 60 * 1_000 * NANOS_PER_MS;

impl Bus {
    /// Creates the stream, or changes it to what is asked. Several processes may do this at once.
    ///
    /// # Errors
    /// [`JetStreamError::Mismatch`] names the field that the broker would not take or change.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<(), JetStreamError> {
        self.ensure_stream_config(&spec.name, stream_config(spec)).await
    }

    /// Creates the durable pull consumer, or changes it to what is asked. Several processes may do this at once.
    ///
    /// # Errors
    /// [`JetStreamError::Mismatch`] names the field that the broker would not take or change;
    /// [`JetStreamError::NotFound`] when the stream does not exist.
    pub async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<(), JetStreamError> {
        let object = format!("consumer {} of {}", spec.name, spec.stream);
        let config = consumer_config(spec);
        let operation = format!("CONSUMER.CREATE.{}.{}", spec.stream, spec.name);
        // An empty action creates or updates.
        let body = json!({ "stream_name": spec.stream, "config": config, "action": "" });
        match self.api_code(&operation, Some(body)).await? {
            Ok(answer) => compare(&object, &config, field(&answer, "config", &operation)?),
            Err(refused) => {
                let info = format!("CONSUMER.INFO.{}.{}", spec.stream, spec.name);
                self.explain(refused, &operation, &info, (&object, &config)).await
            }
        }
    }

    pub(crate) async fn ensure_bucket(&self, spec: &BucketSpec) -> Result<(), JetStreamError> {
        self.ensure_stream_config(&format!("KV_{}", spec.name), bucket_config(spec))
            .await
    }

    async fn ensure_stream_config(&self, name: &str, config: Map<String, Value>) -> Result<(), JetStreamError> {
        let object = format!("stream {name}");
        let create = format!("STREAM.CREATE.{name}");
        match self.api_code(&create, Some(Value::Object(config.clone()))).await? {
            Ok(answer) => return compare(&object, &config, field(&answer, "config", &create)?),
            Err(refused) if refused.err_code == code::STREAM_NAME_IN_USE => {}
            Err(refused) => return Err(refused.into_error(create)),
        }
        // It exists with other settings: change ours, keep those that we do not set.
        let info = format!("STREAM.INFO.{name}");
        let existing = self.api(&info, None).await?;
        let existing = field(&existing, "config", &info)?;
        if difference(&config, existing).is_none() {
            return Ok(());
        }
        let mut merged = existing.as_object().cloned().unwrap_or_default();
        merged.extend(config.clone());
        // The broker writes these itself.
        merged.remove("metadata");
        let update = format!("STREAM.UPDATE.{name}");
        match self.api_code(&update, Some(Value::Object(merged))).await? {
            Ok(answer) => compare(&object, &config, field(&answer, "config", &update)?),
            Err(refused) => self.explain(refused, &update, &info, (&object, &config)).await,
        }
    }

    /// Turns a refusal into the field that differs, if one does.
    async fn explain(
        &self,
        refused: Refused,
        operation: &str,
        info: &str,
        (object, asked): (&str, &Map<String, Value>),
    ) -> Result<(), JetStreamError> {
        if let Ok(existing) = self.api_code(info, None).await?
            && let Some(config) = existing.get("config")
            && let Some(error) = difference(asked, config).map(|found| found.into_error(object))
        {
            return Err(error);
        }
        Err(refused.into_error(operation.to_owned()))
    }
}

fn stream_config(spec: &StreamSpec) -> Map<String, Value> {
    object(json!({
        "name": spec.name,
        "subjects": spec.subjects,
        "retention": match spec.retention { Retention::WorkQueue => "workqueue", Retention::Limits => "limits" },
        "storage": storage(spec.storage),
        "num_replicas": spec.replicas,
        "max_msgs": spec.max_messages.unwrap_or(-1),
        "max_msgs_per_subject": spec.max_messages_per_subject.unwrap_or(-1),
        "discard": if spec.discard_new { "new" } else { "old" },
        "discard_new_per_subject": spec.discard_new_per_subject,
        "max_bytes": spec.max_bytes.unwrap_or(-1),
        "max_age": spec.max_age_ms.unwrap_or(0) * NANOS_PER_MS,
        "duplicate_window": spec.duplicate_window_ms * NANOS_PER_MS,
        "max_msg_size": spec.max_message_bytes.unwrap_or(-1),
        "allow_msg_ttl": spec.allow_message_ttl,
        "deny_delete": spec.deny_delete,
        "compression": if spec.compression { "s2" } else { "none" },
    }))
}

fn consumer_config(spec: &ConsumerSpec) -> Map<String, Value> {
    let mut config = object(json!({
        "name": spec.name,
        "durable_name": spec.name,
        "filter_subjects": spec.filter_subjects,
        "max_waiting": spec.max_waiting,
        "mem_storage": spec.memory,
        "replay_policy": "instant",
        "inactive_threshold": spec.inactive_threshold_ms.unwrap_or(0) * NANOS_PER_MS,
    }));
    match spec.deliver_from_sequence {
        Some(sequence) => {
            config.insert("deliver_policy".to_owned(), "by_start_sequence".into());
            config.insert("opt_start_seq".to_owned(), sequence.into());
        }
        None => {
            config.insert("deliver_policy".to_owned(), "all".into());
        }
    }
    match spec.ack {
        Ack::Explicit => {
            config.insert("ack_policy".to_owned(), "explicit".into());
            config.insert("ack_wait".to_owned(), (spec.ack_wait_ms * NANOS_PER_MS).into());
            config.insert("max_ack_pending".to_owned(), spec.max_ack_pending.into());
            config.insert("max_deliver".to_owned(), spec.max_deliver.unwrap_or(-1).into());
        }
        // What needs no ack has neither a wait nor a number of attempts.
        Ack::None => {
            config.insert("ack_policy".to_owned(), "none".into());
        }
    }
    config
}

fn bucket_config(spec: &BucketSpec) -> Map<String, Value> {
    let max_age = spec.max_age_ms.unwrap_or(0) * NANOS_PER_MS;
    // The broker refuses a window longer than the age; two minutes is its default.
    let window = 2 * 60 * 1_000 * NANOS_PER_MS;
    let mut config = object(json!({
        "name": format!("KV_{}", spec.name),
        "subjects": [format!("$KV.{}.>", spec.name)],
        "retention": "limits",
        "storage": storage(spec.storage),
        "num_replicas": spec.replicas,
        "max_msgs_per_subject": spec.history.max(1),
        "discard": "new",
        "max_bytes": spec.max_bytes.unwrap_or(-1),
        "max_age": max_age,
        "duplicate_window": if max_age > 0 { max_age.min(window) } else { window },
        "allow_rollup_hdrs": true,
        "allow_direct": true,
        "deny_delete": true,
    }));
    if max_age > 0 {
        // Without markers a watcher is never told that a value expired.
        config.insert("allow_msg_ttl".to_owned(), true.into());
        config.insert("subject_delete_marker_ttl".to_owned(), MARKER_TTL_NANOS.into());
    }
    config
}

fn storage(storage: Storage) -> &'static str {
    match storage {
        Storage::Memory => "memory",
        Storage::File => "file",
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

struct Difference {
    field: String,
    asked: Value,
    found: Value,
}

impl Difference {
    fn into_error(self, object: &str) -> JetStreamError {
        JetStreamError::Mismatch {
            object: object.to_owned(),
            field: self.field,
            asked: self.asked.to_string(),
            found: self.found.to_string(),
        }
    }
}

fn compare(object: &str, asked: &Map<String, Value>, echo: &Value) -> Result<(), JetStreamError> {
    difference(asked, echo).map_or(Ok(()), |found| Err(found.into_error(object)))
}

/// The first field in which the echo is not what was asked.
fn difference(asked: &Map<String, Value>, echo: &Value) -> Option<Difference> {
    asked.iter().find_map(|(name, asked)| {
        let found = echo.get(name).unwrap_or(&Value::Null);
        (!equal(asked, found)).then(|| Difference {
            field: name.clone(),
            asked: asked.clone(),
            found: found.clone(),
        })
    })
}

/// Lists compare as sets; what the broker leaves out is its zero.
fn equal(asked: &Value, found: &Value) -> bool {
    match (asked, found) {
        (Value::Array(asked), Value::Array(found)) => {
            asked.len() == found.len() && asked.iter().all(|one| found.contains(one))
        }
        (asked, Value::Null) => match asked {
            Value::Null => true,
            Value::Bool(set) => !set,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
        },
        (asked, found) => asked == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_different_field_is_named() {
        let asked = object(json!({ "a": ["x", "y"], "b": false, "c": 0, "d": "new" }));
        assert!(difference(&asked, &json!({ "a": ["y", "x"], "d": "new", "z": 1 })).is_none());
        let found = difference(&asked, &json!({ "a": ["x", "y"], "b": true, "d": "new" }));
        assert_eq!(found.map(|found| found.field).as_deref(), Some("b"));
        let found = difference(&asked, &json!({ "a": ["x", "y"] }));
        assert_eq!(
            found.map(|found| found.field).as_deref(),
            Some("d"),
            "an ignored setting is a difference"
        );
    }
}
