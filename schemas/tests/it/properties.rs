//! Round trips of the central messages in both formats.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use schemas::cost::{CostBatch, CostEvent, CostKind, DeviceTerms};
use schemas::dead::DeadLetter;
use schemas::error::{ERRORS, Failure};
use schemas::fleet::{Beat, InstanceState, WorkerBeat};
use schemas::generate::{
    ChatPrompt, Constraint, Echo, FinishReason, GenerateTask, Message, OutputLimits, Prompt, PromptToken, Resume,
    Sampling, TextPart, TokenBias, TokenLogprob, ToolCall, TopToken,
};
use schemas::ids::RequestId;
use schemas::policy::{Grant, RequestLimit, Scope};
use schemas::reply::{Accepted, Done, EmbedPart, Frame, ReplyBatch, ReplyFrame, Usage};
use schemas::vector::Vector;
use schemas::wire::{self, Format};
use schemas::work::{EmbedInput, EmbedTask, InputType, Lane, RankTask, Task, Truncate, Work};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

fn round_trips<T>(message: &T) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    for format in [Format::MessagePack, Format::Json] {
        let bytes = wire::encode_as(format, message).unwrap();
        let read: T = wire::decode_as(format, &bytes).unwrap();
        prop_assert_eq!(&read, message, "{:?}", format);
    }
    Ok(())
}

fn text() -> impl Strategy<Value = String> {
    ".{0,24}"
}

fn request_id() -> impl Strategy<Value = RequestId> {
    any::<[u8; 16]>().prop_map(RequestId::from_bytes)
}

fn lane() -> impl Strategy<Value = Lane> {
    prop::sample::select(Lane::ALL.to_vec())
}

fn truncate() -> impl Strategy<Value = Truncate> {
    prop::sample::select(vec![Truncate::None, Truncate::Start, Truncate::End])
}

fn work() -> impl Strategy<Value = Work> {
    let input = prop_oneof![
        text().prop_map(EmbedInput::Text),
        vec(any::<u32>(), 0..8).prop_map(EmbedInput::Tokens),
    ];
    let input_type = option::of(prop::sample::select(vec![InputType::Query, InputType::Passage]));
    let embed = (vec(input, 0..6), truncate(), input_type).prop_map(|(inputs, truncate, input_type)| {
        Task::Embed(EmbedTask {
            inputs,
            truncate,
            input_type,
        })
    });
    let rank = (text(), vec(text(), 0..6), truncate()).prop_map(|(query, passages, truncate)| {
        Task::Rank(RankTask {
            query,
            passages,
            truncate,
        })
    });
    let task = prop_oneof![embed, generate().prop_map(|task| Task::Generate(Box::new(task))), rank];
    (request_id(), text(), any::<u64>(), task).prop_map(|(request_id, model, submitted_at_ms, task)| Work {
        request_id,
        model,
        submitted_at_ms,
        task,
    })
}

fn finite() -> impl Strategy<Value = f32> {
    // JSON has no infinities; nobody sends them.
    any::<f32>().prop_filter("finite", |value| value.is_finite())
}

fn tool_call() -> impl Strategy<Value = ToolCall> {
    (text(), text(), text()).prop_map(|(id, name, arguments)| ToolCall { id, name, arguments })
}

fn finish() -> impl Strategy<Value = Option<FinishReason>> {
    let reasons = [
        FinishReason::Stop,
        FinishReason::Length,
        FinishReason::ToolCalls,
        FinishReason::ContentFilter,
    ];
    option::of(prop::sample::select(reasons.to_vec()))
}

fn prompt() -> impl Strategy<Value = Prompt> {
    let message =
        (text(), option::of(text()), vec(tool_call(), 0..2)).prop_map(|(role, content, tool_calls)| Message {
            role,
            content,
            tool_calls,
            ..Message::default()
        });
    let chat = (vec(message, 0..4), any::<bool>(), any::<bool>()).prop_map(|(messages, begin, go_on)| ChatPrompt {
        messages,
        add_generation_prompt: begin,
        continue_final_message: go_on,
        ..ChatPrompt::default()
    });
    prop_oneof![
        chat.prop_map(Prompt::Chat),
        text().prop_map(Prompt::Text),
        vec(any::<u32>(), 0..8).prop_map(Prompt::Tokens),
    ]
}

fn generate() -> impl Strategy<Value = GenerateTask> {
    let bias = (any::<u32>(), finite()).prop_map(|(token, bias)| TokenBias { token, bias });
    let sampling = (finite(), finite(), option::of(any::<u64>()), vec(bias, 0..3)).prop_map(
        |(temperature, top_p, seed, logit_bias)| Sampling {
            temperature,
            top_p,
            seed,
            logit_bias,
            ..Sampling::default()
        },
    );
    let limits = (option::of(any::<u32>()), vec(text(), 0..3)).prop_map(|(max_tokens, stop)| OutputLimits {
        max_tokens,
        stop,
        ..OutputLimits::default()
    });
    let constraint = prop_oneof![
        Just(Constraint::JsonObject),
        text().prop_map(Constraint::JsonSchema),
        text().prop_map(Constraint::Regex),
        vec(text(), 0..3).prop_map(Constraint::Choice),
        text().prop_map(Constraint::Grammar),
    ];
    let resume = (any::<u32>(), vec(any::<u32>(), 0..5), finish()).prop_map(|(choice, tokens, finish)| Resume {
        choice,
        tokens,
        finish,
    });
    let small = (any::<u32>(), option::of(any::<u32>()), any::<bool>(), any::<u32>());
    let constraint = (option::of(constraint), option::of(text()), any::<bool>());
    (
        (prompt(), vec(prompt(), 0..2)),
        sampling,
        limits,
        constraint,
        vec(resume, 0..3),
        small,
    )
        .prop_map(|(prompt, sampling, limits, constraint, resume, small)| GenerateTask {
            prompt: prompt.0,
            more_prompts: prompt.1,
            choices: small.0,
            sampling,
            limits,
            logprobs: small.1,
            echo: constraint.2,
            constraint: constraint.0,
            constraint_field: constraint.1,
            stream: small.2,
            resume,
            attempts_before: small.3,
        })
}

fn text_part() -> impl Strategy<Value = TextPart> {
    let top = || {
        (vec(any::<u8>(), 0..4), finite()).prop_map(|(bytes, logprob)| TopToken {
            bytes: ByteBuf::from(bytes),
            logprob,
        })
    };
    let logprob = (top(), vec(top(), 0..3)).prop_map(|(token, top)| TokenLogprob {
        bytes: token.bytes,
        logprob: token.logprob,
        top,
    });
    let scored = (top(), any::<bool>(), vec(top(), 0..3)).prop_map(|(token, first, top)| PromptToken {
        bytes: token.bytes,
        logprob: (!first).then_some(token.logprob),
        top,
    });
    let echo = (text(), vec(scored, 0..3)).prop_map(|(text, tokens)| Echo { text, tokens });
    (
        any::<u32>(),
        text(),
        option::of(echo),
        vec(any::<u32>(), 0..5),
        vec(logprob, 0..3),
        vec(tool_call(), 0..2),
        finish(),
    )
        .prop_map(|(choice, text, echo, tokens, logprobs, tool_calls, finish)| TextPart {
            choice,
            text,
            echo,
            tokens,
            logprobs,
            tool_calls,
            finish,
        })
}

fn failure() -> impl Strategy<Value = Failure> {
    let codes: Vec<_> = ERRORS.iter().map(|row| row.code).collect();
    (
        prop::sample::select(codes),
        text(),
        option::of(text()),
        option::of(any::<u64>()),
    )
        .prop_map(|(code, message, param, retry_after_ms)| Failure {
            code,
            message,
            param,
            retry_after_ms,
        })
}

fn part() -> impl Strategy<Value = EmbedPart> {
    let vectors = vec(vec(finite(), 0..8).prop_map(Vector), 0..4);
    (any::<u32>(), vectors).prop_map(|(first, vectors)| EmbedPart { first, vectors })
}

fn frame() -> impl Strategy<Value = Frame> {
    let counts = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let usage = counts.prop_map(
        |(input_tokens, output_tokens, cached_tokens, queue_us, compute_ns)| Usage {
            input_tokens,
            output_tokens,
            cached_tokens,
            queue_us,
            compute_ns,
        },
    );
    prop_oneof![
        (text(), text()).prop_map(|(worker, ack_subject)| { Frame::Accepted(Accepted { worker, ack_subject }) }),
        part().prop_map(Frame::Part),
        vec(text_part(), 0..3).prop_map(Frame::Text),
        (part(), vec(text_part(), 0..3), vec(finite(), 0..6), usage).prop_map(|(embed, text, scores, usage)| {
            Frame::Done(Done {
                embed,
                text,
                scores,
                usage,
            })
        }),
        failure().prop_map(Frame::Failed),
    ]
}

fn reply_batch() -> impl Strategy<Value = ReplyBatch> {
    let frame =
        (request_id(), any::<u32>(), any::<u32>(), frame()).prop_map(|(request_id, attempt, sequence, frame)| {
            ReplyFrame {
                request_id,
                attempt,
                sequence,
                frame,
            }
        });
    vec(frame, 0..6).prop_map(|frames| ReplyBatch { frames })
}

fn cost_event() -> impl Strategy<Value = CostEvent> {
    let kinds = vec![
        CostKind::Computed,
        CostKind::Cancelled,
        CostKind::Cached,
        CostKind::Waste,
    ];
    let terms = vec![DeviceTerms::OnDemand, DeviceTerms::Spot];
    let names = (text(), text(), text(), text(), text(), text());
    let counts = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let kind = (prop::sample::select(kinds), prop::sample::select(terms));
    (names, counts, kind, any::<u32>(), any::<u64>()).prop_map(
        |(names, counts, (kind, terms), attempt, occurred_at_ms)| CostEvent {
            event_id: names.0,
            kind,
            tenant: names.1,
            key_id: names.2,
            model: names.3,
            operation: "embed".to_owned(),
            request_id: names.4.clone(),
            requests: counts.0,
            input_tokens: counts.1,
            output_tokens: counts.2,
            compute_ns: counts.3,
            queue_us: counts.4,
            attempt,
            device: names.5,
            terms,
            reporter: names.4,
            occurred_at_ms,
        },
    )
}

fn grant() -> impl Strategy<Value = Grant> {
    let scopes = vec![Scope::Inference, Scope::UsageRead, Scope::Admin];
    let limit = (any::<u32>(), any::<u32>()).prop_map(|(per_minute, burst)| RequestLimit { per_minute, burst });
    let names = (text(), text(), text(), vec(text(), 0..4));
    let versions = (any::<u64>(), any::<u64>());
    let scopes = vec(prop::sample::select(scopes), 0..3);
    (names, scopes, lane(), option::of(limit), versions).prop_map(
        |((kid, tenant, identity, models), scopes, priority_ceiling, request_limit, versions)| Grant {
            kid,
            tenant,
            models,
            scopes,
            priority_ceiling,
            request_limit,
            policy_version: versions.0,
            identity,
            identity_expires_at_ms: versions.1,
        },
    )
}

fn beat() -> impl Strategy<Value = Beat> {
    let states = vec![InstanceState::Starting, InstanceState::Ready, InstanceState::Draining];
    let counts = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let small = (any::<u32>(), any::<u32>(), any::<u32>());
    let worker = (text(), text(), counts, small).prop_map(|(model, device, counts, small)| WorkerBeat {
        model,
        slots: small.0,
        in_hand: small.1,
        waiting_tokens: counts.0,
        finished_total: counts.1,
        tokens_total: counts.2,
        busy_ns_total: counts.3,
        batch_us: counts.4,
        device,
        pid: small.2,
    });
    let names = (text(), text(), text());
    (names, any::<u64>(), prop::sample::select(states), option::of(worker)).prop_map(
        |((service, instance, version), started_at_ms, state, worker)| Beat {
            service,
            instance,
            version,
            started_at_ms,
            state,
            worker,
        },
    )
}

fn dead_letter() -> impl Strategy<Value = DeadLetter> {
    let counts = (any::<u64>(), any::<u64>(), any::<u64>());
    let headers = vec((text(), text()), 0..4);
    let payload = vec(any::<u8>(), 0..64).prop_map(ByteBuf::from);
    (text(), text(), text(), counts, headers, payload).prop_map(
        |(subject, stream, reason, counts, headers, payload)| DeadLetter {
            subject,
            stream,
            stream_sequence: counts.0,
            deliveries: counts.1,
            reason,
            died_at_ms: counts.2,
            headers,
            payload,
        },
    )
}

proptest! {
    #[test]
    fn work_round_trips(message in work()) {
        round_trips(&message)?;
    }

    #[test]
    fn reply_batches_round_trip(message in reply_batch()) {
        round_trips(&message)?;
    }

    #[test]
    fn cost_batches_round_trip(events in vec(cost_event(), 0..4)) {
        round_trips(&CostBatch { events })?;
    }

    #[test]
    fn grants_round_trip(message in grant()) {
        round_trips(&message)?;
    }

    #[test]
    fn beats_round_trip(message in beat()) {
        round_trips(&message)?;
    }

    #[test]
    fn dead_letters_round_trip(message in dead_letter()) {
        round_trips(&message)?;
    }

    /// MessagePack carries the bits: not-a-number and infinities arrive as they were.
    #[test]
    fn vectors_keep_their_bits(bits in vec(any::<u32>(), 0..64)) {
        let vector = Vector(bits.iter().map(|bits| f32::from_bits(*bits)).collect());
        let packed = wire::encode(&vector).unwrap();
        let read: Vector = wire::decode(&packed).unwrap();
        let read: Vec<u32> = read.0.iter().map(|value| value.to_bits()).collect();
        prop_assert_eq!(read, bits);
    }
}
