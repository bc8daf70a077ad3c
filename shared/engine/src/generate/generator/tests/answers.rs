//! What one answer is: its ends, its log probabilities, its continuation on another worker, and what is refused.

use super::*;
use crate::generate::constraint::Grammar;

#[test]
fn another_worker_continues_where_the_first_one_was() {
    let free = Generation {
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
    let regex = Grammar::Regex("(ab|aE|€b|N){9}END".to_owned());
    let guided = Generation {
        constraint: Some(toy::grammars().constraint(&regex).unwrap()),
        stop: vec!["END".to_owned()],
        ..free.clone()
    };
    for request in [free, guided] {
        continues(&request);
    }
}

/// Cuts an answer after every token and goes on from there.
fn continues(whole_request: &Generation) {
    let whole = answer(whole_request.clone());
    assert_eq!(whole, alone(whole_request, 200));
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

#[test]
fn pieces_of_the_toy_model_are_what_the_tests_take_them_for() {
    let mut detokenizer: Detokenizer = toy::detokenizer();
    let text: String = ["a", "<0xE2>", "<0x82>", "<0xAC>", "END", "</s>"]
        .iter()
        .map(|piece| detokenizer.push(id(piece)).to_owned())
        .collect();
    assert_eq!(text, "a€END");
}
