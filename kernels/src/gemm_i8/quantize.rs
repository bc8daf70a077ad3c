//! From f32 to whole numbers with one scale per row; input: rows of activations or of weights, output: the numbers and their scales.

use super::DEPTH_STEP;
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::shared_mut::SharedMut;
use crate::simd::{Kernel, PANEL, Simd};

/// Largest magnitude of a quantized weight; symmetric, so -128 is not used.
pub const WEIGHT_LIMIT: i16 = 127;
/// Largest magnitude of a quantized activation: 12 bits.
///
/// The multiply takes 16-bit operands anyway, so more than 8 bits cost nothing here.
/// MiniLM, smallest cosine to f32 over the fixture: 0.978 with 127, 0.993 with 255, 0.996 with 1,023 and above.
/// More bits would only shorten the piece of the depth whose sum fits an i32.
pub const ACTIVATION_LIMIT: i16 = 2_047;

/// Rows of one quantization task: enough work to be worth handing to another thread.
const TASK_ROWS: usize = 64;

/// Quantized activations, kept between calls so that nothing is allocated per layer.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    /// `[rows, stride]`.
    pub(super) values: Vec<i16>,
    /// Depth rounded up to whole turns of the inner loop.
    pub(super) stride: usize,
    pub(super) scales: Vec<f32>,
}

impl QuantizedRows {
    /// Quantizes `a`, `[rows, depth]`.
    pub(super) fn fill(&mut self, exec: (&mut crate::Team, crate::Isa), a: &[f32], depth: usize) {
        let (team, isa) = exec;
        let rows = a.len() / depth;
        let stride = depth.next_multiple_of(DEPTH_STEP);
        self.stride = stride;
        self.values.resize(rows * stride, 0);
        self.scales.resize(rows, 0.0);
        let values = SharedMut::new(&mut self.values);
        let scales = SharedMut::new(&mut self.scales);
        let tasks = rows.div_ceil(TASK_ROWS);
        team.run(tasks, &|task| {
            let rows = share(rows, tasks, task);
            // SAFETY: each task has its own rows.
            let (values, scales) = unsafe {
                (
                    values.part(rows.start * stride..rows.end * stride),
                    scales.part(rows.clone()),
                )
            };
            isa.run(Rows {
                a: &a[rows.start * depth..rows.end * depth],
                depth,
                stride,
                values,
                scales,
            });
        });
    }
}

struct Rows<'a> {
    a: &'a [f32],
    depth: usize,
    stride: usize,
    values: &'a mut [i16],
    scales: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self
            .a
            .chunks_exact(self.depth)
            .zip(self.values.chunks_exact_mut(self.stride))
            .zip(self.scales);
        for ((from, to), scale) in rows {
            let whole = self.depth / 8 * 8;
            let mut largest = simd.splat(0.0);
            for at in (0..whole).step_by(8) {
                // SAFETY: `at + 8 <= depth`, the length of `from`.
                largest = simd.max(largest, simd.abs(unsafe { simd.load(from.as_ptr().add(at)) }));
            }
            let rest = from[whole..].iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            let (inverse, row_scale) = scales(simd.max_lane(largest).max(rest), ACTIVATION_LIMIT);
            *scale = row_scale;
            let factor = simd.splat(inverse);
            for at in (0..whole).step_by(8) {
                // SAFETY: `at + 8 <= depth`, and `to` has at least `depth` elements.
                unsafe {
                    let x = simd.mul(simd.load(from.as_ptr().add(at)), factor);
                    simd.store_i16(to.as_mut_ptr().add(at), x);
                }
            }
            to[self.depth..].fill(0);
            for (to, x) in to[whole..self.depth].iter_mut().zip(&from[whole..]) {
                *to = round(x * inverse);
            }
        }
    }
}

/// Factor to whole numbers and scale back, for a row whose largest magnitude is given; a row of zeros stays zero.
fn scales(largest: f32, limit: i16) -> (f32, f32) {
    /// Below this the factor could overflow; such a row is as good as zero.
    const SMALLEST: f32 = 1e-30;
    if largest < SMALLEST {
        return (0.0, 0.0);
    }
    (f32::from(limit) / largest, largest / f32::from(limit))
}

/// Nearest whole number, ties to even, of a value within i16; several times faster than the library's function where that is a call.
fn round(value: f32) -> i16 {
    /// 1.5 * 2^23: added to a small number it leaves the rounded number in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT).to_bits() as u16 as i16
}

/// Quantizes one row to -limit..=limit in plain Rust: the values and the scale that brings them back.
pub fn quantize_row(row: &[f32], limit: i16) -> (Vec<i16>, f32) {
    let largest = row.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let (inverse, scale) = scales(largest, limit);
    let values = row.iter().map(|x| round(x * inverse));
    (values.collect(), scale)
}

/// Quantizes weights `[columns, depth]` per column and packs them; returns panels and scales, both padded with zeros.
pub(super) fn pack(exec: &mut CpuExec, weight: &[f32], depth: usize) -> (Vec<i8>, Vec<f32>) {
    let columns = weight.len() / depth;
    let count = columns.div_ceil(PANEL);
    let panel_len = depth.next_multiple_of(DEPTH_STEP) * PANEL;
    let mut panels = vec![0_i8; count * panel_len];
    let mut scales = vec![0.0; count * PANEL];
    let (out, out_scales) = (SharedMut::new(&mut panels), SharedMut::new(&mut scales));
    exec.team.run(count, &|panel| {
        // SAFETY: each task writes its own panel and its own 16 scales.
        let (out, out_scales) = unsafe {
            (
                out.part(panel * panel_len..(panel + 1) * panel_len),
                out_scales.part(panel * PANEL..(panel + 1) * PANEL),
            )
        };
        for column in 0..PANEL.min(columns - panel * PANEL) {
            let (values, scale) = quantize_row(&weight[(panel * PANEL + column) * depth..][..depth], WEIGHT_LIMIT);
            out_scales[column] = scale;
            for (k, value) in values.into_iter().enumerate() {
                out[(k / 2 * PANEL + column) * 2 + k % 2] = value as i8;
            }
        }
    });
    (panels, scales)
}

/// Packs quantized weights `[columns, depth]`; panels are padded with zeros.
pub(super) fn pack_values(exec: &mut CpuExec, values: &[i8], depth: usize) -> Vec<i8> {
    let columns = values.len() / depth;
    let panel_len = depth.next_multiple_of(DEPTH_STEP) * PANEL;
    let mut panels = vec![0_i8; columns.div_ceil(PANEL) * panel_len];
    let out = SharedMut::new(&mut panels);
    exec.team.run(columns.div_ceil(PANEL), &|panel| {
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.part(panel * panel_len..(panel + 1) * panel_len) };
        for column in 0..PANEL.min(columns - panel * PANEL) {
            let from = &values[(panel * PANEL + column) * depth..][..depth];
            for (k, value) in from.iter().enumerate() {
                out[(k / 2 * PANEL + column) * 2 + k % 2] = *value;
            }
        }
    });
    panels
}

/// The weights of one column, `[depth]`, times their scale; the length of `out` is the depth.
pub(super) fn unpack(panels: &[i8], scale: f32, column: usize, out: &mut [f32]) {
    let panel_len = out.len().next_multiple_of(DEPTH_STEP) * PANEL;
    let panel = &panels[column / PANEL * panel_len..][..panel_len];
    for (k, out) in out.iter_mut().enumerate() {
        *out = f32::from(panel[(k / 2 * PANEL + column % PANEL) * 2 + k % 2]) * scale;
    }
}
