//! The engine against sentence-transformers and against broken files; input: the model that `make test` installs and the committed fixture.

mod fixture;
mod load;
mod model;
