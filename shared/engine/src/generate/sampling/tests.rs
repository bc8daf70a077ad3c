//! Sampling against exact probabilities.

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 8] = [1.0, 0.5, -0.5, 2.0, 0.0, -3.0, 1.5, 1.0];

/// The module's list in f64, done the slow and obvious way: the probability of each token.
fn exact(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let temperature = f64::from(params.temperature);
    let mut weights: Vec<f64> = logits
        .iter()
        .map(|logit| (f64::from(*logit) / temperature).exp())
        .collect();
    let max = weights.iter().copied().fold(0.0, f64::max);
    weights
        .iter_mut()
        .filter(|weight| **weight < f64::from(params.min_p) * max)
        .for_each(|weight| *weight = 0.0);
    let mut ranked: Vec<usize> = (0..weights.len()).collect();
    ranked.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    if params.top_k > 0 {
        ranked
            .iter()
            .skip(params.top_k as usize)
            .for_each(|&id| weights[id] = 0.0);
    }
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    for &id in &ranked {
        let before = sum;
        sum += weights[id] / total;
        if before >= f64::from(params.top_p) {
            weights[id] = 0.0;
        }
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// How often each token comes when the random number takes `draws` evenly spaced values.
fn shares(logits: &[f32], params: &SamplingParams, draws: u32) -> Vec<f64> {
    let mut counts = vec![0_u32; logits.len()];
    let mut candidates = Vec::new();
    for i in 0..draws {
        let uniform = (f64::from(i) + 0.5) / f64::from(draws);
        let token = draw::draw(logits, params, uniform, &mut candidates).unwrap();
        counts[token as usize] += 1;
    }
    counts
        .iter()
        .map(|count| f64::from(*count) / f64::from(draws))
        .collect()
}

fn assert_distribution(logits: &[f32], params: &SamplingParams) {
    const DRAWS: u32 = 4_000;
    // Evenly spaced numbers hit an interval to within one of them at either end.
    let tolerance = 2.0 / f64::from(DRAWS) + 1e-5;
    let (given, expected) = (shares(logits, params, DRAWS), exact(logits, params));
    for (id, (given, expected)) in given.iter().zip(&expected).enumerate() {
        assert!(
            (given - expected).abs() <= tolerance,
            "token {id}: {given} instead of {expected}, {params:?}"
        );
    }
}

fn params() -> SamplingParams {
    SamplingParams::default()
}

#[test]
fn each_parameter_shapes_the_distribution_exactly() {
    let cases = [
        params(),
        SamplingParams {
            temperature: 0.3,
            ..params()
        },
        SamplingParams {
            temperature: 2.0,
            ..params()
        },
        SamplingParams { top_k: 1, ..params() },
        SamplingParams { top_k: 3, ..params() },
        SamplingParams { top_k: 99, ..params() },
        SamplingParams {
            top_p: 0.01,
            ..params()
        },
        SamplingParams { top_p: 0.6, ..params() },
        SamplingParams {
            top_p: 0.95,
            temperature: 1.7,
            ..params()
        },
        SamplingParams {
            min_p: 0.25,
            ..params()
        },
        SamplingParams { min_p: 1.0, ..params() },
        SamplingParams {
            min_p: 0.1,
            top_k: 5,
            top_p: 0.8,
            temperature: 0.9,
            ..params()
        },
    ];
    for params in &cases {
        assert_distribution(&LOGITS, params);
    }
}

#[test]
fn large_nuclei_are_found_too() {
    // Nearly flat: the nucleus of 0.9 has some 1,800 of 2,000 tokens, more than are sorted at first.
    let logits: Vec<f32> = (0..2_000_u32).map(|id| (id * 7_919 % 2_000) as f32 * 1e-4).collect();
    let params = SamplingParams { top_p: 0.9, ..params() };
    let size = exact(&logits, &params).iter().filter(|share| **share > 0.0).count();
    let mut candidates = Vec::new();
    draw::draw(&logits, &params, 0.5, &mut candidates).unwrap();
    assert!(
        candidates.len().abs_diff(size) <= 1,
        "{} instead of {size}",
        candidates.len()
    );
    assert!(size > 1_500);
}

#[test]
fn samples_follow_the_distribution() {
    // 7 degrees of freedom have 24.3 at p = 0.001; the seed is fixed, so the outcome is too.
    let mut sampler = Sampler::new(SamplingParams { seed: 42, ..params() }, 0, &[]);
    let mut scratch = Scratch::default();
    let mut counts = [0.0; LOGITS.len()];
    const DRAWS: f64 = 50_000.0;
    for _ in 0..DRAWS as u32 {
        let sampled = sampler.sample(&LOGITS, Allowed::default(), &mut scratch).unwrap();
        counts[sampled.token as usize] += 1.0;
    }
    let expected = exact(&LOGITS, &params());
    let cells = counts.iter().zip(&expected);
    let chi_square: f64 = cells
        .map(|(count, share)| (count - DRAWS * share).powi(2) / (DRAWS * share))
        .sum();
    assert!(chi_square < 24.3, "{chi_square}");
}

/// What a greedy sampler chooses after a prompt and an output.
fn greedy_after(params: SamplingParams, logits: &[f32], prompt: &[u32], output: &[u32]) -> u32 {
    let mut sampler = Sampler::new(params, 0, prompt);
    output.iter().for_each(|token| sampler.accept(*token));
    let sampled = sampler.sample(logits, Allowed::default(), &mut Scratch::default());
    sampled.unwrap().token
}

#[test]
fn greedy_takes_the_first_of_the_largest_and_penalties_change_it() {
    let greedy = SamplingParams::greedy;
    assert_eq!(greedy_after(greedy(), &[1.0, 3.0, 3.0], &[1], &[1]), 1);
    assert_eq!(
        greedy_after(greedy(), &[f32::NAN, -1.0, f32::NEG_INFINITY], &[], &[]),
        1
    );

    let repetition = SamplingParams {
        repetition_penalty: 2.0,
        ..greedy()
    };
    assert_eq!(
        greedy_after(repetition.clone(), &[4.0, 3.0], &[0], &[]),
        1,
        "4/2 < 3, for the prompt"
    );
    assert_eq!(
        greedy_after(repetition.clone(), &[4.0, 3.0], &[], &[0]),
        1,
        "and for the output"
    );
    assert_eq!(
        greedy_after(repetition.clone(), &[4.0, 1.5], &[0, 0], &[0]),
        0,
        "however often it was there"
    );
    assert_eq!(greedy_after(repetition, &[-1.0, -1.5], &[0], &[]), 1, "-1·2 < -1.5");

    let frequency = SamplingParams {
        frequency_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(
        greedy_after(frequency.clone(), &[4.0, 3.2], &[0, 0], &[0]),
        0,
        "4-0.5 > 3.2, the prompt does not count"
    );
    assert_eq!(
        greedy_after(frequency.clone(), &[4.0, 3.2], &[], &[0, 0]),
        1,
        "4-2·0.5 < 3.2"
    );

    let presence = SamplingParams {
        presence_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(
        greedy_after(presence.clone(), &[4.0, 3.2], &[], &[0, 0]),
        0,
        "4-0.5 > 3.2, once only"
    );
    assert_eq!(greedy_after(presence, &[4.0, 3.6], &[], &[0, 0]), 1);

    // Repetition comes first: 4/2-1 = 1 > 0.9; the other order would give (4-1)/2 = 1.5.
    let both = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        ..greedy()
    };
    assert_eq!(greedy_after(both.clone(), &[4.0, 0.9], &[], &[0]), 0);
    assert_eq!(greedy_after(both, &[4.0, 1.2], &[], &[0]), 1);

    // A bias is added before penalties: (1+3)/2 = 2 < 2.5.
    let bias = SamplingParams {
        logit_bias: vec![(0, 3.0)],
        ..greedy()
    };
    assert_eq!(greedy_after(bias.clone(), &[1.0, 2.5], &[], &[0]), 0);
    let bias = SamplingParams {
        repetition_penalty: 2.0,
        ..bias
    };
    assert_eq!(greedy_after(bias, &[1.0, 2.5], &[], &[0]), 1);
}

#[test]
fn tokens_that_are_not_allowed_do_not_come() {
    let mut scratch = Scratch::default();
    for temperature in [0.0, 1.0] {
        let bias = vec![(33, 100.0), (2, 100.0)];
        let mut sampler = Sampler::new(
            SamplingParams {
                temperature,
                logit_bias: bias,
                ..params()
            },
            0,
            &[],
        );
        let logits: Vec<f32> = (0..70).map(|id| id as f32).collect();
        let mut sample = |mask: &[u32], forbidden: &[u32]| {
            let allowed = Allowed {
                mask: Some(mask),
                forbidden,
            };
            sampler
                .sample(&logits, allowed, &mut scratch)
                .map(|sampled| sampled.token)
        };
        assert_eq!(sample(&[1 << 5, 1 << 1], &[]), Some(33));
        assert_eq!(sample(&[1 << 5, 1 << 1], &[33]), Some(5));
        // The mask is shorter than the row: what it does not name is not allowed.
        assert_eq!(sample(&[1 << 2], &[]), Some(2));
        assert_eq!(sample(&[1 << 2], &[2]), None);
        assert_eq!(sample(&[], &[]), None);
    }
    let mut broken = Sampler::new(params(), 0, &[]);
    assert_eq!(broken.sample(&[f32::NAN; 4], Allowed::default(), &mut scratch), None);
    assert_eq!(broken.sample(&[], Allowed::default(), &mut scratch), None);
}

#[test]
fn equal_seeds_give_equal_tokens_and_resuming_goes_on() {
    let tokens = |seed, choice, start: &[u32], count| {
        let mut sampler = Sampler::new(
            SamplingParams {
                seed,
                frequency_penalty: 0.3,
                ..params()
            },
            choice,
            &[],
        );
        start.iter().for_each(|token| sampler.accept(*token));
        let mut scratch = Scratch::default();
        let mut next = || sampler.sample(&LOGITS, Allowed::default(), &mut scratch).unwrap().token;
        (0..count).map(|_| next()).collect::<Vec<u32>>()
    };
    let all = tokens(5, 0, &[], 40);
    assert_eq!(all, tokens(5, 0, &[], 40));
    assert_ne!(all, tokens(6, 0, &[], 40));
    assert_ne!(all, tokens(5, 1, &[], 40));
    for cut in [0, 1, 17, 39] {
        assert_eq!(tokens(5, 0, &all[..cut], 40 - cut), all[cut..]);
    }
}

#[test]
fn log_probabilities_are_the_models_own() {
    let ask = |temperature, top| {
        let params = SamplingParams {
            temperature,
            logit_bias: vec![(5, 50.0)],
            ..params()
        };
        let mut sampler = Sampler::new(params, 0, &[]).with_logprobs(top);
        sampler
            .sample(&LOGITS, Allowed::default(), &mut Scratch::default())
            .unwrap()
    };
    assert_eq!(ask(0.0, None).logprobs, None);
    let sampled = ask(0.0, Some(4));
    let exact: Vec<f64> = exact(&LOGITS, &params()).iter().map(|share| share.ln()).collect();
    let logprobs = sampled.logprobs.unwrap();
    assert_eq!(sampled.token, 5, "the bias decides");
    assert!((f64::from(logprobs.logprob) - exact[5]).abs() < 1e-5);
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 6, 0, 7]);
    for (id, logprob) in &logprobs.top {
        assert!((f64::from(*logprob) - exact[*id as usize]).abs() < 1e-5);
    }
    assert!(ask(1.0, Some(0)).logprobs.unwrap().top.is_empty());
    assert_eq!(ask(1.0, Some(200)).logprobs.unwrap().top.len(), LOGITS.len());
}

#[test]
fn parameters_out_of_range_are_named() {
    let check = |params: SamplingParams| params.check(8).map_err(|error| error.to_string());
    assert_eq!(check(params()), Ok(()));
    let cases = [
        (
            SamplingParams {
                temperature: -0.1,
                ..params()
            },
            "`temperature` is -0.1",
        ),
        (
            SamplingParams {
                temperature: f32::INFINITY,
                ..params()
            },
            "`temperature` is inf",
        ),
        (
            SamplingParams { top_p: 0.0, ..params() },
            "`top_p` is 0, it must be above 0, at most 1",
        ),
        (
            SamplingParams {
                top_p: f32::NAN,
                ..params()
            },
            "`top_p` is NaN",
        ),
        (SamplingParams { min_p: 1.5, ..params() }, "`min_p` is 1.5"),
        (
            SamplingParams {
                repetition_penalty: 0.0,
                ..params()
            },
            "`repetition_penalty` is 0",
        ),
        (
            SamplingParams {
                presence_penalty: 2.5,
                ..params()
            },
            "`presence_penalty` is 2.5",
        ),
        (
            SamplingParams {
                frequency_penalty: -2.5,
                ..params()
            },
            "`frequency_penalty` is -2.5",
        ),
        (
            SamplingParams {
                logit_bias: vec![(8, 1.0)],
                ..params()
            },
            "`logit_bias` is 8",
        ),
        (
            SamplingParams {
                logit_bias: vec![(1, f32::NAN)],
                ..params()
            },
            "`logit_bias` is NaN",
        ),
    ];
    for (params, start) in cases {
        let error = check(params).unwrap_err();
        assert!(error.starts_with(start), "{error}");
    }
}

proptest! {
    #[test]
    fn any_combination_gives_the_exact_distribution(
        logits in prop::collection::vec(-6.0..6.0_f32, 1..90),
        temperature in 0.2..2.0_f32,
        top_k in 0..100_u32,
        top_p in prop_oneof![Just(1.0_f32), 0.05..0.99_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.01..0.9_f32],
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..params() };
        // A token on the very edge of a set may fall to either side in f32.
        let nudged = |factor: f32| {
            let params = SamplingParams { top_p: if top_p < 1.0 { top_p * factor } else { 1.0 }, min_p: min_p * factor, ..params.clone() };
            exact(&logits, &params).iter().filter(|share| **share > 0.0).count()
        };
        prop_assume!(nudged(1.0 - 1e-5) == nudged(1.0 + 1e-5));
        assert_distribution(&logits, &params);
    }
}
