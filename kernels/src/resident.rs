//! Memory that is there before it is needed; input: a length, output: zeros in pages that the system has already given.
//!
//! The system gives a page when it is first written, which takes 0.5 to 14 µs for 4 KiB. Running answers reach a new block of the
//! key-value cache together, as they began together: with 64 of them that was a pause of 50 to 150 ms for all, once per block
//! (docs/benchmarks/2026-11-22-streams.md). Given at the start, it is one wait before any traffic, and too little memory shows then.

use std::hint::black_box;

/// Smallest page of the systems that we run on; writing once per page is enough on those with larger ones.
const PAGE_BYTES: usize = 4 * 1024;
/// Least memory that is worth a thread of its own: about 5 ms of work.
const BYTES_PER_THREAD: usize = 16 * 1024 * 1024;

/// `len` zeros, resident; in huge pages where the system has them.
pub(crate) fn zeroed<T: Copy + Default + Send>(len: usize) -> Vec<T> {
    let mut elements = vec![T::default(); len];
    advise_huge_pages(&mut elements);
    let bytes = size_of_val(elements.as_slice());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (bytes / BYTES_PER_THREAD).clamp(1, processors);
    let share = len.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut shares = elements.chunks_mut(share);
        let own = shares.next();
        for other in shares {
            scope.spawn(move || touch(other));
        }
        own.into_iter().for_each(touch);
    });
    elements
}

/// Writes to every page.
fn touch<T: Copy + Default>(elements: &mut [T]) {
    for page in elements.chunks_mut((PAGE_BYTES / size_of::<T>().max(1)).max(1)) {
        // Without this the compiler sees zeros written over zeros and leaves it out.
        if let Some(first) = black_box(page).first_mut() {
            *first = T::default();
        }
    }
}

/// Asks for pages of 2 MiB: a fifth of the time to get them, and fewer look-ups of addresses while attention reads. A wish: the
/// system may have none, and then gives small ones.
#[cfg(target_os = "linux")]
fn advise_huge_pages<T>(elements: &mut [T]) {
    let start = elements.as_mut_ptr().addr().next_multiple_of(PAGE_BYTES);
    let end = elements.as_mut_ptr().addr() + size_of_val(elements);
    let Some(length) = end.checked_sub(start).map(|bytes| bytes / PAGE_BYTES * PAGE_BYTES) else {
        return;
    };
    let start = elements.as_mut_ptr().with_addr(start).cast();
    // SAFETY: the range lies inside memory that is borrowed mutably, and this advice does not change what the memory holds.
    unsafe { libc::madvise(start, length, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages<T>(_: &mut [T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lengths_are_zeros() {
        for len in [0, 1, 1_023, 1_024, 1_025, 5_000_000] {
            let elements = zeroed::<f32>(len);
            assert_eq!(elements.len(), len);
            assert!(elements.iter().all(|element| *element == 0.0));
        }
        assert!(zeroed::<u16>(70_000).iter().all(|element| *element == 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_pages_are_there() {
        let elements = zeroed::<f32>(4 * 1024 * 1024);
        let start = elements.as_ptr().addr().next_multiple_of(PAGE_BYTES);
        let pages = (elements.as_ptr().addr() + size_of_val(elements.as_slice()) - start) / PAGE_BYTES;
        let mut seen = vec![0_u8; pages];
        let start = elements.as_ptr().with_addr(start).cast_mut().cast();
        // SAFETY: the range lies inside `elements`, and there is a byte in `seen` for each of its pages.
        let result = unsafe { libc::mincore(start, pages * PAGE_BYTES, seen.as_mut_ptr()) };
        assert_eq!(result, 0);
        let missing = seen.iter().filter(|page| **page & 1 == 0).count();
        assert_eq!(missing, 0, "of {pages} pages");
    }
}
