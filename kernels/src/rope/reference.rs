//! Rotary position embedding in plain f64; input: the arguments of [`super::rope`] with frequencies and scale for the table, output: exact to f64.

use crate::head_columns::HeadColumns;

/// All rows, those columns rotated that belong to heads; the angle is rounded to f32 as [`super::RopeTable::new`] says.
pub fn rope((inv_freq, scale): (&[f32], f32), positions: &[u32], columns: HeadColumns, rows: &[f32]) -> Vec<f64> {
    let half = inv_freq.len();
    let mut out: Vec<f64> = rows.iter().map(|x| f64::from(*x)).collect();
    for (row, &position) in out.chunks_exact_mut(columns.stride).zip(positions) {
        for head in row[columns.first..].chunks_exact_mut(2 * half).take(columns.heads) {
            for i in 0..half {
                let (sin, cos) = f64::from(position as f32 * inv_freq[i]).sin_cos();
                let (low, high) = (head[i], head[i + half]);
                head[i] = (low * cos - high * sin) * f64::from(scale);
                head[i + half] = (high * cos + low * sin) * f64::from(scale);
            }
        }
    }
    out
}
