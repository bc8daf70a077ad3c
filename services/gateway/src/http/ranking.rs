//! `POST /v1/ranking` in NIM's shape and `POST /v1/rerank` in that of Cohere and Jina. Input: a query and passages. Output: the
//! passages' places, the best first; the steps around are in `whole.rs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use schemas::error::Failure;
use schemas::http::{
    EmbeddingsUsage, Ranking as Place, RankingRequest, RankingResponse, RankingText, RerankRequest, RerankResponse,
    RerankResult,
};

use super::whole::{self, Asked};
use super::{body, finish, model};
use crate::Gateway;
use crate::answer::Ranking;
use crate::plan::{self, RerankShape};

const RANKING: &str = "ranking";
const RERANK: &str = "rerank";

/// Answers a request in NIM's shape.
pub(super) async fn create(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    whole::serve(gateway, request, RANKING, |asked| Box::pin(rank(asked))).await
}

/// Answers a request in the shape of Cohere and Jina.
pub(super) async fn rerank(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    whole::serve(gateway, request, RERANK, |asked| Box::pin(rerank_documents(asked))).await
}

async fn rank(asked: Asked<'_>) -> Result<Response, Failure> {
    let request: RankingRequest = body::parse(&asked.body)?;
    let card = model::find_plain(asked.gateway, &request.model, asked.grant())?;
    let plan = plan::ranking(request, &card, &asked.grant().tenant)?;
    let (answer, source) = asked.compute(plan, &card).await?;
    let ranking = answer.ranking().ok_or_else(finish::wrong_answer)?;
    Ok((finish::headers_of(source), Json(nims(ranking))).into_response())
}

async fn rerank_documents(asked: Asked<'_>) -> Result<Response, Failure> {
    let request: RerankRequest = body::parse(&asked.body)?;
    let card = model::find_plain(asked.gateway, &request.model, asked.grant())?;
    let (plan, shape) = plan::rerank(request, &card, &asked.grant().tenant)?;
    let (answer, source) = asked.compute(plan, &card).await?;
    let ranking = answer.ranking().ok_or_else(finish::wrong_answer)?;
    let id: String = asked.call.request_id.to_string().split('-').collect();
    let response = coheres(format!("rerank-{id}"), ranking, shape);
    Ok((finish::headers_of(source), Json(response)).into_response())
}

fn nims(ranking: &Ranking) -> RankingResponse {
    RankingResponse {
        rankings: places(&ranking.scores),
        usage: usage(ranking),
    }
}

fn coheres(id: String, ranking: &Ranking, mut shape: RerankShape) -> RerankResponse {
    let places = places(&ranking.scores);
    let results = places.into_iter().take(shape.top_n.unwrap_or(usize::MAX)).map(|place| {
        let document = shape.documents.get_mut(place.index as usize);
        RerankResult {
            index: place.index,
            relevance_score: logistic(place.logit),
            document: document.map(|text| RankingText {
                text: std::mem::take(text),
            }),
        }
    });
    RerankResponse {
        id,
        results: results.collect(),
        model: ranking.model.clone(),
        usage: usage(ranking),
    }
}

/// Passages by their scores, the best first; those of one score keep their order.
fn places(scores: &[f32]) -> Vec<Place> {
    let mut places: Vec<Place> = (0..)
        .zip(scores)
        .map(|(index, logit)| Place { index, logit: *logit })
        .collect();
    places.sort_by(|a, b| b.logit.total_cmp(&a.logit));
    places
}

fn logistic(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

fn usage(ranking: &Ranking) -> EmbeddingsUsage {
    EmbeddingsUsage {
        prompt_tokens: ranking.input_tokens,
        total_tokens: ranking.input_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(scores: &[f32]) -> Ranking {
        Ranking {
            model: "m".to_owned(),
            scores: scores.to_vec(),
            input_tokens: 9,
        }
    }

    #[test]
    fn the_best_comes_first_and_equals_keep_their_order() {
        let found: Vec<u32> = nims(&ranking(&[-1.0, 2.5, -1.0, 7.0]))
            .rankings
            .iter()
            .map(|place| place.index)
            .collect();
        assert_eq!(found, [3, 1, 0, 2]);
    }

    #[test]
    fn relevance_is_between_0_and_1_in_the_order_of_the_logits() {
        let shape = RerankShape {
            top_n: Some(2),
            documents: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
        };
        let response = coheres("i".to_owned(), &ranking(&[0.0, -90.0, 90.0]), shape);
        let found: Vec<_> = response
            .results
            .iter()
            .map(|result| {
                (
                    result.index,
                    result.relevance_score,
                    result.document.as_ref().unwrap().text.as_str(),
                )
            })
            .collect();
        assert_eq!(found, [(2, 1.0, "c"), (0, 0.5, "a")]);
        assert_eq!(response.usage.prompt_tokens, 9);
        let bare = RerankShape {
            top_n: None,
            documents: Vec::new(),
        };
        let response = coheres("i".to_owned(), &ranking(&[1.0]), bare);
        assert_eq!(
            (response.results.len(), response.results[0].document.clone()),
            (1, None)
        );
    }
}
