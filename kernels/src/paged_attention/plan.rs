//! How a batch is cut into work; input: spans, heads and threads, output: units (queries of one key-value head) and, when those are few, their segments.

use std::ops::Range;

use super::{KvLayout, PagedBatch};
use crate::simd::PANEL;

/// Query rows of a unit: as in `gemm`, eight tiles that share one pass over the context.
const UNIT_ROWS: usize = 48;
/// Tokens that are summed alone before they are merged with others; part of the result's bits, so never chosen by load.
/// A decode step over 2,048 tokens still gives four parts per head, and a merge costs less than 1 % of a segment.
pub(super) const SEGMENT: usize = 512;
/// Units per thread below which contexts are split over threads.
const UNITS_PER_THREAD: usize = 2;
/// Largest memory for sums of segments, in f32 (16 MiB); beyond it units are long enough without a split.
const MAX_STATES: usize = 4 * 1024 * 1024;
/// Products of query and key elements below which waking another thread costs more than it saves: about 10 µs.
const LEAST_WORK: usize = 128 * 1024;

/// Queries of one span that share a key-value head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    /// Index of the span.
    pub(super) span: usize,
    /// Key-value head.
    pub(super) head: usize,
    /// First query, counted from the span's first.
    pub(super) query: usize,
    /// Queries.
    pub(super) queries: usize,
    /// Position of the first query in its sequence.
    pub(super) position: usize,
    /// Tokens that some query sees.
    pub(super) start: usize,
    /// Its first part, when contexts are split.
    pub(super) part: usize,
}

impl Unit {
    /// Tokens that some query sees.
    #[inline(always)]
    pub(super) fn tokens(&self) -> Range<usize> {
        self.start..self.position + self.queries
    }

    /// Segments that hold these tokens.
    #[inline(always)]
    pub(super) fn segments(&self) -> Range<usize> {
        let tokens = self.tokens();
        tokens.start / SEGMENT..tokens.end.div_ceil(SEGMENT)
    }
}

/// One segment of one unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Index of the unit.
    pub(super) unit: usize,
    /// Segment of the context.
    pub(super) segment: usize,
    /// Where its sums stand in `states`.
    pub(super) at: usize,
}

/// The work of one call; kept between calls so that nothing is allocated per layer.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(super) units: Vec<Unit>,
    /// Empty when each unit is done by one thread.
    pub(super) parts: Vec<Part>,
    /// Sums of the parts.
    pub(super) states: Vec<f32>,
    /// Tasks of the first region.
    pub(super) tasks: usize,
}

impl Plan {
    /// Plans one call.
    pub(super) fn fill(&mut self, layout: KvLayout, batch: &PagedBatch<'_>, threads: usize) {
        let group = batch.heads / layout.kv_heads;
        self.parts.clear();
        let work = self.fill_units(layout, batch, group);
        if work < LEAST_WORK || threads == 1 {
            self.tasks = self.units.len().min(1);
            return;
        }
        self.tasks = self.units.len();
        if self.units.len() < threads * UNITS_PER_THREAD {
            self.split(layout, group);
        }
    }

    /// Cuts spans into units; returns the products of query and key elements.
    fn fill_units(&mut self, layout: KvLayout, batch: &PagedBatch<'_>, group: usize) -> usize {
        let most = (UNIT_ROWS / group).max(1);
        let mut work = 0;
        self.units.clear();
        for (index, span) in batch.spans.iter().enumerate() {
            let queries = span.query_len as usize;
            let before = span.context_len as usize - queries;
            for head in 0..layout.kv_heads {
                // The last queries see most: begun first, they do not leave one thread with the longest unit at the end.
                for unit in (0..queries.div_ceil(most)).rev() {
                    let query = unit * most;
                    let unit = Unit {
                        span: index,
                        head,
                        query,
                        queries: most.min(queries - query),
                        position: before + query,
                        start: batch.first_visible(before + query),
                        part: 0,
                    };
                    work += unit.queries * group * unit.tokens().len() * layout.dims;
                    self.units.push(unit);
                }
            }
        }
        work
    }

    /// Makes each segment of each unit a part of its own, if that gives more parts and their sums fit.
    fn split(&mut self, layout: KvLayout, group: usize) {
        let mut at = 0;
        for (index, unit) in self.units.iter_mut().enumerate() {
            unit.part = self.parts.len();
            for segment in unit.segments() {
                self.parts.push(Part {
                    unit: index,
                    segment,
                    at,
                });
                at += state_len(layout, unit.queries * group);
            }
        }
        if self.parts.len() == self.units.len() || at > MAX_STATES {
            self.parts.clear();
            return;
        }
        self.tasks = self.parts.len();
        if self.states.len() < at {
            self.states.resize(at, 0.0);
        }
    }
}

/// Elements of the running sums of `rows` query rows: a weighted sum of values, a largest score and a sum of weights each.
#[inline(always)]
pub(super) fn state_len(layout: KvLayout, rows: usize) -> usize {
    rows * (layout.dims.next_multiple_of(PANEL) + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paged_attention::Span;

    const LAYOUT: KvLayout = KvLayout {
        kv_heads: 2,
        dims: 64,
        block_tokens: 16,
    };

    fn plan(spans: &[(u32, u32)], window: Option<u32>, threads: usize) -> Plan {
        let mut start = 0;
        let mut list = Vec::new();
        for &(query_len, context_len) in spans {
            list.push(Span {
                query_start: start,
                query_len,
                context_len,
                blocks: &[],
            });
            start += query_len;
        }
        let batch = PagedBatch {
            layer: 0,
            heads: 8,
            qkv: &[],
            stride: 0,
            spans: &list,
            window,
            scale: 1.0,
        };
        let mut plan = Plan::default();
        plan.fill(LAYOUT, &batch, threads);
        plan
    }

    #[test]
    fn every_query_is_in_one_unit_per_head() {
        let plan = plan(&[(30, 30), (0, 5), (1, 2_000), (13, 100)], None, 2);
        let mut seen = std::collections::BTreeMap::new();
        for unit in &plan.units {
            assert!(unit.queries * 4 <= UNIT_ROWS);
            for query in unit.query..unit.query + unit.queries {
                *seen.entry((unit.span, unit.head, query)).or_insert(0) += 1;
            }
        }
        assert_eq!(seen.len(), 2 * (30 + 1 + 13));
        assert!(seen.values().all(|&count| count == 1));
    }

    #[test]
    fn a_long_context_is_split_only_when_units_are_few() {
        let alone = plan(&[(1, 2_000)], None, 2);
        assert_eq!((alone.units.len(), alone.parts.len(), alone.tasks), (2, 8, 8));
        assert_eq!(alone.units[1].part, 4);
        assert_eq!(alone.states.len(), 8 * state_len(LAYOUT, 4));
        assert!(plan(&[(1, 2_000)], None, 1).parts.is_empty());
        assert!(plan(&[(1, 2_000), (1, 2_000)], None, 2).parts.is_empty());
        assert!(plan(&[(1, 500)], None, 2).parts.is_empty());
    }

    #[test]
    fn a_window_shortens_the_context() {
        let plan = plan(&[(1, 2_000)], Some(100), 2);
        assert_eq!(plan.units[0].tokens(), 1_900..2_000);
        assert_eq!(plan.units[0].segments(), 3..4);
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        assert_eq!(plan(&[(1, 20), (1, 30)], None, 8).tasks, 1);
        assert_eq!(plan(&[], None, 8).tasks, 0);
    }
}
