//! Zeroed arrays on 2 MiB pages where the system has them.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes of a huge page.
pub const HUGE_PAGE: usize = 2 << 20;

/// Types for which zeroed memory is a value.
///
/// # Safety
/// All-zero bytes must be a valid value, and values need no drop.
pub unsafe trait Zeroed {}

// SAFETY: an integer.
unsafe impl Zeroed for u8 {}

/// An owned array, unmapped in the end.
#[derive(Debug)]
pub struct Pages<T: Zeroed> {
    first: NonNull<T>,
    count: usize,
    bytes: usize,
    is_huge: bool,
}

impl<T: Zeroed> Pages<T> {
    /// Maps `count` zeroed values, all of them backed.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn zeroed(count: usize) -> Self {
        let bytes = (count * size_of::<T>()).next_multiple_of(HUGE_PAGE);
        let map = |flags| {
            // SAFETY: a fresh private mapping at an address of the kernel's choice; it aliases nothing.
            unsafe {
                let flags = flags | MapFlags::PRIVATE | MapFlags::POPULATE;
                mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
            }
        };
        let huge = map(MapFlags::HUGETLB | MapFlags::HUGE_2MB);
        let is_huge = huge.is_ok();
        let mapping = huge.or_else(|_| map(MapFlags::empty())).expect("a benchmark needs its memory");
        let first = NonNull::new(mapping.cast()).expect("the kernel maps nothing at address 0 unasked");
        Self { first, count, bytes, is_huge }
    }

    /// Whether it lies on reserved huge pages.
    pub fn is_huge(&self) -> bool {
        self.is_huge
    }
}

impl<T: Zeroed> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `count` values, lives as long as `self`, is page-aligned, and zero bytes or what
        // was written since are valid values.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> Drop for Pages<T> {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `zeroed`; every reference into it borrowed `self`.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}
