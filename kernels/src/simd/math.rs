//! Power of two, GELU and SiLU over vectors; input: eight f32, output: eight f32 with a relative error of a few units in the last place.

use super::Simd;

/// `2^x` for `x <= 127`; below -126 it returns the smallest normal number instead of zero (a softmax weight of 1e-38 changes nothing).
///
/// Nearest whole power times a polynomial of degree 5 on [-0.5, 0.5], fitted for the smallest relative error (2.1e-7 in f32).
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::V) -> S::V {
    const P: [f32; 5] = [9.675_541e-3, 5.550_713e-2, 2.402_212e-1, 6.931_469_4e-1, 1.000_000_1];
    // In this order a NaN stays one.
    let x = simd.max(simd.splat(-126.0), x);
    let whole = simd.round(x);
    let rest = simd.sub(x, whole);
    let mut p = simd.splat(1.327_647_2e-3);
    for coefficient in P {
        p = simd.fma(p, rest, simd.splat(coefficient));
    }
    simd.scale_by_pow2(p, whole)
}

/// The error function as `x P(x²) / Q(x²)` on [-4, 4], where it has reached ±1 in f32 (coefficients of Eigen's `erf`).
#[inline(always)]
fn erf<S: Simd>(simd: S, x: S::V) -> S::V {
    const P: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] = [
        -1.456_607_2e-5,
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329_2e-3,
        -1.426_473_9e-2,
    ];
    let x = simd.max(simd.min(x, simd.splat(4.0)), simd.splat(-4.0));
    let square = simd.mul(x, x);
    let mut p = simd.splat(P[0]);
    for coefficient in &P[1..] {
        p = simd.fma(p, square, simd.splat(*coefficient));
    }
    let mut q = simd.splat(Q[0]);
    for coefficient in &Q[1..] {
        q = simd.fma(q, square, simd.splat(*coefficient));
    }
    simd.div(simd.mul(x, p), q)
}

/// GELU with the error function, the one BERT was trained with (not the tanh approximation).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::V) -> S::V {
    let half = simd.mul(x, simd.splat(0.5));
    let e = erf(simd, simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)));
    simd.fma(half, e, half)
}

/// `x / (1 + e^-x)`, also called swish.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::V) -> S::V {
    /// Keeps `1 + e^-x` finite; the function is zero in f32 well before it.
    const SMALLEST: f32 = -87.3;
    // In this order a NaN stays one.
    let x = simd.max(simd.splat(SMALLEST), x);
    let power = exp2(simd, simd.mul(x, simd.splat(-std::f32::consts::LOG2_E)));
    simd.div(x, simd.add(power, simd.splat(1.0)))
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernel, Simd};
    use crate::gemm::reference::gelu as gelu_f64;
    use crate::swiglu::reference::silu as silu_f64;

    enum Function {
        Exp2,
        Gelu,
        Silu,
    }

    struct Apply(Function, [f32; 8]);

    impl Kernel for Apply {
        type Output = [f32; 8];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; 8] {
            let mut out = [0.0; 8];
            // SAFETY: both arrays have 8 elements.
            unsafe {
                let x = simd.load(self.1.as_ptr());
                let y = match self.0 {
                    Function::Exp2 => super::exp2(simd, x),
                    Function::Gelu => super::gelu(simd, x),
                    Function::Silu => super::silu(simd, x),
                };
                simd.store(out.as_mut_ptr(), y);
            }
            out
        }
    }

    #[test]
    fn exp2_is_close_over_its_range() {
        for isa in [Isa::Portable, Isa::detect()] {
            for step in -12_500..12_700 {
                let x = step as f32 * 0.01;
                let y = isa.run(Apply(Function::Exp2, [x; 8]))[3];
                let exact = f64::from(x).exp2();
                assert!((f64::from(y) - exact).abs() <= 4e-7 * exact, "{x}");
            }
            assert!(isa.run(Apply(Function::Exp2, [-1e30; 8]))[0] < 1e-37);
        }
    }

    #[test]
    fn gelu_is_close_over_its_range() {
        for isa in [Isa::Portable, Isa::detect()] {
            for step in -12_000..12_000 {
                let x = step as f32 * 0.001;
                let y = f64::from(isa.run(Apply(Function::Gelu, [x; 8]))[5]);
                assert!((y - gelu_f64(f64::from(x))).abs() < 2e-6, "{x}");
            }
        }
    }

    #[test]
    fn silu_is_close_over_its_range() {
        for isa in [Isa::Portable, Isa::detect()] {
            for step in -9_000..9_000 {
                let x = step as f32 * 0.01;
                let y = f64::from(isa.run(Apply(Function::Silu, [x; 8]))[2]);
                let exact = silu_f64(f64::from(x));
                assert!((y - exact).abs() <= 1e-6 * exact.abs() + 1e-7, "{x}");
            }
        }
    }
}
