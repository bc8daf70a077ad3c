//! Product with int4 weights in groups of the depth; input: `[rows, depth]` f32, output: `[rows, columns]` f32 with a fused epilogue.
//!
//! Weights: 0..=15, value `scale * (q - zero)`; each group of 32, 64 or 128 of an output's depth has an f16 scale and, unless symmetric, a zero.
//! Activations: symmetric i8, one scale per row and group, quantized on each call. Their error is below that of the weights:
//! a step is 1/127 of the group's largest value, that of the weights 1/7.5. Quantizing them lets one instruction take 32 products,
//! where weights dequantized to f32 would need a conversion and a fused multiply-add for each 8.
//! Sums: `15 * 127 * 2` twice per i16 lane and step, so 8 steps (a depth of 32) fit i16 exactly; groups are summed in i32, the whole in f32.
//! Layout: panels of 16 columns, each 4 of the depth 32 bytes, `[8 columns, 4]`; low half bytes are columns 0..8, high ones 8..16.
//! Depth is padded to a multiple of 32 with zero activations; the last group may be shorter.
//! Bytes of a weight: `0.5 + 2 / group`, with zeros `0.5 + 3 / group`.
//! A row's sums are taken in one order, so its result is the same bit for bit whatever rows come with it.

mod cpu;
mod quantize;
pub mod reference;

use crate::error::{ShapeError, expect_at_most, expect_index, expect_len, expect_nonzero};
use crate::exec::CpuExec;
use crate::gemm::Epilogue;

pub(crate) use quantize::QuantizedGroups;
pub use quantize::{ACTIVATION_LIMIT, quantize_activations, quantize_group};

/// Depth whose products are summed in i16; rows and panels are padded to a multiple of it.
const CHUNK: usize = 32;

/// Zero of a symmetric group: the middle of 0..=15.
const MIDDLE: u8 = 8;

/// How much of an output's depth has one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupSize {
    /// 32.
    G32,
    /// 64.
    G64,
    /// 128.
    G128,
}

impl GroupSize {
    /// Largest first.
    pub const ALL: [Self; 3] = [Self::G128, Self::G64, Self::G32];

    /// Its number.
    pub fn get(self) -> usize {
        match self {
            Self::G32 => 32,
            Self::G64 => 64,
            Self::G128 => 128,
        }
    }

    /// The largest that divides a depth; 32 with a shorter last group where none does.
    pub fn largest_for(depth: usize) -> Self {
        let divides = |size: &Self| depth.is_multiple_of(size.get());
        Self::ALL.into_iter().find(divides).unwrap_or(Self::G32)
    }

    /// The one of this number.
    pub fn of(size: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.get() == size)
    }
}

/// Whether a group has a zero of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// The zero is 8; the step is an eighth of the largest magnitude.
    Symmetric,
    /// The zero is stored; the step is a fifteenth of the range.
    Asymmetric,
}

/// Weights that were quantized elsewhere, one row per output.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedWeights<'a> {
    /// `[columns, depth]`, 0..=15; along the depth in the order of the groups.
    pub values: &'a [u8],
    /// `[columns, groups]`.
    pub scales: &'a [f32],
    /// `[columns, groups]`, at most 255; none when all are 8.
    pub zeros: Option<&'a [u8]>,
    /// `[depth]`: which input each place along the depth takes, where checkpoints sort inputs by importance; none when in order.
    pub order: Option<&'a [u32]>,
}

/// An int4 weight matrix with its scales, zeros and bias, packed for the CPU kernel.
#[derive(Debug)]
pub struct PackedWeightsI4 {
    depth: usize,
    columns: usize,
    group: usize,
    bias: Vec<f32>,
    /// `[panels, stride / 4, 8, 4]`, two columns a byte.
    panels: Vec<u8>,
    /// f16, `[panels, groups, 16]`.
    scales: Vec<u16>,
    /// `[panels, groups, 16]`.
    zeros: Option<Vec<u8>>,
    order: Option<Vec<u32>>,
}

impl PackedWeightsI4 {
    /// Quantizes and packs `weight` (`[columns, depth]`) with `bias` (`[columns]`).
    pub fn pack(
        exec: &mut CpuExec,
        weight: &[f32],
        bias: &[f32],
        depth: usize,
        (group, scheme): (GroupSize, Scheme),
    ) -> Result<Self, ShapeError> {
        const OP: &str = "gemm_i4 pack";
        expect_nonzero(OP, "depth", depth)?;
        expect_nonzero(OP, "columns", bias.len())?;
        expect_len(OP, "weight", weight.len(), bias.len() * depth)?;
        let mut packed = Self::empty(bias, depth, group, scheme == Scheme::Asymmetric);
        quantize::pack(exec, &mut packed, &quantize::Float { weight, scheme });
        Ok(packed)
    }

    /// Packs weights that are quantized already.
    pub fn from_quantized(
        exec: &mut CpuExec,
        weights: &QuantizedWeights<'_>,
        bias: &[f32],
        depth: usize,
        group: GroupSize,
    ) -> Result<Self, ShapeError> {
        const OP: &str = "gemm_i4 from_quantized";
        expect_nonzero(OP, "depth", depth)?;
        expect_nonzero(OP, "columns", bias.len())?;
        expect_len(OP, "values", weights.values.len(), bias.len() * depth)?;
        let groups = bias.len() * depth.div_ceil(group.get());
        expect_len(OP, "scales", weights.scales.len(), groups)?;
        if let Some(zeros) = weights.zeros {
            expect_len(OP, "zeros", zeros.len(), groups)?;
        }
        let largest = weights.values.iter().max().copied().unwrap_or(0);
        expect_at_most(OP, "a value", usize::from(largest), 15)?;
        if let Some(order) = weights.order {
            expect_len(OP, "order", order.len(), depth)?;
            for input in order {
                expect_index(OP, "order", *input as usize, depth)?;
            }
        }
        let mut packed = Self::empty(bias, depth, group, weights.zeros.is_some());
        packed.order = weights.order.map(<[u32]>::to_vec);
        quantize::pack(exec, &mut packed, weights);
        Ok(packed)
    }

    /// Room for the weights, all zero.
    fn empty(bias: &[f32], depth: usize, group: GroupSize, has_zeros: bool) -> Self {
        let bias_padded = crate::gemm::padded(bias);
        let group = group.get();
        let scales = bias_padded.len() * depth.div_ceil(group);
        Self {
            depth,
            columns: bias.len(),
            group,
            panels: vec![0; bias_padded.len() * depth.next_multiple_of(CHUNK) / 2],
            scales: vec![0; scales],
            zeros: has_zeros.then(|| vec![0; scales]),
            bias: bias_padded,
            order: None,
        }
    }

    /// Depth with its padding.
    fn stride(&self) -> usize {
        self.depth.next_multiple_of(CHUNK)
    }

    /// Groups of an output.
    fn groups(&self) -> usize {
        self.depth.div_ceil(self.group)
    }

    /// Inputs of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Outputs of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Memory of the weights with their scales and zeros, in bytes.
    pub fn bytes(&self) -> usize {
        let zeros = self.zeros.as_ref().map_or(0, Vec::len);
        let order = self.order.as_ref().map_or(0, |order| size_of_val(&order[..]));
        self.panels.len() + size_of_val(&self.scales[..]) + zeros + order
    }

    /// The weights of one output, as quantized, in the order of the inputs.
    pub fn unpack_row(&self, column: usize, out: &mut [f32]) -> Result<(), ShapeError> {
        const OP: &str = "gemm_i4 unpack";
        expect_index(OP, "column", column, self.columns)?;
        expect_len(OP, "out", out.len(), self.depth)?;
        quantize::unpack(self, column, out);
        Ok(())
    }
}

/// `out = epilogue(a * weight^T + bias)` with int4 weights; the number of rows follows from `out`.
pub fn gemm_i4(
    exec: &mut CpuExec,
    a: &[f32],
    weights: &PackedWeightsI4,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<(), ShapeError> {
    const OP: &str = "gemm_i4";
    let rows = out.len() / weights.columns;
    expect_len(OP, "out", out.len(), rows * weights.columns)?;
    expect_len(OP, "a", a.len(), rows * weights.depth)?;
    epilogue.check(OP, out.len())?;
    cpu::run(exec, a, weights, epilogue, out);
    Ok(())
}

#[cfg(test)]
mod tests;
