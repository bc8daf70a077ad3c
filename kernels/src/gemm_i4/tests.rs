//! The int4 product against its f64 reference; input: random matrices, output: bounds on each element.

use super::*;
use crate::half::f32_from_f16;
use crate::testing::{all_execs, assert_close, random};

const SCHEMES: [Scheme; 2] = [Scheme::Symmetric, Scheme::Asymmetric];

fn check(rows: usize, depth: usize, columns: usize, groups: (GroupSize, Scheme)) {
    let a = random(rows * depth, 1);
    let weight = random(columns * depth, 2);
    let bias = random(columns, 3);
    let residual = random(rows * columns, 4);
    for epilogue in [Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual(&residual)] {
        let exact = reference::gemm_i4(&a, (&weight, &bias), depth, groups, epilogue);
        for mut exec in all_execs() {
            let packed = PackedWeightsI4::pack(&mut exec, &weight, &bias, depth, groups).unwrap();
            let mut out = vec![f32::NAN; rows * columns];
            gemm_i4(&mut exec, &a, &packed, epilogue, &mut out).unwrap();
            assert_close(&out, &exact, 2e-6 * (depth as f64).sqrt() + 2e-6);
        }
    }
}

#[test]
fn matches_the_reference_for_awkward_shapes() {
    for group in GroupSize::ALL {
        for scheme in SCHEMES {
            for (rows, depth, columns) in [(1, 1, 1), (7, 33, 40), (13, 64, 17), (2, 704, 32), (50, 160, 48)] {
                check(rows, depth, columns, (group, scheme));
            }
        }
    }
    check(16, 384, 160, (GroupSize::G128, Scheme::Asymmetric));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn matches_the_reference_for_any_shape(
        rows in 0..20_usize,
        depth in 1..300_usize,
        columns in 1..40_usize,
        group in 0..3_usize,
        asymmetric in proptest::bool::ANY,
    ) {
        check(rows, depth, columns, (GroupSize::ALL[group], SCHEMES[usize::from(asymmetric)]));
    }

    #[test]
    fn a_weight_comes_back_within_a_step(values in proptest::collection::vec(-3.0_f32..3.0, 1..128)) {
        for scheme in SCHEMES {
            let (quantized, scale, zero) = quantize_group(&values, scheme);
            let scale = f32_from_f16(scale);
            for (value, exact) in quantized.iter().zip(&values) {
                let value = (f32::from(*value) - f32::from(zero)) * scale;
                // Half a step; a whole one at the end of a symmetric range or where the zero was rounded.
                assert!((value - exact).abs() <= scale.abs() * 1.02 + 1e-6, "{exact} became {value}");
            }
        }
    }
}

#[test]
fn the_largest_values_do_not_saturate() {
    let depth = 4_096;
    let values = vec![15; 16 * depth];
    let scales = vec![1.0; 16 * depth / 128];
    let zeros = vec![0; scales.len()];
    let weights = QuantizedWeights {
        values: &values,
        scales: &scales,
        zeros: Some(&zeros),
        order: None,
    };
    for mut exec in all_execs() {
        let packed = PackedWeightsI4::from_quantized(&mut exec, &weights, &[0.0; 16], depth, GroupSize::G128).unwrap();
        for x in [1.0, -1.0] {
            let mut out = [0.0; 7 * 16];
            gemm_i4(&mut exec, &vec![x; 7 * depth], &packed, Epilogue::Bias, &mut out).unwrap();
            assert!(out.iter().all(|y| (y - 15.0 * x * depth as f32).abs() < 0.1));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_comes_with_it() {
    let (depth, columns) = (200, 150);
    let a = random(20 * depth, 1);
    let (weight, bias) = (random(columns * depth, 2), random(columns, 3));
    for mut exec in all_execs() {
        let groups = (GroupSize::G64, Scheme::Asymmetric);
        let packed = PackedWeightsI4::pack(&mut exec, &weight, &bias, depth, groups).unwrap();
        let mut all = vec![f32::NAN; 20 * columns];
        gemm_i4(&mut exec, &a, &packed, Epilogue::Bias, &mut all).unwrap();
        for rows in 1..20 {
            let mut out = vec![f32::NAN; rows * columns];
            gemm_i4(&mut exec, &a[..rows * depth], &packed, Epilogue::Bias, &mut out).unwrap();
            assert_eq!(out, all[..rows * columns]);
        }
    }
}

#[test]
fn ready_weights_in_another_order_give_the_same_product() {
    let (rows, depth, columns) = (5, 96, 20);
    let a = random(rows * depth, 1);
    let weight = random(columns * depth, 2);
    let bias = random(columns, 3);
    // A step that shares no factor with the depth visits each input once.
    let order: Vec<u32> = (0..depth).map(|k| (k * 35 % depth) as u32).collect();
    let in_order = |row: &[f32]| -> Vec<f32> { order.iter().map(|input| row[*input as usize]).collect() };
    let sorted: Vec<f32> = weight.chunks_exact(depth).flat_map(in_order).collect();
    let (mut values, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    for group in sorted.chunks_exact(32) {
        let (group, scale, zero) = quantize_group(group, Scheme::Asymmetric);
        values.extend(group);
        scales.push(f32_from_f16(scale));
        zeros.push(zero);
    }
    let weights = QuantizedWeights {
        values: &values,
        scales: &scales,
        zeros: Some(&zeros),
        order: Some(&order),
    };
    let a_sorted: Vec<f32> = a.chunks_exact(depth).flat_map(in_order).collect();
    let groups = (GroupSize::G32, Scheme::Asymmetric);
    let exact = reference::gemm_i4(&a_sorted, (&sorted, &bias), depth, groups, Epilogue::Bias);
    for mut exec in all_execs() {
        let packed = PackedWeightsI4::from_quantized(&mut exec, &weights, &bias, depth, GroupSize::G32).unwrap();
        let mut out = vec![f32::NAN; rows * columns];
        gemm_i4(&mut exec, &a, &packed, Epilogue::Bias, &mut out).unwrap();
        assert_close(&out, &exact, 2e-5);
        for (column, exact) in weight.chunks_exact(depth).enumerate() {
            let mut row = vec![f32::NAN; depth];
            packed.unpack_row(column, &mut row).unwrap();
            // A step of a range below 2.
            assert!(row.iter().zip(exact).all(|(a, b)| (a - b).abs() <= 2.0 / 15.0));
        }
    }
}

#[test]
fn a_row_of_zeros_gives_the_bias() {
    for mut exec in all_execs() {
        let bias = random(16, 9);
        let groups = (GroupSize::G32, Scheme::Asymmetric);
        let packed = PackedWeightsI4::pack(&mut exec, &random(64, 1), &bias, 4, groups).unwrap();
        let mut out = vec![f32::NAN; 16];
        gemm_i4(&mut exec, &[0.0; 4], &packed, Epilogue::Bias, &mut out).unwrap();
        assert_eq!(out, bias);
    }
}

#[test]
fn weights_take_the_bytes_that_are_stated() {
    let (depth, columns) = (256, 32);
    let weight = random(columns * depth, 2);
    let mut exec = CpuExec::new(1).unwrap();
    for group in GroupSize::ALL {
        for (scheme, each) in [(Scheme::Symmetric, 2), (Scheme::Asymmetric, 3)] {
            let packed = PackedWeightsI4::pack(&mut exec, &weight, &[0.0; 32], depth, (group, scheme)).unwrap();
            let expected = columns * depth / 2 + columns * depth / group.get() * each;
            assert_eq!(packed.bytes(), expected);
            assert!(packed.bytes() * 100 <= 32 * (2 * columns * depth));
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let mut exec = CpuExec::new(1).unwrap();
    let groups = (GroupSize::G32, Scheme::Symmetric);
    assert!(PackedWeightsI4::pack(&mut exec, &[1.0; 31], &[0.0; 16], 2, groups).is_err());
    let packed = PackedWeightsI4::pack(&mut exec, &[1.0; 32], &[0.0; 16], 2, groups).unwrap();
    let error = gemm_i4(&mut exec, &[0.0; 3], &packed, Epilogue::Bias, &mut [0.0; 16]);
    assert_eq!(error.unwrap_err().to_string(), "gemm_i4: a has 3 elements, expected 2");
    assert!(packed.unpack_row(16, &mut [0.0; 2]).is_err());
    let good = QuantizedWeights {
        values: &[15; 32],
        scales: &[1.0; 16],
        zeros: None,
        order: None,
    };
    let mut refused = |weights: QuantizedWeights<'_>| {
        PackedWeightsI4::from_quantized(&mut exec, &weights, &[0.0; 16], 2, GroupSize::G32).is_err()
    };
    assert!(!refused(good));
    assert!(refused(QuantizedWeights {
        values: &[16; 32],
        ..good
    }));
    assert!(refused(QuantizedWeights {
        scales: &[1.0; 15],
        ..good
    }));
    assert!(refused(QuantizedWeights {
        zeros: Some(&[8; 15]),
        ..good
    }));
    assert!(refused(QuantizedWeights {
        order: Some(&[0, 2]),
        ..good
    }));
    assert!(refused(QuantizedWeights {
        order: Some(&[0]),
        ..good
    }));
}

#[test]
fn the_group_is_the_largest_that_divides_the_depth() {
    for (depth, group) in [(4_096, 128), (704, 64), (96, 32), (56, 32), (1, 32)] {
        assert_eq!(GroupSize::largest_for(depth).get(), group);
        assert_eq!(GroupSize::of(group), Some(GroupSize::largest_for(depth)));
    }
    assert_eq!(GroupSize::of(96), None);
}
