//! Which pages of a process have content of their own: `/proc/PID/pagemap`, by `PAGEMAP_SCAN` where the kernel
//! has it (6.7), else entry by entry.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO_FRAME: u64 = 1 << 5;

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

/// Who is told of every run.
pub type EachRun<'a> = dyn FnMut(Range<u64>) + 'a;

/// Calls `each` with every run of pages in `range` that are in memory or swapped out, are not a file's own, and
/// are not the kernel's page of zeros (which entries of an older kernel do not tell apart). Ascending.
pub fn own_pages(pagemap: &File, range: Range<u64>, each: &mut EachRun<'_>) -> io::Result<()> {
    let mut start = range.start;
    let mut regions = [Region::default(); 256];
    while start < range.end {
        match scan(pagemap, start..range.end, &mut regions) {
            Ok((found, reached)) => {
                for region in &regions[..found] {
                    each(region.start..region.end);
                }
                if reached <= start {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                start = reached;
            }
            Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EINVAL) => {
                return read_entries(pagemap, start..range.end, each);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One scan: how many regions it found, and how far it came.
fn scan(pagemap: &File, range: Range<u64>, regions: &mut [Region]) -> nix::Result<(usize, u64)> {
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr().addr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: ZERO_FRAME | FILE,
        category_mask: ZERO_FRAME | FILE,
        category_anyof_mask: PRESENT | SWAPPED,
        return_mask: PRESENT,
        ..ScanArguments::default()
    };
    // SAFETY: the arguments are those of linux/fs.h; `vec` and `vec_len` describe `regions`, which is borrowed
    // mutably here and outlives the call, and any bytes are a valid `Region`.
    let found = unsafe { raw::pagemap_scan(pagemap.as_raw_fd(), &mut arguments) }?;
    let found = usize::try_from(found).unwrap_or(0).min(regions.len());
    Ok((found, arguments.walk_end))
}

fn read_entries(pagemap: &File, range: Range<u64>, each: &mut EachRun<'_>) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut run: Option<Range<u64>> = None;
    let mut at = range.start;
    while at < range.end {
        let wanted = ((range.end - at) / PAGE * 8).min(buffer.len() as u64) as usize;
        let read = pagemap.read_at(&mut buffer[..wanted], at / PAGE * 8)? & !7;
        if read == 0 {
            break;
        }
        for entry in buffer[..read].as_chunks::<8>().0 {
            let entry = u64::from_ne_bytes(*entry);
            // Bits 63 and 62: present, swapped out. Bit 61: a page of a file, or of shared memory.
            if entry >> 62 != 0 && entry >> 61 & 1 == 0 {
                match &mut run {
                    Some(run) => run.end = at + PAGE,
                    None => run = Some(at..at + PAGE),
                }
            } else if let Some(run) = run.take() {
                each(run);
            }
            at += PAGE;
        }
    }
    if let Some(run) = run {
        each(run);
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    /// Memory of this process on a page's border.
    fn pages(count: usize) -> (Vec<u8>, u64) {
        let memory = vec![0u8; (count + 1) * PAGE as usize];
        let first = (memory.as_ptr().addr() as u64).next_multiple_of(PAGE);
        (memory, first)
    }

    #[test]
    fn pages_that_were_written_are_found_and_others_are_not() {
        let count = 1000;
        // Large and zeroed: mapped freshly, and not a page of it touched.
        let (mut memory, first) = pages(count);
        let base = memory.as_ptr().addr() as u64;
        for page in [3, 4, 5, 700] {
            memory[(first - base) as usize + page * PAGE as usize] = 1;
        }
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let range = first..first + count as u64 * PAGE;
        let collect = |call: &dyn Fn(&mut EachRun<'_>)| {
            let mut found = Vec::new();
            call(&mut |run: Range<u64>| {
                found.extend(
                    (run.start..run.end)
                        .step_by(PAGE as usize)
                        .map(|a| (a - first) / PAGE),
                );
            });
            found
        };
        let scanned = collect(&|each| own_pages(&pagemap, range.clone(), each).unwrap());
        let read = collect(&|each| read_entries(&pagemap, range.clone(), each).unwrap());
        // A huge page may come with a touched one: then there are more, and both ways agree.
        for page in [3, 4, 5, 700] {
            assert!(scanned.contains(&page), "{page}");
        }
        assert_eq!(scanned, read);
    }
}
