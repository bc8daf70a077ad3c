//! Exponential and GELU over vectors; input: eight f32, output: eight f32 with a relative error of a few units in the last place.

use super::Simd;

/// `e^x`; below -87.3 it returns the smallest normal number instead of zero (a softmax weight of 1e-38 changes nothing).
///
/// Range reduction to `[-ln2/2, ln2/2]` and a polynomial of degree 6 (Cephes `expf`).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    // Below and above these the exponent leaves the range of a normal f32.
    let x = simd.max(simd.min(x, simd.splat(88.0)), simd.splat(-87.3));
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first exact in few bits, so that x - n ln 2 loses nothing.
    let r = simd.fma(n, simd.splat(-0.693_359_4), x);
    let r = simd.fma(n, simd.splat(2.121_944_4e-4), r);
    let mut p = simd.splat(1.987_569_1e-4);
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = simd.fma(p, r, simd.splat(coefficient));
    }
    let y = simd.fma(p, simd.mul(r, r), simd.add(r, simd.splat(1.0)));
    simd.mul(y, simd.pow2(n))
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
        -2.954_599_8e-3,
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
    let e = erf(
        simd,
        simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)),
    );
    simd.fma(half, e, half)
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernel, Simd};
    use crate::gemm::reference::gelu as gelu_f64;

    enum Function {
        Exp,
        Gelu,
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
                    Function::Exp => super::exp(simd, x),
                    Function::Gelu => super::gelu(simd, x),
                };
                simd.store(out.as_mut_ptr(), y);
            }
            out
        }
    }

    #[test]
    fn exp_is_close_over_its_range() {
        for isa in [Isa::Portable, Isa::detect()] {
            for step in -8_700..8_800 {
                let x = step as f32 * 0.01;
                let y = isa.run(Apply(Function::Exp, [x; 8]))[3];
                let exact = f64::from(x).exp();
                assert!((f64::from(y) - exact).abs() <= 3e-7 * exact, "{x}");
            }
            assert!(isa.run(Apply(Function::Exp, [-1e30; 8]))[0] < 1e-37);
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
}
