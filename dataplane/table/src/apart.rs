//! What a worker writes, kept off the lines that others use.

use std::ops::{Deref, DerefMut};

/// A value on cache lines of its own: 128 bytes, since processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Apart<T>(T);

const _: () = assert!(size_of::<Apart<u8>>() == 128 && align_of::<Apart<u8>>() == 128);

impl<T> Apart<T> {
    /// Puts it there.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Apart<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Apart<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
