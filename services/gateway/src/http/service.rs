//! Endpoints about the service itself. Input: nothing but the mesh's state. Output: NIM's and OpenAI's documented bodies.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemas::documents::OPENAPI_JSON;
use schemas::error::{ErrorCode, Failure};
use schemas::http::{HealthBody, LicenseInfo, MetadataBody, ModelInfo, VersionBody};

use super::error::HttpError;
use crate::Gateway;

/// Version of the HTTP API.
const API_VERSION: &str = "1.0.0";
const LICENSE: &str = include_str!("../../../../LICENSE");

fn health(message: &str, ready: Option<bool>) -> Json<HealthBody> {
    Json(HealthBody {
        object: "health.response".to_owned(),
        message: message.to_owned(),
        ready,
    })
}

/// Alive, with or without a model.
pub(super) async fn live() -> Json<HealthBody> {
    health("Service is live.", None)
}

/// Ready when connected and at least one model has a worker.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> Result<Json<HealthBody>, HttpError> {
    if !gateway.health.is_ready() {
        return Err(HttpError(crate::dispatch::unavailable(
            "the gateway is starting, draining or cut off from the bus",
        )));
    }
    if gateway.catalog.any_served(gateway.clock.monotonic_us()) {
        Ok(health("Service is ready.", Some(true)))
    } else {
        let failure = Failure::new(ErrorCode::NoWorker, "no model has a worker yet").retry_after_ms(1_000);
        Err(HttpError(failure))
    }
}

/// Versions of the program and of its API.
pub(super) async fn version() -> Json<VersionBody> {
    Json(VersionBody {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
    })
}

/// What is served, as NIM tells it.
pub(super) async fn metadata(State(gateway): State<Arc<Gateway>>) -> Json<MetadataBody> {
    let cards = gateway.catalog.cards();
    let mut precisions: Vec<&str> = cards.iter().map(|card| card.precision.as_str()).collect();
    precisions.sort_unstable();
    precisions.dedup();
    Json(MetadataBody {
        asset_info: cards
            .iter()
            .map(|card| format!("{}@{}", card.name, card.revision))
            .collect(),
        license_info: LicenseInfo {
            name: "Apache-2.0".to_owned(),
            path: "LICENSE".to_owned(),
            sha: blake3::hash(LICENSE.as_bytes()).to_hex().to_string(),
            size: LICENSE.len() as u64,
        },
        model_info: cards
            .iter()
            .map(|card| ModelInfo {
                short_name: card.name.clone(),
                model_url: format!("urn:portalis:model:{}:{}", card.slug, card.revision),
            })
            .collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        selected_model_profile_id: precisions.join(","),
        repository_override: String::new(),
    })
}

/// The gateway's metrics in Prometheus' text format.
pub(super) async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    match process::ops::metrics_text(std::slice::from_ref(&gateway.context)) {
        Ok(text) => {
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            HttpError(Failure::new(ErrorCode::Internal, "metrics cannot be written")).into_response()
        }
    }
}

/// The OpenAPI document, generated from the types.
pub(super) async fn openapi() -> Response {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        OPENAPI_JSON,
    )
        .into_response()
}
