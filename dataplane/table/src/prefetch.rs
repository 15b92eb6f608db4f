//! Asking for memory ahead of its use.

/// Asks for the line at an address; any address will do, a prefetch cannot fault.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86_64, and prefetching does not access memory in the language's sense.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the line of something that exists.
#[inline(always)]
pub fn prefetch_line<T>(what: &T) {
    prefetch(what);
}
