//! `POST /v1/embeddings`: the spine, one call per step. Input: an HTTP request. Output: vectors, or one failure.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::http::EmbeddingsRequest;
use schemas::policy::{Grant, Scope};
use schemas::work::InputType;

use super::error::HttpError;
use super::{body, finish};
use crate::Gateway;
use crate::call::Call;
use crate::catalog::Lookup;
use crate::permits::LimitState;
use crate::plan;

const ROUTE: &str = "embeddings";
const CACHE: HeaderName = HeaderName::from_static("x-portalis-cache");

/// Answers a request for embeddings.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let config = &gateway.config.http;
    let begun = Call::begin(
        request.headers(),
        &gateway.clock,
        config.default_timeout_ms,
        config.max_timeout_ms,
    );
    let call = match begun {
        Ok(call) => call,
        Err(failure) => return finish::stamp_new(HttpError(failure).into_response()).await,
    };
    let _place = match gateway.take_place() {
        Ok(place) => place,
        Err(failure) => return finish::stamp_new(HttpError(failure).into_response()).await,
    };
    let mut limit = None;
    let mut response = match embed(&gateway, &call, request, &mut limit).await {
        Ok(response) => response,
        Err(failure) => {
            gateway
                .metrics
                .failures
                .with_label_values(&[failure.code.as_str()])
                .inc();
            HttpError(failure).into_response()
        }
    };
    finish::stamp(&mut response, &call);
    if let Some(state) = &limit {
        finish::limits(response.headers_mut(), state);
    }
    finish::close(&gateway, ROUTE, &call, &response);
    response
}

async fn embed(
    gateway: &Gateway,
    call: &Call,
    request: Request,
    limit: &mut Option<LimitState>,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let caller = gateway.authorizer.authorize(&parts.headers).await?;
    *limit = gateway.admit(&caller).await.map_err(|(failure, state)| {
        *limit = state;
        failure
    })?;
    let config = &gateway.config.http;
    let bytes = body::read(&parts.headers, body, config.body_limit_bytes, gateway.read_timeout).await?;
    let request: EmbeddingsRequest = body::parse(&bytes)?;
    let (card, side) = find_model(gateway, &request.model, &caller.grant)?;
    let plan = plan::embeddings(request, side, &card, &caller.grant.tenant)?;
    let format = plan.format;
    let (answer, source) = gateway.answer(plan, call, &card, &caller.grant).await?;
    gateway.metrics.cache.with_label_values(&[source.label()]).inc();
    if source.is_free() {
        gateway
            .cached_usage
            .note(&caller.grant.tenant, &caller.grant.kid, &card.name, answer.input_tokens);
    }
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE, HeaderValue::from_static(source.header())),
    ];
    Ok((headers, answer.body(format)).into_response())
}

/// The model a client means, if its key may use it.
fn find_model(gateway: &Gateway, name: &str, grant: &Grant) -> Result<(Arc<ModelCard>, Option<InputType>), Failure> {
    if !grant.scopes.contains(&Scope::Inference) {
        return Err(Failure::new(ErrorCode::Forbidden, "this key may not use models"));
    }
    let now_us = gateway.clock.monotonic_us();
    for (candidate, side) in plan::model_candidates(name) {
        let found = gateway.catalog.find(candidate, now_us);
        if found != Lookup::Unknown && !grant.allows_model(candidate) {
            let message = format!("this key may not use model '{candidate}'");
            return Err(Failure::new(ErrorCode::Forbidden, message).param("model"));
        }
        match found {
            Lookup::Unknown => {}
            Lookup::NoWorker => return Err(crate::rescue::no_worker(candidate)),
            Lookup::Served(card) => return Ok((card, side)),
        }
    }
    let shown: String = name.chars().take(128).collect();
    let message = format!("model '{shown}' does not exist; GET /v1/models lists those of this key");
    Err(Failure::new(ErrorCode::ModelNotFound, message).param("model"))
}
