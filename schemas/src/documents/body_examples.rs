//! Fixed values of every public HTTP body. Input: nothing. Output: entries with examples.

use super::registry::{Entry, read, written};
use super::{generate_bodies, ranking_examples, responses_bodies, translation_bodies};
use crate::http::{
    EmbeddingObject, EmbeddingsInput, EmbeddingsRequest, EmbeddingsResponse, EmbeddingsUsage, EncodedVector,
    EncodingFormat, ErrorBody, ErrorObject, HealthBody, LicenseInfo, MetadataBody, ModelInfo, ModelList, ModelObject,
    UsageBody, VersionBody,
};
use crate::wire::WireError;
use crate::work::{EmbedInput, InputType};

const MODEL: &str = "all-minilm-l6-v2";

pub(super) fn entries() -> Vec<Result<Entry, WireError>> {
    let model = ModelObject {
        id: MODEL.to_owned(),
        object: "model".to_owned(),
        created: 1_767_225_600,
        owned_by: "portalis".to_owned(),
        root: MODEL.to_owned(),
        max_model_len: 256,
        dimensions: 384,
    };
    let mut entries = vec![
        read(requests()),
        written(response()),
        written(error()),
        written(model.clone()),
        written(ModelList {
            object: "list".to_owned(),
            data: vec![model],
        }),
        written(HealthBody {
            object: "health.response".to_owned(),
            message: "Service is ready.".to_owned(),
            ready: Some(true),
        }),
        written(VersionBody {
            release: "0.1.0".to_owned(),
            api: "1".to_owned(),
        }),
        written(metadata()),
        written(UsageBody {
            requests: 2,
            computed: 1,
            cached: 1,
            input_tokens: 16,
            output_tokens: 0,
            compute_seconds: 0.0042,
            cost_usd: 0.000_000_16,
            saved_usd: 0.000_000_16,
            as_of: "2026-01-01T00:00:00Z".to_owned(),
        }),
    ];
    entries.extend(generate_bodies::entries());
    entries.extend(translation_bodies::entries());
    entries.extend(ranking_examples::bodies());
    entries.extend(responses_bodies::entries());
    entries
}

fn requests() -> Vec<(&'static str, EmbeddingsRequest)> {
    let request = |input| EmbeddingsRequest {
        model: MODEL.to_owned(),
        input,
        encoding_format: None,
        dimensions: None,
        user: None,
        input_type: None,
        truncate: None,
        embedding_type: None,
        modality: None,
    };
    let text = |text: &str| EmbedInput::Text(text.to_owned());
    let one = EmbeddingsInput::One(text("The mesh carries work."));
    let many = EmbeddingsInput::Many(vec![text("first"), text("second")]);
    let tokens = EmbeddingsInput::One(EmbedInput::Tokens(vec![1_996, 15_949]));
    vec![
        ("", request(one)),
        (
            "several",
            EmbeddingsRequest {
                encoding_format: Some(EncodingFormat::Base64),
                input_type: Some(InputType::Passage),
                ..request(many)
            },
        ),
        ("tokens", request(tokens)),
    ]
}

fn response() -> EmbeddingsResponse {
    EmbeddingsResponse {
        object: "list".to_owned(),
        data: vec![EmbeddingObject {
            object: "embedding".to_owned(),
            index: 0,
            embedding: EncodedVector::Float(vec![0.5, -0.5, 0.25]),
        }],
        model: MODEL.to_owned(),
        usage: EmbeddingsUsage {
            prompt_tokens: 8,
            total_tokens: 8,
        },
    }
}

fn error() -> ErrorBody {
    ErrorBody {
        error: ErrorObject {
            message: "the model does not exist".to_owned(),
            kind: "invalid_request_error".to_owned(),
            param: Some("model".to_owned()),
            code: Some("model_not_found".to_owned()),
        },
    }
}

fn metadata() -> MetadataBody {
    MetadataBody {
        asset_info: vec![MODEL.to_owned()],
        license_info: LicenseInfo {
            name: "Apache-2.0".to_owned(),
            path: "LICENSE".to_owned(),
            sha: "0".repeat(64),
            size: 11_357,
        },
        model_info: vec![ModelInfo {
            short_name: MODEL.to_owned(),
            model_url: format!("urn:portalis:model:{MODEL}"),
        }],
        version: "0.1.0".to_owned(),
        selected_model_profile_id: "f32".to_owned(),
        repository_override: String::new(),
    }
}
