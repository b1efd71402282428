//! Which trackers this kernel has, found out by trying.

use std::fs::File;
use std::io;
use std::sync::LazyLock;

use super::inject::Refusal;
use super::{HashTracker, SoftDirtyTracker, Tracker, UffdWpTracker};
use crate::model::{TrackerChoice, TrackerOffer};
use crate::sys::pagemap::{self, Categories, Query};
use crate::sys::userfaultfd::{
    self, FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED, MODE_WP, USER_MODE_ONLY,
};

/// The trackers, best first, CRIU's own way last, and whether this kernel has what each needs, and why not.
pub fn offered() -> Vec<TrackerOffer> {
    let offer = |kind, tried: Result<&str, &Missing>| TrackerOffer {
        kind,
        usable: tried.is_ok(),
        why: tried.map_or_else(|missing| missing.to_string(), str::to_owned),
    };
    vec![
        offer(TrackerChoice::UffdWp, try_uffd_wp().as_ref().copied()),
        offer(TrackerChoice::SoftDirty, has_soft_dirty()),
        offer(
            TrackerChoice::Hash,
            Ok("all memory is read and compared in each round"),
        ),
        offer(
            TrackerChoice::Criu,
            has_soft_dirty().map(|_| "CRIU's own pre-dumps, by soft-dirty bits: the container stands still in each round"),
        ),
    ]
}

/// A tracker of this kind; for [`TrackerChoice::Auto`] the best that this kernel has. What is not [`offered`] is no
/// choice: memory is then compared, which is right everywhere. CRIU's own way is no tracker.
pub fn choose(kind: TrackerChoice) -> Box<dyn Tracker> {
    match kind {
        TrackerChoice::UffdWp => Box::new(UffdWpTracker::new()),
        TrackerChoice::SoftDirty if has_soft_dirty().is_ok() => Box::new(SoftDirtyTracker::new()),
        TrackerChoice::Auto if try_uffd_wp().is_ok() => Box::new(UffdWpTracker::new()),
        TrackerChoice::Auto if has_soft_dirty().is_ok() => Box::new(SoftDirtyTracker::new()),
        _ => Box::new(HashTracker::new()),
    }
}

/// What a tracker needs and does not find.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("{}", Refusal::Architecture)]
    Architecture,
    #[error("this kernel has no userfaultfd: {source}")]
    Userfaultfd { source: io::Error },
    #[error("this kernel's userfaultfd cannot protect asynchronously (Linux 6.7): {source}")]
    Asynchronous { source: io::Error },
    #[error("a write to a protected page was not found: {source}")]
    Scan { source: io::Error },
    #[error(
        "this kernel does not tell which pages were written (it is built without CONFIG_MEM_SOFT_DIRTY)"
    )]
    SoftDirty,
    #[error("soft-dirty bits cannot be cleared and read: {source}")]
    SoftDirtyFile { source: io::Error },
    #[error("page frames are hidden from Godwit, which needs CAP_SYS_ADMIN to see them")]
    Frames,
}

/// Tried once: a clear while another is being tried would make that fail.
fn has_soft_dirty() -> Result<&'static str, &'static Missing> {
    static TRIED: LazyLock<Result<&str, Missing>> = LazyLock::new(try_soft_dirty);
    TRIED.as_ref().copied()
}

fn try_soft_dirty() -> Result<&'static str, Missing> {
    let file = |source| Missing::SoftDirtyFile { source };
    // A mapping that grows counts as dirty as a whole, and other threads may make ours grow: more than once, then.
    let mut tries = (0..8).map(|_| notices_a_write().map_err(file));
    let found = tries.find(|tried| !matches!(tried, Ok((false, _))));
    match found.transpose()? {
        Some((_, Some(_))) => {
            Ok("writes are found by soft-dirty bits, without a pause; they are cleared seldom")
        }
        Some((_, None)) => Err(Missing::Frames),
        None => Err(Missing::SoftDirty),
    }
}

/// Whether a page of our own is clean after a clear and dirty after a write, and the frame it is in.
fn notices_a_write() -> io::Result<(bool, Option<u64>)> {
    let page = crate::model::PAGE_SIZE;
    let mut memory = vec![1u8; 64 * page as usize];
    let base = memory.as_ptr().addr() as u64;
    let first = base.next_multiple_of(page);
    let pagemap = File::open("/proc/self/pagemap")?;
    let is_dirty = || {
        let query = Query {
            tell: Categories::SOFT_DIRTY,
            ..pagemap::OWN
        };
        let mut dirty = false;
        pagemap::pages(&pagemap, first..first + page, query, &mut |run| {
            dirty |= run.categories.contains(Categories::SOFT_DIRTY);
        })?;
        io::Result::Ok(dirty)
    };
    pagemap::clear_soft_dirty(std::process::id().cast_signed())?;
    let before = is_dirty()?;
    let frame = pagemap::clean_frame(&pagemap, first)?;
    memory[(first - base) as usize] = 2;
    std::hint::black_box(&memory);
    Ok((!before && is_dirty()?, frame))
}

fn try_uffd_wp() -> Result<&'static str, Missing> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Missing::Architecture);
    }
    let uffd = userfaultfd::create(USER_MODE_ONLY);
    let uffd = uffd.map_err(|source| Missing::Userfaultfd { source })?;
    let features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
    let handshake = uffd.handshake(features);
    handshake.map_err(|source| Missing::Asynchronous { source })?;
    let scan = |source| Missing::Scan { source };
    // Memory of our own, on pages of its own, so that nobody else's is registered.
    let page = crate::model::PAGE_SIZE as usize;
    let mut memory = vec![1u8; 64 * page];
    let first = (memory.as_ptr().addr() as u64).next_multiple_of(page as u64);
    let range = first..first + 32 * page as u64;
    let pagemap = File::open("/proc/self/pagemap").map_err(scan)?;
    uffd.register(range.clone(), MODE_WP).map_err(scan)?;
    let query = Query {
        all: Categories::TRACKED.union(Categories::WRITTEN),
        any: Categories::PRESENT,
        tell: Categories::WRITTEN,
        protect: true,
        ..Query::default()
    };
    let mut written = Vec::new();
    pagemap::pages(&pagemap, range.clone(), query, &mut |_| ()).map_err(scan)?;
    memory[40 * page] = 2;
    let at = (memory.as_ptr().addr() + 40 * page) as u64;
    memory[8 * page] = 2;
    let at = if range.contains(&at) {
        at
    } else {
        (memory.as_ptr().addr() + 8 * page) as u64
    };
    std::hint::black_box(&memory);
    pagemap::pages(&pagemap, range, query, &mut |run| {
        written.push(run.start..run.end)
    })
    .map_err(scan)?;
    if written.iter().any(|run| run.contains(&at)) && written.len() < 3 {
        Ok("writes are found by asynchronous write protection, without a pause")
    } else {
        Err(scan(io::ErrorKind::InvalidData.into()))
    }
}
