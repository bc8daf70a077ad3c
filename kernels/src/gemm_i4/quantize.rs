//! From f32 to half bytes and back; input: weights, quantized or not, or rows of activations, output: panels with scales, or i8 with scales.

use super::{CHUNK, MIDDLE, PackedWeightsI4, QuantizedWeights, Scheme};
use crate::gemm::share;
use crate::half::{f16_from_f32, f32_from_f16};
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, PANEL, Simd};
use crate::{CpuExec, Isa, Team};

/// Largest magnitude of a quantized activation.
pub const ACTIVATION_LIMIT: i16 = 127;

/// Largest quantized weight.
const WEIGHT_MAX: f32 = 15.0;
/// Largest group.
const MAX_GROUP: usize = 128;
/// Rows of one quantization task: enough work to be worth handing to another thread.
const TASK_ROWS: usize = 16;

/// Quantized activations, kept between calls so that nothing is allocated per layer.
#[derive(Debug, Default)]
pub(crate) struct QuantizedGroups {
    /// `[rows, stride]`.
    pub(super) values: Vec<i8>,
    /// `[rows, groups, 2]`: the scale, and the sum of the values.
    pub(super) scales: Vec<[f32; 2]>,
}

impl QuantizedGroups {
    /// Quantizes `a`, `[rows, depth]`, for a product with `weights`.
    pub(super) fn fill(&mut self, exec: (&mut Team, Isa), a: &[f32], weights: &PackedWeightsI4) {
        let (team, isa) = exec;
        let (depth, stride, groups) = (weights.depth, weights.stride(), weights.groups());
        let rows = a.len() / depth;
        self.values.resize(rows * stride, 0);
        self.scales.resize(rows * groups, [0.0; 2]);
        let values = SharedMut::new(&mut self.values);
        let scales = SharedMut::new(&mut self.scales);
        let tasks = rows.div_ceil(TASK_ROWS);
        team.run(tasks, &|task| {
            let rows = share(rows, tasks, task);
            // SAFETY: each task has its own rows.
            let (values, scales) = unsafe {
                (
                    values.part(rows.start * stride..rows.end * stride),
                    scales.part(rows.start * groups..rows.end * groups),
                )
            };
            isa.run(Rows {
                a: &a[rows.start * depth..rows.end * depth],
                weights,
                values,
                scales,
            });
        });
    }
}

struct Rows<'a> {
    a: &'a [f32],
    weights: &'a PackedWeightsI4,
    values: &'a mut [i8],
    scales: &'a mut [[f32; 2]],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (group, order) = (self.weights.group, self.weights.order.as_deref());
        let rows = self
            .a
            .chunks_exact(self.weights.depth)
            .zip(self.values.chunks_exact_mut(self.weights.stride()))
            .zip(self.scales.chunks_exact_mut(self.weights.groups()));
        for ((from, to), scales) in rows {
            for ((index, to), scale) in to.chunks_mut(group).enumerate().zip(scales) {
                let inputs = index * group..from.len().min((index + 1) * group);
                let mut block = [0.0; MAX_GROUP];
                match order {
                    Some(order) => {
                        for (block, input) in block.iter_mut().zip(&order[inputs]) {
                            *block = from[*input as usize];
                        }
                    }
                    None => block[..inputs.len()].copy_from_slice(&from[inputs]),
                }
                *scale = quantize(simd, &block[..to.len()], to);
            }
        }
    }
}

/// One group, padded to a multiple of 32: its values, and the scale and the sum of the values.
#[inline(always)]
fn quantize<S: Simd>(simd: S, from: &[f32], to: &mut [i8]) -> [f32; 2] {
    let mut largest = simd.splat(0.0);
    for eight in from.chunks_exact(8) {
        // SAFETY: a chunk has 8 elements.
        largest = simd.max(largest, simd.abs(unsafe { simd.load(eight.as_ptr()) }));
    }
    let (inverse, scale) = activation_scales(simd.max_lane(largest));
    let factor = simd.splat(inverse);
    for (from, to) in from.chunks_exact(8).zip(to.chunks_exact_mut(8)) {
        // SAFETY: both chunks have 8 elements; the values lie within the limit by the choice of the factor.
        unsafe { simd.store_i8(to.as_mut_ptr(), simd.mul(simd.load(from.as_ptr()), factor)) };
    }
    let sum: i32 = to.iter().map(|value| i32::from(*value)).sum();
    [scale, sum as f32]
}

/// Factor to whole numbers and scale back, for a group whose largest magnitude is given; a group of zeros stays zero.
fn activation_scales(largest: f32) -> (f32, f32) {
    /// Below this the factor could overflow; such a group is as good as zero.
    const SMALLEST: f32 = 1e-30;
    if largest < SMALLEST {
        return (0.0, 0.0);
    }
    let limit = f32::from(ACTIVATION_LIMIT);
    (limit / largest, largest / limit)
}

/// Quantizes one group of activations in plain Rust: the values and the scale that brings them back.
pub fn quantize_activations(group: &[f32]) -> (Vec<i16>, f32) {
    let largest = group.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let (inverse, scale) = activation_scales(largest);
    let values = group.iter().map(|x| (x * inverse).round_ties_even() as i16);
    (values.collect(), scale)
}

/// Quantizes one group of weights: values of 0..=15, the f16 scale and the zero; a weight is `scale * (value - zero)`.
///
/// Symmetric: the weight of largest magnitude, which decides the scale's sign, becomes 0 and so is met exactly (the idea is llama.cpp's).
/// Asymmetric: the range from the least to the greatest weight, 0 included, is cut into 15 steps.
pub fn quantize_group(group: &[f32], scheme: Scheme) -> (Vec<u8>, u16, u8) {
    let least = group.iter().copied().fold(0.0, f32::min);
    let greatest = group.iter().copied().fold(0.0, f32::max);
    let scale = match scheme {
        Scheme::Symmetric if greatest > -least => greatest / -f32::from(MIDDLE),
        Scheme::Symmetric => least / -f32::from(MIDDLE),
        Scheme::Asymmetric => (greatest - least) / WEIGHT_MAX,
    };
    // Rounded before it is used, so that values are the best for the scale that is stored.
    let bits = f16_from_f32(scale);
    let scale = f32_from_f16(bits);
    let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
    let zero = match scheme {
        Scheme::Symmetric => f32::from(MIDDLE),
        Scheme::Asymmetric => (-least * inverse).round_ties_even().min(WEIGHT_MAX),
    };
    let value = |x: &f32| (x * inverse).round_ties_even() + zero;
    let values = group.iter().map(|x| value(x).clamp(0.0, WEIGHT_MAX) as u8);
    (values.collect(), bits, zero as u8)
}

/// Where weights come from.
pub(super) trait Source: Sync {
    /// Group `index` of `column`: its values, its f16 scale and its zero.
    fn group(&self, shape: &Shape, column: usize, index: usize) -> (Vec<u8>, u16, u8);
}

/// Sizes of the matrix that is packed.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    depth: usize,
    group: usize,
}

impl Shape {
    fn groups(&self) -> usize {
        self.depth.div_ceil(self.group)
    }

    /// Where the values of a group stand in `[columns, depth]`.
    fn range(&self, column: usize, index: usize) -> std::ops::Range<usize> {
        let start = column * self.depth;
        start + index * self.group..start + self.depth.min((index + 1) * self.group)
    }
}

/// Weights to quantize, `[columns, depth]`.
pub(super) struct Float<'a> {
    pub(super) weight: &'a [f32],
    pub(super) scheme: Scheme,
}

impl Source for Float<'_> {
    fn group(&self, shape: &Shape, column: usize, index: usize) -> (Vec<u8>, u16, u8) {
        quantize_group(&self.weight[shape.range(column, index)], self.scheme)
    }
}

impl Source for QuantizedWeights<'_> {
    fn group(&self, shape: &Shape, column: usize, index: usize) -> (Vec<u8>, u16, u8) {
        let at = column * shape.groups() + index;
        let zero = self.zeros.map_or(MIDDLE, |zeros| zeros[at]);
        let values = self.values[shape.range(column, index)].to_vec();
        (values, f16_from_f32(self.scales[at]), zero)
    }
}

/// Where a weight stands in its panel: the byte, and the shift of its half.
fn place(k: usize, column: usize) -> (usize, u32) {
    let byte = k / 4 * CHUNK + column % 8 * 4 + k % 4;
    (byte, if column < 8 { 0 } else { 4 })
}

/// Fills the panels, scales and zeros of an empty matrix.
pub(super) fn pack(exec: &mut CpuExec, packed: &mut PackedWeightsI4, source: &impl Source) {
    let shape = Shape {
        depth: packed.depth,
        group: packed.group,
    };
    let (columns, groups) = (packed.columns, packed.groups());
    let panel_len = packed.stride() * PANEL / 2;
    let panels = SharedMut::new(&mut packed.panels);
    let scales = SharedMut::new(&mut packed.scales);
    let zeros = packed.zeros.as_deref_mut().map(SharedMut::new);
    exec.team.run(columns.div_ceil(PANEL), &|panel| {
        let of_panel = panel * groups * PANEL..(panel + 1) * groups * PANEL;
        // SAFETY: each task writes its own panel and its own scales and zeros.
        let (out, scales, mut zeros) = unsafe {
            (
                panels.part(panel * panel_len..(panel + 1) * panel_len),
                scales.part(of_panel.clone()),
                zeros.as_ref().map(|zeros| zeros.part(of_panel)),
            )
        };
        for column in 0..PANEL.min(columns - panel * PANEL) {
            for index in 0..groups {
                let (values, scale, zero) = source.group(&shape, panel * PANEL + column, index);
                scales[index * PANEL + column] = scale;
                if let Some(zeros) = &mut zeros {
                    zeros[index * PANEL + column] = zero;
                }
                for (k, value) in values.into_iter().enumerate() {
                    let (byte, shift) = place(index * shape.group + k, column);
                    out[byte] |= value << shift;
                }
            }
        }
    });
}

/// The weights of one column; the length of `out` is the depth.
pub(super) fn unpack(packed: &PackedWeightsI4, column: usize, out: &mut [f32]) {
    let panel_len = packed.stride() * PANEL / 2;
    let panel = &packed.panels[column / PANEL * panel_len..][..panel_len];
    for k in 0..packed.depth {
        let group = (column / PANEL * packed.groups() + k / packed.group) * PANEL + column % PANEL;
        let zero = packed.zeros.as_ref().map_or(MIDDLE, |zeros| zeros[group]);
        let (byte, shift) = place(k, column % PANEL);
        let value = f32::from((panel[byte] >> shift) & 15) - f32::from(zero);
        let input = packed.order.as_ref().map_or(k, |order| order[k] as usize);
        out[input] = value * f32_from_f16(packed.scales[group]);
    }
}
