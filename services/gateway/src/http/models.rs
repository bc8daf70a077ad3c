//! `GET /v1/models` and `/v1/models/{model}`. Input: the caller's key. Output: the models it may use.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::http::{ModelList, ModelObject};

use super::error::HttpError;
use crate::Gateway;

/// All models of the caller's key.
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Result<Json<ModelList>, HttpError> {
    let caller = gateway.authorizer.authorize(&headers).await?;
    let cards = gateway.catalog.cards();
    let data = cards
        .iter()
        .filter(|card| caller.grant.allows_model(&card.name))
        .map(|card| object(card))
        .collect();
    Ok(Json(ModelList {
        object: "list".to_owned(),
        data,
    }))
}

/// One model.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<ModelObject>, HttpError> {
    let caller = gateway.authorizer.authorize(&headers).await?;
    let cards = gateway.catalog.cards();
    let found = cards
        .iter()
        .find(|card| card.name == name && caller.grant.allows_model(&card.name));
    found.map(|card| Json(object(card))).ok_or_else(|| {
        let shown: String = name.chars().take(128).collect();
        HttpError(Failure::new(ErrorCode::ModelNotFound, format!("model '{shown}' does not exist")).param("model"))
    })
}

fn object(card: &ModelCard) -> ModelObject {
    ModelObject {
        id: card.name.clone(),
        object: "model".to_owned(),
        created: card.created_s,
        owned_by: "portalis".to_owned(),
        root: card.name.clone(),
        max_model_len: card.max_tokens.max(card.max_context),
        dimensions: card.dimensions,
    }
}
