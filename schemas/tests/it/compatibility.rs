//! Messages of newer programs: unknown fields are ignored, unknown values are `Unknown`, nothing crashes.

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::sample::Index;
use schemas::cost::{CostKind, DeviceTerms};
use schemas::documents::{Entry, bodies, messages};
use schemas::error::ErrorCode;
use schemas::fleet::{Beat, InstanceState, Operation, ScaleReason};
use schemas::policy::{Grant, KeyState, Resolved, Scope};
use schemas::wire::{self, Format};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Names that tag a variant: `{"embed": {…}}`. A second key there would be a second variant, not a field.
const VARIANTS: &[&str] = &[
    "embed",
    "generate",
    "rank",
    "tokenize",
    "detokenize",
    "tokenized",
    "detokenized",
    "chat",
    "text",
    "tokens",
    "choice",
    "regex",
    "function",
    "accepted",
    "part",
    "done",
    "failed",
    "granted",
    "denied",
    "created",
    "listed",
    "changed",
    "set_workers",
    "pools",
    "refused",
];

/// Fields that hold any JSON: what is added to it is meant.
const FREE_FORM: &[&str] = &["parameters", "template_arguments"];

/// Pointers to every object that is a struct.
fn structs(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let tag = map.len() == 1 && map.keys().all(|key| VARIANTS.contains(&key.as_str()));
            if !tag {
                found.push(at.to_owned());
            }
            for (key, value) in map.iter().filter(|(key, _)| !FREE_FORM.contains(&key.as_str())) {
                structs(value, &format!("{at}/{key}"), found);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                structs(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn unknown_fields_are_ignored_at_every_depth() {
    let mut tried = 0;
    for entry in messages().unwrap() {
        for example in &entry.examples {
            let mut pointers = Vec::new();
            structs(&example.json, "", &mut pointers);
            for pointer in pointers {
                let mut newer = example.json.clone();
                let object = newer.pointer_mut(&pointer).unwrap();
                object["of_the_future"] = json!({"deep": [1, "two", null]});
                let name = format!("{} {pointer}", entry.name);
                let text = serde_json::to_vec(&newer).unwrap();
                let read = entry.recode(Format::Json, &text, Format::MessagePack);
                assert_eq!(read.unwrap(), example.message_pack, "{name} in JSON");
                let packed = wire::encode(&newer).unwrap();
                let read = entry.recode(Format::MessagePack, &packed, Format::MessagePack);
                assert_eq!(read.unwrap(), example.message_pack, "{name} in MessagePack");
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "{tried} objects are too few to be all");
}

fn reads_as<T: DeserializeOwned + PartialEq + Debug>(unknown: &T) {
    let packed = wire::encode(&"of_the_future").unwrap();
    assert_eq!(&wire::decode::<T>(&packed).unwrap(), unknown);
    let read: T = wire::decode_as(Format::Json, b"\"of_the_future\"").unwrap();
    assert_eq!(&read, unknown);
}

#[test]
fn unknown_values_are_unknown() {
    reads_as(&Scope::Unknown);
    reads_as(&KeyState::Unknown);
    reads_as(&InstanceState::Unknown);
    reads_as(&Operation::Unknown);
    reads_as(&ScaleReason::Unknown);
    reads_as(&schemas::generate::FinishReason::Unknown);
    reads_as(&CostKind::Unknown);
    reads_as(&DeviceTerms::Unknown);
    reads_as(&ErrorCode::Unknown);
}

fn example(name: &str) -> Value {
    let entries = messages().unwrap();
    let entry = entries.iter().find(|entry| entry.name == name).unwrap();
    entry.examples[0].json.clone()
}

#[test]
fn unknown_values_leave_the_rest_of_a_message_readable() {
    let mut resolved = example("Resolved");
    resolved["granted"]["scopes"] = json!(["inference", "time_travel"]);
    let read: Resolved = wire::decode(&wire::encode(&resolved).unwrap()).unwrap();
    let scopes = vec![Scope::Inference, Scope::Unknown];
    assert!(matches!(read, Resolved::Granted(Grant { scopes: found, .. }) if found == scopes));

    let mut beat = example("Beat");
    beat["state"] = json!("dreaming");
    let read: Beat = wire::decode(&wire::encode(&beat).unwrap()).unwrap();
    assert_eq!(read.state, InstanceState::Unknown);
    assert!(read.worker.is_some());
}

#[test]
fn requests_of_clients_name_unknown_fields() {
    let entries = bodies().unwrap();
    for name in [
        "EmbeddingsRequest",
        "ChatRequest",
        "CompletionsRequest",
        "RankingRequest",
        "RerankRequest",
        "TokenizeRequest",
        "DetokenizeRequest",
        "ResponsesRequest",
    ] {
        let entry = entries.iter().find(|e| e.name == name).unwrap();
        let mut request = entry.examples[0].json.clone();
        request["temprature"] = json!(1);
        let text = serde_json::to_vec(&request).unwrap();
        let error = entry.recode(Format::Json, &text, Format::Json).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("temprature"), "{source}");
    }
}

/// Whatever is read can be written and read again to the same bytes; most bytes are refused.
fn survives(entry: &Entry, format: Format, bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(packed) = entry.recode(format, bytes, Format::MessagePack) {
        let again = entry.recode(Format::MessagePack, &packed, Format::MessagePack);
        prop_assert_eq!(again.unwrap(), packed);
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_bytes_crash_a_reader(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for entry in messages().unwrap().iter().chain(&bodies().unwrap()) {
            survives(entry, Format::MessagePack, &bytes)?;
            survives(entry, Format::Json, &bytes)?;
        }
    }

    #[test]
    fn no_damage_crashes_a_reader(
        places in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
    ) {
        for entry in messages().unwrap() {
            for example in &entry.examples {
                let mut bytes = example.message_pack.clone();
                for (place, value) in &places {
                    let place = place.index(bytes.len());
                    bytes[place] = *value;
                }
                survives(&entry, Format::MessagePack, &bytes)?;
                survives(&entry, Format::MessagePack, &bytes[..cut.index(bytes.len())])?;
            }
        }
    }
}

#[test]
fn lengths_that_lie_and_deep_nesting_are_refused() {
    let deep_array = vec![0x91; 100_000];
    let huge_array = [0xdd, 0xff, 0xff, 0xff, 0xff];
    let huge_map = [0xdf, 0xff, 0xff, 0xff, 0xff];
    let huge_bytes = [0xc6, 0xff, 0xff, 0xff, 0xff];
    // An unknown field with a deep value: read past, not into.
    let mut deep_field = vec![0x81, 0xa1, b'x'];
    deep_field.extend(vec![0x91; 100_000]);
    for entry in messages().unwrap() {
        for bytes in [&deep_array[..], &huge_array, &huge_map, &huge_bytes, &deep_field] {
            let read = entry.recode(Format::MessagePack, bytes, Format::MessagePack);
            assert!(read.is_err(), "{}", entry.name);
        }
    }
}
