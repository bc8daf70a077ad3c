//! The questions of a translation. Input: messages about one function. Output: the model's text, by the steps of a chat
//! request of its own: key, limit, plan, cache, work, bill; and what all of them took together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use schemas::error::{ErrorCode, Failure};
use schemas::fleet::ModelCard;
use schemas::generate::FinishReason;
use schemas::http::{ChatContent, ChatMessage, ChatRequest, ChatRole, CompletionUsage};
use schemas::ids::RequestId;
use translate::{AskError, JobError, Message, Role, Said};

use super::super::finish;
use crate::Gateway;
use crate::call::Call;
use crate::permits::LimitState;
use crate::plan;

/// How often one question is put to a mesh that is full: a client would not try longer.
const MAX_TRIES: u32 = 10;
/// What is waited when the mesh does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// Asks one model on behalf of one caller.
pub(super) struct Asker {
    gateway: Arc<Gateway>,
    call: Call,
    /// The key is looked at for each question: what it may do can change, and its identity ends within a minute.
    headers: HeaderMap,
    card: Arc<ModelCard>,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    /// Whether the permit of the request itself, which is the first question's, is used up.
    paid: bool,
    answers: u64,
    computed: u64,
    usage: CompletionUsage,
    limit: Option<LimitState>,
    /// Why no question can be answered any more.
    failure: Option<Failure>,
}

impl Asker {
    /// An asker of one caller's translation.
    pub(super) fn new(gateway: Arc<Gateway>, call: Call, headers: HeaderMap, card: Arc<ModelCard>) -> Self {
        Self {
            gateway,
            call,
            headers,
            card,
            tally: Mutex::default(),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Plain values: whole at every moment.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all answers took.
    pub(super) fn usage(&self) -> CompletionUsage {
        self.tally().usage
    }

    /// Whether there were answers and all of them were known already.
    pub(super) fn computed_nothing(&self) -> bool {
        let tally = self.tally();
        tally.answers > 0 && tally.computed == 0
    }

    /// The state of the key's limit after the last question that took a permit.
    pub(super) fn limit(&self) -> Option<LimitState> {
        self.tally().limit
    }

    /// Why the job could not go on.
    pub(super) fn failure(&self, error: &JobError) -> Failure {
        self.tally().failure.take().unwrap_or_else(|| super::of_job(error))
    }

    /// Asks; waits and asks again while the mesh is full. Dropping the future takes the work back.
    pub(super) async fn ask(&self, messages: Vec<Message>) -> Result<Said, AskError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.question(&messages).await {
                Ok(said) => return said,
                Err(failure) => failure,
            };
            let wait = failure.retry_after_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
            let left_ms = self.call.deadline_ms.saturating_sub(self.gateway.clock.now_unix_ms());
            if tries < MAX_TRIES && is_full(failure.code) && wait < Duration::from_millis(left_ms) {
                tokio::time::sleep(wait).await;
                continue;
            }
            let error = AskError {
                message: failure.message.clone(),
                fatal: !is_of_one(failure.code),
            };
            if error.fatal {
                self.tally().failure.get_or_insert(failure);
            }
            return Err(error);
        }
    }

    async fn question(&self, messages: &[Message]) -> Result<Result<Said, AskError>, Failure> {
        let gateway = &self.gateway;
        let caller = gateway.authorizer.authorize(&self.headers).await?;
        if std::mem::replace(&mut self.tally().paid, true) {
            let state = gateway.admit(&caller).await.map_err(|(failure, _)| failure)?;
            self.tally().limit = state;
        }
        let (plan, _) = plan::chat(request(&self.card.name, messages), &self.card, &caller.grant.tenant)?;
        let call = Call {
            request_id: RequestId::new(),
            trace: self.call.trace.child(),
            received_at_ms: gateway.clock.now_unix_ms(),
            received_at_us: gateway.clock.monotonic_us(),
            ..self.call.clone()
        };
        let (answer, source) = gateway.answer(plan, &call, &self.card, &caller.grant).await?;
        gateway.metrics.cache.with_label_values(&[source.label()]).inc();
        if source.is_free() {
            gateway.cached_usage.note(&caller.grant, &answer);
        }
        let text = answer.text().ok_or_else(finish::wrong_answer)?;
        self.count(text.usage, source.is_free());
        let Some(said) = text.choices.first() else {
            return Err(finish::wrong_answer());
        };
        if said.finish == Some(FinishReason::Length) {
            let tokens = text.usage.completion_tokens;
            return Ok(Err(AskError {
                message: format!("the model did not come to an end in {tokens} tokens"),
                fatal: false,
            }));
        }
        Ok(Ok(Said {
            text: said.text.clone(),
            cached: source.is_free(),
        }))
    }

    fn count(&self, usage: CompletionUsage, is_free: bool) {
        let mut tally = self.tally();
        tally.answers += 1;
        tally.computed += u64::from(!is_free);
        let cached = |usage: CompletionUsage| usage.prompt_tokens_details.cached_tokens;
        let sum = tally.usage;
        tally.usage = CompletionUsage::new(
            sum.prompt_tokens + usage.prompt_tokens,
            sum.completion_tokens + usage.completion_tokens,
            cached(sum) + cached(usage),
        );
    }
}

/// The chat request of a question: always the likeliest token, so that the answer can be kept.
fn request(model: &str, messages: &[Message]) -> ChatRequest {
    let messages = messages.iter().map(|message| ChatMessage {
        role: match message.role {
            Role::User => ChatRole::User,
            Role::Assistant => ChatRole::Assistant,
        },
        content: Some(ChatContent::Text(message.content.clone())),
        ..ChatMessage::default()
    });
    ChatRequest {
        model: model.to_owned(),
        messages: messages.collect(),
        temperature: Some(0.0),
        ..ChatRequest::default()
    }
}

/// Whether the same question may be answered in a moment.
fn is_full(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::RateLimited
            | ErrorCode::TenantQueueFull
            | ErrorCode::QueueFull
            | ErrorCode::NoWorker
            | ErrorCode::Unavailable
    )
}

/// Whether the failure is about this question, and others may be answered.
fn is_of_one(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::InvalidField
            | ErrorCode::InputTooLong
            | ErrorCode::UnsupportedWork
            | ErrorCode::BodyTooLarge
            | ErrorCode::Poisoned
            | ErrorCode::Internal
    )
}
