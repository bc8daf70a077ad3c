//! The job. Input: a module, a closure that asks a model, and what to check. Output: a report; each statement's part is told
//! as soon as it is known.
//!
//! Functions are translated at once, but those that others use come first: a function is proved together with what it calls.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::cases::Cases;
use crate::order;
use crate::prompt::Message;
use crate::python::{Item, Module};
use crate::report::{ItemReport, Report, Status, blank};
use crate::task::{self, Finished, Task};
use crate::verify::{Compiled, Verifier, VerifyError};

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its text.
    pub text: String,
    /// Whether it was known already and nothing was computed.
    pub cached: bool,
}

/// A model that did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct AskError {
    /// What happened.
    pub message: String,
    /// Asking for other functions would end the same.
    pub fatal: bool,
}

/// A job that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No function can be asked for.
    #[error("the model cannot be asked")]
    Model(#[source] AskError),
    /// Nothing can be proved.
    #[error("the translation cannot be verified")]
    Verify(#[from] VerifyError),
}

/// What to do beyond asking.
#[derive(Debug)]
pub struct Options {
    /// Functions asked for at once.
    pub parallel: usize,
    /// How often a function is asked for again, with the words of what refused it.
    pub retries: u32,
    /// Compiles and runs; without it answers only have to be Rust.
    pub verifier: Option<Verifier>,
    /// Known results; used with a verifier.
    pub cases: Option<Cases>,
}

/// Translates a module; each statement is told to `done` with its place. Dropping it ends the questions and kills what runs.
///
/// # Errors
/// When no model can be asked, or nothing can be verified; a function that fails is no error, the report has it.
pub async fn translate<F, A, D>(module: &Module, options: &Options, ask: F, mut done: D) -> Result<Report, JobError>
where
    F: Fn(Vec<Message>) -> A,
    A: Future<Output = Result<Said, AskError>>,
    D: FnMut(usize, &ItemReport),
{
    // Before anything is asked, and paid for.
    if let Some(verifier) = &options.verifier {
        verifier.check().await?;
    }
    let mut outcomes: Vec<Option<ItemReport>> = module.items.iter().map(refused).collect();
    for (place, outcome) in outcomes.iter().enumerate() {
        outcome.iter().for_each(|outcome| done(place, outcome));
    }
    loop {
        for (place, report) in order::hopeless(module, &outcomes) {
            done(place, &report);
            outcomes[place] = Some(report);
        }
        let wave = order::next_wave(module, &outcomes);
        if wave.is_empty() {
            break;
        }
        let written = Written::of(module, &outcomes);
        let mut tasks = tasks(module, options, &wave, &written).into_iter();
        let mut in_circles = BTreeMap::new();
        let mut running = FuturesUnordered::new();
        loop {
            let free = options.parallel.max(1) - running.len();
            running.extend(tasks.by_ref().take(free).map(|task| task.run(&ask)));
            let Some(finished) = running.next().await else {
                break;
            };
            let finished = finished?;
            if finished.alone {
                done(finished.place, &finished.report);
                outcomes[finished.place] = Some(finished.report);
            } else {
                in_circles.insert(finished.place, finished);
            }
        }
        drop(running);
        for group in wave.iter().filter(|group| group.len() > 1) {
            let circle = group.iter().filter_map(|place| in_circles.remove(place)).collect();
            for finished in circle_proved(module, options, circle).await? {
                done(finished.place, &finished.report);
                outcomes[finished.place] = Some(finished.report);
            }
        }
    }
    let items: Vec<ItemReport> = outcomes.into_iter().flatten().collect();
    let problem = whole_file(&items, options).await?;
    Ok(Report::new(items, options.verifier.is_some(), problem))
}

fn tasks<'a>(module: &'a Module, options: &'a Options, wave: &[Vec<usize>], written: &Written<'_>) -> Vec<Task<'a>> {
    let of_group = |group: &'_ [usize]| {
        let before = written.needed_by(group.iter().map(|place| &module.items[*place]));
        let tasks = group.iter().map(|place| Task {
            place: *place,
            item: &module.items[*place],
            options,
            before: before.clone(),
            alone: group.len() == 1,
        });
        tasks.collect::<Vec<_>>()
    };
    wave.iter().flat_map(|group| of_group(group)).collect()
}

/// What is known without asking.
fn refused(item: &Item) -> Option<ItemReport> {
    let reason = item.unsupported.clone()?;
    Some(ItemReport {
        reason: Some(reason),
        ..blank(item, Status::Unsupported)
    })
}

/// Functions that call each other compile only together: proves them when each has an answer.
async fn circle_proved(
    module: &Module,
    options: &Options,
    mut circle: Vec<Finished>,
) -> Result<Vec<Finished>, VerifyError> {
    let lost = circle.iter().find(|finished| finished.candidate.is_none());
    let mut problem = None;
    if let Some(lost) = lost {
        let name = module.items[lost.place].name.as_deref().unwrap_or_default();
        problem = Some(format!("it calls `{name}`, which is not translated"));
    } else if let (Some(verifier), Some(first)) = (&options.verifier, circle.first()) {
        let parts = circle.iter().filter_map(|finished| finished.report.rust.as_deref());
        let unit = parts.chain([first.before.as_str()]).collect::<Vec<_>>().join("\n");
        match verifier.compile(&unit).await? {
            Compiled::No(words) => problem = Some(format!("with those that it calls in a circle: {words}")),
            Compiled::Yes => {
                for finished in &mut circle {
                    task::settle(&module.items[finished.place], options, &unit, finished).await?;
                }
            }
        }
    }
    let taken = circle.iter_mut().filter(|finished| finished.candidate.is_some());
    for (finished, problem) in taken.zip(problem.iter().cycle()) {
        finished.report.status = Status::Failed;
        finished.report.reason = Some(problem.clone());
    }
    Ok(circle)
}

/// What is written so far.
struct Written<'a> {
    functions: BTreeMap<&'a str, (&'a Item, String)>,
}

impl<'a> Written<'a> {
    fn of(module: &'a Module, outcomes: &[Option<ItemReport>]) -> Self {
        let written = module.items.iter().zip(outcomes).filter_map(|(item, outcome)| {
            let outcome = outcome.as_ref().filter(|outcome| outcome.is_written())?;
            Some((item.name.as_deref()?, (item, outcome.rust.clone()?)))
        });
        Self {
            functions: written.collect(),
        }
    }

    /// The Rust of everything that these call, directly and not.
    fn needed_by<'i>(&self, items: impl Iterator<Item = &'i Item>) -> String {
        let mut needed = BTreeMap::new();
        let mut open: Vec<&str> = items.flat_map(|item| item.calls.iter().map(String::as_str)).collect();
        while let Some(name) = open.pop() {
            if let Some((name, (callee, rust))) = self.functions.get_key_value(name)
                && needed.insert(*name, rust.as_str()).is_none()
            {
                open.extend(callee.calls.iter().map(String::as_str));
            }
        }
        needed.into_values().collect::<Vec<_>>().join("\n")
    }
}

/// Why rustc does not take the proved functions together.
async fn whole_file(items: &[ItemReport], options: &Options) -> Result<Option<String>, JobError> {
    let Some(verifier) = &options.verifier else {
        return Ok(None);
    };
    let written = items.iter().filter(|item| item.is_written());
    let written: Vec<&str> = written.filter_map(|item| item.rust.as_deref()).collect();
    if written.len() < 2 {
        return Ok(None);
    }
    Ok(match verifier.compile(&written.join("\n")).await? {
        Compiled::Yes => None,
        Compiled::No(words) => Some(words),
    })
}
