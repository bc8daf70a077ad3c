//! Golden bytes: what a message looks like on the wire never changes.
//! `UPDATE_GOLDEN=1` writes files that are missing, and never touches one that is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::documents::messages;
use schemas::wire::Format;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn file_name(entry: &str, example: &str) -> String {
    match example {
        "" => format!("{entry}.msgpack"),
        name => format!("{entry}.{name}.msgpack"),
    }
}

#[test]
fn bytes_on_the_wire_never_change() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut expected = BTreeSet::new();
    for entry in messages().unwrap() {
        for example in &entry.examples {
            let name = file_name(&entry.name, example.name);
            let path = folder().join(&name);
            if update && !path.exists() {
                fs::write(&path, &example.message_pack).unwrap();
            }
            let golden =
                fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}; UPDATE_GOLDEN=1 writes new ones"));
            assert_eq!(golden, example.message_pack, "{name} changed on the wire");
            let json = serde_json::to_vec(&example.json).unwrap();
            let from_json = entry.recode(Format::Json, &json, Format::MessagePack);
            assert_eq!(from_json.unwrap(), golden, "{name}: JSON says something else");
            expected.insert(name);
        }
    }
    let found: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, expected, "golden files without an example");
}

#[test]
fn golden_bytes_are_still_read() {
    for entry in messages().unwrap() {
        for example in &entry.examples {
            let golden = fs::read(folder().join(file_name(&entry.name, example.name))).unwrap();
            let again = entry.recode(Format::MessagePack, &golden, Format::MessagePack);
            assert_eq!(again.unwrap(), golden, "{} {}", entry.name, example.name);
        }
    }
}
