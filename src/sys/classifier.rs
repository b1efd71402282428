//! BPF programs that judge the frames of an interface: bpf(2), as far as loading them goes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

/// `BPF_PROG_LOAD`.
const LOAD: libc::c_long = 5;

/// `BPF_PROG_TYPE_SCHED_CLS`.
const KIND: u32 = 3;

/// How much of the verifier's report is read when it refuses a program.
const REPORT: usize = 64 * 1024;

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`, up to the program's name.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Loads a program; each instruction is 8 bytes (`struct bpf_insn`). It lives as long as the
/// descriptor, or what it is attached to. Where the kernel's verifier refuses it, the error has its last words.
pub fn load(name: &str, license: &CStr, instructions: &[u64]) -> io::Result<OwnedFd> {
    match try_load(name, license, instructions, &mut []) {
        Err(Errno::EINVAL | Errno::EACCES) => {}
        other => return Ok(other?),
    }
    let mut report = vec![0; REPORT];
    let errno = match try_load(name, license, instructions, &mut report) {
        Ok(program) => return Ok(program),
        Err(errno) => errno,
    };
    let text = String::from_utf8_lossy(&report);
    let said: Vec<&str> = text
        .trim_end_matches('\0')
        .lines()
        .rev()
        .filter(|line| !line.starts_with("processed "))
        .take(2)
        .collect();
    let reason = match said.is_empty() {
        true => errno.to_string(),
        false => format!("{errno}: {}", said.join("; ")),
    };
    Err(io::Error::new(io::Error::from(errno).kind(), reason))
}

fn try_load(
    name: &str,
    license: &CStr,
    instructions: &[u64],
    report: &mut [u8],
) -> nix::Result<OwnedFd> {
    let count = |length: usize| u32::try_from(length).map_err(|_| Errno::E2BIG);
    let mut attributes = Load {
        kind: KIND,
        instruction_count: count(instructions.len())?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: u32::from(!report.is_empty()),
        log_size: count(report.len())?,
        log: match report.is_empty() {
            true => 0,
            false => report.as_mut_ptr().expose_provenance() as u64,
        },
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
    };
    for (to, from) in attributes.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the attributes are a prefix of `union bpf_attr` of the length that is told; what they point to lives
    // through the call: instructions and license are only read, and of the report no more than its length is written.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw mut attributes, size_of::<Load>()) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_program_that_makes_no_sense_is_refused_with_the_reason() {
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
            assert!(!required, "a program that makes no sense: needs root");
            println!("SKIP a program that makes no sense: needs root");
            return;
        }
        // `exit` without a result.
        let error = load("nonsense", c"GPL", &[0x95]).unwrap_err();
        assert!(error.to_string().contains("R0"), "{error}");
        // `r0 = 0; exit`.
        load("sense", c"GPL", &[0xb7, 0x95]).unwrap();
    }
}
