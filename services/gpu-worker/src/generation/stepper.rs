//! The model's own thread. Input: requests to generate and to give up. Output: what each step did, in order. Steps follow
//! each other without a pause while there is work; between two of them requests join and leave.

use std::collections::HashMap;

use engine::generate::scheduler::{Refusal, SeqId};
use engine::generate::{Generation, Generator, Progress, StepStats};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Commands that may wait for the next step; the loop waits beyond it.
const COMMANDS: usize = 1_024;
/// Steps that the loop may lag behind; the model waits beyond it.
const OUTCOMES: usize = 8;
/// A step that fails is tried again so often: a fault of the moment passes, one of the request does not.
const STEP_TRIES: u32 = 2;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Generate these choices of a request.
    Add {
        /// The request.
        key: u64,
        /// Its choices.
        generations: Vec<Generation>,
    },
    /// Nobody wants it any more; answered by [`Outcome::Gone`].
    Cancel {
        /// The request.
        key: u64,
    },
}

/// What the thread tells.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A step was run.
    Step {
        /// What it did for each choice.
        progress: Vec<ChoiceProgress>,
        /// Facts about it.
        stats: StepStats,
    },
    /// A request was not taken; none of its choices runs.
    Refused {
        /// The request.
        key: u64,
        /// Why.
        refusal: Refusal,
    },
    /// A request was given up as asked: nothing of it follows.
    Gone {
        /// The request.
        key: u64,
    },
    /// Steps fail; all requests were given up.
    Broken {
        /// Why.
        reason: String,
    },
}

/// What a step did for one choice of a request.
#[derive(Debug)]
pub(super) struct ChoiceProgress {
    /// The request.
    pub(super) key: u64,
    /// The choice.
    pub(super) choice: u32,
    /// What it did.
    pub(super) progress: Progress,
}

/// The loop's end of the thread.
pub(super) struct Stepper {
    commands: mpsc::Sender<Command>,
    outcomes: mpsc::Receiver<Outcome>,
    thread: JoinHandle<()>,
}

impl Stepper {
    /// Starts the thread.
    pub(super) fn start(generator: Generator) -> Self {
        let (commands, orders) = mpsc::channel(COMMANDS);
        let (told, outcomes) = mpsc::channel(OUTCOMES);
        let steps = Steps {
            generator,
            sequences: HashMap::new(),
            told,
            failures: 0,
        };
        let thread = tokio::task::spawn_blocking(move || steps.run(orders));
        Self {
            commands,
            outcomes,
            thread,
        }
    }

    /// Gives an order; `false` when the thread is gone.
    pub(super) async fn order(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }

    /// What happened next; `None` when the thread is gone. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await
    }

    /// Ends the thread and waits for the end of its step.
    pub(super) async fn stop(self) {
        let Self {
            commands,
            outcomes,
            thread,
        } = self;
        drop(commands);
        drop(outcomes);
        if let Err(error) = thread.await {
            tracing::error!(%error, "the model's thread did not end well");
        }
    }
}

struct Steps {
    generator: Generator,
    /// Whose a sequence is.
    sequences: HashMap<SeqId, (u64, u32)>,
    told: mpsc::Sender<Outcome>,
    /// Steps that failed one after the other.
    failures: u32,
}

/// The loop is gone.
struct Left;

impl Steps {
    fn run(mut self, mut orders: mpsc::Receiver<Command>) {
        loop {
            if self.round(&mut orders).is_err() {
                return;
            }
        }
    }

    /// Waits for an order when there is nothing to do, takes all that have come, runs a step.
    fn round(&mut self, orders: &mut mpsc::Receiver<Command>) -> Result<(), Left> {
        if self.generator.is_idle() {
            let command = orders.blocking_recv().ok_or(Left)?;
            self.obey(command)?;
        }
        loop {
            match orders.try_recv() {
                Ok(command) => self.obey(command)?,
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return Err(Left),
            }
        }
        if self.generator.is_idle() {
            return Ok(());
        }
        self.step()
    }

    fn tell(&self, outcome: Outcome) -> Result<(), Left> {
        self.told.blocking_send(outcome).map_err(|_| Left)
    }

    fn obey(&mut self, command: Command) -> Result<(), Left> {
        match command {
            Command::Add { key, generations } => self.add(key, generations),
            Command::Cancel { key } => {
                self.give_up(key);
                self.tell(Outcome::Gone { key })
            }
        }
    }

    fn add(&mut self, key: u64, generations: Vec<Generation>) -> Result<(), Left> {
        for generation in generations {
            let choice = generation.choice;
            match self.generator.add(generation) {
                Ok(id) => {
                    self.sequences.insert(id, (key, choice));
                }
                Err(refusal) => {
                    self.give_up(key);
                    return self.tell(Outcome::Refused { key, refusal });
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self, key: u64) {
        let generator = &mut self.generator;
        self.sequences.retain(|id, (of, _)| {
            let stays = *of != key;
            if !stays {
                generator.cancel(*id);
            }
            stays
        });
    }

    fn step(&mut self) -> Result<(), Left> {
        match self.generator.step() {
            Ok(step) => {
                self.failures = 0;
                let mut progress = Vec::with_capacity(step.progress.len());
                for made in step.progress {
                    let whose = if made.finish.is_some() {
                        self.sequences.remove(&made.id)
                    } else {
                        self.sequences.get(&made.id).copied()
                    };
                    if let Some((key, choice)) = whose {
                        progress.push(ChoiceProgress {
                            key,
                            choice,
                            progress: made,
                        });
                    }
                }
                self.tell(Outcome::Step {
                    progress,
                    stats: step.stats,
                })
            }
            Err(error) => {
                self.failures += 1;
                let reason = crate::compute::explain(&error);
                tracing::error!(reason, failures = self.failures, "a step failed");
                if self.failures < STEP_TRIES {
                    return Ok(());
                }
                self.failures = 0;
                for (id, _) in self.sequences.drain() {
                    self.generator.cancel(id);
                }
                self.tell(Outcome::Broken { reason })
            }
        }
    }
}
