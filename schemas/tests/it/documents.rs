//! The generated documents: fresh, complete and without dangling references.

use std::collections::BTreeSet;
use std::path::Path;

use schemas::documents::{Difference, Document, OPENAPI_JSON, RESPONSES, all, bodies, check, messages, write};
use schemas::error::ERRORS;
use schemas::subjects::{Kind, TABLE};
use schemas::wire::Format;
use serde_json::Value;

fn generated() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("generated")
}

fn document(name: &str) -> Value {
    let documents = all().unwrap();
    let found = documents.iter().find(|document| document.path == name);
    serde_json::from_str(&found.unwrap().text).unwrap()
}

/// Calls `visit` with every `$ref` and its value's owner.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => found.push(target),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn assert_references_resolve(name: &str, document: &Value) -> usize {
    let mut found = Vec::new();
    references(document, &mut found);
    for target in &found {
        let pointer = target.strip_prefix('#');
        let resolved = pointer.and_then(|pointer| document.pointer(pointer));
        assert!(resolved.is_some(), "{name}: {target} leads nowhere");
    }
    found.len()
}

#[test]
fn committed_files_are_fresh() {
    let differences = check(&generated()).unwrap();
    assert_eq!(differences, [], "run cargo xtask schemas");
    let served = std::fs::read_to_string(generated().join("openapi.json")).unwrap();
    assert_eq!(served, OPENAPI_JSON);
}

#[test]
fn documents_are_the_same_every_time() {
    assert_eq!(all().unwrap(), all().unwrap());
}

#[test]
fn every_reference_resolves() {
    let mut total = 0;
    for Document { path, text } in all().unwrap() {
        if path.ends_with(".json") {
            let value: Value = serde_json::from_str(&text).unwrap();
            total += assert_references_resolve(&path, &value);
        }
    }
    assert!(total > 300, "{total} references are too few to be all");
}

#[test]
fn every_message_of_the_table_has_a_schema() {
    let asyncapi = document("asyncapi.json");
    assert_eq!(asyncapi["asyncapi"], "3.0.0");
    let names: BTreeSet<String> = messages().unwrap().into_iter().map(|e| e.name).collect();
    for row in TABLE {
        for name in [Some(row.message), row.reply].into_iter().flatten() {
            assert!(names.contains(name), "{} carries {name}", row.subject);
            let schema = format!("/components/schemas/{name}");
            assert!(asyncapi.pointer(&schema).is_some(), "{name}");
        }
    }
}

#[test]
fn asyncapi_has_every_subject_and_every_party() {
    let asyncapi = document("asyncapi.json");
    let channels = asyncapi["channels"].as_object().unwrap();
    let operations = asyncapi["operations"].as_object().unwrap();
    let parties: usize = TABLE.iter().map(|row| row.publishers.len() + row.listeners.len()).sum();
    let replies = TABLE.iter().filter(|row| row.reply.is_some()).count();
    assert_eq!(operations.len(), parties);
    assert_eq!(channels.len(), TABLE.len() + replies);
    for row in TABLE {
        let address = row.subject.replace('<', "{").replace('>', "}");
        let found = channels.values().find(|c| c["address"] == address);
        let channel = found.unwrap_or_else(|| panic!("no channel for {address}"));
        for placeholder in row.subject.split('<').skip(1) {
            let name = placeholder.split('>').next().unwrap();
            let about = channel["parameters"][name]["description"].as_str();
            assert!(about.is_some_and(|text| !text.is_empty()), "{address}: {name}");
        }
    }
    for (name, operation) in operations {
        let own = operation["channel"]["$ref"].as_str().unwrap();
        for message in operation["messages"].as_array().unwrap() {
            let reference = message["$ref"].as_str().unwrap();
            assert!(reference.starts_with(&format!("{own}/messages/")), "{name}");
        }
    }
    let queued = TABLE.iter().filter(|r| r.kind == Kind::Stream && r.reply.is_some());
    assert_eq!(queued.count(), 1, "only work answers through a header");
    let location = &operations["publisher_sends_work"]["reply"]["address"]["location"];
    assert_eq!(location, "$message.header#/Portalis-Reply");
}

#[test]
fn openapi_is_whole() {
    let openapi = document("openapi.json");
    assert_eq!(openapi["openapi"], "3.1.0");
    let paths = openapi["paths"].as_object().unwrap();
    let expected = [
        ("/openapi.json", "get"),
        ("/v1/chat/completions", "post"),
        ("/v1/completions", "post"),
        ("/v1/detokenize", "post"),
        ("/v1/embeddings", "post"),
        ("/v1/health/live", "get"),
        ("/v1/health/ready", "get"),
        ("/v1/metadata", "get"),
        ("/v1/metrics", "get"),
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/v1/ranking", "post"),
        ("/v1/rerank", "post"),
        ("/v1/responses", "post"),
        ("/v1/tokenize", "post"),
        ("/v1/translations", "post"),
        ("/v1/usage", "get"),
        ("/v1/version", "get"),
    ];
    let found: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| (path.as_str(), method.as_str()))
        })
        .collect();
    assert_eq!(found, BTreeSet::from(expected));
    let mut ids = BTreeSet::new();
    for (path, method) in expected {
        let operation = &paths[path][method];
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{path}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            let described = response["description"].is_string() || response["$ref"].is_string();
            assert!(described, "{path} {status}");
        }
        for placeholder in path.split('{').skip(1) {
            let name = placeholder.split('}').next().unwrap();
            let parameters = operation["parameters"].as_array().unwrap();
            assert!(parameters.iter().any(|p| p["in"] == "path" && p["name"] == name));
        }
    }
    let schemes = openapi["components"]["securitySchemes"].as_object().unwrap();
    for requirement in openapi["security"].as_array().unwrap() {
        for name in requirement.as_object().unwrap().keys() {
            assert!(schemes.contains_key(name), "{name}");
        }
    }
}

#[test]
fn every_error_has_one_status_and_its_page_a_meaning() {
    let listed: Vec<_> = RESPONSES.iter().flat_map(|(_, codes)| *codes).collect();
    assert_eq!(listed.len(), ERRORS.len());
    let documents = all().unwrap();
    let page = documents.iter().find(|d| d.path == "errors.md").unwrap();
    for row in ERRORS {
        let times = listed.iter().filter(|code| ***code == row.code).count();
        assert_eq!(times, 1, "{:?}", row.code);
        let start = format!("| `{}` | ", row.code.as_str());
        let line = page.text.lines().find(|line| line.starts_with(&start)).unwrap();
        assert_ne!(line.split('|').nth(2).unwrap().trim(), "", "{line}");
    }
    assert!(!page.text.contains("`unknown`"));
}

#[test]
fn every_example_reads_back() {
    for entry in messages().unwrap().iter().chain(&bodies().unwrap()) {
        assert!(!entry.examples.is_empty(), "{}", entry.name);
        for example in &entry.examples {
            let json = serde_json::to_vec(&example.json).unwrap();
            let again = entry.recode(Format::Json, &json, Format::Json).unwrap();
            let again: Value = serde_json::from_slice(&again).unwrap();
            assert_eq!(again, example.json, "{} {}", entry.name, example.name);
        }
    }
}

#[test]
fn examples_have_what_their_schemas_require() {
    for entry in messages().unwrap().iter().chain(&bodies().unwrap()) {
        let schema = entry.json_schema();
        let Some(required) = schema["required"].as_array() else {
            continue;
        };
        for example in &entry.examples {
            for name in required {
                let value = example.json.get(name.as_str().unwrap());
                assert!(value.is_some(), "{} {name}", entry.name);
            }
        }
    }
}

#[test]
fn check_names_stale_missing_and_surplus_files_and_write_mends_them() {
    let folder = std::env::temp_dir().join(format!("schemas-{}", schemas::ids::RequestId::new()));
    assert_eq!(check(&folder).unwrap().len(), all().unwrap().len());
    write(&folder).unwrap();
    assert_eq!(check(&folder).unwrap(), []);
    std::fs::write(folder.join("errors.md"), "old").unwrap();
    std::fs::remove_file(folder.join("subjects.md")).unwrap();
    std::fs::write(folder.join("json-schema/Gone.json"), "{}").unwrap();
    let differences = check(&folder).unwrap();
    let expected = [
        Difference::Stale("errors.md".to_owned()),
        Difference::Missing("subjects.md".to_owned()),
        Difference::Surplus("json-schema/Gone.json".to_owned()),
    ];
    assert_eq!(differences, expected);
    assert_eq!(write(&folder).unwrap(), expected);
    assert_eq!(check(&folder).unwrap(), []);
    std::fs::remove_dir_all(&folder).unwrap();
}
