//! Fixed values of the public bodies about translation. Input: nothing. Output: entries with examples.

use super::generate_examples::WRITER;
use super::registry::{Entry, read, written};
use crate::http::{
    CompletionUsage, Translation, TranslationEvent, TranslationItem, TranslationKind, TranslationRequest,
    TranslationStatus, TranslationSummary,
};
use crate::wire::WireError;

const CREATED_S: u64 = 1_767_225_600;
const ID: &str = "translation-0198a3f2";
const RUST: &str = "pub fn double(a: i64) -> i64 {\n    a * 2\n}\n";

pub(super) fn entries() -> Vec<Result<Entry, WireError>> {
    vec![read(requests()), written(translation()), written(event())]
}

fn requests() -> Vec<(&'static str, TranslationRequest)> {
    let plain = TranslationRequest {
        model: WRITER.to_owned(),
        source: "def double(a: int) -> int:\n    return a * 2\n".to_owned(),
        stream: None,
        retries: None,
        verify: None,
        user: None,
    };
    let all = TranslationRequest {
        stream: Some(true),
        retries: Some(2),
        verify: Some(false),
        user: Some("somebody".to_owned()),
        ..plain.clone()
    };
    vec![("", plain), ("all", all)]
}

fn item() -> TranslationItem {
    TranslationItem {
        kind: TranslationKind::Function,
        name: Some("double".to_owned()),
        line: 1,
        status: TranslationStatus::Unverified,
        reason: Some("verification was not asked for".to_owned()),
        attempts: 1,
        cached: false,
        compiles: None,
        behaves: None,
        rust: Some(RUST.to_owned()),
    }
}

fn translation() -> Translation {
    Translation {
        id: ID.to_owned(),
        object: "translation".to_owned(),
        created: CREATED_S,
        model: WRITER.to_owned(),
        complete: true,
        summary: TranslationSummary {
            functions: 1,
            unverified: 1,
            ..TranslationSummary::default()
        },
        items: vec![item()],
        rust: RUST.to_owned(),
        usage: CompletionUsage::new(24, 19, 0),
    }
}

fn event() -> TranslationEvent {
    TranslationEvent {
        id: ID.to_owned(),
        object: "translation.item".to_owned(),
        created: CREATED_S,
        model: WRITER.to_owned(),
        index: 0,
        item: item(),
    }
}
