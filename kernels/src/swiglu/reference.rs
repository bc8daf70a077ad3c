//! The gated product in plain f64; input: the arguments of [`super::swiglu`], output: exact to f64.

/// `silu(gate) * up` of each row.
pub fn swiglu(gate_up: &[f32], width: usize) -> Vec<f64> {
    let rows = gate_up.chunks_exact(2 * width).map(|row| row.split_at(width));
    rows.flat_map(|(gates, ups)| gates.iter().zip(ups))
        .map(|(gate, up)| silu(f64::from(*gate)) * f64::from(*up))
        .collect()
}

/// `x / (1 + e^-x)`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}
