//! What `/proc` tells of a task's memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};

use super::super::MemoryError;
use super::maps::{self, Device, Mapping, Private, Special};
use crate::model::PAGE_SIZE;
use crate::sys::pagemap::{self, Categories, Query, Run};
use crate::sys::process_memory::ProcessMemory;
use crate::sys::{procmap, scheduling};

/// At most so many threads walk a page table.
const THREADS: usize = 4;
/// From so many bytes of memory on a thread more is worth its start: a tenth of a millisecond, or 5000 pages.
const WORTH_A_THREAD: u64 = 128 << 20;
/// What one page table maps.
const TABLE: u64 = 2 << 20;

/// A task's memory, as it was when this was opened. After an exec it is empty.
#[derive(Debug)]
pub struct Task {
    pub pid: i32,
    pub pagemap: File,
    pub memory: ProcessMemory,
    maps: File,
    pub mappings: Vec<Mapping>,
}

impl Task {
    /// Looks at a task; none where it has ended or has no memory any more.
    pub fn open(pid: i32) -> Result<Option<Self>, MemoryError> {
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let failed = |operation| {
            move |source| MemoryError::Task {
                operation,
                pid,
                source,
            }
        };
        let pagemap = alive(File::open(of("pagemap"))).map_err(failed("open the page table"))?;
        let memory = alive(ProcessMemory::open(pid)).map_err(failed("open the memory"))?;
        let now = alive(File::open(of("maps"))).map_err(failed("open the mappings"))?;
        // Last: of an address space that an exec has replaced in between, no page is found.
        let maps = alive(fs::read_to_string(of("maps"))).map_err(failed("read the mappings"))?;
        let (Some(pagemap), Some(memory), Some(now), Some(maps)) = (pagemap, memory, now, maps)
        else {
            return Ok(None);
        };
        let mappings = maps::parse(&maps);
        Ok(Some(Self {
            pid,
            pagemap,
            memory,
            maps: now,
            mappings,
        }))
    }

    /// The private mappings that a dump takes page by page.
    pub fn private(&self, file_systems: &mut FileSystems) -> Vec<Private> {
        let private = self.mappings.iter().filter_map(|mapping| match mapping {
            Mapping::Private(private) => Some(private),
            Mapping::Shared { .. } => None,
        });
        private
            .filter(|private| !file_systems.is_huge(self.pid, private))
            .cloned()
            .collect()
    }

    /// A range that ended where mappings ended when this was opened, and now where they end now. Where the kernel
    /// cannot tell it is as it was.
    pub fn whole(&self, range: &Range<u64>) -> Range<u64> {
        let at = |address| procmap::mapping(&self.maps, address).ok().flatten();
        let first = at(range.start).map_or(range.start, |mapping| mapping.start);
        let last = at(range.end - 1).map_or(range.end, |mapping| mapping.end);
        first..last
    }

    /// The runs of pages that match, each with what is known of it.
    pub fn pages(
        &self,
        range: &Range<u64>,
        query: Query,
        each: &mut pagemap::EachRun<'_>,
    ) -> Result<(), MemoryError> {
        let scanned = alive(pagemap::pages(&self.pagemap, range.clone(), query, each));
        scanned.map(drop).map_err(|source| MemoryError::Task {
            operation: "read the page table",
            pid: self.pid,
            source,
        })
    }

    /// The same, of a task that stands still and whose host waits for this: large ranges are walked by several threads,
    /// 20 ns a page each. Nothing is protected.
    pub fn pages_soon(
        &self,
        range: &Range<u64>,
        query: Query,
        each: &mut pagemap::EachRun<'_>,
    ) -> Result<(), MemoryError> {
        let threads = scheduling::processors().min(THREADS);
        let parts = parts(range, threads);
        if parts.len() < 2 {
            return self.pages(range, query, each);
        }
        let walk = |part: &Range<u64>| {
            let mut runs: Vec<Run> = Vec::new();
            self.pages(part, query, &mut |run| runs.push(run))
                .map(|()| runs)
        };
        let walked = thread::scope(|scope| {
            let others: Vec<_> = parts[1..]
                .iter()
                .map(|part| scope.spawn(|| walk(part)))
                .collect();
            let mut all = vec![walk(&parts[0])];
            all.extend(others.into_iter().map(|other| match other.join() {
                Ok(runs) => runs,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
            all
        });
        for runs in walked {
            runs?.into_iter().for_each(&mut *each);
        }
        Ok(())
    }

    /// Whether a mapping has any page that `query` asks for: the walk ends at the first.
    pub fn any(&self, range: &Range<u64>, query: Query) -> Result<bool, MemoryError> {
        let found = alive(pagemap::any(&self.pagemap, range.clone(), query));
        let found = found.map_err(|source| MemoryError::Task {
            operation: "read the page table",
            pid: self.pid,
            source,
        })?;
        Ok(found.unwrap_or(false))
    }

    /// The runs of pages of its own in a mapping. Guard pages have no content.
    pub fn own(&self, mapping: &Private) -> Result<Vec<Range<u64>>, MemoryError> {
        let own = mapping.own();
        let query = Query {
            none: own.none | Categories::GUARD,
            ..own
        };
        let mut runs = Vec::new();
        self.pages(&mapping.range, query, &mut |run| {
            super::residual::extend(&mut runs, run.start..run.end);
        })?;
        Ok(runs)
    }

    /// The frame that a page is in, if it is in memory and not soft-dirty.
    pub fn clean_frame(&self, vaddr: u64) -> Result<Option<u64>, MemoryError> {
        let frame = alive(pagemap::clean_frame(&self.pagemap, vaddr));
        frame
            .map(Option::flatten)
            .map_err(|source| MemoryError::Task {
                operation: "read the page table",
                pid: self.pid,
                source,
            })
    }

    /// What only `smaps` tells, which costs a walk through all page tables: only where it may tell something.
    pub fn special(&self, always: bool) -> Result<Vec<(Range<u64>, Special)>, MemoryError> {
        let of = |name: &str| format!("/proc/{}/{name}", self.pid);
        let failed = |source| MemoryError::Task {
            operation: "read the kinds of mappings",
            pid: self.pid,
            source,
        };
        let status = alive(fs::read_to_string(of("status"))).map_err(failed)?;
        if !always && !status.is_some_and(|status| may_be_special(&status)) {
            return Ok(Vec::new());
        }
        let smaps = alive(fs::read_to_string(of("smaps"))).map_err(failed)?;
        Ok(smaps.map_or_else(Vec::new, |smaps| maps::special(&smaps)))
    }

    /// The pages that the stack pointers of its threads point into, ascending. None where one cannot be learnt,
    /// as of a thread that is running.
    pub fn stacks(&self) -> Option<Vec<u64>> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let mut pages = Vec::new();
        for thread in threads {
            let file = thread.ok()?.path().join("syscall");
            let pointer = (0..20).find_map(|attempt| {
                if attempt > 0 {
                    thread::sleep(Duration::from_micros(500));
                }
                match alive(fs::read_to_string(&file)) {
                    Ok(Some(text)) => stack_pointer(&text).map(Some),
                    Ok(None) => Some(None),
                    Err(_) => None,
                }
            })?;
            pages.extend(pointer.map(|pointer| pointer - pointer % PAGE_SIZE));
        }
        pages.sort_unstable();
        pages.dedup();
        Some(pages)
    }
}

/// Whether a task may have mappings that only `smaps` knows to be special: locked memory, or shadow stacks.
fn may_be_special(status: &str) -> bool {
    status.lines().any(|line| {
        let Some((name, value)) = line.split_once(':') else {
            return false;
        };
        match name {
            "VmLck" => !value.trim().starts_with("0 "),
            "x86_Thread_features" => value.contains("shstk"),
            _ => false,
        }
    })
}

/// The stack pointer in `/proc/PID/task/TID/syscall`, the last but one of its numbers.
fn stack_pointer(text: &str) -> Option<u64> {
    let pointer = text.split_ascii_whitespace().rev().nth(1)?;
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()
}

/// Which devices are file systems of huge pages: their memory is not dumped page by page.
#[derive(Debug, Default)]
pub struct FileSystems {
    huge: HashMap<Device, bool>,
}

impl FileSystems {
    fn is_huge(&mut self, pid: i32, private: &Private) -> bool {
        // Only a file system without a disk can be one.
        let Some(device) = private.file.filter(|(major, _)| *major == 0) else {
            return false;
        };
        *self.huge.entry(device).or_insert_with(|| {
            let Range { start, end } = private.range;
            let link = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
            statfs(link.as_str()).is_ok_and(|found| found.filesystem_type() == HUGETLBFS_MAGIC)
        })
    }
}

/// What a task that has ended does not have any more is nothing, and no error.
pub fn alive<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A range in as many parts as are worth a thread each, cut where page tables end.
fn parts(range: &Range<u64>, threads: usize) -> Vec<Range<u64>> {
    let length = range.end.saturating_sub(range.start);
    let count = (length / WORTH_A_THREAD).clamp(1, threads as u64);
    let cut = |number: u64| match number {
        0 => range.start,
        last if last == count => range.end,
        _ => (range.start + length / count * number) / TABLE * TABLE,
    };
    (0..count)
        .map(|number| cut(number)..cut(number + 1))
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_stack_pointer_is_read_where_there_is_one() {
        let blocked = "0 0x3 0x7ffd 0x400 0x0 0x0 0x0 0x7ffd7a1c9e28 0x7f1b2e1f1992\n";
        assert_eq!(stack_pointer(blocked), Some(0x7ffd_7a1c_9e28));
        let stopped = "-1 0x7ffd7a1c9e28 0x7f1b2e1f1992\n";
        assert_eq!(stack_pointer(stopped), Some(0x7ffd_7a1c_9e28));
        for text in ["running\n", "", "-1", "0 1 2"] {
            assert_eq!(stack_pointer(text), None, "{text:?}");
        }
    }

    #[test]
    fn locked_memory_and_shadow_stacks_ask_for_a_closer_look() {
        let status = |locked, features| {
            format!("Name:\tx\nVmLck:\t     {locked} kB\nx86_Thread_features:\t{features}\n")
        };
        assert!(!may_be_special(&status("0", "")));
        assert!(may_be_special(&status("4", "")));
        assert!(may_be_special(&status("0", "shstk wrss ")));
        assert!(!may_be_special(""));
    }

    #[test]
    fn a_large_range_is_cut_where_page_tables_end() {
        assert_eq!(parts(&(0x1000..0x2000), 4).len(), 1);
        let start = 0x7000_0000_1000;
        let large = start..start + (1 << 30) + 0x3000;
        let cut = parts(&large, 3);
        assert_eq!(cut.len(), 3);
        assert_eq!((cut[0].start, cut[2].end), (large.start, large.end));
        for pair in cut.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert_eq!(pair[0].end % TABLE, 0);
        }
        assert_eq!(parts(&(start..start + WORTH_A_THREAD * 2), 8).len(), 2);
    }

    #[test]
    fn several_threads_find_what_one_finds() {
        let length = 4 * WORTH_A_THREAD as usize;
        // Such an amount is of pages of its own, which are there when they are written to.
        let mut memory = vec![0_u8; length];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
        memory
            .iter_mut()
            .step_by(5 << 20)
            .for_each(|byte| *byte = 1);
        let task = Task::open(std::process::id().cast_signed())
            .unwrap()
            .unwrap();
        let range = start..start + (length as u64 - PAGE_SIZE);
        let mut by = [Vec::new(), Vec::new()];
        let [one, several] = &mut by;
        task.pages(&range, pagemap::OWN, &mut |run| one.push(run))
            .unwrap();
        task.pages_soon(&range, pagemap::OWN, &mut |run| several.push(run))
            .unwrap();
        let pages = |runs: &[Run]| -> Vec<u64> {
            let each = runs
                .iter()
                .flat_map(|run| (run.start..run.end).step_by(PAGE_SIZE as usize));
            each.collect()
        };
        assert_eq!(pages(&by[0]), pages(&by[1]));
        assert!(pages(&by[0]).len() >= length / (5 << 20) - 1);
        drop(memory);
    }
}
