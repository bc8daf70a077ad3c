//! One function on its way. Input: the function, what it calls, a closure that asks a model. Output: its part of the report.

use crate::answer::{self, Answer, Candidate};
use crate::job::{AskError, JobError, Options, Said};
use crate::prompt::{self, Message};
use crate::python::Item;
use crate::report::{ItemReport, Status, blank};
use crate::verify::{Behaviour, Compiled, VerifyError};

/// A function to translate.
pub(crate) struct Task<'a> {
    pub place: usize,
    pub item: &'a Item,
    pub options: &'a Options,
    /// The Rust of what it calls.
    pub before: String,
    /// It calls nobody who is undecided; else it cannot be proved before they have answers too.
    pub alone: bool,
}

/// A function with its part of the report.
pub(crate) struct Finished {
    pub place: usize,
    pub report: ItemReport,
    pub alone: bool,
    pub before: String,
    /// The answer that stands in the report, when it was taken.
    pub candidate: Option<Candidate>,
}

/// What a check found.
enum Checked {
    /// All that was wanted.
    Good { behaves: Option<bool> },
    /// Rust that could not be proved, with the reason and whether it compiles.
    Unproved(String, Option<bool>),
    /// Wrong, in whose words, and whether it compiled before it behaved wrongly.
    Wrong { problem: String, compiles: Option<bool> },
}

impl Task<'_> {
    /// Asks until an answer is good or there is no sense in asking on.
    pub async fn run<F, A>(self, ask: &F) -> Result<Finished, JobError>
    where
        F: Fn(Vec<Message>) -> A,
        A: Future<Output = Result<Said, AskError>>,
    {
        let mut finished = Finished {
            place: self.place,
            report: blank(self.item, Status::Failed),
            alone: self.alone,
            before: self.before,
            candidate: None,
        };
        let report = &mut finished.report;
        let name = self.item.name.as_deref().unwrap_or_default();
        let mut messages = prompt::first(&self.item.source);
        let mut previous: Option<String> = None;
        while report.attempts <= self.options.retries {
            let said = match ask(messages).await {
                Ok(said) => said,
                Err(error) if error.fatal => return Err(JobError::Model(error)),
                Err(error) => {
                    // What was wrong with an earlier answer says more than that there is no later one.
                    report.reason.get_or_insert(error.message);
                    break;
                }
            };
            report.cached = said.cached && (report.cached || report.attempts == 0);
            report.attempts += 1;
            let text = said.text;
            let problem = match answer::read(&text, name) {
                Answer::Unsupported(reason) if previous.is_none() => {
                    report.status = Status::Unsupported;
                    report.reason = Some(reason);
                    break;
                }
                Answer::Unsupported(_) => break,
                Answer::Invalid(problem) => {
                    // What is wrong with the Rust in the report says more than that a later answer is none.
                    report.reason.get_or_insert_with(|| problem.clone());
                    problem
                }
                Answer::Function(candidate) => {
                    let checked = if self.alone {
                        let unit = format!("{}\n{}", candidate.rust, finished.before);
                        proof(self.item, self.options, &unit, &candidate).await?
                    } else {
                        unasked_or(self.options, &candidate)
                    };
                    let problem = note(report, checked, &candidate);
                    match problem {
                        None => {
                            finished.candidate = Some(candidate);
                            break;
                        }
                        Some(problem) => {
                            report.reason = Some(problem.clone());
                            problem
                        }
                    }
                }
            };
            // The same answer again will not become better.
            if previous.as_deref() == Some(text.as_str()) {
                break;
            }
            messages = prompt::again(&self.item.source, &text, &problem);
            previous = Some(text);
        }
        Ok(finished)
    }
}

/// Writes into the report what an answer is worth; gives the problem of one that is wrong.
fn note(report: &mut ItemReport, checked: Checked, candidate: &Candidate) -> Option<String> {
    report.rust = Some(candidate.rust.clone());
    (report.compiles, report.behaves) = (None, None);
    match checked {
        Checked::Good { behaves } => {
            let first = report.attempts == 1;
            report.status = if first { Status::Translated } else { Status::Repaired };
            (report.compiles, report.behaves) = (Some(true), behaves);
            // Why it was repaired stays.
            report.reason = report.reason.take().map(|reason| format!("repaired: {reason}"));
            None
        }
        Checked::Unproved(reason, compiles) => {
            report.status = Status::Unverified;
            report.compiles = compiles;
            report.reason = Some(reason);
            None
        }
        Checked::Wrong { problem, compiles } => {
            report.compiles = compiles;
            report.behaves = compiles.filter(|compiles| *compiles).map(|_| false);
            Some(problem)
        }
    }
}

/// Proves a function of a circle, which compiles in `unit`, by running it; there is no second answer.
pub(crate) async fn settle(
    item: &Item,
    options: &Options,
    unit: &str,
    finished: &mut Finished,
) -> Result<(), VerifyError> {
    let Some(candidate) = &finished.candidate else {
        return Ok(());
    };
    finished.report.reason = None;
    let checked = behaviour(item, options, unit, candidate).await?;
    if let Some(problem) = note(&mut finished.report, checked, candidate) {
        finished.report.status = Status::Failed;
        finished.report.reason = Some(problem);
    }
    Ok(())
}

const UNASKED: &str = "verification was not asked for";

/// What can be said of a function before those that it calls have answers.
fn unasked_or(options: &Options, candidate: &Candidate) -> Checked {
    if options.verifier.is_none() {
        return Checked::Unproved(UNASKED.to_owned(), None);
    }
    uncompilable(candidate).unwrap_or_else(|| Checked::Unproved("it is not proved yet".to_owned(), None))
}

/// What cannot even be compiled here: compiling it would read files or the environment.
fn uncompilable(candidate: &Candidate) -> Option<Checked> {
    let reach = candidate.reach.as_ref().filter(|reach| reach.while_compiling)?;
    Some(Checked::Wrong {
        problem: format!("it uses {}; a translated function may only compute", reach.what),
        compiles: None,
    })
}

async fn proof(item: &Item, options: &Options, unit: &str, candidate: &Candidate) -> Result<Checked, VerifyError> {
    let Some(verifier) = &options.verifier else {
        return Ok(Checked::Unproved(UNASKED.to_owned(), None));
    };
    if let Some(wrong) = uncompilable(candidate) {
        return Ok(wrong);
    }
    match verifier.compile(unit).await? {
        Compiled::No(problem) => Ok(Checked::Wrong {
            problem,
            compiles: Some(false),
        }),
        Compiled::Yes => behaviour(item, options, unit, candidate).await,
    }
}

/// Runs what compiles, when there are cases and it only computes.
async fn behaviour(item: &Item, options: &Options, unit: &str, candidate: &Candidate) -> Result<Checked, VerifyError> {
    let (Some(verifier), Some(cases)) = (&options.verifier, &options.cases) else {
        return Ok(Checked::Good { behaves: None });
    };
    let unproved = |reason: String| Ok(Checked::Unproved(reason, Some(true)));
    let name = item.name.as_deref().unwrap_or_default();
    let Some(cases) = cases.of(name, &item.source) else {
        return unproved("it compiles, but there are no cases for it".to_owned());
    };
    // Also what it calls runs.
    if let Some(reach) = answer::reach_of(unit) {
        return unproved(format!("it compiles, but it uses {} and is not run here", reach.what));
    }
    Ok(match verifier.behave(unit, &candidate.ident, cases).await? {
        Behaviour::Same => Checked::Good { behaves: Some(true) },
        Behaviour::Differs(problem) => Checked::Wrong {
            problem,
            compiles: Some(true),
        },
    })
}
