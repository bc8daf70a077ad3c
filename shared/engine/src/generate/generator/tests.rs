//! The generator on a toy model, against the same answers made one by one without batches, blocks or steps.

use std::sync::{Arc, Mutex};

use super::toy::{EOS, Mishap, Toy, VOCAB, Wire, id};
use super::*;
use crate::generate::detokenize::Detokenizer;
use crate::generate::sampling::{Allowed, Sampler, SamplingParams};

mod alone;
mod answers;
mod guided;
mod steps;

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
    let mut constraint = generation.constraint.clone();
    if let Some(constraint) = &mut constraint {
        whole.tokens.iter().for_each(|token| constraint.accept(*token).unwrap());
    }
    while whole.finish.is_none() {
        let mut ends = generation.stop_tokens.clone();
        if !generation.ignore_eos || constraint.is_some() {
            ends.push(EOS);
        }
        let is_early = whole.tokens.len() < generation.min_tokens as usize;
        let mask = constraint.as_mut().map(|constraint| constraint.mask().unwrap());
        let allowed = Allowed {
            mask: mask.as_ref().map(|mask| mask.as_slice()),
            forbidden: if is_early { ends.as_slice() } else { &[] },
        };
        let (row, scratch) = (toy::logits(&context), &mut Scratch::default());
        let mut sampled = sampler.sample(&row, allowed, scratch);
        if sampled.is_none() && mask.is_some() {
            let forbidden = &[];
            sampled = sampler.sample(&row, Allowed { forbidden, ..allowed }, scratch);
        }
        let token = sampled.unwrap().token;
        whole.tokens.push(token);
        context.push(token);
        let is_complete = constraint.as_mut().is_some_and(|constraint| {
            constraint.accept(token).unwrap();
            constraint.is_complete()
        });
        if ends.contains(&token) || is_complete {
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
