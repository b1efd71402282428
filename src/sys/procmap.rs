//! The mapping at an address of another process, without all the others (`PROCMAP_QUERY`, Linux 6.11).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// `struct procmap_query` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

mod raw {
    nix::ioctl_readwrite!(query, b'f', 17, super::Query);
}

/// The addresses of the mapping at `address` of the process whose `/proc/PID/maps` this is; none where there is none,
/// or where the process has no memory any more.
///
/// # Errors
/// `ENOTTY` where the kernel cannot tell.
pub fn mapping(maps: &File, address: u64) -> io::Result<Option<Range<u64>>> {
    let mut query = Query {
        size: size_of::<Query>() as u64,
        query_addr: address,
        ..Query::default()
    };
    // SAFETY: the argument is that of linux/fs.h, says how long it is and outlives the call; without buffers for
    // names the kernel writes into nothing else.
    match unsafe { raw::query(maps.as_raw_fd(), &mut query) } {
        Ok(_) => Ok(Some(query.vma_start..query.vma_end)),
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_mapping_is_found_by_any_address_in_it() {
        let maps = File::open("/proc/self/maps").unwrap();
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = text.lines().find(|line| line.ends_with("[stack]")).unwrap();
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let stack = number(start)..number(end);
        match mapping(&maps, stack.end - 1) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                println!("SKIP a mapping by its address: this kernel cannot tell");
            }
            found => {
                // It may have grown downwards meanwhile.
                assert_eq!(found.unwrap().unwrap().end, stack.end);
                assert_eq!(mapping(&maps, 0).unwrap(), None);
            }
        }
    }
}
