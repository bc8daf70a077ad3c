//! The memory allocator of every program that uses this crate. The system's own took a sixth of the CPU time of a request.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
