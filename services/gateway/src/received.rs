//! What has been received of an answer. Input: parts of a worker's reply. Output: the whole content, of the kind that was
//! asked for. Pure.

use schemas::error::{ErrorCode, Failure};
use schemas::generate::TextPart;
use schemas::reply::{Done, EmbedPart};
use schemas::vector::Vector;

use crate::text_log::{TextLog, Unfit};

/// What makes an answer whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// So many vectors.
    Vectors(usize),
    /// Texts of so many choices.
    Text(u32),
    /// So many scores.
    Scores(usize),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// One vector per input.
    Vectors(Vec<Vector>),
    /// One part per choice.
    Text(Vec<TextPart>),
    /// One score per passage.
    Scores(Vec<f32>),
}

/// What is there so far.
#[derive(Debug)]
pub enum Received {
    /// Vectors, in the order of the inputs.
    Vectors {
        /// How many make the answer whole.
        wanted: usize,
        /// Those that are there.
        vectors: Vec<Vector>,
    },
    /// Text.
    Text(TextLog),
    /// Scores, which come all at once.
    Scores {
        /// How many make the answer whole.
        wanted: usize,
    },
}

/// Why a part cannot be taken.
#[derive(Debug, PartialEq)]
pub enum Refused {
    /// Something is missing: it must be computed again.
    Gap,
    /// The worker is broken.
    Broken(Failure),
}

impl Received {
    /// Nothing yet.
    #[must_use]
    pub fn new(wanted: Wanted, streamed: bool) -> Self {
        match wanted {
            Wanted::Vectors(wanted) => Self::Vectors {
                wanted,
                vectors: Vec::new(),
            },
            Wanted::Text(choices) => Self::Text(TextLog::new(choices, streamed)),
            Wanted::Scores(wanted) => Self::Scores { wanted },
        }
    }

    /// A worker begins.
    pub fn begin(&mut self) {
        match self {
            Self::Vectors { vectors, .. } => vectors.clear(),
            Self::Text(log) => log.begin(),
            Self::Scores { .. } => {}
        }
    }

    /// Takes vectors.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn take_vectors(&mut self, part: EmbedPart) -> Result<(), Refused> {
        match self {
            Self::Vectors { vectors, .. } if part.first as usize == vectors.len() => {
                vectors.extend(part.vectors);
                Ok(())
            }
            Self::Vectors { .. } => Err(Refused::Gap),
            Self::Text(_) | Self::Scores { .. } if part.vectors.is_empty() => Ok(()),
            Self::Text(_) | Self::Scores { .. } => Err(broken("vectors where none were asked for")),
        }
    }

    /// Takes text.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn take_text(&mut self, parts: Vec<TextPart>) -> Result<(), Refused> {
        match self {
            Self::Text(log) => log.take(parts).map_err(|unfit| match unfit {
                Unfit::Differs => Refused::Gap,
                Unfit::Senseless(what) => broken(what),
            }),
            Self::Vectors { .. } | Self::Scores { .. } if parts.is_empty() => Ok(()),
            Self::Vectors { .. } | Self::Scores { .. } => Err(broken("text where none was asked for")),
        }
    }

    /// Takes the end; gives the whole.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn take_end(&mut self, done: Done) -> Result<Content, Refused> {
        self.take_vectors(done.embed)?;
        self.take_text(done.text)?;
        match self {
            Self::Scores { wanted } if done.scores.len() == *wanted => Ok(Content::Scores(done.scores)),
            Self::Vectors { .. } | Self::Text(_) if !done.scores.is_empty() => {
                Err(broken("scores where none were asked for"))
            }
            Self::Vectors { wanted, vectors } if vectors.len() == *wanted => {
                Ok(Content::Vectors(std::mem::take(vectors)))
            }
            Self::Text(log) if log.is_whole() => Ok(Content::Text(log.finish())),
            _ => Err(Refused::Gap),
        }
    }
}

fn broken(what: &str) -> Refused {
    tracing::error!(what, "a worker's answer makes no sense");
    let message = "the worker's answer makes no sense; report the request id";
    Refused::Broken(Failure::new(ErrorCode::Internal, message))
}
