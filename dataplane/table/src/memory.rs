//! Zeroed pages for the index.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

use erhu_planes::region::Shared;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const HUGE_PAGE: usize = 2 << 20;

/// A private, zeroed array of shared words, on 2 MiB pages where the system has them.
pub struct Pages<T: Shared> {
    /// The mapping: what is unmapped in the end.
    mapping: NonNull<u8>,
    mapped_bytes: usize,
    first: NonNull<T>,
    count: usize,
}

// SAFETY: the pages belong to this value alone and live as long as it; they are reached through `&T` with `T: Shared`,
// which is atomics only.
unsafe impl<T: Shared> Send for Pages<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Pages<T> {}

impl<T: Shared> Pages<T> {
    /// Maps `count` zeroed values. With `huge` they lie on reserved 2 MiB pages if there are enough, and are backed at
    /// once; otherwise pages come when they are touched, large ones if the kernel likes.
    pub fn zeroed(count: usize, huge: bool) -> io::Result<Self> {
        let bytes = count.checked_mul(size_of::<T>()).filter(|&b| b > 0 && b < usize::MAX / 2);
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?.next_multiple_of(HUGE_PAGE);
        if huge {
            let flags = MapFlags::HUGETLB | MapFlags::HUGE_2MB | MapFlags::POPULATE;
            if let Ok(mapping) = map(bytes, flags) {
                return Ok(Self { mapping, mapped_bytes: bytes, first: mapping.cast(), count });
            }
        }
        // One huge page more than needed, so that the array can start on a boundary; the rest is never touched.
        let mapped_bytes = bytes + HUGE_PAGE;
        let mapping = map(mapped_bytes, MapFlags::NORESERVE)?;
        let skip = mapping.align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // SAFETY: `skip` is at most a huge page, and the mapping is that much longer than the array.
        let first = unsafe { mapping.add(skip) };
        for advice in [Some(Advice::LinuxHugepage), huge.then_some(Advice::LinuxPopulateWrite)].into_iter().flatten()
        {
            // SAFETY: the range lies in the mapping just made, and neither advice changes what it holds.
            let _ = unsafe { madvise(first.as_ptr().cast(), bytes, advice) };
        }
        Ok(Self { mapping, mapped_bytes, first: first.cast(), count })
    }
}

fn map(bytes: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh private mapping at an address of the kernel's choice; it aliases nothing.
    let mapping = unsafe {
        mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | flags)?
    };
    NonNull::new(mapping.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

impl<T: Shared> Deref for Pages<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `first` is aligned (a page boundary) and followed by `count` values inside the mapping, which lives
        // as long as `self`; zeros are valid, as any bytes are for `T: Shared`, and all changes go through atomics.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T: Shared> Drop for Pages<T> {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `zeroed`; every reference into it borrowed `self`.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn pages_are_zero_writable_and_aligned_with_and_without_huge_pages() {
        for huge in [false, true] {
            let pages = Pages::<AtomicU64>::zeroed(300_000, huge).unwrap();
            assert_eq!(pages.len(), 300_000);
            assert_eq!(pages.as_ptr().addr() % HUGE_PAGE, 0);
            assert!(pages.iter().all(|word| word.load(Ordering::Relaxed) == 0));
            pages[299_999].store(7, Ordering::Relaxed);
            assert_eq!(pages[299_999].load(Ordering::Relaxed), 7);
        }
    }

    #[test]
    fn no_pages_and_too_many_are_errors() {
        assert!(Pages::<AtomicU64>::zeroed(0, false).is_err());
        assert!(Pages::<AtomicU64>::zeroed(usize::MAX / 8, false).is_err());
    }
}
