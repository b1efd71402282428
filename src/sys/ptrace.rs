//! Threads of other processes, stopped and looked at (ptrace(2)): seized, so that nothing but what is asked for
//! stops them, and no signal is made up.
//!
//! The thread that seizes is the only one that may do anything else, and a thread that ends lets go of whatever it
//! has seized.

use std::io;
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

pub use libc::user_regs_struct as Registers;

/// Stops at syscalls can be told from signals.
pub const TELL_SYSCALLS: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// The thread's seccomp filters do not apply while it is seized (needs `CAP_SYS_ADMIN`, and a caller without a
/// filter of its own).
pub const SUSPEND_SECCOMP: i32 = 1 << 21;

/// Where a thread has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Where it was interrupted, or where its whole process was stopped.
    Trap,
    /// At the begin or at the end of a syscall.
    Syscall,
    /// Before this signal is delivered.
    Signal(i32),
    /// Nowhere: it has ended.
    Gone,
}

/// How a thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Until something else stops it.
    Free,
    /// To the next begin or end of a syscall.
    ToSyscall,
}

/// A thread's restartable sequences: where its description is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Rseq {
    /// The address of its `struct rseq`; 0 where it has none.
    pub pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

const GET_RSEQ: u32 = 0x420f;

/// Seizes a thread; it runs on.
pub fn seize(tid: i32, options: i32) -> io::Result<()> {
    call(libc::PTRACE_SEIZE, tid, options as usize)
}

/// Asks a seized thread to stop.
pub fn interrupt(tid: i32) -> io::Result<()> {
    call(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Lets go of a stopped thread, which goes on, or stays stopped where its process is; `signal` as of [`resume`].
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    call(libc::PTRACE_DETACH, tid, signal as usize)
}

/// Lets a stopped thread go on; `signal` is what is delivered where it has stopped before a signal, or 0.
pub fn resume(tid: i32, how: Resume, signal: i32) -> io::Result<()> {
    let request = match how {
        Resume::Free => libc::PTRACE_CONT,
        Resume::ToSyscall => libc::PTRACE_SYSCALL,
    };
    call(request, tid, signal as usize)
}

fn call(request: u32, tid: i32, data: usize) -> io::Result<()> {
    let nothing = null_mut::<libc::c_void>();
    // SAFETY: these requests take numbers, and read and write no memory of ours.
    done(unsafe { libc::ptrace(request, tid, nothing, data) })
}

fn done(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The registers of a stopped thread.
#[cfg(target_arch = "x86_64")]
pub fn registers(tid: i32) -> io::Result<Registers> {
    let mut registers = std::mem::MaybeUninit::<Registers>::zeroed();
    let nothing = null_mut::<libc::c_void>();
    // SAFETY: the kernel writes one `user_regs_struct`, for which there is room.
    done(unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, nothing, registers.as_mut_ptr()) })?;
    // SAFETY: numbers, all of which were set to zero or by the kernel.
    Ok(unsafe { registers.assume_init() })
}

/// Sets the registers of a stopped thread.
#[cfg(target_arch = "x86_64")]
pub fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let nothing = null_mut::<libc::c_void>();
    // SAFETY: the kernel reads one `user_regs_struct`, which is borrowed for the call. It is the other process
    // that goes on with them.
    done(unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGS,
            tid,
            nothing,
            std::ptr::from_ref(registers),
        )
    })
}

/// The restartable sequences of a stopped thread; none on a kernel that does not tell (5.13).
pub fn rseq(tid: i32) -> io::Result<Option<Rseq>> {
    let mut rseq = Rseq::default();
    // SAFETY: the kernel writes at most as many bytes as it is told there are.
    let result = done(unsafe { libc::ptrace(GET_RSEQ, tid, size_of::<Rseq>(), &raw mut rseq) });
    match result {
        Ok(()) => Ok(Some(rseq)),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which syscall a `SIGSYS` is about, of a thread that has stopped before it.
pub fn refused_syscall(tid: i32) -> io::Result<i32> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let nothing = null_mut::<libc::c_void>();
    // SAFETY: the kernel writes one `siginfo_t`, for which there is room.
    done(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, nothing, info.as_mut_ptr()) })?;
    // SAFETY: the structure is 128 bytes of plain numbers, all set; the number is at offset 24 (sigaction(2):
    // si_call_addr is a pointer at 16, si_syscall follows).
    Ok(unsafe { info.as_ptr().cast::<i32>().add(6).read() })
}

/// Waits until a seized thread stops; none where it has not until then. One that has ended is left to its parent.
pub fn wait(tid: i32, until: Option<Instant>) -> io::Result<Option<Stop>> {
    let mut turns = 0u32;
    loop {
        let stopped = peek(tid, libc::WSTOPPED).transpose();
        let ended = || peek(tid, libc::WEXITED | libc::WNOWAIT).transpose();
        match stopped.or_else(ended) {
            Some(Ok(stop)) => return Ok(Some(stop)),
            Some(Err(error)) => match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                // Reaped by its parent.
                Some(libc::ECHILD) => return Ok(Some(Stop::Gone)),
                _ => return Err(error),
            },
            None => {}
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
        // It takes microseconds, as a rule.
        match turns {
            0..100 => thread::yield_now(),
            100..300 => thread::sleep(Duration::from_micros(20)),
            _ => thread::sleep(Duration::from_millis(1)),
        }
        turns = turns.saturating_add(1);
    }
}

/// What has become of a thread, of the kinds that are asked for, if anything has.
fn peek(tid: i32, kinds: i32) -> io::Result<Option<Stop>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = kinds | libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel writes one `siginfo_t`, for which there is room.
    let result =
        unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), info.as_mut_ptr(), flags) };
    done(result.into())?;
    // SAFETY: plain numbers, all of which were set to zero or by the kernel, which sets those of a SIGCHLD.
    let (pid, code, status) = unsafe {
        let info = info.assume_init();
        (info.si_pid(), info.si_code, info.si_status())
    };
    Ok(match code {
        _ if pid == 0 => None,
        libc::CLD_TRAPPED | libc::CLD_STOPPED => Some(decode(status)),
        _ => Some(Stop::Gone),
    })
}

/// A signal, and above it an event.
fn decode(status: i32) -> Stop {
    const SYSCALL: i32 = libc::SIGTRAP | 0x80;
    match (status & 0xff, status >> 8) {
        (_, libc::PTRACE_EVENT_STOP) => Stop::Trap,
        (SYSCALL, _) => Stop::Syscall,
        (signal, _) => Stop::Signal(signal),
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod test {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_thread_is_stopped_looked_at_and_let_go() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP: needs root");
            return;
        }
        let mut child = Command::new("/bin/sleep").arg("0.3").spawn().unwrap();
        let tid = child.id().cast_signed();
        let soon = Instant::now() + Duration::from_secs(5);
        seize(tid, TELL_SYSCALLS).unwrap();
        assert_eq!(wait(tid, Some(Instant::now())).unwrap(), None);
        interrupt(tid).unwrap();
        assert_eq!(wait(tid, Some(soon)).unwrap(), Some(Stop::Trap));
        let registers = registers(tid).unwrap();
        assert_ne!(registers.rip, 0);
        set_registers(tid, &registers).unwrap();
        rseq(tid).unwrap();
        // To the syscall it was in, again, or to its first.
        resume(tid, Resume::ToSyscall, 0).unwrap();
        assert_eq!(wait(tid, Some(soon)).unwrap(), Some(Stop::Syscall));
        detach(tid, 0).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(wait(tid, None).unwrap(), Some(Stop::Gone));
    }
}
