//! `POST /v1/embeddings`: the spine, one call per step. Input: an HTTP request. Output: vectors, or one failure.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use schemas::error::Failure;
use schemas::http::EmbeddingsRequest;

use super::error::HttpError;
use super::{body, finish, model};
use crate::Gateway;
use crate::call::Call;
use crate::permits::LimitState;
use crate::plan;

const ROUTE: &str = "embeddings";

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
    finish::close(&gateway, ROUTE, &call, response.status().as_u16());
    response
}

async fn embed(
    gateway: &Arc<Gateway>,
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
    let format = request.encoding_format.unwrap_or_default();
    let (card, side) = model::find(gateway, plan::model_candidates(&request.model), &caller.grant)?;
    let plan = plan::embeddings(request, side, &card, &caller.grant.tenant)?;
    let (answer, source) = gateway.answer(plan, call, &card, &caller.grant).await?;
    gateway.metrics.cache.with_label_values(&[source.label()]).inc();
    if source.is_free() {
        gateway.cached_usage.note(&caller.grant, &answer);
    }
    let embeddings = answer.embeddings().ok_or_else(finish::wrong_answer)?;
    let headers = finish::json_headers(source);
    Ok((headers, embeddings.body(format)).into_response())
}
