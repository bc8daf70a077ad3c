//! Texts to tokens and back: what a worker is asked, and what a client is told when none answers.

use bus::Headers;
use schemas::error::{ErrorCode, Failure};
use schemas::tokens::{TokenizeText, Tokenized, TokensAsk, TokensQuestion, TokensReply};
use schemas::{headers, subjects, wire};
use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::worker::{EMBEDDER, MODEL, Worker};

#[tokio::test]
async fn a_worker_is_asked_and_its_answer_is_the_clients() {
    let mesh = Mesh::start(&[]).await;
    let _worker = Worker::start(&mesh, "w1").await;
    let mut questions = mesh.bus.subscribe(&subjects::tokens(MODEL), None).await.unwrap();
    let bus = mesh.bus.clone();
    let answering = tokio::spawn(async move {
        let replies = [
            TokensReply::Tokenized(Tokenized {
                tokens: vec![5, 6],
                spellings: vec!["a".to_owned(), "b".to_owned()],
            }),
            TokensReply::Detokenized("ab".to_owned()),
            TokensReply::Failed(Failure::new(ErrorCode::InvalidField, "no").param("tokens")),
        ];
        let mut asked = Vec::new();
        for reply in replies {
            let question = questions.next().await.unwrap();
            assert_eq!(question.headers.get(headers::IDENTITY), Some("identity"));
            asked.push(wire::decode::<TokensAsk>(&question.payload).unwrap());
            let reply = wire::encode(&reply).unwrap();
            bus.respond(&question, Headers::new(), reply.into()).await.unwrap();
        }
        asked
    });
    let client = mesh.client();
    let body = json!({"model": MODEL, "prompt": "ab", "return_token_strs": true});
    let tokens = client.post("/v1/tokenize", &body).await.ok().body;
    assert_eq!(
        tokens,
        json!({"count": 2, "max_model_len": 64, "tokens": [5, 6], "token_strs": ["a", "b"]})
    );
    let body = json!({"model": MODEL, "tokens": [5, 6]});
    assert_eq!(
        client.post("/v1/detokenize", &body).await.ok().body,
        json!({"prompt": "ab"})
    );
    let refused = client.post("/v1/detokenize", &body).await;
    assert_eq!((refused.status, refused.error("param")), (400, "tokens"));
    let asked = answering.await.unwrap();
    assert!(asked.iter().all(|ask| ask.model == MODEL));
    let TokensQuestion::Tokenize(tokenize) = &asked[0].question else {
        panic!("{:?}", asked[0])
    };
    assert_eq!(tokenize.text, TokenizeText::Text("ab".to_owned()));
    assert!(tokenize.add_special_tokens && tokenize.spellings);
    assert_eq!(asked[1].question, TokensQuestion::Detokenize(vec![5, 6]));
    mesh.finish().await;
}

#[tokio::test]
async fn nobody_who_answers_is_told_at_once_or_in_time() {
    let mesh = Mesh::start(&["dispatch.tokens_timeout_ms=50"]).await;
    let _worker = Worker::start(&mesh, "w1").await;
    let client = mesh.client();
    let body = json!({"model": MODEL, "prompt": "a"});
    let nobody = client.post("/v1/tokenize", &body).await;
    assert_eq!(
        (nobody.status, nobody.error("code")),
        (503, "no_worker"),
        "{}",
        nobody.body
    );
    let silent = mesh.bus.subscribe(&subjects::tokens(MODEL), None).await.unwrap();
    let late = client.post("/v1/tokenize", &body).await;
    assert_eq!(
        (late.status, late.error("code")),
        (504, "deadline_exceeded"),
        "{}",
        late.body
    );
    drop(silent);
    for (body, status, param) in [
        (json!({"model": MODEL}), 400, "prompt"),
        (
            json!({"model": EMBEDDER, "messages": [{"role": "user", "content": "a"}]}),
            400,
            "model",
        ),
        (json!({"model": "nobody", "prompt": "a"}), 404, "model"),
        (json!({"model": MODEL, "prompt": "a", "tokens": []}), 422, "tokens"),
    ] {
        let answer = client.post("/v1/tokenize", &body).await;
        let error: &Value = &answer.body["error"];
        assert_eq!(
            (answer.status, error["param"].as_str()),
            (status, Some(param)),
            "{error}"
        );
    }
    mesh.finish().await;
}
