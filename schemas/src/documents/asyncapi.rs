//! The bus as AsyncAPI 3.0. Input: the table of subjects and the message entries. Output: one JSON document.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{DocumentError, Entry};
use crate::headers;
use crate::subjects::{Kind, Row, TABLE};
use crate::wire::Format;

/// Subjects that carry more types than the one the table names, told apart by their last token.
const FURTHER_MESSAGES: &[(&str, &[&str])] = &[("portalis.v1.auth.keys.<verb>", &["ListKeys", "NameKey"])];

/// What the placeholders in subjects stand for.
const PARAMETERS: &[(&str, &str)] = &[
    (
        "model",
        "Slug of the model: its name where that is `[a-z0-9_-]` of at most 48 characters, else its safe characters, \
         `-` and the CRC-32 of the name in 8 hexadecimal digits.",
    ),
    ("lane", "`interactive`, `batch` or `background`."),
    ("tenant", "The tenant who pays."),
    ("gateway", "Instance name of the gateway."),
    (
        "slot",
        "`b` for coalesced answers, `p<n>` for acknowledgements of the broker.",
    ),
    ("worker", "Instance name of the worker."),
    ("partition", "CRC-32 (IEEE) of the key id modulo 64, decimal."),
    ("verb", "`create`, `list`, `disable`, `enable` or `delete`."),
    ("shard", "First byte of the key's digest modulo 16, decimal."),
    ("service", "Name of the service."),
    ("instance", "Instance name, unique per start."),
];

/// Headers with what they mean.
const HEADERS: &[(&str, &str)] = &[
    (
        headers::CONTENT_TYPE,
        "`application/msgpack` (default) or `application/json`; the answer has the same.",
    ),
    (
        headers::IDENTITY,
        "Signed identity of the caller, from `Resolved`; needed on work.",
    ),
    (headers::REPLY, "Subject on which the worker answers; needed on work."),
    (headers::DEADLINE, "Unix milliseconds after which nobody waits."),
    (
        headers::MESSAGE_ID,
        "`<request id>:<attempt>` on work, event id on cost: the broker drops duplicates.",
    ),
    (headers::TTL, "Time after which queued work goes, e.g. `30s`."),
    (headers::TRACEPARENT, "W3C trace context."),
    (headers::REQUEST_ID, "The client's request id, for logs."),
];

pub(super) fn document(messages: &[Entry]) -> Result<Value, DocumentError> {
    let mut channels = Map::new();
    let mut operations = Map::new();
    for row in TABLE {
        channels.insert(channel_id(row), channel(row));
        if let Some(reply) = row.reply {
            channels.insert(reply_id(row), reply_channel(row, reply));
        }
        for publisher in row.publishers {
            operations.insert(operation_id(publisher, "sends", row), send(publisher, row));
        }
        for listener in row.listeners {
            operations.insert(operation_id(listener, "receives", row), receive(listener, row));
        }
    }
    Ok(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Portalis bus",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0"},
            "description": "Every message between the services of Portalis. Bodies are MessagePack maps with named \
                fields; byte fields (`body`, `digest`, `fingerprints`, `payload`, vectors, request ids) are byte \
                strings there. With the header `Content-Type: application/json` they are JSON as in the examples. \
                Unknown fields are ignored, so a newer sender may add some.",
        },
        "defaultContentType": Format::MESSAGE_PACK,
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "nats-server 2.12.8 or newer with JetStream."}},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages.iter().map(|entry| (entry.name.clone(), message(entry))).collect::<Map<_, _>>(),
            "messageTraits": {"headers": {"headers": headers_schema()}},
            "schemas": schemas(messages),
        },
    }))
}

fn schemas(messages: &[Entry]) -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    for entry in messages {
        entry.register(&mut generator);
    }
    generator.take_definitions(true)
}

fn message(entry: &Entry) -> Value {
    let examples: Vec<Value> = entry
        .examples
        .iter()
        .map(|example| match example.name {
            "" => json!({"payload": example.json}),
            name => json!({"name": name, "payload": example.json}),
        })
        .collect();
    json!({
        "name": entry.name,
        "contentType": Format::MESSAGE_PACK,
        "traits": [{"$ref": "#/components/messageTraits/headers"}],
        "payload": {"$ref": format!("#/components/schemas/{}", entry.name)},
        "examples": examples,
    })
}

fn headers_schema() -> Value {
    let properties: Map<String, Value> = HEADERS
        .iter()
        .map(|(name, about)| ((*name).to_owned(), json!({"type": "string", "description": about})))
        .collect();
    json!({"type": "object", "properties": properties})
}

/// Types of a subject's messages.
pub(super) fn message_names(row: &Row) -> Vec<&'static str> {
    let further = FURTHER_MESSAGES.iter().find(|(subject, _)| *subject == row.subject);
    let further = further.map_or(&[][..], |(_, names)| names);
    [&[row.message], further].concat()
}

fn channel(row: &Row) -> Value {
    let parameters: Map<String, Value> = placeholders(row.subject)
        .map(|name| {
            let about = PARAMETERS.iter().find(|(known, _)| *known == name);
            let about = about.map_or("", |(_, about)| about);
            (name.to_owned(), json!({"description": about}))
        })
        .collect();
    let mut channel = json!({
        "address": row.subject.replace('<', "{").replace('>', "}"),
        "description": row.about,
        "messages": channel_messages(&message_names(row)),
        "x-portalis-kind": kind(row.kind),
    });
    if !parameters.is_empty() {
        channel["parameters"] = Value::Object(parameters);
    }
    channel
}

fn reply_channel(row: &Row, reply: &str) -> Value {
    json!({
        // The caller chooses the subject.
        "address": null,
        "description": format!("Answers to {}.", row.subject),
        "messages": channel_messages(&[reply]),
    })
}

fn channel_messages(names: &[&str]) -> Map<String, Value> {
    names
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                json!({"$ref": format!("#/components/messages/{name}")}),
            )
        })
        .collect()
}

fn send(service: &str, row: &Row) -> Value {
    operation("send", service, row)
}

fn receive(service: &str, row: &Row) -> Value {
    operation("receive", service, row)
}

fn operation(action: &str, service: &str, row: &Row) -> Value {
    let channel = channel_id(row);
    let references = |channel: &str, names: &[&str]| -> Vec<Value> {
        names
            .iter()
            .map(|name| json!({"$ref": format!("#/channels/{channel}/messages/{name}")}))
            .collect()
    };
    let mut operation = json!({
        "action": action,
        "channel": {"$ref": format!("#/channels/{channel}")},
        "messages": references(&channel, &message_names(row)),
        "tags": [{"name": service}],
    });
    if let Some(reply) = row.reply {
        let channel = reply_id(row);
        operation["reply"] = json!({
            "channel": {"$ref": format!("#/channels/{channel}")},
            "messages": references(&channel, &[reply]),
        });
        if row.kind == Kind::Stream {
            // A queued message has no inbox of the broker's: the subject travels in a header.
            operation["reply"]["address"] = json!({"location": format!("$message.header#/{}", headers::REPLY)});
        }
    }
    operation
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Stream => "stream",
        Kind::Publish => "publish",
        Kind::Request => "request",
    }
}

/// `portalis.v1.cache.get.<shard>` → `cache_get`; the placeholders do not tell subjects apart.
fn channel_id(row: &Row) -> String {
    let tokens = row.subject.split('.').skip(2);
    let tokens: Vec<&str> = tokens.filter(|token| !token.starts_with('<')).collect();
    tokens.join("_")
}

fn reply_id(row: &Row) -> String {
    format!("{}_reply", channel_id(row))
}

fn operation_id(service: &str, verb: &str, row: &Row) -> String {
    format!("{}_{verb}_{}", service.replace('-', "_"), channel_id(row))
}

fn placeholders(subject: &str) -> impl Iterator<Item = &str> {
    subject
        .split('.')
        .filter_map(|token| token.strip_prefix('<')?.strip_suffix('>'))
}
