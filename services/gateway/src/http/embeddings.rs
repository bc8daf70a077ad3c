//! `POST /v1/embeddings`. Input: a body in OpenAI's shape. Output: vectors; the steps around are in `whole.rs`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use schemas::error::Failure;
use schemas::http::EmbeddingsRequest;

use super::whole::{self, Asked};
use super::{body, finish, model};
use crate::Gateway;
use crate::plan;

const ROUTE: &str = "embeddings";

/// Answers a request for embeddings.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    whole::serve(gateway, request, ROUTE, |asked| Box::pin(embed(asked))).await
}

async fn embed(asked: Asked<'_>) -> Result<Response, Failure> {
    let request: EmbeddingsRequest = body::parse(&asked.body)?;
    let format = request.encoding_format.unwrap_or_default();
    let candidates = plan::model_candidates(&request.model);
    let (card, side) = model::find(asked.gateway, candidates, asked.grant())?;
    let plan = plan::embeddings(request, side, &card, &asked.grant().tenant)?;
    let (answer, source) = asked.compute(plan, &card).await?;
    let embeddings = answer.embeddings().ok_or_else(finish::wrong_answer)?;
    Ok((finish::json_headers(source), embeddings.body(format)).into_response())
}
