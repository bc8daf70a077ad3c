//! Compute kernels, one folder per operation: input and output are slices in row-major order, every entry checks its lengths before it runs.
//!
//! | folder | job |
//! |---|---|
//! | `gemm` | f32 or bf16 weights times f32 activations, fused bias, GELU or residual |
//! | `gemm_i8` | int8 weights times int8 activations quantized per row |
//! | `gemm_i4` | int4 weights in groups times int8 activations in the same groups |
//! | `attention` | softmax attention over a packed batch of sequences |
//! | `layernorm` | layer normalization, with an optional residual |
//! | `embedding` | sum of word, position and type rows, then layer normalization |
//! | `pool` | one vector per sequence: mean or first token, then unit length |
//! | `rmsnorm` | root mean square normalization of rows, or of each head |
//! | `rope` | rotary position embedding of query and key heads |
//! | `swiglu` | `silu(gate) * up` of a packed pair |
//! | `paged_attention` | causal attention over a key-value cache in blocks; prefill and decode in one call |
//!
//! Each operation has a `cpu.rs` written once over `simd` (AVX2+FMA or portable) and a `reference.rs` in plain f64 that tests compare against.

pub mod attention;
pub mod embedding;
mod error;
mod exec;
pub mod gemm;
pub mod gemm_i4;
pub mod gemm_i8;
pub mod half;
mod head_columns;
pub mod layernorm;
pub mod paged_attention;
pub mod pool;
mod resident;
pub mod rmsnorm;
pub mod rope;
mod shared_mut;
mod simd;
pub mod swiglu;
mod team;

pub use error::ShapeError;
pub use exec::CpuExec;
pub use head_columns::HeadColumns;
pub use simd::Isa;
pub use team::{Team, TeamError};

#[cfg(test)]
mod testing;
