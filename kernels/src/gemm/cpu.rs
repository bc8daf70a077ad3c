//! The f32 product over register tiles of 6 x 16; input: checked slices, output: every tile written once, blocks shared out over the team.
//!
//! A block of rows stays in the second-level cache while panels pass by; one panel stays in the first-level cache while the rows of a block pass by.

use std::ops::Range;

use super::{Epilogue, PackedWeights};
use crate::exec::CpuExec;
use crate::shared_mut::SharedMut;
use crate::simd::math::gelu;
use crate::simd::{Ahead, Kernel, MAX_TILE_ROWS, PANEL, PanelElement, Simd, tile_onto, tile_rows, tiles};

/// Rows of one task: 8 full tiles; with a depth of 1,536 they are 288 KiB of activations, which fit the second-level cache beside a panel.
/// Measured on Zen 3 at that depth: 92 GFLOP/s of a peak of 99; 84 with half as many rows.
const BLOCK_ROWS: usize = 8 * MAX_TILE_ROWS;
/// Piece of a panel that all rows of a task use before the next: it and the next one, which is fetched meanwhile, fit the first-level cache.
const PIECE_BYTES: usize = 8 * 1024;
/// Tasks per thread to aim for with few rows, so that a thread that was interrupted does not hold up the others;
/// more would cut the stream of weights, which is what such a product waits for, into pieces of a few panels.
const TASKS_PER_THREAD: usize = 4;
/// The same with many rows, where a task takes 100 µs and a thread without one waits on average half of that for each product.
const LONG_TASKS_PER_THREAD: usize = 16;

/// How a product is cut into tasks: blocks of rows times blocks of panels.
pub(crate) struct Grid {
    rows: usize,
    panels: usize,
    row_blocks: usize,
    panel_blocks: usize,
}

impl Grid {
    pub(crate) fn new(rows: usize, panels: usize, threads: usize) -> Self {
        let row_blocks = rows.div_ceil(BLOCK_ROWS);
        let tasks_per_thread = if rows > BLOCK_ROWS / 2 {
            LONG_TASKS_PER_THREAD
        } else {
            TASKS_PER_THREAD
        };
        let panel_blocks = if threads == 1 {
            1
        } else {
            (threads * tasks_per_thread).div_ceil(row_blocks.max(1)).min(panels)
        };
        Self {
            rows,
            panels,
            row_blocks,
            panel_blocks,
        }
    }

    pub(crate) fn tasks(&self) -> usize {
        self.row_blocks * self.panel_blocks
    }

    /// Rows and panels of a task.
    pub(crate) fn task(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let (row_block, panel_block) = (index / self.panel_blocks, index % self.panel_blocks);
        (
            share(self.rows, self.row_blocks, row_block),
            share(self.panels, self.panel_blocks, panel_block),
        )
    }
}

/// Part `index` of `total` cut into `parts` as evenly as possible.
pub(crate) fn share(total: usize, parts: usize, index: usize) -> Range<usize> {
    total * index / parts..total * (index + 1) / parts
}

pub(super) fn run<W: PanelElement>(
    exec: &mut CpuExec,
    a: &[f32],
    (weights, panels): (&PackedWeights, &[W]),
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let rows = out.len() / weights.columns;
    let grid = Grid::new(rows, weights.columns.div_ceil(PANEL), exec.team.threads());
    let isa = exec.isa;
    let product = Product {
        a,
        panels,
        depth: weights.depth,
        writer: Writer {
            columns: weights.columns,
            bias: &weights.bias,
            epilogue,
            out: SharedMut::new(out),
        },
    };
    exec.team.run(grid.tasks(), &|index| {
        let (rows, panels) = grid.task(index);
        isa.run(Block {
            product: &product,
            rows,
            panels,
        });
    });
}

struct Product<'a, W> {
    a: &'a [f32],
    panels: &'a [W],
    depth: usize,
    writer: Writer<'a>,
}

struct Block<'a, W> {
    product: &'a Product<'a, W>,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl<W: PanelElement> Kernel for Block<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.rows.len() {
            1 => self.few::<S, 1, 4>(simd),
            2 => self.few::<S, 2, 2>(simd),
            3 => self.few::<S, 3, 2>(simd),
            _ => {
                for panel in self.panels.clone() {
                    self.panel(simd, panel);
                }
            }
        }
    }
}

impl<W: PanelElement> Block<'_, W> {
    /// All rows times one panel, a piece of the panel's depth at a time.
    #[inline(always)]
    fn panel<S: Simd>(&self, simd: S, panel: usize) {
        let depth = self.product.depth;
        let piece = PIECE_BYTES / (PANEL * size_of::<W>());
        let mut sums = [[0.0; PANEL]; BLOCK_ROWS];
        let sums = &mut sums[..self.rows.len()];
        for from in (0..depth).step_by(piece) {
            let ks = from..depth.min(from + piece);
            let mut row = 0;
            while row < sums.len() {
                let height = tile_rows(sums.len() - row);
                match height {
                    1 => self.piece::<S, 1>(simd, (row, panel), ks.clone(), sums),
                    2 => self.piece::<S, 2>(simd, (row, panel), ks.clone(), sums),
                    3 => self.piece::<S, 3>(simd, (row, panel), ks.clone(), sums),
                    4 => self.piece::<S, 4>(simd, (row, panel), ks.clone(), sums),
                    5 => self.piece::<S, 5>(simd, (row, panel), ks.clone(), sums),
                    _ => self.piece::<S, MAX_TILE_ROWS>(simd, (row, panel), ks.clone(), sums),
                }
                row += height;
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: 16 sums; the row lies in this task's block, whose tiles no other task writes.
            unsafe {
                let acc = [[simd.load(sums.as_ptr()), simd.load(sums.as_ptr().add(8))]];
                self.product.writer.write(simd, acc, self.rows.start + row, panel);
            }
        }
    }

    /// Adds a piece of the depth to the sums of `R` rows, and asks for a share of the next piece meanwhile.
    #[inline(always)]
    fn piece<S: Simd, const R: usize>(
        &self,
        simd: S,
        (row, panel): (usize, usize),
        ks: Range<usize>,
        sums: &mut [[f32; PANEL]],
    ) {
        let depth = self.product.depth;
        let tiles = sums.len().div_ceil(MAX_TILE_ROWS);
        let bytes = PANEL * size_of::<W>() / tiles;
        let sums = &mut sums[row..row + R];
        // SAFETY: lengths were checked on entry: `a` has `depth` elements in each row, `panels` `depth * 16` in each panel,
        // `sums` has `R` rows of 16, and the grid keeps rows and panel inside.
        unsafe {
            let a = self.product.a.as_ptr().add((self.rows.start + row) * depth + ks.start);
            let weights = self.product.panels.as_ptr().add((panel * depth + ks.start) * PANEL);
            let next = weights.wrapping_add(ks.len() * PANEL).cast::<u8>();
            let ahead = Ahead {
                from: next.wrapping_add(row / MAX_TILE_ROWS * ks.len() * bytes),
                step: bytes,
            };
            let mut acc = [[simd.splat(0.0); 2]; R];
            for (acc, sums) in acc.iter_mut().zip(&*sums) {
                *acc = [simd.load(sums.as_ptr()), simd.load(sums.as_ptr().add(8))];
            }
            tile_onto(simd, &mut acc, (a, depth), (weights, ks.len()), Some(ahead));
            for (acc, sums) in acc.into_iter().zip(sums) {
                simd.store(sums.as_mut_ptr(), acc[0]);
                simd.store(sums.as_mut_ptr().add(8), acc[1]);
            }
        }
    }

    /// A decode step of one tile: `P` panels at a time, so that weights and not sums are waited for.
    #[inline(always)]
    fn few<S: Simd, const R: usize, const P: usize>(&self, simd: S) {
        let mut panel = self.panels.start;
        while panel + P <= self.panels.end {
            self.tile::<S, R, P>(simd, self.rows.start, panel);
            panel += P;
        }
        for panel in panel..self.panels.end {
            self.tile::<S, R, 1>(simd, self.rows.start, panel);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(&self, simd: S, row: usize, panel: usize) {
        let product = self.product;
        let depth = product.depth;
        // SAFETY: lengths were checked on entry: `a` has `depth` elements in each row, `panels` `depth * 16` in each panel,
        // and the grid keeps `row + R` and `panel + P` inside; the grid also gives each tile to one task only.
        unsafe {
            let a = product.a.as_ptr().add(row * depth);
            let weights = product.panels.as_ptr().add(panel * depth * PANEL);
            let acc = tiles::<S, W, R, P>(simd, a, depth, weights, depth);
            for (p, acc) in acc.into_iter().enumerate() {
                product.writer.write(simd, acc, row, panel + p);
            }
        }
    }
}

/// Where tiles go and what happens to them on the way.
pub(crate) struct Writer<'a> {
    pub(crate) columns: usize,
    /// Padded with zeros to whole panels.
    pub(crate) bias: &'a [f32],
    pub(crate) epilogue: Epilogue<'a>,
    pub(crate) out: SharedMut<'a, f32>,
}

impl Writer<'_> {
    /// Applies the epilogue to a tile and stores the columns that exist.
    ///
    /// # Safety
    /// Rows `row..row + R` and the panel lie inside the output, and no other task writes them.
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd, const R: usize>(&self, simd: S, acc: [[S::V; 2]; R], row: usize, panel: usize) {
        let column = panel * PANEL;
        if column + PANEL > self.columns {
            // SAFETY: as promised by the caller.
            unsafe { self.write_narrow(simd, acc, row, column) };
            return;
        }
        // SAFETY: the bias is padded to whole panels; 16 columns from `column` exist in each of the rows.
        unsafe {
            let bias = self.bias.as_ptr().add(column);
            let bias = [simd.load(bias), simd.load(bias.add(8))];
            for (r, acc) in acc.into_iter().enumerate() {
                let at = (row + r) * self.columns + column;
                for half in 0..2 {
                    let sum = simd.add(acc[half], bias[half]);
                    let value = match self.epilogue {
                        Epilogue::Bias => sum,
                        Epilogue::BiasGelu => gelu(simd, sum),
                        Epilogue::BiasResidual(residual) => {
                            simd.add(sum, simd.load(residual.as_ptr().add(at + half * 8)))
                        }
                    };
                    simd.store(self.out.pointer(at + half * 8), value);
                }
            }
        }
    }

    /// The last panel when the columns do not fill it.
    ///
    /// # Safety
    /// As [`Writer::write`].
    #[inline(always)]
    unsafe fn write_narrow<S: Simd, const R: usize>(&self, simd: S, acc: [[S::V; 2]; R], row: usize, column: usize) {
        for (r, acc) in acc.into_iter().enumerate() {
            let mut wide = [0.0; PANEL];
            // SAFETY: `wide` and the padded bias have 16 elements from `column`.
            unsafe {
                let bias = self.bias.as_ptr().add(column);
                for (half, acc) in acc.into_iter().enumerate() {
                    let sum = simd.add(acc, simd.load(bias.add(half * 8)));
                    let value = match self.epilogue {
                        Epilogue::BiasGelu => gelu(simd, sum),
                        Epilogue::Bias | Epilogue::BiasResidual(_) => sum,
                    };
                    simd.store(wide.as_mut_ptr().add(half * 8), value);
                }
            }
            let start = (row + r) * self.columns + column;
            let end = (row + r + 1) * self.columns;
            if let Epilogue::BiasResidual(residual) = self.epilogue {
                for (value, residual) in wide.iter_mut().zip(&residual[start..end]) {
                    *value += residual;
                }
            }
            // SAFETY: the caller promises that no other task writes these columns.
            let out = unsafe { self.out.part(start..end) };
            out.copy_from_slice(&wide[..end - start]);
        }
    }
}
