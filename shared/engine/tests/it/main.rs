//! The engine against sentence-transformers and against broken files; input: the model that `make test` installs and the committed fixture.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly, as tests do")]

mod fixture;
mod load;
mod model;
