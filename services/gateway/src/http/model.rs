//! The model of a request. Input: the name a client wrote, its grant. Output: the model's card, or why not.

use std::sync::Arc;

use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::policy::{Grant, Scope};

use crate::Gateway;
use crate::catalog::Lookup;

/// The model of this very name, if the key may use it.
pub(super) fn find_plain(gateway: &Gateway, name: &str, grant: &Grant) -> Result<Arc<ModelCard>, Failure> {
    find(gateway, std::iter::once((name, ())), grant).map(|(card, ())| card)
}

/// The model a client means, if its key may use it: the first of the candidates that exists, with what its name says
/// besides. The first candidate is the name as the client wrote it.
pub(super) fn find<'a, T>(
    gateway: &Gateway,
    candidates: impl Iterator<Item = (&'a str, T)>,
    grant: &Grant,
) -> Result<(Arc<ModelCard>, T), Failure> {
    if !grant.scopes.contains(&Scope::Inference) {
        return Err(Failure::new(ErrorCode::Forbidden, "this key may not use models"));
    }
    let now_us = gateway.clock.monotonic_us();
    let mut name = None;
    for (candidate, meaning) in candidates {
        name.get_or_insert(candidate);
        let found = gateway.catalog.find(candidate, now_us);
        if found != Lookup::Unknown && !grant.allows_model(candidate) {
            let message = format!("this key may not use model '{candidate}'");
            return Err(Failure::new(ErrorCode::Forbidden, message).param("model"));
        }
        match found {
            Lookup::Unknown => {}
            Lookup::NoWorker => return Err(crate::rescue::no_worker(candidate)),
            Lookup::Served(card) => return Ok((card, meaning)),
        }
    }
    let shown: String = name.unwrap_or_default().chars().take(128).collect();
    let message = format!("model '{shown}' does not exist; GET /v1/models lists those of this key");
    Err(Failure::new(ErrorCode::ModelNotFound, message).param("model"))
}
