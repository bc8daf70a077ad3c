//! Fixed values of messages and bodies about ranking and tokens. Input: nothing. Output: entries with examples; the golden bytes
//! of the messages never change.

use super::generate_examples::WRITER;
use super::message_examples::{NOW_MS, frame as frame_of, request_id};
use super::registry::{Entry, read, written};
use crate::error::{ErrorCode, Failure};
use crate::generate::{ChatPrompt, Message};
use crate::http::{
    ChatContent, ChatMessage, DetokenizeRequest, DetokenizeResponse, EmbeddingsUsage, Ranking, RankingRequest,
    RankingResponse, RankingText, RerankDocument, RerankRequest, RerankResponse, RerankResult, TokenizeRequest,
    TokenizeResponse,
};
use crate::reply::{Done, Frame, ReplyFrame, Usage};
use crate::tokens::{Tokenize, TokenizeText, Tokenized, TokensAsk, TokensQuestion, TokensReply};
use crate::wire::WireError;
use crate::work::{RankTask, Task, Truncate, Work};

pub(super) const RANKER: &str = "ms-marco-minilm-l6-v2";
const QUERY: &str = "How often is a request paid?";
const PASSAGES: [&str; 2] = ["The mesh carries work.", "A request is paid once."];

/// An example of `Work`.
pub(super) fn work() -> Work {
    Work {
        request_id: request_id(),
        model: RANKER.to_owned(),
        submitted_at_ms: NOW_MS,
        task: Task::Rank(RankTask {
            query: QUERY.to_owned(),
            passages: PASSAGES.map(str::to_owned).to_vec(),
            truncate: Truncate::End,
        }),
    }
}

/// An example of `ReplyFrame`.
pub(super) fn frame() -> ReplyFrame {
    let done = Done {
        scores: vec![-1.5, 4.25],
        usage: Usage {
            input_tokens: 24,
            queue_us: 850,
            compute_ns: 4_200_000,
            ..Usage::default()
        },
        ..Done::default()
    };
    frame_of(1, Frame::Done(done))
}

/// Questions about tokens and their answers.
pub(super) fn tokens() -> Vec<Result<Entry, WireError>> {
    let ask = |model: &str, question| TokensAsk {
        model: model.to_owned(),
        question,
    };
    let text = Tokenize {
        text: TokenizeText::Text(QUERY.to_owned()),
        add_special_tokens: true,
        spellings: true,
    };
    let said = Message {
        role: "user".to_owned(),
        content: Some("def double(x):\n    return 2 * x".to_owned()),
        ..Message::default()
    };
    let chat = Tokenize {
        text: TokenizeText::Chat(Box::new(ChatPrompt {
            messages: vec![said],
            parallel_tool_calls: true,
            add_generation_prompt: true,
            ..ChatPrompt::default()
        })),
        add_special_tokens: false,
        spellings: false,
    };
    let tokenized = Tokenized {
        tokens: vec![101, 2129, 102],
        spellings: ["[CLS]", "how", "[SEP]"].map(str::to_owned).to_vec(),
    };
    let failed = Failure::new(
        ErrorCode::InvalidField,
        "token id 99999 is outside the vocabulary of 30522",
    )
    .param("tokens");
    vec![
        read(vec![
            ("", ask(RANKER, TokensQuestion::Tokenize(text))),
            ("chat", ask(WRITER, TokensQuestion::Tokenize(chat))),
            (
                "detokenize",
                ask(RANKER, TokensQuestion::Detokenize(vec![101, 2129, 102])),
            ),
        ]),
        read(vec![
            ("", TokensReply::Tokenized(tokenized)),
            ("text", TokensReply::Detokenized("[CLS] how [SEP]".to_owned())),
            ("failed", TokensReply::Failed(failed)),
        ]),
    ]
}

/// The public bodies.
pub(super) fn bodies() -> Vec<Result<Entry, WireError>> {
    let text = |text: &str| RankingText { text: text.to_owned() };
    let usage = EmbeddingsUsage {
        prompt_tokens: 24,
        total_tokens: 24,
    };
    let rerank = RerankRequest {
        model: RANKER.to_owned(),
        query: QUERY.to_owned(),
        documents: PASSAGES.map(|text| RerankDocument(text.to_owned())).to_vec(),
        top_n: Some(1),
        return_documents: Some(true),
        truncate: None,
        user: None,
    };
    let mut entries = vec![
        read(vec![(
            "",
            RankingRequest {
                model: RANKER.to_owned(),
                query: text(QUERY),
                passages: PASSAGES.map(text).to_vec(),
                truncate: Some(Truncate::End),
                user: None,
            },
        )]),
        written(RankingResponse {
            rankings: vec![Ranking { index: 1, logit: 4.25 }, Ranking { index: 0, logit: -1.5 }],
            usage,
        }),
        read(vec![("", rerank)]),
        written(RerankResponse {
            id: "rerank-019b76dae00070008000000000000001".to_owned(),
            model: RANKER.to_owned(),
            results: vec![RerankResult {
                index: 1,
                relevance_score: 0.985_936,
                document: Some(text(PASSAGES[1])),
            }],
            usage,
        }),
    ];
    entries.extend(token_bodies());
    entries
}

fn token_bodies() -> Vec<Result<Entry, WireError>> {
    let said = ChatMessage {
        content: Some(ChatContent::Text("def double(x):\n    return 2 * x".to_owned())),
        ..ChatMessage::default()
    };
    vec![
        read(vec![
            (
                "",
                TokenizeRequest {
                    model: RANKER.to_owned(),
                    prompt: Some(QUERY.to_owned()),
                    return_token_strs: Some(true),
                    ..TokenizeRequest::default()
                },
            ),
            (
                "chat",
                TokenizeRequest {
                    model: WRITER.to_owned(),
                    messages: Some(vec![said]),
                    ..TokenizeRequest::default()
                },
            ),
        ]),
        written(TokenizeResponse {
            count: 3,
            max_model_len: 512,
            tokens: vec![101, 2129, 102],
            token_strs: Some(["[CLS]", "how", "[SEP]"].map(str::to_owned).to_vec()),
        }),
        read(vec![(
            "",
            DetokenizeRequest {
                model: RANKER.to_owned(),
                tokens: vec![101, 2129, 102],
            },
        )]),
        written(DetokenizeResponse {
            prompt: "[CLS] how [SEP]".to_owned(),
        }),
    ]
}
