//! Documents made from the types. Input: this crate. Output: the files under `schemas/generated/`.
