//! Weights from checkpoint order to panels; input: `[columns, depth]` f32, output: panels of 16 columns, `[depth, 16]` each, padded with zeros.

use super::Storage;
use crate::exec::CpuExec;
use crate::shared_mut::SharedMut;
use crate::simd::{PANEL, PanelElement};

/// Packed weights in their storage type.
#[derive(Debug)]
pub(super) enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Panels {
    pub(super) fn pack(exec: &mut CpuExec, weight: &[f32], depth: usize, storage: Storage) -> Self {
        match storage {
            Storage::F32 => Self::F32(pack(exec, weight, depth)),
            Storage::Bf16 => Self::Bf16(pack(exec, weight, depth)),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(panels) => size_of_val(&panels[..]),
            Self::Bf16(panels) => size_of_val(&panels[..]),
        }
    }

    /// One column, `[depth]`; the length of `out` is the depth.
    pub(super) fn unpack(&self, column: usize, out: &mut [f32]) {
        match self {
            Self::F32(panels) => unpack(panels, column, |x| x, out),
            Self::Bf16(panels) => unpack(panels, column, |bits| f32::from_bits(u32::from(bits) << 16), out),
        }
    }
}

fn unpack<T: PanelElement>(panels: &[T], column: usize, widen: impl Fn(T) -> f32, out: &mut [f32]) {
    let start = column / PANEL * out.len() * PANEL + T::place(column % PANEL);
    for (out, x) in out.iter_mut().zip(panels[start..].iter().step_by(PANEL)) {
        *out = widen(*x);
    }
}

/// Copies with zeros up to a whole number of panels.
pub(crate) fn padded(values: &[f32]) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(PANEL), 0.0);
    padded
}

fn pack<T: PanelElement>(exec: &mut CpuExec, weight: &[f32], depth: usize) -> Vec<T> {
    let columns = weight.len() / depth;
    let panels = columns.div_ceil(PANEL);
    let mut packed = vec![T::default(); panels * depth * PANEL];
    let out = SharedMut::new(&mut packed);
    exec.team.run(panels, &|panel| {
        let start = panel * depth * PANEL;
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.part(start..start + depth * PANEL) };
        for column in 0..PANEL.min(columns - panel * PANEL) {
            let from = &weight[(panel * PANEL + column) * depth..][..depth];
            let slots = out.iter_mut().skip(T::place(column)).step_by(PANEL);
            for (slot, &x) in slots.zip(from) {
                *slot = T::narrow(x);
            }
        }
    });
    packed
}

/// Nearest bf16, ties to even; a NaN stays a NaN.
pub fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let round = 0x7fff + ((bits >> 16) & 1);
    ((bits + round) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        assert_eq!(widen(bf16_from_f32(1.0)), 1.0);
        assert_eq!(widen(bf16_from_f32(-0.0)).to_bits(), (-0.0_f32).to_bits());
        // 1 + 2^-8 lies halfway between 1 and 1 + 2^-7: even is 1.
        assert_eq!(widen(bf16_from_f32(1.0 + 2_f32.powi(-8))), 1.0);
        assert_eq!(widen(bf16_from_f32(1.0 + 3.0 * 2_f32.powi(-8))), 1.0 + 2_f32.powi(-6));
        assert!(widen(bf16_from_f32(f32::NAN)).is_nan());
        assert_eq!(widen(bf16_from_f32(f32::MAX)), f32::INFINITY);
    }
}
