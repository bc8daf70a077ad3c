//! `POST /v1/tokenize` and `POST /v1/detokenize`. Input: a text, a conversation or token ids. Output: the other, as any worker of
//! the model says: the gateway has no tokenizers. Nothing is queued, cached or charged; the steps around are in `whole.rs`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bus::{BusError, Headers};
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::http::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use schemas::tokens::{TokensAsk, TokensQuestion, TokensReply};
use schemas::{headers, subjects, wire};

use super::whole::{self, Asked};
use super::{body, finish, model};
use crate::Gateway;
use crate::dispatch::unavailable;
use crate::{plan, rescue};

const TOKENIZE: &str = "tokenize";
const DETOKENIZE: &str = "detokenize";

/// Says which tokens a text is.
pub(super) async fn tokenize(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    whole::serve(gateway, request, TOKENIZE, |asked| Box::pin(to_tokens(asked))).await
}

/// Says which text tokens are.
pub(super) async fn detokenize(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    whole::serve(gateway, request, DETOKENIZE, |asked| Box::pin(to_text(asked))).await
}

async fn to_tokens(asked: Asked<'_>) -> Result<Response, Failure> {
    let request: TokenizeRequest = body::parse(&asked.body)?;
    let card = model::find_plain(asked.gateway, &request.model, asked.grant())?;
    let question = plan::tokenize(request, &card)?;
    let wants_spellings = question.spellings;
    let reply = ask(&asked, &card, TokensQuestion::Tokenize(question)).await?;
    let TokensReply::Tokenized(tokenized) = reply else {
        return Err(finish::wrong_answer());
    };
    let response = TokenizeResponse {
        count: u32::try_from(tokenized.tokens.len()).unwrap_or(u32::MAX),
        max_model_len: card.max_tokens.max(card.max_context),
        tokens: tokenized.tokens,
        token_strs: wants_spellings.then_some(tokenized.spellings),
    };
    Ok(Json(response).into_response())
}

async fn to_text(asked: Asked<'_>) -> Result<Response, Failure> {
    let request: DetokenizeRequest = body::parse(&asked.body)?;
    let card = model::find_plain(asked.gateway, &request.model, asked.grant())?;
    match ask(&asked, &card, TokensQuestion::Detokenize(request.tokens)).await? {
        TokensReply::Detokenized(prompt) => Ok(Json(DetokenizeResponse { prompt }).into_response()),
        _ => Err(finish::wrong_answer()),
    }
}

/// Asks any worker of the model; what it refuses is a failure.
async fn ask(asked: &Asked<'_>, card: &ModelCard, question: TokensQuestion) -> Result<TokensReply, Failure> {
    let gateway = asked.gateway;
    let ask = TokensAsk {
        model: card.name.clone(),
        question,
    };
    let payload = wire::encode(&ask).map_err(|error| {
        tracing::error!(%error, "question about tokens cannot be encoded");
        Failure::new(ErrorCode::Internal, "the request could not be passed on")
    })?;
    let left_ms = asked.call.deadline_ms.saturating_sub(gateway.clock.now_unix_ms());
    let limit_ms = left_ms.min(gateway.config.dispatch.tokens_timeout_ms);
    let message_headers = Headers::new()
        .with(headers::IDENTITY, &asked.grant().identity)
        .with(headers::REQUEST_ID, asked.call.request_id.to_string());
    let subject = subjects::tokens(&card.slug);
    let timeout = Duration::from_millis(limit_ms);
    let reply = gateway.bus.request(&subject, message_headers, payload.into(), timeout);
    let reply = reply.await.map_err(|error| unanswered(&error, card))?;
    match wire::decode::<TokensReply>(&reply.payload) {
        Ok(TokensReply::Failed(failure)) => Err(failure),
        Ok(reply) => Ok(reply),
        Err(error) => {
            tracing::error!(%error, "answer about tokens cannot be read");
            Err(finish::wrong_answer())
        }
    }
}

fn unanswered(error: &BusError, card: &ModelCard) -> Failure {
    tracing::debug!(%error, model = card.name, "question about tokens not answered");
    match error {
        BusError::NoResponders { .. } => rescue::no_worker(&card.name),
        BusError::Timeout { .. } => Failure::new(
            ErrorCode::DeadlineExceeded,
            "no worker of the model answered in time; try again",
        ),
        BusError::TooLarge { .. } => {
            let message = "the request is larger than a message may be; send less at once";
            Failure::new(ErrorCode::BodyTooLarge, message)
        }
        _ => unavailable("the message bus is not reachable"),
    }
}
