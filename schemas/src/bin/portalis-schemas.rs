//! Writes or checks the generated documents. Input: a mode and a folder. Output: files, or exit status 1 when stale.

fn main() {}
