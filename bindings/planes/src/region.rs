//! A mapped file or memfd: the only place where this crate touches raw memory.
//!
//! # Life-cycle
//!
//! The dataplane creates a region at its final size and never truncates it, so that a mapping can never fault
//! for lack of a file behind it. Pages are taken with [`Region::allocate`] (an error when there are none, never a
//! SIGBUS) and given back with [`Region::punch`]. Readers attach read-only and check the [`RegionHeader`].
//!
//! # Synchronisation
//!
//! A region hands out only `&T` where `T` is [`Shared`]: plain atomics, valid for any bytes. What the words mean
//! together is the business of the module that defines them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// First word of every region: "erhuSHM" and a version of the header itself.
pub const MAGIC: u64 = u64::from_le_bytes(*b"erhuSHM1");

/// Bytes of a page, and of a huge one.
const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

/// Types that may lie in shared memory.
///
/// # Safety
///
/// Every field must be an atomic integer (or an array or struct of such, or padding made of them), so that any
/// byte pattern is a valid value and concurrent changes by another process are no data race.
pub unsafe trait Shared: Sized {}

// SAFETY: atomic integers themselves.
unsafe impl Shared for AtomicU8 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU16 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}
// SAFETY: an array of shared values has no bytes but theirs.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// What a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// Counters.
    Stats = 1,
    /// The connection slab.
    Connections = 2,
    /// Event rings.
    Events = 3,
}

/// The first 64 bytes of every region. All words are `[I]`: fixed before `magic` is stored (Release).
#[repr(C, align(64))]
pub struct RegionHeader {
    /// [`MAGIC`]; stored last.
    pub magic: AtomicU64,
    /// [`RegionKind`].
    pub kind: AtomicU32,
    /// Version of the layout behind the header.
    pub layout_version: AtomicU32,
    /// Hash of sizes and offsets of the layout; differs where two builds differ without a new version.
    pub layout_hash: AtomicU64,
    /// Random, one per dataplane process.
    pub instance_id: AtomicU64,
    /// The machine's boot, as a hash: deadlines of another boot mean nothing.
    pub boot_id: AtomicU64,
    /// Bytes of the whole region.
    pub size: AtomicU64,
    /// Process that writes it.
    pub writer_pid: AtomicU32,
    _reserved: [AtomicU32; 3],
}

// SAFETY: atomics only.
unsafe impl Shared for RegionHeader {}
const _: () = assert!(size_of::<RegionHeader>() == 64);

/// Why a region cannot be made or attached.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The system refused.
    #[error("{path}: {action}: {source}")]
    System {
        /// File, or what stands for it.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not a region of this kind, version or layout.
    #[error("{path}: {what}: found {found:#x}, expected {expected:#x}")]
    Refused {
        /// File, or what stands for it.
        path: String,
        /// Which header field.
        what: &'static str,
        /// In the file.
        found: u64,
        /// In this program.
        expected: u64,
    },
    /// A place outside of the region or misaligned.
    #[error("{path}: bytes {offset}+{len} are not inside a region of {size} bytes, or misaligned")]
    OutOfBounds {
        /// File, or what stands for it.
        path: String,
        /// First byte.
        offset: usize,
        /// Number of bytes.
        len: usize,
        /// Size of the region.
        size: usize,
    },
}

/// A shared mapping of a file, owned.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    len: usize,
    writable: bool,
    file: OwnedFd,
    path: PathBuf,
}

// SAFETY: the mapping lives as long as the region and everything in it is reached through atomics.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` only gives out `&T` with `T: Shared`.
unsafe impl Sync for Region {}

impl Region {
    /// Creates the file (replacing one that exists) with `size` bytes, none of them backed yet, and maps it writable.
    ///
    /// # Errors
    /// [`RegionError::System`] if the file cannot be created, sized or mapped.
    pub fn create(path: &Path, size: usize, mode: u32) -> Result<Self, RegionError> {
        use std::os::unix::fs::OpenOptionsExt;
        let fail = |action, source| RegionError::System { path: path.display().to_string(), action, source };
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail("replace", e)),
            _ => {}
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(|e| fail("create", e))?;
        ftruncate(&file, size as u64).map_err(|e| fail("set the size of", e.into()))?;
        Self::map(file.into(), path, size, true)
    }

    /// An anonymous region (memfd) of `size` bytes, none of them backed yet.
    ///
    /// # Errors
    /// [`RegionError::System`] if the system refuses.
    pub fn anonymous(name: &str, size: usize) -> Result<Self, RegionError> {
        let fail = |action, source: rustix::io::Errno| RegionError::System {
            path: name.to_owned(),
            action,
            source: source.into(),
        };
        let fd = memfd_create(name, MemfdFlags::CLOEXEC).map_err(|e| fail("create", e))?;
        ftruncate(&fd, size as u64).map_err(|e| fail("set the size of", e))?;
        Self::map(fd, Path::new(name), size, true)
    }

    /// An anonymous region on 2 MiB pages, all of them taken at once.
    ///
    /// # Errors
    /// [`RegionError::System`] if there are not enough free huge pages.
    pub fn anonymous_huge(name: &str, size: usize) -> Result<Self, RegionError> {
        let fail = |action, source: rustix::io::Errno| RegionError::System {
            path: name.to_owned(),
            action,
            source: source.into(),
        };
        let size = size.next_multiple_of(2 << 20);
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
            .map_err(|e| fail("create on huge pages", e))?;
        ftruncate(&fd, size as u64).map_err(|e| fail("set the size of", e))?;
        fallocate(&fd, FallocateFlags::empty(), 0, size as u64).map_err(|e| fail("take huge pages for", e))?;
        Self::map(fd, Path::new(name), size, true)
    }

    /// Maps an existing region read-only and checks its header.
    ///
    /// # Errors
    /// [`RegionError::System`] if it cannot be opened, [`RegionError::Refused`] if it is not what `expect` says.
    pub fn attach(path: &Path, expect: &Expect) -> Result<Self, RegionError> {
        let fail = |action, source| RegionError::System { path: path.display().to_string(), action, source };
        let file = File::open(path).map_err(|e| fail("open", e))?;
        let size = file.metadata().map_err(|e| fail("measure", e))?.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size < size_of::<RegionHeader>() {
            return Err(RegionError::Refused {
                path: path.display().to_string(),
                what: "size",
                found: size as u64,
                expected: size_of::<RegionHeader>() as u64,
            });
        }
        let region = Self::map(file.into(), path, size, false)?;
        region.check(expect)?;
        Ok(region)
    }

    /// A second, read-only mapping of the same region, as another process would attach it.
    ///
    /// # Errors
    /// As [`Region::attach`].
    pub fn reattach(&self, expect: &Expect) -> Result<Self, RegionError> {
        let file = self.file.try_clone().map_err(|source| self.system("duplicate", source))?;
        let region = Self::map(file, &self.path, self.len, false)?;
        region.check(expect)?;
        Ok(region)
    }

    fn system(&self, action: &'static str, source: std::io::Error) -> RegionError {
        RegionError::System { path: self.path.display().to_string(), action, source }
    }

    fn map(file: OwnedFd, path: &Path, len: usize, writable: bool) -> Result<Self, RegionError> {
        let fail = |source: rustix::io::Errno| RegionError::System {
            path: path.display().to_string(),
            action: "map",
            source: source.into(),
        };
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        if len < HUGE_PAGE {
            // SAFETY: a fresh mapping at an address of the kernel's choice; it aliases nothing of this process.
            let base = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file.as_fd(), 0) };
            return Ok(Self { base: base.map_err(fail)?.cast(), len, writable, file, path: path.to_owned() });
        }
        // On a boundary of huge pages, so that a huge page of the file can be one of the mapping: a reservation that
        // is long enough is made first, and what it has too much is given back.
        let reserved = len + HUGE_PAGE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as above; nothing can be read or written there.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags) };
        let start: *mut u8 = start.map_err(fail)?.cast();
        let before = start.align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // SAFETY: `before` is at most a huge page, and the reservation is longer than the region by that much. The new
        // mapping replaces a part of the reservation, of which nobody else knows.
        let base = unsafe {
            mmap(start.add(before).cast(), len, protection, MapFlags::SHARED | MapFlags::FIXED, file.as_fd(), 0)
        };
        let end = before + len.next_multiple_of(PAGE);
        // SAFETY: the parts of the reservation before and behind the new mapping, or all of it where there is none.
        unsafe {
            if base.is_err() {
                let _ = munmap(start.cast(), reserved);
            } else {
                if before > 0 {
                    let _ = munmap(start.cast(), before);
                }
                if end < reserved {
                    let _ = munmap(start.add(end).cast(), reserved - end);
                }
            }
        }
        Ok(Self { base: base.map_err(fail)?.cast(), len, writable, file, path: path.to_owned() })
    }

    /// Puts a range of whole huge pages (2 MiB) that [`Self::allocate`] has backed on huge pages, whatever the file
    /// system's own habit is. It copies what is there; meanwhile others that touch it wait. Returns whether the kernel
    /// did (Linux 6.1 and later, where it has such pages to give).
    pub fn collapse(&self, offset: usize, len: usize) -> bool {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !inside || !offset.is_multiple_of(HUGE_PAGE) || !len.is_multiple_of(HUGE_PAGE) || len == 0 {
            return false;
        }
        // SAFETY: the range was just checked to lie in our mapping, and the advice changes no contents.
        unsafe { libc::madvise(self.base.add(offset).cast(), len, libc::MADV_COLLAPSE) == 0 }
    }

    /// Asks for transparent huge pages; best effort.
    pub fn advise_huge(&self) {
        // SAFETY: the range is exactly our mapping and the advice changes no contents.
        let _ = unsafe { madvise(self.base.cast(), self.len, Advice::LinuxHugepage) };
    }

    /// Bytes of the whole region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory that back it at present, as the file system counts them.
    pub fn backed(&self) -> u64 {
        rustix::fs::fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this mapping may be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Takes pages for a range, so that touching it cannot fail later.
    ///
    /// # Errors
    /// [`RegionError::System`] if there is no memory or no quota.
    pub fn allocate(&self, offset: usize, len: usize) -> Result<(), RegionError> {
        fallocate(&self.file, FallocateFlags::empty(), offset as u64, len as u64)
            .map_err(|e| self.system("take pages for", e.into()))
    }

    /// Gives the pages of a range back; it reads as zeros afterwards. Best effort.
    pub fn punch(&self, offset: usize, len: usize) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(&self.file, flags, offset as u64, len as u64);
    }

    /// One value at a byte offset.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if it is not wholly inside, or misaligned.
    pub fn get<T: Shared>(&self, offset: usize) -> Result<&T, RegionError> {
        self.slice(offset, 1).map(|s: &[T]| &s[0])
    }

    /// `count` consecutive values at a byte offset.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if they are not wholly inside, or misaligned.
    pub fn slice<T: Shared>(&self, offset: usize, count: usize) -> Result<&[T], RegionError> {
        let bytes = count.checked_mul(size_of::<T>());
        let end = bytes.and_then(|b| offset.checked_add(b));
        match end {
            Some(end) if end <= self.len && offset.is_multiple_of(align_of::<T>()) && count > 0 => {
                // SAFETY: the range was just checked to lie in the mapping, which is page-aligned, and the offset to
                // be aligned; `T: Shared` is valid for any bytes and tolerates concurrent writers; the mapping lives
                // as long as `self`. A read-only mapping is written only through atomics' stores, which callers of
                // attached regions have no reason to use and which would fault rather than corrupt.
                Ok(unsafe { std::slice::from_raw_parts(self.base.add(offset).cast(), count) })
            }
            _ => Err(RegionError::OutOfBounds {
                path: self.path.display().to_string(),
                offset,
                len: bytes.unwrap_or(usize::MAX),
                size: self.len,
            }),
        }
    }

    /// The header.
    pub fn header(&self) -> &RegionHeader {
        self.get(0).expect("every region is made or attached with at least a header")
    }

    /// Fills the header; the region can be attached from then on.
    pub fn publish_header(&self, expect: &Expect, instance_id: u64) {
        let header = self.header();
        header.kind.store(expect.kind as u32, Ordering::Relaxed);
        header.layout_version.store(expect.layout_version, Ordering::Relaxed);
        header.layout_hash.store(expect.layout_hash, Ordering::Relaxed);
        header.instance_id.store(instance_id, Ordering::Relaxed);
        header.boot_id.store(boot_id(), Ordering::Relaxed);
        header.size.store(self.len as u64, Ordering::Relaxed);
        header.writer_pid.store(std::process::id(), Ordering::Relaxed);
        // Release; pairs with the Acquire in `check`.
        header.magic.store(MAGIC, Ordering::Release);
    }

    /// Compares the header with what this program was built for.
    ///
    /// # Errors
    /// [`RegionError::Refused`] naming the first field that differs.
    pub fn check(&self, expect: &Expect) -> Result<(), RegionError> {
        let header = self.header();
        let magic = header.magic.load(Ordering::Acquire);
        let rows = [
            ("magic", magic, MAGIC),
            ("kind", u64::from(header.kind.load(Ordering::Relaxed)), expect.kind as u64),
            (
                "layout version",
                u64::from(header.layout_version.load(Ordering::Relaxed)),
                u64::from(expect.layout_version),
            ),
            ("layout hash", header.layout_hash.load(Ordering::Relaxed), expect.layout_hash),
            ("size", header.size.load(Ordering::Relaxed), self.len as u64),
        ];
        for (what, found, expected) in rows {
            if found != expected {
                return Err(RegionError::Refused { path: self.path.display().to_string(), what, found, expected });
            }
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; every reference into it borrowed `self`.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// What a header must say to be accepted.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// What the region holds.
    pub kind: RegionKind,
    /// Layout version.
    pub layout_version: u32,
    /// Hash of sizes and offsets.
    pub layout_hash: u64,
}

/// FNV-1a over a list of sizes and offsets: a cheap guard against builds that differ without a new version.
pub const fn layout_hash(facts: &[usize]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < facts.len() {
        let bytes = (facts[at] as u64).to_le_bytes();
        let mut b = 0;
        while b < bytes.len() {
            hash = (hash ^ bytes[b] as u64).wrapping_mul(0x0100_0000_01b3);
            b += 1;
        }
        at += 1;
    }
    hash
}

/// A hash of the machine's boot id; 0 where the system tells none.
pub fn boot_id() -> u64 {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let facts: Vec<usize> = text.into_iter().map(usize::from).collect();
    if facts.is_empty() { 0 } else { layout_hash(&facts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_region_lies_on_a_huge_page_boundary_and_keeps_what_is_collapsed() {
        let region = Region::anonymous("large", 3 * HUGE_PAGE + PAGE).unwrap();
        assert_eq!(region.base.addr() % HUGE_PAGE, 0);
        region.allocate(HUGE_PAGE, HUGE_PAGE).unwrap();
        assert_eq!(region.backed(), HUGE_PAGE as u64);
        let word: &AtomicU64 = region.get(HUGE_PAGE + 800).unwrap();
        word.store(7, Ordering::Relaxed);
        // Where the kernel cannot, nothing happens.
        region.collapse(HUGE_PAGE, HUGE_PAGE);
        assert_eq!((word.load(Ordering::Relaxed), region.backed()), (7, HUGE_PAGE as u64));
        assert!(
            !region.collapse(PAGE, HUGE_PAGE) && !region.collapse(0, PAGE) && !region.collapse(0, 64 * HUGE_PAGE)
        );
        region.punch(HUGE_PAGE, HUGE_PAGE);
        // Looking at it takes a page.
        assert_eq!((region.backed(), word.load(Ordering::Relaxed)), (0, 0));
        let last: &AtomicU64 = region.get(3 * HUGE_PAGE + PAGE - 8).unwrap();
        assert_eq!(last.load(Ordering::Relaxed), 0);
    }

    const EXPECT: Expect = Expect { kind: RegionKind::Stats, layout_version: 3, layout_hash: 7 };

    #[test]
    fn a_region_is_refused_until_its_header_is_published_and_by_any_other_expectation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let region = Region::create(&path, 8192, 0o640).unwrap();
        assert!(Region::attach(&path, &EXPECT).unwrap_err().to_string().contains("magic"));
        region.publish_header(&EXPECT, 42);
        assert_eq!(Region::attach(&path, &EXPECT).unwrap().header().instance_id.load(Ordering::Relaxed), 42);
        for (other, what) in [
            (Expect { kind: RegionKind::Events, ..EXPECT }, "kind"),
            (Expect { layout_version: 4, ..EXPECT }, "layout version"),
            (Expect { layout_hash: 8, ..EXPECT }, "layout hash"),
        ] {
            assert!(Region::attach(&path, &other).unwrap_err().to_string().contains(what));
        }
    }

    #[test]
    fn a_short_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        std::fs::write(&path, b"erhu").unwrap();
        assert!(matches!(Region::attach(&path, &EXPECT), Err(RegionError::Refused { what: "size", .. })));
    }

    #[test]
    fn places_outside_or_misaligned_are_errors() {
        let region = Region::anonymous("test", 4096).unwrap();
        assert!(region.get::<AtomicU64>(4096 - 8).is_ok());
        for (offset, count) in [(4096, 1), (4090, 1), (4, 1), (0, 513), (usize::MAX - 7, 1), (0, usize::MAX)] {
            assert!(region.slice::<AtomicU64>(offset, count).is_err(), "{offset} {count}");
        }
    }

    #[test]
    fn what_the_writer_stores_a_reader_sees() {
        let region = Region::anonymous("test", 4096).unwrap();
        region.publish_header(&EXPECT, 1);
        let reader = region.reattach(&EXPECT).unwrap();
        region.get::<AtomicU64>(512).unwrap().store(99, Ordering::Release);
        assert_eq!(reader.get::<AtomicU64>(512).unwrap().load(Ordering::Acquire), 99);
        assert!(!reader.is_writable());
    }
}
