//! The atomics of the index and of reclamation, from one place, so that the model checker can put its own there.

pub use std::sync::atomic::Ordering;

#[cfg(not(feature = "loom"))]
pub use std::{
    hint::spin_loop,
    sync::Arc,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence},
};

#[cfg(feature = "loom")]
pub use self::modelled::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};
#[cfg(feature = "loom")]
pub use loom::{hint::spin_loop, sync::Arc, sync::atomic::fence};

/// Loom's atomics, with loads that it does not overlook: it remembers the last access to a word alone, and so does not
/// see that a store races with another thread's load if the storing thread loaded the word in between. Here a load
/// comes behind a read-modify-write of one word by everybody, which orders nothing but makes threads take turns.
#[cfg(feature = "loom")]
mod modelled {
    use super::Ordering;
    use std::ops::Deref;

    loom::lazy_static! {
        static ref TURNS: loom::sync::atomic::AtomicU8 = loom::sync::atomic::AtomicU8::new(0);
    }

    macro_rules! atomics {
        ($($name:ident $word:ident),+) => { $(
            pub struct $name(loom::sync::atomic::$name);

            impl $name {
                pub fn new(value: $word) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $word {
                    TURNS.fetch_add(0, Ordering::Relaxed);
                    self.0.load(order)
                }
            }

            impl Deref for $name {
                type Target = loom::sync::atomic::$name;

                fn deref(&self) -> &Self::Target {
                    &self.0
                }
            }
        )+ };
    }
    atomics!(AtomicU8 u8, AtomicU16 u16, AtomicU32 u32, AtomicU64 u64);
}
