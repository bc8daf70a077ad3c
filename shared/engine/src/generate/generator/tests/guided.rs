//! Answers under a constraint, and log probabilities of prompts: what they are, and that nobody beside them sees a difference.

use super::*;
use crate::generate::constraint::Grammar;
use crate::generate::scheduler::Refusal;

fn guided(grammar: &Grammar, seed: u64) -> Generation {
    Generation {
        constraint: Some(toy::grammars().constraint(grammar).unwrap()),
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        ..generation([1, 2, 3])
    }
}

/// Whether a text is one or more of the parts.
fn is_made_of(text: &str, parts: &[&str]) -> bool {
    let rest = parts.iter().filter_map(|part| text.strip_prefix(part));
    !text.is_empty() && rest.into_iter().any(|rest| rest.is_empty() || is_made_of(rest, parts))
}

#[test]
fn answers_conform_and_those_beside_them_are_the_same_without_them() {
    let grammar = Grammar::Regex("(ab|END|€)+".to_owned());
    let free = |seed| Generation {
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(20),
        ..generation([1, 2, 3])
    };
    let (mut generator, _) = generator(200, 200, OPTIONS);
    let (mut answers, mut wanted) = (Answers::default(), Vec::new());
    for seed in 0..20 {
        for request in [guided(&grammar, seed), free(seed)] {
            let expected = alone(&request, 200);
            wanted.push((generator.add(request).unwrap(), expected));
        }
        answers.take(&generator.step().unwrap());
    }
    answers.drain(&mut generator);
    let mut complete = 0;
    for (place, (id, expected)) in wanted.into_iter().enumerate() {
        assert_eq!(answers.0[&id], expected);
        if place % 2 == 0 && expected.finish == Some(FinishReason::Stop) {
            assert!(is_made_of(&expected.text, &["ab", "END", "€"]), "{}", expected.text);
            complete += 1;
        }
    }
    assert!(complete > 10, "few answers came to an end");
}

#[test]
fn a_complete_text_ends_and_a_limit_cuts() {
    let grammar = Grammar::Regex("(ab){20}".to_owned());
    let whole = answer(Generation {
        // Neither keeps a complete text from ending.
        ignore_eos: true,
        min_tokens: 90,
        ..guided(&grammar, 1)
    });
    assert_eq!((whole.text, whole.finish), ("ab".repeat(20), Some(FinishReason::Stop)));
    let cut = answer(Generation {
        max_tokens: Some(5),
        ..guided(&grammar, 1)
    });
    assert_eq!((cut.tokens.len(), cut.finish), (5, Some(FinishReason::Length)));
    assert!("ab".repeat(20).starts_with(&cut.text));
}

#[test]
fn tokens_that_do_not_conform_are_no_beginning() {
    let (mut generator, _) = generator(16, 64, OPTIONS);
    let request = Generation {
        resumed: vec![id("END")],
        ..guided(&Grammar::Regex("ab".to_owned()), 1)
    };
    assert!(matches!(generator.add(request), Err(Refusal::Constraint(_))));
    assert!(generator.is_idle());
}

#[test]
fn prompts_are_scored_whatever_the_steps_and_the_cache() {
    let prompt: Vec<u32> = (0..18).map(|i| 1 + i % 7).collect();
    let request = |scored: Option<u8>| Generation {
        prompt_logprobs: scored,
        max_tokens: Some(12),
        ignore_eos: true,
        ..generation(prompt.clone())
    };
    for (blocks, max_step_tokens) in [(64, 64), (64, 5), (14, 7)] {
        let options = GeneratorOptions {
            max_step_tokens,
            ..OPTIONS
        };
        let (mut generator, wire) = generator(blocks, 40, options);
        wire.lock().unwrap().mishaps = [Mishap::None, Mishap::Fail].into();
        // The same prompt is in the cache, and what is scored is not found there.
        let unscored = generator.add(request(None)).unwrap();
        let scored = [2, 0].map(|top| (top, generator.add(request(Some(top))).unwrap()));
        let mut found: HashMap<SeqId, Vec<_>> = HashMap::new();
        let mut answers = Answers::default();
        let mut failures = 0;
        while !generator.is_idle() {
            let Ok(step) = generator.step() else {
                failures += 1;
                assert!(failures < 3, "only the second step fails");
                continue;
            };
            for progress in &step.progress {
                found
                    .entry(progress.id)
                    .or_default()
                    .extend(progress.prompt_logprobs.clone());
            }
            answers.take(&step);
        }
        assert!(found[&unscored].is_empty());
        for (top, id) in scored {
            assert_eq!(found[&id].len(), prompt.len() - 1);
            for (place, logprobs) in found[&id].iter().enumerate() {
                let row = toy::logits(&prompt[..=place]);
                let normalizer = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
                let expected = f64::from(row[prompt[place + 1] as usize]) - normalizer;
                assert!((f64::from(logprobs.logprob) - expected).abs() < 1e-5, "place {place}");
                assert_eq!(logprobs.top.len(), usize::from(top));
            }
            assert_eq!(answers.0[&id], alone(&request(None), 40));
        }
    }
}
