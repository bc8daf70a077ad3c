//! The product in plain f64; input: the arguments of [`super::gemm`] with unpacked weights, output: exact to f64.

use super::Epilogue;

/// `epilogue(a * weight^T + bias)`, `weight` being `[columns, depth]`.
pub fn gemm(a: &[f32], weight: &[f32], bias: &[f32], depth: usize, epilogue: Epilogue<'_>) -> Vec<f64> {
    let columns = bias.len();
    let rows = a.len() / depth;
    let mut out = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let x = &a[row * depth..][..depth];
        for column in 0..columns {
            let w = &weight[column * depth..][..depth];
            let dot: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            out.push(finish(dot + f64::from(bias[column]), row * columns + column, epilogue));
        }
    }
    out
}

/// The epilogue of one element, after the bias.
pub fn finish(sum: f64, index: usize, epilogue: Epilogue<'_>) -> f64 {
    match epilogue {
        Epilogue::Bias => sum,
        Epilogue::BiasGelu => gelu(sum),
        Epilogue::BiasResidual(residual) => sum + f64::from(residual[index]),
    }
}

/// `x * Phi(x)`.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

/// The error function by the series `2/sqrt(pi) e^(-x²) Σ 2^n x^(2n+1) / (2n+1)!!`, whose terms all have one sign.
pub fn erf(x: f64) -> f64 {
    // Beyond 6 the difference to ±1 is below 1e-16.
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_tabled_values() {
        for (x, exact) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - exact).abs() < 1e-14);
            assert!((erf(-x) + exact).abs() < 1e-14);
        }
        assert_eq!(erf(7.0), 1.0);
    }
}
