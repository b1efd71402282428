//! Exchanging the file that the calling process is a run of, while it runs.
//!
//! The kernel knows a process's program in two ways: as the file of the mappings of its segments, and as the file that
//! `/proc/PID/exe` leads to (`mm->exe_file`). Either is a file *and the mount that it was opened through*. Here both
//! become those of another descriptor of the same file, which takes a fraction of the time of an execve(2): no dynamic
//! linking, no new start of the language's runtime.
//!
//! Each segment is mapped once more, elsewhere, and then moved onto the old mapping by mremap(2), which exchanges them
//! at once; what has been written to meanwhile (data, relocations) is copied. When no mapping of the old file is left,
//! the kernel lets the file be renamed: `prctl(PR_SET_MM, PR_SET_MM_MAP)`, `replace_mm_exe_file()` in `kernel/fork.c`.
//! CRIU's restorer ends the same way.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::clone::single_threaded;

/// Has the calling process be a run of `file` from now on, which must have the same content as its program.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE`, `EINVAL` from a kernel without checkpoint and restore.
/// The process goes on well either way, but which of the files its mappings are of is then open. It refuses when there
/// are other threads.
pub fn exchange(file: BorrowedFd<'_>) -> io::Result<()> {
    single_threaded()?;
    let image = Image::of_this_process()?;
    for segment in image.headers.iter().filter(|h| h.p_type == libc::PT_LOAD) {
        image.exchange(segment, file)?;
    }
    rename(file)
}

const PAGE: usize = 4096;

const fn page_of(address: usize) -> usize {
    address & !(PAGE - 1)
}

/// The program as the kernel has loaded it.
struct Image {
    /// What is added to an address of the file.
    base: usize,
    headers: &'static [libc::Elf64_Phdr],
}

impl Image {
    fn of_this_process() -> io::Result<Self> {
        // SAFETY: no pointers, and no effect.
        let of = |kind| unsafe { libc::getauxval(kind) } as usize;
        let (at, count, size) = (of(libc::AT_PHDR), of(libc::AT_PHNUM), of(libc::AT_PHENT));
        if at == 0 || size != size_of::<libc::Elf64_Phdr>() {
            return Err(io::Error::other(
                "the program's headers are not as expected",
            ));
        }
        // SAFETY: the kernel has put the address and the number of the headers of the running program there. They are
        // part of its first segment, which is mapped as long as the process is a run of it; `exchange` puts the same
        // content in its place.
        let headers: &'static [libc::Elf64_Phdr] =
            unsafe { std::slice::from_raw_parts(at as *const libc::Elf64_Phdr, count) };
        let own = headers.iter().find(|h| h.p_type == libc::PT_PHDR);
        let base = own.map_or(0, |own| at - own.p_vaddr as usize);
        Ok(Self { base, headers })
    }

    fn exchange(&self, segment: &libc::Elf64_Phdr, file: BorrowedFd<'_>) -> io::Result<()> {
        let begin = self.base + segment.p_vaddr as usize;
        let start = page_of(begin);
        let length = page_of(begin + segment.p_filesz as usize + PAGE - 1) - start;
        let has = |flag, protection| {
            if segment.p_flags & flag != 0 {
                protection
            } else {
                0
            }
        };
        let protection = has(libc::PF_R, libc::PROT_READ)
            | has(libc::PF_W, libc::PROT_WRITE)
            | has(libc::PF_X, libc::PROT_EXEC);
        if protection & libc::PROT_WRITE == 0 {
            let offset = page_of(segment.p_offset as usize) as libc::off_t;
            // SAFETY: a new mapping where the kernel likes; nothing that exists is touched.
            let new = unsafe {
                let kind = libc::MAP_PRIVATE;
                libc::mmap(
                    ptr::null_mut(),
                    length,
                    protection,
                    kind,
                    file.as_raw_fd(),
                    offset,
                )
            };
            return put(new, start, length);
        }
        // SAFETY: as above; without a file.
        let new = unsafe {
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
            libc::mmap(ptr::null_mut(), length, protection, kind, -1, 0)
        };
        if new != libc::MAP_FAILED {
            // SAFETY: both are `length` bytes and mapped for reading, the new one for writing, too. The process has one
            // thread, and nothing between this copy and the exchange writes to a static of the program.
            unsafe { ptr::copy_nonoverlapping(start as *const u8, new.cast::<u8>(), length) };
        }
        put(new, start, length)?;
        self.protect_relocations(start, length)
    }

    /// What the dynamic linker has made read-only after its work in this segment becomes so again.
    fn protect_relocations(&self, start: usize, length: usize) -> io::Result<()> {
        for done in self
            .headers
            .iter()
            .filter(|h| h.p_type == libc::PT_GNU_RELRO)
        {
            let begin = self.base + done.p_vaddr as usize;
            let from = page_of(begin).max(start);
            let to = page_of(begin + done.p_memsz as usize).min(start + length);
            if from >= to {
                continue;
            }
            // SAFETY: pages of this segment, which were read-only before `exchange` as well.
            let result =
                unsafe { libc::mprotect(from as *mut libc::c_void, to - from, libc::PROT_READ) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Moves a new mapping onto an old one of the same length and content.
fn put(new: *mut libc::c_void, start: usize, length: usize) -> io::Result<()> {
    if new == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the target is a part of this program's own image, and what replaces it, at once, has the same content: no
    // instruction, constant or static is another afterwards.
    let moved = unsafe { libc::mremap(new, length, length, how, start as *mut libc::c_void) };
    if moved == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        // SAFETY: it was made for this and nothing refers to it.
        unsafe { libc::munmap(new, length) };
        return Err(error);
    }
    Ok(())
}

const PR_SET_MM_MAP: libc::c_int = 14;

/// `struct prctl_mm_map` (`linux/prctl.h`).
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

impl Layout {
    /// What `/proc/PID/stat` tells of it (proc_pid_stat(5)), with another program.
    fn of(stat: &str, brk: u64, exe: u32) -> Option<Self> {
        let after_name = &stat[stat.rfind(')')? + 1..];
        let fields: Vec<_> = after_name.split_ascii_whitespace().collect();
        // The first of them is the third of the line.
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            start_code: field(26)?,
            end_code: field(27)?,
            start_data: field(45)?,
            end_data: field(46)?,
            start_brk: field(47)?,
            brk,
            start_stack: field(28)?,
            arg_start: field(48)?,
            arg_end: field(49)?,
            env_start: field(50)?,
            env_end: field(51)?,
            auxv: 0,
            auxv_size: 0,
            exe_fd: exe,
        })
    }
}

/// Has `/proc/self/exe` lead to another file, of which alone there are mappings.
fn rename(file: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // SAFETY: nothing is moved by an increment of 0.
    let brk = unsafe { libc::sbrk(0) } as u64;
    let layout = Layout::of(&stat, brk, file.as_raw_fd() as u32)
        .ok_or_else(|| io::Error::other("/proc/self/stat is not as expected"))?;
    let size = size_of::<Layout>();
    // SAFETY: a live structure of the size given, of addresses that the kernel itself has told.
    let result = unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const layout, size, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_layout_is_read_off_whatever_the_program_is_called() {
        let numbers: Vec<_> = (4..=52).map(|n| (n * 1000).to_string()).collect();
        let stat = format!("7 (a) b 1 (c) R {}\n", numbers.join(" "));
        let layout = Layout::of(&stat, 5, 6).unwrap();
        assert_eq!((layout.start_code, layout.end_code), (26_000, 27_000));
        assert_eq!((layout.start_data, layout.env_end), (45_000, 51_000));
        assert_eq!((layout.brk, layout.exe_fd), (5, 6));
        assert_eq!(Layout::of("7 (a) R 1 2", 5, 6), None);
        assert_eq!(Layout::of("", 5, 6), None);
    }

    #[test]
    fn this_program_is_where_its_headers_say() {
        let image = Image::of_this_process().unwrap();
        let here = this_program_is_where_its_headers_say as *const () as usize;
        let code = image
            .headers
            .iter()
            .find(|h| h.p_flags & libc::PF_X != 0)
            .unwrap();
        let start = image.base + code.p_vaddr as usize;
        assert!((start..start + code.p_memsz as usize).contains(&here));
    }
}
