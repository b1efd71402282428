//! Which pages a process has, and what the kernel knows about them: `/proc/PID/pagemap`, by `PAGEMAP_SCAN` where
//! the kernel has it (6.7), else entry by entry. Also `/proc/PID/clear_refs`, which resets what it knows.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::{BitOr, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use nix::errno::Errno;

const PAGE: u64 = 4096;
/// Pages that are written from now on are told apart, and those that match are reported only once.
const PROTECT_MATCHING: u64 = 1 << 0;
/// How many runs a call may return.
const REGIONS: usize = 512;

/// What is known about a page: `PAGE_IS_*` of linux/fs.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Categories(u64);

impl Categories {
    /// None.
    pub const NONE: Self = Self(0);
    /// A userfaultfd write-protects its mapping asynchronously.
    pub const TRACKED: Self = Self(1 << 0);
    /// It is not write-protected by a userfaultfd: in a tracked mapping, it was written since it was.
    pub const WRITTEN: Self = Self(1 << 1);
    /// It belongs to a file or to shared memory.
    pub const FILE: Self = Self(1 << 2);
    /// It is in memory.
    pub const PRESENT: Self = Self(1 << 3);
    /// It is swapped out, or the kernel has left a note in its place.
    pub const SWAPPED: Self = Self(1 << 4);
    /// It is the kernel's page of zeros.
    pub const ZERO_FRAME: Self = Self(1 << 5);
    /// It was written since `clear_refs` (6.8 in scans).
    pub const SOFT_DIRTY: Self = Self(1 << 7);
    /// It is a guard page, which has no content and never will (6.15 in scans).
    pub const GUARD: Self = Self(1 << 8);

    /// These and `other`.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of these that a scan of this kernel knows.
    fn known(self) -> Self {
        Self(self.0 & *KNOWN)
    }
}

impl BitOr for Categories {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// Which pages are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// Pages with all of these …
    pub all: Categories,
    /// … and none of these …
    pub none: Categories,
    /// … and at least one of these, where there are any.
    pub any: Categories,
    /// What is told about them. What the kernel does not know is not told.
    pub tell: Categories,
    /// Write-protects those that match and were written, in the same step: only in tracked mappings; others are
    /// passed over.
    pub protect: bool,
}

/// The pages that make up a mapping's own content: in memory or swapped out, not a file's, and not the kernel's
/// page of zeros. What CRIU dumps.
pub const OWN: Query = Query {
    all: Categories::NONE,
    none: Categories(Categories::FILE.0 | Categories::ZERO_FRAME.0),
    any: Categories(Categories::PRESENT.0 | Categories::SWAPPED.0),
    tell: Categories::PRESENT,
    protect: false,
};

/// The same of anonymous memory, which has no file's pages. Nothing else that is asked for makes the kernel look at
/// each page's own record (`pagemap_page_category`, fs/proc/task_mmu.c): a walk takes a fraction of the time.
pub const OWN_ANONYMOUS: Query = Query {
    none: Categories::ZERO_FRAME,
    ..OWN
};

/// A run of pages about which the same is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first page's address.
    pub start: u64,
    /// The address after the last page.
    pub end: u64,
    /// What of [`Query::tell`] holds for them.
    pub categories: Categories,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

mod raw {
    #![allow(missing_docs, clippy::undocumented_unsafe_blocks)]
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, super::ScanArguments);
}

/// The categories that scans of this kernel take; others make it refuse the whole scan.
static KNOWN: LazyLock<u64> = LazyLock::new(|| {
    let always = (1 << 7) - 1;
    let Ok(own) = File::open("/proc/self/pagemap") else {
        return always;
    };
    let takes = |category: Categories| {
        let query = Query {
            tell: category,
            ..Query::default()
        };
        scan(&own, 0..PAGE, query, &mut [Region::default(); 1]).is_ok()
    };
    let newer = [Categories::SOFT_DIRTY, Categories::GUARD];
    let newer = newer.into_iter().filter(|category| takes(*category));
    newer.fold(always, |known, category| known | category.0)
});

/// Whether scans of this kernel know a category.
pub fn knows(categories: Categories) -> bool {
    categories.known() == categories
}

/// Who is told of every run.
pub type EachRun<'a> = dyn FnMut(Run) + 'a;

/// Calls `each` with the runs of pages in `range` that `query` asks for, ascending.
///
/// A kernel without scans, or whose scans do not know soft-dirty pages, is asked entry by entry, which cannot tell the
/// kernel's page of zeros from others, knows nothing about tracking, and protects nothing.
pub fn pages(
    pagemap: &File,
    range: Range<u64>,
    query: Query,
    each: &mut EachRun<'_>,
) -> io::Result<()> {
    let mut start = range.start;
    let mut regions = [Region::default(); REGIONS];
    if query.tell.contains(Categories::SOFT_DIRTY) && !knows(Categories::SOFT_DIRTY) {
        return read_entries(pagemap, range, query, each);
    }
    while start < range.end {
        match scan(pagemap, start..range.end, known(query), &mut regions) {
            Ok((found, reached)) => {
                for region in &regions[..found] {
                    each(Run {
                        start: region.start,
                        end: region.end,
                        categories: Categories(region.categories),
                    });
                }
                if reached <= start {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                start = reached;
            }
            Err(Errno::ENOTTY | Errno::EINVAL) if !query.protect => {
                return read_entries(pagemap, start..range.end, query, each);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether there is any page in `range` that `query` asks for. The walk ends at the first; nothing is protected.
pub fn any(pagemap: &File, range: Range<u64>, query: Query) -> io::Result<bool> {
    let query = Query {
        protect: false,
        ..query
    };
    let mut start = range.start;
    while start < range.end {
        match scan(
            pagemap,
            start..range.end,
            known(query),
            &mut [Region::default(); 1],
        ) {
            Ok((0, reached)) if reached > start => start = reached,
            Ok((0, _)) => return Err(io::ErrorKind::InvalidData.into()),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOTTY | Errno::EINVAL) => {
                let mut found = false;
                read_entries(pagemap, range, query, &mut |_| found = true)?;
                return Ok(found);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn known(query: Query) -> Query {
    Query {
        all: query.all,
        none: query.none.known(),
        any: query.any.known(),
        tell: query.tell.known(),
        protect: query.protect,
    }
}

/// One scan: how many regions it found, and how far it came.
fn scan(
    pagemap: &File,
    range: Range<u64>,
    query: Query,
    regions: &mut [Region],
) -> nix::Result<(usize, u64)> {
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        flags: if query.protect { PROTECT_MATCHING } else { 0 },
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr().addr() as u64,
        vec_len: regions.len() as u64,
        // Whoever has room for one run wants to know whether there is one.
        max_pages: u64::from(regions.len() == 1),
        category_inverted: query.none.0,
        category_mask: query.all.0 | query.none.0,
        category_anyof_mask: query.any.0,
        return_mask: query.tell.0,
        ..ScanArguments::default()
    };
    // SAFETY: the arguments are those of linux/fs.h; `vec` and `vec_len` describe `regions`, which is borrowed
    // mutably here and outlives the call, and any bytes are a valid `Region`.
    let found = unsafe { raw::pagemap_scan(pagemap.as_raw_fd(), &mut arguments) }?;
    let found = usize::try_from(found).unwrap_or(0).min(regions.len());
    Ok((found, arguments.walk_end))
}

fn read_entries(
    pagemap: &File,
    range: Range<u64>,
    query: Query,
    each: &mut EachRun<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut run: Option<Run> = None;
    let mut at = range.start;
    while at < range.end {
        let wanted = ((range.end - at) / PAGE * 8).min(buffer.len() as u64) as usize;
        let read = pagemap.read_at(&mut buffer[..wanted], at / PAGE * 8)? & !7;
        if read == 0 {
            break;
        }
        for entry in buffer[..read].as_chunks::<8>().0 {
            let known = entry_categories(u64::from_ne_bytes(*entry));
            let next = Run {
                start: at,
                end: at + PAGE,
                categories: Categories(known.0 & query.tell.0),
            };
            at = next.end;
            let matches = known.contains(query.all)
                && known.0 & query.none.0 == 0
                && (query.any == Categories::NONE || known.0 & query.any.0 != 0);
            match &mut run {
                Some(run) if matches && run.end == next.start => {
                    if run.categories == next.categories {
                        run.end = next.end;
                    } else {
                        each(std::mem::replace(run, next));
                    }
                }
                _ if matches => {
                    if let Some(run) = run.replace(next) {
                        each(run);
                    }
                }
                _ => {}
            }
        }
    }
    if let Some(run) = run {
        each(run);
    }
    Ok(())
}

/// The frame that a page is in, if it is in memory and not soft-dirty. None, too, where frames are hidden from us: that
/// takes CAP_SYS_ADMIN.
pub fn clean_frame(pagemap: &File, vaddr: u64) -> io::Result<Option<u64>> {
    let mut entry = [0; 8];
    if pagemap.read_at(&mut entry, vaddr / PAGE * 8)? < entry.len() {
        return Ok(None);
    }
    let entry = u64::from_ne_bytes(entry);
    let known = entry_categories(entry);
    let frame = entry & ((1 << 55) - 1);
    let clean = known.contains(Categories::PRESENT) && !known.contains(Categories::SOFT_DIRTY);
    Ok((clean && frame != 0).then_some(frame))
}

/// What an entry tells (Documentation/admin-guide/mm/pagemap.rst).
fn entry_categories(entry: u64) -> Categories {
    let bit = |number: u64, category: Categories| Categories((entry >> number & 1) * category.0);
    let written = Categories((!entry >> 57 & 1) * Categories::WRITTEN.0);
    bit(63, Categories::PRESENT)
        | bit(62, Categories::SWAPPED)
        | bit(61, Categories::FILE)
        | bit(58, Categories::GUARD)
        | bit(55, Categories::SOFT_DIRTY)
        | written
}

/// Makes every page of a process not soft-dirty (4 in `clear_refs`).
///
/// A kernel without soft-dirty bits does nothing, and does not say so.
pub fn clear_soft_dirty(pid: i32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/clear_refs"))?;
    file.write_all(b"4")
}

#[cfg(test)]
mod test {
    use super::*;

    /// Memory of this process on a page's border.
    fn memory(count: usize) -> (Vec<u8>, u64) {
        let memory = vec![0u8; (count + 1) * PAGE as usize];
        let first = (memory.as_ptr().addr() as u64).next_multiple_of(PAGE);
        (memory, first)
    }

    #[test]
    fn pages_that_were_written_are_found_and_others_are_not() {
        let count = 1000;
        // Large and zeroed: mapped freshly, and not a page of it touched.
        let (mut memory, first) = memory(count);
        let base = memory.as_ptr().addr() as u64;
        for page in [3, 4, 5, 700] {
            memory[(first - base) as usize + page * PAGE as usize] = 1;
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let range = first..first + count as u64 * PAGE;
        let collect = |call: &dyn Fn(&mut EachRun<'_>)| {
            let mut found = Vec::new();
            call(&mut |run: Run| {
                assert_eq!(run.categories, Categories::PRESENT);
                let addresses = (run.start..run.end).step_by(PAGE as usize);
                found.extend(addresses.map(|a| (a - first) / PAGE));
            });
            found
        };
        let scanned = collect(&|each| pages(&pagemap, range.clone(), OWN, each).unwrap());
        let read = collect(&|each| read_entries(&pagemap, range.clone(), OWN, each).unwrap());
        // A huge page may come with a touched one: then there are more, and both ways agree.
        for page in [3, 4, 5, 700] {
            assert!(scanned.contains(&page), "{page}");
        }
        assert_eq!(scanned, read);
    }

    #[test]
    fn what_a_kernel_does_not_know_is_not_asked_for() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let (memory, first) = memory(1);
        let query = Query {
            none: OWN.none | Categories::GUARD,
            tell: Categories(u64::MAX),
            ..OWN
        };
        pages(&pagemap, first..first + PAGE, query, &mut |_| ()).unwrap();
        drop(memory);
    }
}
