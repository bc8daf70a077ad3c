//! The spine of requests that are answered whole: one call per step. Input: an HTTP request and what to do with its body.
//! Output: an answer, or one failure. Text, which may be streamed, has a spine of its own in `generate.rs`.

use std::pin::Pin;
use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemas::error::Failure;
use schemas::fleet::ModelCard;
use schemas::policy::Grant;

use super::error::HttpError;
use super::{body, finish};
use crate::Gateway;
use crate::answer::Answer;
use crate::authorize::Caller;
use crate::call::Call;
use crate::lookup::Source;
use crate::permits::LimitState;
use crate::plan::Plan;

/// A request whose key and limit are in order.
pub(super) struct Asked<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) call: &'a Call,
    caller: Arc<Caller>,
    /// Its body as it came.
    pub(super) body: Bytes,
}

/// An answer on its way.
pub(super) type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response, Failure>> + Send + 'a>>;

/// What a route does with a request.
pub(super) type Answerer = for<'a> fn(Asked<'a>) -> Answering<'a>;

impl Asked<'_> {
    /// What its key may do.
    pub(super) fn grant(&self) -> &Grant {
        &self.caller.grant
    }

    /// Answers a plan from wherever it is quickest, and counts where that was.
    pub(super) async fn compute(&self, plan: Plan, card: &ModelCard) -> Result<(Arc<Answer>, Source), Failure> {
        let (gateway, grant) = (self.gateway, self.grant());
        let (answer, source) = gateway.answer(plan, self.call, card, grant).await?;
        gateway.metrics.cache.with_label_values(&[source.label()]).inc();
        if source.is_free() {
            gateway.cached_usage.note(grant, &answer);
        }
        Ok((answer, source))
    }
}

/// Answers a request.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    request: Request,
    route: &'static str,
    answerer: Answerer,
) -> Response {
    let config = &gateway.config.http;
    let begun = Call::begin(
        request.headers(),
        &gateway.clock,
        config.default_timeout_ms,
        config.max_timeout_ms,
    );
    let begun = begun.and_then(|call| Ok((call, gateway.take_place()?)));
    let (call, _place) = match begun {
        Ok(begun) => begun,
        Err(failure) => return finish::stamp_new(HttpError(failure).into_response()).await,
    };
    let mut limit = None;
    let mut response = match answer(&gateway, &call, request, (answerer, &mut limit)).await {
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
    finish::close(&gateway, route, &call, response.status().as_u16());
    response
}

async fn answer(
    gateway: &Arc<Gateway>,
    call: &Call,
    request: Request,
    (answerer, limit): (Answerer, &mut Option<LimitState>),
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let caller = gateway.authorizer.authorize(&parts.headers).await?;
    *limit = gateway.admit(&caller).await.map_err(|(failure, state)| {
        *limit = state;
        failure
    })?;
    let limit_bytes = gateway.config.http.body_limit_bytes;
    let body = body::read(&parts.headers, body, limit_bytes, gateway.read_timeout).await?;
    let asked = Asked {
        gateway,
        call,
        caller,
        body,
    };
    answerer(asked).await
}
