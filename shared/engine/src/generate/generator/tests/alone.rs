//! An answer depends on its request alone: random requests together, against the same ones made one by one.

use proptest::prelude::*;

use super::*;
use crate::generate::constraint::{Constraint, Grammar};

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

/// None, or one of few grammars that the pieces can spell in several ways.
fn constraint() -> impl Strategy<Value = Option<Constraint>> {
    let grammars = [
        Grammar::Regex("(ab|END|€){1,7}".to_owned()),
        Grammar::Regex("[aE ]*b?".to_owned()),
        Grammar::Choice(vec!["ab".to_owned(), "abE".to_owned(), "aEND€".to_owned()]),
        Grammar::Lark("start: \"a\" start \"b\" | \"E\"".to_owned()),
    ];
    let constraints = grammars.map(|grammar| toy::grammars().constraint(&grammar).unwrap());
    prop_oneof![2 => Just(None), 1 => prop::sample::select(constraints.to_vec()).prop_map(Some)]
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
    (prompt, sampling(), ending, place, constraint()).prop_map(|(prompt, sampling, ending, place, constraint)| {
        Generation {
            sampling,
            constraint,
            stop: ending.0,
            max_tokens: ending.1,
            min_tokens: ending.2,
            ignore_eos: ending.3,
            stop_tokens: ending.4,
            choice: place.0,
            priority: place.1,
            salt: vec![place.2],
            ..generation(prompt)
        }
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
