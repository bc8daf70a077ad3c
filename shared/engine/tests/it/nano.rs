//! The shipped translator against its card; input: `models/nano-translator`, output: its reference logits and its rate of exact translations.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use engine::Precision;
use engine::generate::scheduler::SeqId;
use engine::generate::{
    AddSpecial, ChatRequest, CpuGenerateBackend, FinishReason, GenerateBackend, GenerateOptions, Generation, Generator,
    GeneratorOptions, SpecialTokens, TextModel,
};
use serde::Deserialize;
use serde_json::json;

use crate::sequences::{greedy, load, logits, sequences};

/// The end of a turn.
const END: u32 = 2;

#[derive(Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    token_ids: Vec<u32>,
    last_positions: Vec<Position>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
}

#[derive(Deserialize)]
struct Position {
    position: usize,
    top: Vec<(usize, f32)>,
}

#[derive(Deserialize)]
struct Pair {
    python: String,
    rust: String,
}

impl Pair {
    /// The function as the card's evaluation asks for it.
    fn prompt(&self, text: &TextModel) -> Vec<u32> {
        let messages = json!([{ "role": "user", "content": self.python.trim_end_matches('\n') }]);
        let prompt = text.render_chat(&ChatRequest::new(&messages, 0)).unwrap();
        text.encode(&prompt, AddSpecial::No).unwrap()
    }
}

fn pairs() -> Vec<Pair> {
    let pairs = std::fs::read_to_string(directory().join("eval_pairs.jsonl")).unwrap();
    pairs.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano-translator")
}

fn reference() -> Reference {
    let text = std::fs::read_to_string(directory().join("reference_logits.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn text_model() -> TextModel {
    TextModel::load(&directory()).unwrap()
}

#[test]
fn logits_and_answers_are_those_of_the_reference() {
    let reference = reference();
    let text = text_model();
    let mut backend = load(&directory(), Precision::F32, 2);
    for prompt in &reference.prompts {
        let ids = text.encode(&prompt.prompt, AddSpecial::No).unwrap();
        assert_eq!(ids, prompt.token_ids);
        let mut sequence = sequences(&[&ids], 256);
        let given = logits(&mut backend, &mut sequence, &[&[48]]).remove(0);
        for Position { position, top } in &prompt.last_positions {
            let row = &given[position * 1_536..][..1_536];
            for (token, logit) in top {
                // The reference has six digits.
                assert!((row[*token] - logit).abs() <= 5e-4, "{} {logit}", row[*token]);
            }
        }
        // Some reference answers end with the end token, some without.
        let wanted = prompt.greedy_ids.len();
        let answer = greedy(&mut backend, &mut sequences(&[&ids], 256), |answer, _| {
            answer.len() == wanted
        });
        assert_eq!(answer[0], prompt.greedy_ids);
        assert_eq!(text.decode(&answer[0], SpecialTokens::Skip), prompt.greedy_text);
    }
}

#[test]
fn the_rate_of_exact_translations_is_that_of_the_card() {
    /// Of 200, from the card: 96.0 %, greedy, in f32.
    const EXACT: i32 = 192;
    /// The longest answer the card's evaluation took.
    const MAX_ANSWER_TOKENS: usize = 400;
    let pairs = pairs();
    assert_eq!(pairs.len(), 200);
    let text = text_model();
    let mut backend = load(&directory(), Precision::F32, 2);
    let mut exact = 0;
    for pairs in pairs.chunks(50) {
        let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.prompt(&text)).collect();
        let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let longest = slices.iter().map(|ids| ids.len()).max().unwrap();
        let mut sequences = sequences(&slices, longest + MAX_ANSWER_TOKENS);
        let answers = greedy(&mut backend, &mut sequences, |answer, _| {
            answer.len() == MAX_ANSWER_TOKENS || answer.last() == Some(&END)
        });
        for (pair, answer) in pairs.iter().zip(answers) {
            let rust = text.decode(&answer, SpecialTokens::Skip);
            exact += i32::from(rust.trim() == pair.rust.trim());
        }
    }
    println!("{exact} of 200 exact");
    assert!(
        (exact - EXACT).abs() <= 1,
        "{exact} of 200 exact, the card says {EXACT}"
    );
}

#[test]
fn answers_under_pressure_are_those_of_an_idle_model() {
    /// Room for about five of the 16 sequences of some 180 tokens, so that others wait and some start again.
    const KV_BYTES: u64 = 5 << 20;
    let text = text_model();
    let pairs = pairs();
    let pairs = &pairs[..16];
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.prompt(&text)).collect();
    let alone = |prompt: &Vec<u32>| {
        let mut backend = load(&directory(), Precision::F32, 1);
        let answer = greedy(&mut backend, &mut sequences(&[prompt], 512), |answer, _| {
            answer.last() == Some(&END)
        });
        text.decode(&answer[0], SpecialTokens::Skip)
    };
    let expected: Vec<String> = prompts.iter().map(alone).collect();
    let options = GenerateOptions {
        kv_bytes: KV_BYTES,
        threads: 2.try_into().unwrap(),
        ..GenerateOptions::default()
    };
    let backend = CpuGenerateBackend::load(&directory(), options).unwrap();
    let limits = GeneratorOptions {
        max_sequences: 12,
        max_step_tokens: 48,
        max_waiting: 16,
    };
    let mut generator = Generator::new(Box::new(backend), limits);
    let mut answers: HashMap<SeqId, (usize, String)> = HashMap::new();
    for (index, prompt) in prompts.into_iter().enumerate() {
        let mut generation = Generation::new(prompt, text.detokenizer(SpecialTokens::Skip));
        generation.sampling.temperature = 0.0;
        answers.insert(generator.add(generation).unwrap(), (index, String::new()));
    }
    let mut preempted = 0;
    let mut finished = 0;
    while !generator.is_idle() {
        let step = generator.step().unwrap();
        preempted += step.stats.preempted;
        for progress in step.progress {
            answers.get_mut(&progress.id).unwrap().1.push_str(&progress.text);
            finished += i32::from(progress.finish == Some(FinishReason::Stop));
        }
    }
    assert_eq!(finished, 16);
    assert!(preempted > 0, "the cache was large enough for all");
    for (index, answer) in answers.into_values() {
        assert_eq!(answer, expected[index]);
    }
}

#[test]
fn text_and_tokens_go_both_ways() {
    let text = text_model();
    for original in [
        "def f(n: int) -> int:\n    return n // 2",
        "größer als 42 € 🦀",
        "",
        " \t\n",
    ] {
        let ids = text.encode(original, AddSpecial::Yes).unwrap();
        assert_eq!(text.decode(&ids, SpecialTokens::Keep), original);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| text.token_bytes(*id)).copied().collect();
        assert_eq!(bytes, original.as_bytes());
    }
    let turn = text.encode("<|im_start|>user\n<|im_end|>", AddSpecial::No).unwrap();
    assert_eq!((turn[0], turn.last()), (1, Some(&END)));
    assert!(text.is_special(END) && !text.is_special(turn[1]));
    assert_eq!(text.decode(&turn, SpecialTokens::Skip), "user\n");
    assert_eq!(
        (text.vocab_size(), text.max_tokens(), text.eos()),
        (1_536, 1_024, &[END][..])
    );
    assert_eq!(text.sampling_defaults().do_sample, Some(false));
}

#[test]
fn info_tells_the_limits() {
    let backend = load(&directory(), Precision::F32, 1);
    let info = backend.info();
    assert_eq!((info.family, info.layers, info.hidden_size), ("llama", 5, 256));
    assert_eq!(
        (info.vocab_size, info.max_tokens, info.block_tokens),
        (1_536, 1_024, 16)
    );
    assert_eq!(info.parameters, 4_082_432);
    assert_eq!(info.eos, [END]);
    assert!(info.kv_bytes <= 256 << 20 && info.blocks > 1_000);
    assert_eq!(info.revision.len(), 16);
}
