//! Routes. Input: an HTTP request. Output: the handler that answers it; everything else gets the same error envelope.

pub mod body;
mod chat;
mod completions;
mod embeddings;
pub mod error;
mod finish;
mod form;
mod generate;
mod logprobs;
mod model;
mod models;
mod ranking;
pub mod render;
mod responses;
mod service;
mod sse;
mod streamable;
mod tokens;
mod translations;
mod usage;
mod whole;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use schemas::error::{ErrorCode, Failure};

use crate::Gateway;
use error::HttpError;

/// All routes of the public API.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let service = Router::new()
        .route("/v1/models", get(models::list))
        // Model names hold slashes.
        .route("/v1/models/{*model}", get(models::show))
        .route("/v1/usage", get(usage::show))
        .route("/v1/health/live", get(service::live))
        .route("/v1/health/ready", get(service::ready))
        .route("/v1/version", get(service::version))
        .route("/v1/metadata", get(service::metadata))
        .route("/v1/metrics", get(service::metrics))
        .route("/openapi.json", get(service::openapi))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::map_response(finish::stamp_new));
    // Work stamps itself: its id is known in the logs of every hop.
    Router::new()
        .route("/v1/embeddings", post(embeddings::create).fallback(method_not_allowed))
        .route("/v1/chat/completions", post(chat::create).fallback(method_not_allowed))
        .route(
            "/v1/completions",
            post(completions::create).fallback(method_not_allowed),
        )
        .route(
            "/v1/translations",
            post(translations::create).fallback(method_not_allowed),
        )
        .route("/v1/responses", post(responses::create).fallback(method_not_allowed))
        .route("/v1/ranking", post(ranking::create).fallback(method_not_allowed))
        .route("/v1/rerank", post(ranking::rerank).fallback(method_not_allowed))
        .route("/v1/tokenize", post(tokens::tokenize).fallback(method_not_allowed))
        .route("/v1/detokenize", post(tokens::detokenize).fallback(method_not_allowed))
        .merge(service)
        .with_state(gateway)
}

async fn not_found(request: Request) -> HttpError {
    let path: String = request.uri().path().chars().take(128).collect();
    HttpError(Failure::new(
        ErrorCode::NotFound,
        format!("no such path: {path}; see /openapi.json"),
    ))
}

async fn method_not_allowed(request: Request) -> Response {
    let message = format!("method {} is not allowed here", request.method());
    let response = HttpError(Failure::new(ErrorCode::MethodNotAllowed, message)).into_response();
    finish::stamp_new(response).await
}
