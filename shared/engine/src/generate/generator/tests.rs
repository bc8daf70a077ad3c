//! The generator on a toy model, against the same answers made one by one without batches, blocks or steps.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::toy::{EOS, Mishap, Toy, VOCAB, Wire, id};
use super::*;
use crate::generate::detokenize::Detokenizer;
use crate::generate::sampling::SamplingParams;

const OPTIONS: GeneratorOptions = GeneratorOptions {
    max_sequences: 8,
    max_step_tokens: 16,
    max_waiting: 64,
};

fn generator(blocks: usize, max_tokens: usize, options: GeneratorOptions) -> (Generator, Arc<Mutex<Wire>>) {
    let (toy, wire) = Toy::new(blocks, max_tokens);
    (Generator::new(Box::new(toy), options), wire)
}

fn generation(prompt: impl IntoIterator<Item = u32>) -> Generation {
    Generation::new(prompt.into_iter().collect(), toy::detokenizer())
}

/// A complete answer.
#[derive(Debug, Clone, Default, PartialEq)]
struct Whole {
    tokens: Vec<u32>,
    text: String,
    finish: Option<FinishReason>,
    prompt_tokens: u32,
    output_tokens: u32,
}

/// The same answer without the generator: one token after the other, the text cut at the end.
fn alone(generation: &Generation, max_context: usize) -> Whole {
    let mut whole = Whole {
        tokens: generation.resumed.clone(),
        prompt_tokens: generation.prompt.len() as u32,
        ..Whole::default()
    };
    let mut sampler = Sampler::new(generation.sampling.clone(), generation.choice, &generation.prompt);
    whole.tokens.iter().for_each(|token| sampler.accept(*token));
    let mut context = [generation.prompt.as_slice(), &whole.tokens].concat();
    let max_tokens = generation.max_tokens.map_or(usize::MAX, |max| max as usize);
    while whole.finish.is_none() {
        let mut ends = generation.stop_tokens.clone();
        if !generation.ignore_eos {
            ends.push(EOS);
        }
        let is_early = whole.tokens.len() < generation.min_tokens as usize;
        let allowed = Allowed {
            mask: None,
            forbidden: if is_early { &ends } else { &[] },
        };
        let sampled = sampler.sample(&toy::logits(&context), allowed, &mut Scratch::default());
        let token = sampled.unwrap().token;
        whole.tokens.push(token);
        context.push(token);
        if ends.contains(&token) {
            whole.finish = Some(FinishReason::Stop);
        } else if whole.tokens.len() == max_tokens || context.len() == max_context {
            whole.finish = Some(FinishReason::Length);
        }
        let is_over = whole.finish.is_some();
        let shown = whole.tokens.len() - usize::from(ends.contains(&token));
        let (text, stopped) = text_of(&whole.tokens[..shown], generation, is_over);
        whole.text = text;
        if stopped {
            whole.finish = Some(FinishReason::Stop);
        }
    }
    whole.output_tokens = whole.tokens.len() as u32;
    whole
}

/// All text of the tokens, cut where the first stop string behind the least tokens is complete.
fn text_of(tokens: &[u32], generation: &Generation, is_over: bool) -> (String, bool) {
    let (early, late) = tokens.split_at(tokens.len().min(generation.min_tokens as usize));
    let mut detokenizer = toy::detokenizer();
    let mut text_of = |tokens: &[u32]| {
        tokens
            .iter()
            .map(|token| detokenizer.push(*token).to_owned())
            .collect::<String>()
    };
    let (early, mut late) = (text_of(early), text_of(late));
    if is_over {
        late.push_str(detokenizer.finish());
    }
    for end in late.char_indices().map(|(at, c)| at + c.len_utf8()) {
        let ending = generation.stop.iter().filter(|stop| late[..end].ends_with(*stop));
        if let Some(longest) = ending.map(String::len).max().filter(|bytes| *bytes > 0) {
            return (early + &late[..end - longest], true);
        }
    }
    (early + &late, false)
}

/// The answers as they come together from the progress of steps.
#[derive(Default)]
struct Answers(HashMap<SeqId, Whole>);

impl Answers {
    fn take(&mut self, step: &Step) {
        for progress in &step.progress {
            let whole = self.0.entry(progress.id).or_default();
            assert_eq!(whole.finish, None, "nothing follows the end");
            whole.tokens.extend(&progress.tokens);
            whole.text.push_str(&progress.text);
            whole.finish = progress.finish;
            whole.prompt_tokens = progress.prompt_tokens;
            whole.output_tokens = progress.output_tokens;
        }
    }

    /// Runs until nothing is left to do; returns the sum of preemptions.
    fn drain(&mut self, generator: &mut Generator) -> u32 {
        let mut preempted = 0;
        let mut steps = 0;
        while !generator.is_idle() {
            let step = generator.step().unwrap();
            preempted += step.stats.preempted;
            self.take(&step);
            steps += 1;
            assert!(steps < 10_000, "it does not end");
        }
        preempted
    }
}

/// Runs one answer through a fresh generator.
fn answer(generation: Generation) -> Whole {
    let (mut generator, _) = generator(64, 200, OPTIONS);
    let id = generator.add(generation).unwrap();
    let mut answers = Answers::default();
    answers.drain(&mut generator);
    answers.0.remove(&id).unwrap()
}

#[test]
fn preempted_sequences_give_the_same_tokens() {
    // Six answers of up to 30 tokens need 60 blocks; there are 20.
    let (mut generator, _) = generator(20, 64, OPTIONS);
    let mut wanted = Vec::new();
    for seed in 0..6 {
        let request = Generation {
            sampling: SamplingParams {
                seed,
                ..SamplingParams::default()
            },
            max_tokens: Some(30),
            ignore_eos: true,
            ..generation([1, 2, 3, 4, 5, 6, 7, 8])
        };
        let expected = alone(&request, 64);
        assert_eq!(expected.tokens.len(), 30);
        wanted.push((generator.add(request).unwrap(), expected));
    }
    let mut answers = Answers::default();
    let preempted = answers.drain(&mut generator);
    assert!(preempted > 0, "the cache was large enough, so nothing was tested");
    for (id, expected) in wanted {
        assert_eq!(answers.0[&id], expected);
    }
    assert_eq!(generator.occupancy().free_blocks, 20);
}

#[test]
fn choices_share_their_prompt_and_a_later_turn_finds_the_earlier() {
    let (mut generator, wire) = generator(
        64,
        200,
        GeneratorOptions {
            max_step_tokens: 64,
            ..OPTIONS
        },
    );
    let prompt: Vec<u32> = (0..18).map(|i| 1 + i % 7).collect();
    let choice = |choice| Generation {
        choice,
        sampling: SamplingParams {
            seed: 3,
            ..SamplingParams::default()
        },
        max_tokens: Some(9),
        ignore_eos: true,
        ..generation(prompt.clone())
    };
    let ids: Vec<SeqId> = (0..3).map(|n| generator.add(choice(n)).unwrap()).collect();
    let first = generator.step().unwrap();
    assert_eq!(wire.lock().unwrap().steps, [[(18, true), (2, true), (2, true)]]);
    let counts = |progress: &Progress| (progress.prompt_tokens, progress.cached_tokens, progress.step_tokens);
    assert_eq!(
        first.progress.iter().map(counts).collect::<Vec<_>>(),
        [(18, 0, 18), (18, 16, 2), (18, 16, 2)]
    );
    assert_eq!(
        (
            first.stats.prefill_tokens,
            first.stats.decode_tokens,
            first.stats.sequences
        ),
        (22, 0, 3)
    );
    let mut answers = Answers::default();
    answers.take(&first);
    answers.drain(&mut generator);
    for (n, id) in (0..).zip(&ids) {
        assert_eq!(answers.0[id], alone(&choice(n), 200));
    }
    assert_ne!(answers.0[&ids[0]].tokens, answers.0[&ids[1]].tokens);
    // The next turn: prompt, answer and a question. 18 + 8 tokens were computed: six blocks of four.
    let turn = [prompt.as_slice(), &answers.0[&ids[1]].tokens, &[5, 6]].concat();
    let next = Generation {
        max_tokens: Some(4),
        ..generation(turn)
    };
    let id = generator.add(next.clone()).unwrap();
    let step = generator.step().unwrap();
    assert_eq!(counts(&step.progress[0]), (29, 24, 5));
    let mut answers = Answers::default();
    answers.take(&step);
    answers.drain(&mut generator);
    assert_eq!(answers.0[&id], alone(&next, 200));
}

#[test]
fn a_long_prompt_does_not_stall_streams() {
    let (mut generator, _) = generator(400, 1_000, OPTIONS);
    let stream = |seed| Generation {
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        ignore_eos: true,
        max_tokens: Some(200),
        ..generation([1, 2, 3])
    };
    let streams: Vec<SeqId> = (0..4).map(|seed| generator.add(stream(seed)).unwrap()).collect();
    generator.step().unwrap();
    let long = generator.add(generation((0..900).map(|i| 1 + i % 11))).unwrap();
    for step in 0..75 {
        let done = generator.step().unwrap();
        assert!(done.stats.prefill_tokens + done.stats.decode_tokens <= 16);
        for id in &streams {
            let own = done.progress.iter().find(|progress| progress.id == *id);
            assert_eq!(own.unwrap().tokens.len(), 1, "stream {id:?} stalls in step {step}");
        }
        // 12 tokens a step are left for the prompt: it is through after 75.
        let prompt = done.progress.iter().find(|progress| progress.id == long).unwrap();
        assert_eq!((prompt.step_tokens, prompt.tokens.len()), (12, usize::from(step == 74)));
    }
}

#[test]
fn a_failed_step_is_made_up_for() {
    let requests = || {
        (0..4).map(|seed| Generation {
            sampling: SamplingParams {
                seed,
                ..SamplingParams::default()
            },
            max_tokens: Some(12),
            ..generation((0..10).map(|i| 1 + i % 3))
        })
    };
    let (mut generator, wire) = generator(40, 64, OPTIONS);
    wire.lock().unwrap().mishaps = [
        Mishap::Fail,
        Mishap::None,
        Mishap::LosesARow,
        Mishap::None,
        Mishap::None,
        Mishap::Fail,
        Mishap::Fail,
    ]
    .into();
    let ids: Vec<SeqId> = requests().map(|request| generator.add(request).unwrap()).collect();
    let mut answers = Answers::default();
    let mut errors = Vec::new();
    while !generator.is_idle() {
        match generator.step() {
            Ok(step) => answers.take(&step),
            Err(error) => errors.push(error.to_string()),
        }
    }
    assert_eq!(errors.len(), 4);
    assert!(errors[1].contains("rows of logits"), "{}", errors[1]);
    for (id, request) in ids.iter().zip(requests()) {
        assert_eq!(answers.0[id], alone(&request, 64));
    }
}

#[test]
fn another_worker_continues_where_the_first_one_was() {
    let whole_request = Generation {
        sampling: SamplingParams {
            seed: 11,
            repetition_penalty: 1.3,
            ..SamplingParams::default()
        },
        stop: vec!["END".to_owned(), "€b".to_owned()],
        max_tokens: Some(25),
        ignore_eos: true,
        min_tokens: 3,
        ..generation([4, 5, 6, 7, 8])
    };
    let whole = answer(whole_request.clone());
    assert_eq!(whole, alone(&whole_request, 200));
    assert!(whole.tokens.len() > 4);
    for cut in 0..=whole.tokens.len() {
        let (sent, rest) = whole.tokens.split_at(cut);
        // What the first worker gave out with these tokens.
        let (mut first, _) = generator(64, 200, OPTIONS);
        first.add(whole_request.clone()).unwrap();
        let mut given = Answers::default();
        while given.0.values().map(|whole| whole.tokens.len()).sum::<usize>() < cut {
            given.take(&first.step().unwrap());
        }
        let before = given.0.into_values().next().unwrap_or_default().text;
        let resumed = answer(Generation {
            resumed: sent.to_vec(),
            ..whole_request.clone()
        });
        assert_eq!(resumed.tokens, rest);
        assert_eq!(before + &resumed.text, whole.text);
        assert_eq!(
            (resumed.finish, resumed.output_tokens),
            (whole.finish, whole.output_tokens)
        );
    }
}

#[test]
fn who_cancels_is_gone_with_the_next_step() {
    let (mut generator, wire) = generator(
        16,
        64,
        GeneratorOptions {
            max_sequences: 1,
            ..OPTIONS
        },
    );
    let request = || Generation {
        ignore_eos: true,
        ..generation([1, 2, 3])
    };
    let (first, second) = (generator.add(request()).unwrap(), generator.add(request()).unwrap());
    generator.step().unwrap();
    let full = Occupancy {
        running: 1,
        waiting: 1,
        places: 0,
        free_blocks: 15,
        blocks: 16,
    };
    assert_eq!(generator.occupancy(), full);
    assert!(generator.cancel(first));
    assert!(!generator.cancel(first));
    assert_eq!(
        generator.occupancy(),
        Occupancy {
            running: 0,
            free_blocks: 16,
            ..full
        }
    );
    let step = generator.step().unwrap();
    assert_eq!(
        step.progress.iter().map(|progress| progress.id).collect::<Vec<_>>(),
        [second]
    );
    assert!(generator.cancel(second));
    assert!(generator.is_idle());
    let steps = wire.lock().unwrap().steps.len();
    assert!(generator.step().unwrap().progress.is_empty());
    assert_eq!(wire.lock().unwrap().steps.len(), steps, "an idle step computes nothing");
    // One that was complete when it came can be cancelled too.
    let complete = generator
        .add(Generation {
            resumed: vec![1],
            max_tokens: Some(1),
            ..generation([1])
        })
        .unwrap();
    assert!(!generator.is_idle() && generator.cancel(complete) && generator.is_idle());
}

#[test]
fn ends_are_counted_exactly() {
    // The first end that this seed brings.
    let request = Generation {
        sampling: SamplingParams {
            seed: 1,
            logit_bias: vec![(EOS, 4.0)],
            ..SamplingParams::default()
        },
        ..generation([1, 2, 3])
    };
    let ended = answer(request.clone());
    assert_eq!(
        (ended.finish, ended.tokens.last()),
        (Some(FinishReason::Stop), Some(&EOS))
    );
    assert_eq!(ended.output_tokens as usize, ended.tokens.len());
    let min_tokens = ended.output_tokens + 3;
    let later = answer(Generation {
        min_tokens,
        ..request.clone()
    });
    assert!(later.output_tokens > min_tokens && !later.tokens[..min_tokens as usize].contains(&EOS));
    let ignoring = answer(Generation {
        ignore_eos: true,
        max_tokens: Some(50),
        ..request.clone()
    });
    assert_eq!(
        (ignoring.finish, ignoring.output_tokens),
        (Some(FinishReason::Length), 50)
    );
    assert!(ignoring.tokens.contains(&EOS) && ignoring.tokens.starts_with(&ended.tokens));
    // To the end of the context: 3 + 197 = 200.
    let longest = answer(Generation {
        ignore_eos: true,
        max_tokens: Some(5_000),
        ..request.clone()
    });
    assert_eq!(
        (longest.finish, longest.output_tokens),
        (Some(FinishReason::Length), 197)
    );
    let by_token = answer(Generation {
        stop_tokens: vec![ended.tokens[0]],
        ..request
    });
    assert_eq!(
        (by_token.tokens.as_slice(), by_token.text.as_str()),
        (&ended.tokens[..1], "")
    );
    assert_eq!(by_token.finish, Some(FinishReason::Stop));
}

#[test]
fn log_probabilities_come_with_their_tokens() {
    let (mut generator, _) = generator(16, 64, OPTIONS);
    let request = Generation {
        logprobs: Some(2),
        max_tokens: Some(3),
        ignore_eos: true,
        ..generation([1, 2])
    };
    generator.add(request).unwrap();
    let mut context = vec![1, 2];
    while !generator.is_idle() {
        let step = generator.step().unwrap();
        let progress = &step.progress[0];
        let row = toy::logits(&context);
        let normalizer = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let token = progress.tokens[0];
        let logprobs = &progress.logprobs[0];
        assert!((f64::from(logprobs.logprob) - (f64::from(row[token as usize]) - normalizer)).abs() < 1e-5);
        assert_eq!(logprobs.top.len(), 2);
        context.push(token);
    }
    assert_eq!(context.len(), 5);
}

#[test]
fn broken_numbers_end_the_answer_and_no_other() {
    let (mut generator, wire) = generator(16, 64, OPTIONS);
    wire.lock().unwrap().mishaps = [Mishap::None, Mishap::Nan].into();
    let id = generator
        .add(Generation {
            ignore_eos: true,
            ..generation([1, 2])
        })
        .unwrap();
    let mut answers = Answers::default();
    answers.drain(&mut generator);
    let whole = &answers.0[&id];
    assert_eq!((whole.finish, whole.tokens.len()), (Some(FinishReason::NoToken), 1));
    assert_eq!(generator.occupancy().free_blocks, 16);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let (mut generator, _) = generator(4, 64, OPTIONS);
    let mut refusal = |generation: Generation| generator.add(generation).unwrap_err().to_string();
    assert_eq!(refusal(generation([])), "the prompt is empty");
    // The cache holds 16 tokens.
    assert_eq!(
        refusal(generation([1; 16])),
        "the prompt has 16 tokens, at most 15 leave room for an answer"
    );
    assert_eq!(
        refusal(generation([1, 77])),
        format!("token id 77 is outside the vocabulary of {VOCAB}")
    );
    let resumed = Generation {
        resumed: vec![99],
        ..generation([1])
    };
    assert_eq!(
        refusal(resumed),
        format!("token id 99 is outside the vocabulary of {VOCAB}")
    );
    let none = Generation {
        max_tokens: Some(0),
        ..generation([1])
    };
    assert_eq!(refusal(none), "`max_tokens` is 0, it must be 1 or more");
    let crossed = Generation {
        max_tokens: Some(2),
        min_tokens: 3,
        ..generation([1])
    };
    assert_eq!(refusal(crossed), "`min_tokens` is 3, it must be at most `max_tokens`");
    let many = Generation {
        logprobs: Some(21),
        ..generation([1])
    };
    assert_eq!(refusal(many), "`logprobs` is 21, it must be at most 20");
    let hot = SamplingParams {
        temperature: -1.0,
        ..SamplingParams::default()
    };
    assert_eq!(
        refusal(Generation {
            sampling: hot,
            ..generation([1])
        }),
        "`temperature` is -1, it must be 0 or more"
    );
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let penalties = (prop_oneof![Just(1.0), 0.8..1.5_f32], -1.0..1.0_f32, -1.0..1.0_f32);
    let shape = (
        prop_oneof![Just(0.0), 0.3..1.5_f32],
        prop_oneof![Just(1.0), 0.3..1.0_f32],
        0..10_u32,
        0.0..0.3_f32,
    );
    let bias = prop::collection::vec((0..VOCAB as u32, -5.0..5.0_f32), 0..3);
    (penalties, shape, bias, any::<u64>()).prop_map(|(penalties, shape, logit_bias, seed)| SamplingParams {
        temperature: shape.0,
        top_p: shape.1,
        top_k: shape.2,
        min_p: shape.3,
        repetition_penalty: penalties.0,
        presence_penalty: penalties.1,
        frequency_penalty: penalties.2,
        seed,
        logit_bias,
    })
}

fn request() -> impl Strategy<Value = Generation> {
    // Prompts are beginnings of few texts, so that they share blocks.
    let prompt = (0..2_u32, 1..30_usize)
        .prop_map(|(text, tokens)| (0..tokens as u32).map(|i| 1 + (i * i + text) % 9).collect::<Vec<u32>>());
    let stop =
        prop_oneof![Just("END"), Just("ab"), Just("bE"), Just("€"), Just("a\n"), Just("ä ")].prop_map(str::to_owned);
    let ending = (
        prop::collection::vec(stop, 0..3),
        prop::option::of(4..40_u32),
        0..4_u32,
        any::<bool>(),
        prop::collection::vec(1..VOCAB as u32, 0..2),
    );
    let place = (0..3_u32, 0..3_u8, 0..2_u8);
    (prompt, sampling(), ending, place).prop_map(|(prompt, sampling, ending, place)| Generation {
        sampling,
        stop: ending.0,
        max_tokens: ending.1,
        min_tokens: ending.2,
        ignore_eos: ending.3,
        stop_tokens: ending.4,
        choice: place.0,
        priority: place.1,
        salt: vec![place.2],
        ..generation(prompt)
    })
}

proptest! {
    #[test]
    fn an_answer_depends_on_its_request_alone(
        requests in prop::collection::vec((request(), 0..6_usize), 1..12),
        (blocks, max_sequences, max_step_tokens) in (12..40_usize, 1..8_usize, 1..40_usize),
        mishaps in prop::collection::vec(prop_oneof![8 => Just(Mishap::None), 1 => Just(Mishap::Fail)], 0..30),
        cancelled in 0..12_usize,
    ) {
        const MAX_CONTEXT: usize = 48;
        let (mut generator, wire) = generator(blocks, MAX_CONTEXT, GeneratorOptions { max_sequences, max_step_tokens, max_waiting: 64 });
        wire.lock().unwrap().mishaps = mishaps.into();
        let (mut answers, mut wanted) = (Answers::default(), Vec::new());
        for (index, (request, steps)) in requests.into_iter().enumerate() {
            let expected = alone(&request, MAX_CONTEXT);
            let id = generator.add(request).unwrap();
            for _ in 0..steps {
                if let Ok(step) = generator.step() {
                    answers.take(&step);
                }
            }
            if index == cancelled {
                generator.cancel(id);
            } else {
                wanted.push((id, expected));
            }
        }
        wire.lock().unwrap().mishaps.clear();
        answers.drain(&mut generator);
        for (id, expected) in wanted {
            prop_assert_eq!(&answers.0[&id], &expected);
        }
        prop_assert_eq!(generator.occupancy().free_blocks, blocks);
    }
}

#[test]
fn pieces_of_the_toy_model_are_what_the_tests_take_them_for() {
    let mut detokenizer: Detokenizer = toy::detokenizer();
    let text: String = ["a", "<0xE2>", "<0x82>", "<0xAC>", "END", "</s>"]
        .iter()
        .map(|piece| detokenizer.push(id(piece)).to_owned())
        .collect();
    assert_eq!(text, "a€END");
}
