//! The mappings of a task with the kernel's own flags, without a walk of its pages: a BPF iterator (`task_vma`,
//! 5.12; for one task 6.1).
//!
//! `/proc/PID/maps` has no flags, and `/proc/PID/smaps` counts every page before it tells them, 18 ms for a GiB.
//! An iterator calls a program of ours in the kernel for every mapping, which writes what it finds into what we read:
//! a few microseconds for a task, however large.

pub mod btf;

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use btf::{Btf, BtfError};

/// `BPF_PROG_LOAD`, `BPF_LINK_CREATE`, `BPF_ITER_CREATE`.
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;
/// `BPF_PROG_TYPE_TRACING`, `BPF_TRACE_ITER`.
const TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
/// `bpf_seq_write` is for programs under the GPL. Ours is the few instructions of [`program`], under either licence.
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";
/// What the kernel describes its types in.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// More mappings are not listed: ten times what a task may have unless it is allowed more.
const MOST: usize = 700_000;
/// As much as the kernel answers at once (`bpf_seq_read`).
const BUFFER: usize = 8 * 4096;

/// One mapping of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: Range<u64>,
    /// The kernel's `vm_flags`. Which bit means what differs between kernels.
    pub flags: u64,
}

/// Why there is no iterator.
#[derive(Debug, thiserror::Error)]
pub enum VmaIterError {
    /// The kernel does not describe its types.
    #[error("this kernel does not describe its types in {TYPES}")]
    NoTypes {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It describes them in another way.
    #[error("{TYPES} is of no use")]
    Types {
        /// Why.
        #[source]
        source: BtfError,
    },
    /// It does not take the program.
    #[error("this kernel does not take the program; CAP_BPF and CAP_PERFMON are needed")]
    Load {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A program that is asked about one task after another.
#[derive(Debug)]
pub struct VmaIter {
    program: OwnedFd,
}

impl VmaIter {
    /// Loads it. This reads some megabytes of types.
    ///
    /// # Errors
    /// When this kernel has no such iterators, or not for us.
    pub fn load() -> Result<Self, VmaIterError> {
        let bytes = fs::read(TYPES).map_err(|source| VmaIterError::NoTypes { source })?;
        let look = |btf: &Btf<'_>| {
            let word = |member| btf.word("vm_area_struct", member);
            let members = [word("vm_start")?, word("vm_end")?, word("vm_flags")?];
            Ok((members, btf.function("bpf_iter_task_vma")?))
        };
        let found = Btf::new(&bytes).and_then(|btf| look(&btf));
        let (members, function) = found.map_err(|source| VmaIterError::Types { source })?;
        let program =
            load(&program(members), function).map_err(|source| VmaIterError::Load { source })?;
        Ok(Self { program })
    }

    /// The mappings of a process, in their order; none where it has no memory (any more). Those of a process that
    /// runs, and changes them, are not of one moment, and may be incomplete.
    ///
    /// # Errors
    /// When the kernel tells nothing about one task (before 6.1), there is no such task (ESRCH), or it has too many.
    pub fn vmas(&self, pid: i32) -> io::Result<Vec<Vma>> {
        let mut answer = File::from(iterator(self.link(pid)?.as_raw_fd())?);
        let mut bytes = vec![0; BUFFER];
        let mut found: Vec<Vma> = Vec::new();
        while found.len() <= MOST {
            let length = answer.read(&mut bytes)?;
            let (rows, rest) = bytes[..length].as_chunks::<ROW>();
            if !rest.is_empty() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            for vma in rows.iter().map(vma) {
                // An answer of several reads has no end: the kernel forgets that it was through with the one task,
                // and begins the last part again (seen in 6.18).
                if found
                    .last()
                    .is_some_and(|last| last.range.end > vma.range.start)
                {
                    return Ok(found);
                }
                found.push(vma);
            }
            if rows.is_empty() {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::FileTooLarge.into())
    }

    fn link(&self, pid: i32) -> io::Result<OwnedFd> {
        let task = TaskInfo {
            tid: u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?,
            ..TaskInfo::default()
        };
        let attributes = LinkCreate {
            program: self.program.as_raw_fd(),
            kind: TRACE_ITER,
            info: std::ptr::from_ref(&task).addr() as u64,
            info_length: size_of::<TaskInfo>() as u32,
            ..LinkCreate::default()
        };
        // SAFETY: the attributes are the kernel's for this command, and the one structure they point at outlives it.
        unsafe { bpf(LINK_CREATE, &attributes) }
    }
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`, up to `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: u64,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_function: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: RawFd,
    target: u32,
    kind: u32,
    flags: u32,
    info: u64,
    info_length: u32,
    none: u32,
}

/// `bpf_iter_link_info.task`, as large as the union it is in.
#[repr(C)]
#[derive(Default)]
struct TaskInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
    none: u32,
}

/// The same for `BPF_ITER_CREATE`.
#[repr(C)]
struct IterCreate {
    link: RawFd,
    flags: u32,
}

/// bpf(2), for commands that answer with a file descriptor.
///
/// # Safety
/// `attributes` is what the command takes, and every address in it is good while the call lasts.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, which are there; the rest is the caller's promise.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this file descriptor, closed on exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn load(program: &[u64], function: u32) -> io::Result<OwnedFd> {
    let attributes = ProgLoad {
        kind: TRACING,
        count: u32::try_from(program.len()).unwrap_or(0),
        instructions: program.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        attach_type: TRACE_ITER,
        attach_function: function,
        ..ProgLoad::default()
    };
    // SAFETY: the attributes are the kernel's for this command; they point at the program, as long as they say, and
    // at a text that ends with a zero.
    unsafe { bpf(PROG_LOAD, &attributes) }
}

fn iterator(link: RawFd) -> io::Result<OwnedFd> {
    let attributes = IterCreate { link, flags: 0 };
    // SAFETY: the attributes are the kernel's for this command, numbers alone.
    unsafe { bpf(ITER_CREATE, &attributes) }
}

/// What the program writes for a mapping: start, end, flags.
const ROW: usize = 24;

fn vma(row: &[u8; ROW]) -> Vma {
    let (words, _) = row.as_chunks::<8>();
    let [start, end, flags] = [words[0], words[1], words[2]].map(u64::from_ne_bytes);
    Vma {
        range: start..end,
        flags,
    }
}

/// The program: writes the three members of the mapping that it is called for. It is called once more at the end,
/// without one.
fn program(members: [i16; 3]) -> Vec<u64> {
    /// One instruction, as the kernel's `struct bpf_insn`.
    fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
        let registers = if cfg!(target_endian = "big") {
            to << 4 | from
        } else {
            from << 4 | to
        };
        let [o0, o1] = offset.to_ne_bytes();
        let [n0, n1, n2, n3] = number.to_ne_bytes();
        u64::from_ne_bytes([code, registers, o0, o1, n0, n1, n2, n3])
    }
    const LOAD: u8 = 0x79;
    const STORE: u8 = 0x7b;
    const JUMP_IF_EQUAL: u8 = 0x15;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const ADD: u8 = 0x07;
    const SET: u8 = 0xb7;
    const COPY: u8 = 0xbf;
    const SEQ_WRITE: i32 = 127;
    /// The register of the frame.
    const FRAME: u8 = 10;
    // struct bpf_iter__task_vma is meta, task, vma, each of 8 bytes; struct bpf_iter_meta begins with seq.
    let mut program = vec![
        instruction(LOAD, 7, 1, 16, 0),
        instruction(LOAD, 8, 1, 0, 0),
        instruction(JUMP_IF_EQUAL, 7, 0, 11, 0),
    ];
    for (member, at) in members.into_iter().zip([-24, -16, -8]) {
        program.push(instruction(LOAD, 1, 7, member, 0));
        program.push(instruction(STORE, FRAME, 1, at, 0));
    }
    program.extend([
        instruction(LOAD, 1, 8, 0, 0),
        instruction(COPY, 2, FRAME, 0, 0),
        instruction(ADD, 2, 0, 0, -24),
        instruction(SET, 3, 0, 0, 24),
        instruction(CALL, 0, 0, 0, SEQ_WRITE),
        instruction(SET, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    program
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::{Command, Stdio};

    fn loaded(name: &str) -> Option<VmaIter> {
        match VmaIter::load() {
            Ok(iter) => Some(iter),
            Err(error) => {
                let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some();
                assert!(!required, "{error:?}");
                println!("SKIP {name}: {error}");
                None
            }
        }
    }

    /// The addresses of `/proc/PID/maps`, without the one that is the kernel's own.
    fn maps(pid: u32) -> Vec<Range<u64>> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let range = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            Some(number(start)..number(end))
        };
        let lines = maps.lines().filter(|line| !line.ends_with("[vsyscall]"));
        lines.filter_map(range).collect()
    }

    #[test]
    fn it_tells_the_mappings_of_one_process_however_many_there_are() {
        let Some(iter) = loaded("it_tells_the_mappings_of_one_process_however_many_there_are")
        else {
            return;
        };
        let many = "import mmap, sys, threading\n\
                    kept = [mmap.mmap(-1, 4096, prot=1 + 2 * (n % 2)) for n in range(5000)]\n\
                    threading.Thread(target=sys.stdin.read).start()\n\
                    print(flush=True)";
        let mut task = Command::new("/usr/bin/python3")
            .args(["-c", many])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        task.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = task.id();
        let found = iter.vmas(pid.cast_signed()).unwrap();
        let ranges: Vec<Range<u64>> = found.iter().map(|vma| vma.range.clone()).collect();
        assert!(ranges.len() > 5000, "{}", ranges.len());
        assert_eq!(ranges, maps(pid));
        let kinds: std::collections::BTreeSet<u64> = found.iter().map(|vma| vma.flags).collect();
        assert!(kinds.len() > 4, "{kinds:x?}");
        drop(task.stdin.take());
        task.wait().unwrap();
        let gone = iter.vmas(pid.cast_signed());
        assert!(gone.as_ref().is_err() || gone.unwrap().is_empty());
        assert!(iter.vmas(-1).is_err());
    }
}
