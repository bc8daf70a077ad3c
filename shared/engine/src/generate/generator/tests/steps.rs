//! Who takes part in which step: preemption, shared prompts, long prompts beside streams, failed steps, cancellation.

use super::*;

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
