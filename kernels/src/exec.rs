//! What a CPU kernel runs on: the chosen instruction set, the threads and scratch that is kept between calls.

use crate::gemm_i4::QuantizedGroups;
use crate::gemm_i8::QuantizedRows;
use crate::paged_attention::Plan;
use crate::simd::Isa;
use crate::team::{Team, TeamError};

/// Threads, instruction set and scratch of one caller; kernels take it as `&mut`, so one call runs at a time.
#[derive(Debug)]
pub struct CpuExec {
    pub(crate) team: Team,
    pub(crate) isa: Isa,
    pub(crate) quantized: QuantizedRows,
    pub(crate) quantized_groups: QuantizedGroups,
    pub(crate) plan: Plan,
}

impl CpuExec {
    /// Starts `threads - 1` helper threads (the caller is the first one) and picks the best instruction set.
    pub fn new(threads: usize) -> Result<Self, TeamError> {
        Ok(Self::with_isa(Team::new(threads)?, Isa::detect()))
    }

    /// Runs on an instruction set chosen by the caller; an unavailable one falls back to the portable code.
    pub fn with_isa(team: Team, isa: Isa) -> Self {
        Self {
            team,
            isa: isa.or_portable(),
            quantized: QuantizedRows::default(),
            quantized_groups: QuantizedGroups::default(),
            plan: Plan::default(),
        }
    }

    /// Threads that take part in a call, the caller included.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}
