//! Paged attention shared out over the team; input: a checked batch, output: each unit's rows written once.
//!
//! A unit is done by one thread, segment after segment; when units are few, by several: first all segments, then one merge per unit.
//! Both ways do the same arithmetic in the same order.

use std::cell::RefCell;

use super::cache::{Layer, Layers};
use super::plan::{Part, Plan, Unit, state_len};
use super::segment::{Memory, State};
use super::{KvCache, KvLayout, PagedBatch};
use crate::exec::CpuExec;
use crate::gemm::share;
use crate::shared_mut::SharedMut;
use crate::simd::{Isa, Kernel, PanelElement, Simd};
use crate::team::Team;

thread_local! {
    /// Queries, weights and sums of one unit; kept, so that nothing is allocated after the largest unit was seen.
    static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn run(exec: &mut CpuExec, cache: &KvCache, batch: &PagedBatch<'_>, out: &mut [f32]) {
    let CpuExec { team, isa, plan, .. } = exec;
    plan.fill(cache.layout(), batch, team.threads());
    let out = SharedMut::new(out);
    let layout = cache.layout();
    match &cache.layers {
        Layers::F32(layers) => run_on(
            (team, *isa),
            plan,
            &Attention::new(layout, &layers[batch.layer], batch, out),
        ),
        Layers::Bf16(layers) => run_on(
            (team, *isa),
            plan,
            &Attention::new(layout, &layers[batch.layer], batch, out),
        ),
    }
}

fn run_on<W: PanelElement>((team, isa): (&mut Team, Isa), plan: &mut Plan, attention: &Attention<'_, W>) {
    let Plan {
        units,
        parts,
        states,
        tasks,
    } = plan;
    let (units, parts, tasks) = (&units[..], &parts[..], *tasks);
    if parts.is_empty() {
        team.run(tasks, &|task| {
            let units = &units[share(units.len(), tasks, task)];
            MEMORY.with_borrow_mut(|memory| {
                isa.run(Whole {
                    attention,
                    units,
                    memory,
                });
            });
        });
        return;
    }
    let shared = SharedMut::new(states);
    team.run(parts.len(), &|index| {
        let part = parts[index];
        let unit = &units[part.unit];
        let length = state_len(attention.layout, unit.queries * attention.group);
        // SAFETY: the plan gives each part its own range, and each part is one task.
        let state = unsafe { shared.part(part.at..part.at + length) };
        MEMORY.with_borrow_mut(|memory| {
            isa.run(Segment {
                attention,
                unit,
                segment: part.segment,
                state,
                memory,
            });
        });
    });
    let states = &states[..];
    team.run(units.len(), &|index| {
        let unit = &units[index];
        let parts = &parts[unit.part..][..unit.segments().len()];
        MEMORY.with_borrow_mut(|memory| {
            isa.run(Merge {
                attention,
                unit,
                parts,
                states,
                memory,
            });
        });
    });
}

/// One layer's attention.
pub(super) struct Attention<'a, W> {
    pub(super) layout: KvLayout,
    pub(super) layer: &'a Layer<W>,
    pub(super) batch: &'a PagedBatch<'a>,
    /// Query heads of one key-value head.
    pub(super) group: usize,
    out: SharedMut<'a, f32>,
}

impl<'a, W: PanelElement> Attention<'a, W> {
    fn new(layout: KvLayout, layer: &'a Layer<W>, batch: &'a PagedBatch<'a>, out: SharedMut<'a, f32>) -> Self {
        Self {
            layout,
            layer,
            batch,
            group: batch.heads / layout.kv_heads,
            out,
        }
    }

    /// Elements of the heads of a group.
    #[inline(always)]
    fn group_len(&self) -> usize {
        self.group * self.layout.dims
    }

    /// Copies the queries of a unit, `[queries * group, dims]`, scaled so that weights are powers of two of the scores.
    #[inline(always)]
    fn gather(&self, unit: &Unit, queries: &mut [f32]) {
        let scale = self.batch.scale * std::f32::consts::LOG2_E;
        let first = self.batch.spans[unit.span].query_start as usize + unit.query;
        for (index, to) in queries.chunks_exact_mut(self.group_len()).enumerate() {
            let at = (first + index) * self.batch.stride + unit.head * self.group_len();
            for (to, from) in to.iter_mut().zip(&self.batch.qkv[at..][..self.group_len()]) {
                *to = from * scale;
            }
        }
    }

    /// Writes the rows of a unit.
    #[inline(always)]
    fn write(&self, unit: &Unit, state: &State<'_>) {
        let KvLayout { dims, kv_heads, .. } = self.layout;
        let first = self.batch.spans[unit.span].query_start as usize + unit.query;
        for query in 0..unit.queries {
            let at = ((first + query) * kv_heads + unit.head) * self.group_len();
            // SAFETY: spans do not overlap (checked), and each (query, key-value head) is in one unit.
            let out = unsafe { self.out.part(at..at + self.group_len()) };
            for (head, out) in out.chunks_exact_mut(dims).enumerate() {
                state.finish(query * self.group + head, out);
            }
        }
    }
}

/// Units done by one thread.
struct Whole<'a, W> {
    attention: &'a Attention<'a, W>,
    units: &'a [Unit],
    memory: &'a mut Vec<f32>,
}

impl<W: PanelElement> Kernel for Whole<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for unit in self.units {
            let rows = unit.queries * self.attention.group;
            let mut memory = Memory::cut(self.memory, self.attention.layout, rows);
            self.attention.gather(unit, memory.queries);
            memory.total.clear();
            for segment in unit.segments() {
                memory.part.clear();
                let scratch = (&*memory.queries, &mut *memory.weights);
                self.attention.segment(simd, (unit, segment), scratch, &mut memory.part);
                memory.total.merge(&memory.part);
            }
            self.attention.write(unit, &memory.total);
        }
    }
}

/// One segment of one unit.
struct Segment<'a, W> {
    attention: &'a Attention<'a, W>,
    unit: &'a Unit,
    segment: usize,
    state: &'a mut [f32],
    memory: &'a mut Vec<f32>,
}

impl<W: PanelElement> Kernel for Segment<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.unit.queries * self.attention.group;
        let memory = Memory::cut(self.memory, self.attention.layout, rows);
        self.attention.gather(self.unit, memory.queries);
        let mut state = State::cut(self.state, rows);
        state.clear();
        self.attention.segment(
            simd,
            (self.unit, self.segment),
            (memory.queries, memory.weights),
            &mut state,
        );
    }
}

/// The segments of one unit put together.
struct Merge<'a, W> {
    attention: &'a Attention<'a, W>,
    unit: &'a Unit,
    parts: &'a [Part],
    states: &'a [f32],
    memory: &'a mut Vec<f32>,
}

impl<W: PanelElement> Kernel for Merge<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.unit.queries * self.attention.group;
        let length = state_len(self.attention.layout, rows);
        let mut memory = Memory::cut(self.memory, self.attention.layout, rows);
        memory.total.clear();
        for part in self.parts {
            memory.part.copy_from(&self.states[part.at..part.at + length]);
            memory.total.merge(&memory.part);
        }
        self.attention.write(self.unit, &memory.total);
    }
}
