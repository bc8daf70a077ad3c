//! One output slice written by several threads, each its own part; input: a `&mut` slice, output: disjoint sub-slices.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that tasks of one parallel region share by writing disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer comes from a `&mut [T]` that outlives `'a`; parts are handed out under the contract of `part` and `row`.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above; a shared reference only hands out parts that the caller promises are disjoint.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            owner: PhantomData,
        }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other live part may overlap `range`.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside the slice (asserted) and nobody else uses it (contract).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Pointer to element `index`, for writes of a tile whose rows are not adjacent.
    pub(crate) fn pointer(&self, index: usize) -> *mut T {
        debug_assert!(index <= self.len);
        self.start.wrapping_add(index)
    }
}
