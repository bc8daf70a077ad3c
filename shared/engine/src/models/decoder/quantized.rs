//! Matrices as a checkpoint stores them, plain or quantized; input: a name and its sizes, output: values in the order of the kernels, ready to pack.

use std::borrow::Cow;

use kernels::gemm_i4::{GroupSize, PackedWeightsI4, QuantizedWeights};
use kernels::gemm_i8::PackedWeightsI8;
use kernels::{CpuExec, ShapeError};

use crate::backend::Precision;
use crate::error::LoadError;
use crate::generate::Quantization;
use crate::models::linear::Linear;
use crate::weights::Weights;

/// Values in a 32-bit word.
const PER_WORD: usize = 8;
/// Where in a word AWQ keeps each of 8 columns: it packs them in the order 0, 2, 4, 6, 1, 3, 5, 7.
const AWQ_PLACES: [usize; PER_WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Weights of one or several named matrices, `[columns, depth]`.
#[derive(Debug)]
pub(super) enum Stored<'a> {
    Float(Cow<'a, [f32]>),
    Int8 { values: Vec<i8>, scales: Vec<f32> },
    Int4(Int4),
}

/// 4-bit weights with one scale and zero per group; fields as [`QuantizedWeights`].
#[derive(Debug)]
pub(super) struct Int4 {
    values: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    order: Option<Vec<u32>>,
    group: GroupSize,
}

/// A named matrix and its sizes.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) name: &'a str,
    pub(super) columns: usize,
    pub(super) depth: usize,
}

impl<'a> Stored<'a> {
    /// Reads a matrix; one that a quantized checkpoint left out is plain.
    pub(super) fn read(
        weights: &'a Weights,
        matrix: Matrix<'_>,
        quantization: Option<Quantization>,
    ) -> Result<Self, LoadError> {
        let packed = weights.has(&format!("{}.qweight", matrix.name));
        let plain = format!("{}.weight", matrix.name);
        match quantization {
            Some(Quantization::Gptq { group, zero_offset }) if packed => {
                gptq(weights, matrix, (group, zero_offset)).map(Self::Int4)
            }
            Some(Quantization::Awq { group }) if packed => awq(weights, matrix, group).map(Self::Int4),
            Some(Quantization::Int8) if weights.is_i8(&plain) => int8(weights, matrix),
            _ => weights.f32(&plain, &[matrix.columns, matrix.depth]).map(Self::Float),
        }
    }

    /// Puts the columns of `next` behind its own; gives it back when they cannot be one matrix.
    pub(super) fn append(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Float(weight), Self::Float(next)) => weight.to_mut().extend_from_slice(&next),
            (
                Self::Int8 { values, scales },
                Self::Int8 {
                    values: next,
                    scales: next_scales,
                },
            ) => {
                values.extend(next);
                scales.extend(next_scales);
            }
            (Self::Int4(weight), Self::Int4(next)) if (&weight.order, weight.group) == (&next.order, next.group) => {
                weight.values.extend(next.values);
                weight.scales.extend(next.scales);
                weight.zeros.extend(next.zeros);
            }
            (_, next) => return Some(next),
        }
        None
    }

    /// Packs them; a plain matrix is stored in the chosen precision.
    pub(super) fn pack(
        &self,
        exec: &mut CpuExec,
        bias: &[f32],
        depth: usize,
        precision: Precision,
    ) -> Result<Linear, ShapeError> {
        match self {
            Self::Float(weight) => Linear::pack(exec, (weight, bias), depth, precision),
            Self::Int8 { values, scales } => {
                PackedWeightsI8::from_quantized(exec, values, scales, bias, depth).map(Linear::Int8)
            }
            Self::Int4(weight) => {
                let weights = QuantizedWeights {
                    values: &weight.values,
                    scales: &weight.scales,
                    zeros: Some(&weight.zeros),
                    order: weight.order.as_deref(),
                };
                PackedWeightsI4::from_quantized(exec, &weights, bias, depth, weight.group).map(Linear::Int4)
            }
        }
    }
}

/// compressed-tensors: `weight` is int8, `weight_scale` one number per output or one in all.
fn int8<'a>(weights: &Weights, matrix: Matrix<'_>) -> Result<Stored<'a>, LoadError> {
    let Matrix { name, columns, depth } = matrix;
    let values = weights.i8(&format!("{name}.weight"), &[columns, depth])?;
    let scale = format!("{name}.weight_scale");
    let shape = match weights.shape(&scale) {
        Some([1]) => vec![1],
        Some([]) => Vec::new(),
        Some([_]) => vec![columns],
        _ => vec![columns, 1],
    };
    let mut scales = weights.f32(&scale, &shape)?.into_owned();
    if scales.len() == 1 {
        scales = vec![scales[0]; columns];
    }
    Ok(Stored::Int8 { values, scales })
}

/// GPTQ: words of 8 values along the depth; `g_idx` names the group of each input, in no order when inputs were sorted by importance.
fn gptq(
    weights: &Weights,
    matrix: Matrix<'_>,
    (size, zero_offset): (Option<GroupSize>, u8),
) -> Result<Int4, LoadError> {
    let Matrix { name, columns, depth } = matrix;
    let groups = size.map_or(1, |size| depth.div_ceil(size.get()));
    let words = weights.i32(&format!("{name}.qweight"), &[depth.div_ceil(PER_WORD), columns])?;
    let order = order(weights, matrix, size.map_or(depth, GroupSize::get))?;
    let mut values = vec![0; columns * depth];
    for (column, values) in values.chunks_exact_mut(depth).enumerate() {
        for (k, value) in values.iter_mut().enumerate() {
            let input = order.as_ref().map_or(k, |order| order[k] as usize);
            *value = nibble(words[input / PER_WORD * columns + column], input % PER_WORD);
        }
    }
    let zeros = weights.i32(&format!("{name}.qzeros"), &[groups, columns.div_ceil(PER_WORD)])?;
    // Wraps at 16: a zero of 0 is stored as 15 by the first version.
    let zero = |word: i32, at: usize| (nibble(word, at) + zero_offset) & 15;
    let (scales, zeros) = group_values(weights, matrix, (size, groups), |group, column| {
        let word = zeros[group * columns.div_ceil(PER_WORD) + column / PER_WORD];
        zero(word, column % PER_WORD)
    })?;
    Ok(Int4 {
        values,
        scales,
        zeros,
        order,
        group: size.unwrap_or(GroupSize::largest_for(depth)),
    })
}

/// AWQ (gemm): words of 8 values along the columns, in an order of their own.
fn awq(weights: &Weights, matrix: Matrix<'_>, size: Option<GroupSize>) -> Result<Int4, LoadError> {
    let Matrix { name, columns, depth } = matrix;
    let groups = size.map_or(1, |size| depth.div_ceil(size.get()));
    let width = columns.div_ceil(PER_WORD);
    let words = weights.i32(&format!("{name}.qweight"), &[depth, width])?;
    let at = |words: &[i32], row: usize, column: usize| {
        let word = words[row * width + column / PER_WORD];
        nibble(word, AWQ_PLACES[column % PER_WORD])
    };
    let mut values = vec![0; columns * depth];
    for (column, values) in values.chunks_exact_mut(depth).enumerate() {
        for (k, value) in values.iter_mut().enumerate() {
            *value = at(&words, k, column);
        }
    }
    let zeros = weights.i32(&format!("{name}.qzeros"), &[groups, width])?;
    let (scales, zeros) = group_values(weights, matrix, (size, groups), |group, column| {
        at(&zeros, group, column)
    })?;
    Ok(Int4 {
        values,
        scales,
        zeros,
        order: None,
        group: size.unwrap_or(GroupSize::largest_for(depth)),
    })
}

/// Value `at` of the 8 in a word.
fn nibble(word: i32, at: usize) -> u8 {
    (word >> (4 * at)) as u8 & 15
}

/// Scales and zeros from `[groups, columns]` to `[columns, groups]`; one group for the whole depth is repeated for groups that the kernel takes.
fn group_values(
    weights: &Weights,
    matrix: Matrix<'_>,
    (size, groups): (Option<GroupSize>, usize),
    zero: impl Fn(usize, usize) -> u8,
) -> Result<(Vec<f32>, Vec<u8>), LoadError> {
    let Matrix { name, columns, depth } = matrix;
    let stored = weights.f32(&format!("{name}.scales"), &[groups, columns])?;
    let count = depth.div_ceil(size.unwrap_or(GroupSize::largest_for(depth)).get());
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    for column in 0..columns {
        for group in 0..count {
            let group = if size.is_some() { group } else { 0 };
            scales.push(stored[group * columns + column]);
            zeros.push(zero(group, column));
        }
    }
    Ok((scales, zeros))
}

/// Inputs in the order of their groups; none when they are in that order already.
fn order(weights: &Weights, matrix: Matrix<'_>, size: usize) -> Result<Option<Vec<u32>>, LoadError> {
    let tensor = format!("{}.g_idx", matrix.name);
    if !weights.has(&tensor) {
        return Ok(None);
    }
    let groups = weights.i32(&tensor, &[matrix.depth])?;
    if groups.is_sorted() && is_cut_evenly(&groups, 0..matrix.depth, size) {
        return Ok(None);
    }
    let mut order: Vec<u32> = (0..matrix.depth as u32).collect();
    order.sort_by_key(|input| groups[*input as usize]);
    if is_cut_evenly(&groups, order.iter().map(|input| *input as usize), size) {
        return Ok(Some(order));
    }
    let reason = format!("does not cut {} inputs into groups of {size}", matrix.depth);
    Err(weights.refuse(&tensor, reason))
}

/// Whether inputs in this order fill one group after the other.
fn is_cut_evenly(groups: &[i32], order: impl Iterator<Item = usize>, size: usize) -> bool {
    let mut places = order.enumerate();
    places.all(|(place, input)| usize::try_from(groups[input]) == Ok(place / size))
}
