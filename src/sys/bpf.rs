//! bpf(2): programs that decide about devices in a cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// The registers: the destination in the lower four bits, the source above.
    pub registers: u8,
    /// A jump, or a place relative to an address.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const PLACE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: programs of the cgroups above, and others here, have their say too.
const ALLOW_MULTI: u32 = 2;
/// `BPF_F_REPLACE`.
const REPLACE: u32 = 4;

/// Shown by tools that list programs.
const NAME: [u8; 16] = *b"godwit_devices\0\0";

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// … for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    cgroup: u32,
    program: u32,
    place: u32,
    flags: u32,
    replaced: u32,
}

/// … for `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    cgroup: u32,
    place: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// … for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// One call; what it returns.
///
/// # Safety
/// `attributes` must be the kernel's structure for the command, and every address in it valid for what the command
/// does there.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = size_of::<T>();
    // SAFETY: the structure is alive and of the size given; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Gives a program to the kernel, which checks it. It lives as long as the descriptor, or as long as a cgroup has it.
///
/// # Errors
/// ENOSYS, EINVAL: a kernel without CONFIG_BPF_SYSCALL or CONFIG_CGROUP_BPF. EPERM: without CAP_BPF, or with it in a
/// user namespace only.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let license = c"Apache-2.0";
    let mut attributes = Load {
        kind: TYPE,
        count,
        instructions: program.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: NAME,
    };
    // SAFETY: the program has as many instructions as are told, the license ends with a zero, and both outlive the
    // call, which only reads them; without a log nothing is written.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes)? };
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes a program decide about the devices of a cgroup and everything below it, in the place of another one if
/// that is given.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = Attach {
        cgroup: number(cgroup),
        program: number(program),
        place: PLACE,
        flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replaced: replaced.map_or(0, number),
    };
    // SAFETY: the command takes numbers alone.
    unsafe { bpf(PROG_ATTACH, &mut attributes)? };
    Ok(())
}

/// The programs that a cgroup itself has, not those above it.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    // More than anybody attaches; the kernel says so if there are more.
    let mut ids = [0_u32; 64];
    let mut attributes = Query {
        cgroup: number(cgroup),
        place: PLACE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().addr() as u64,
        count: ids.len() as u32,
    };
    // SAFETY: the kernel writes at most `count` numbers to `ids`, which has room for them and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attributes)? };
    let open = |id: &u32| {
        let mut attributes = ById {
            id: *id,
            next: 0,
            flags: 0,
        };
        // SAFETY: the command takes numbers alone.
        let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes)? };
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    ids.iter()
        .take(attributes.count as usize)
        .map(open)
        .collect()
}
