//! The engine against sentence-transformers and transformers, and against broken files; input: the models that `make test` installs and that are
//! committed, and the fixtures.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly, as tests do")]

mod decoders;
mod encoders;
mod fixture;
mod guided;
mod load;
mod model;
mod nano;
mod quantized;
mod sequences;
