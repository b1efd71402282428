//! A thread of a task that is stopped and made to call the kernel.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::super::maps;
use super::{Refusal, traced};
use crate::sys::pidfd;
use crate::sys::ptrace::{self, Registers, Resume, Stop};
use crate::sys::userfaultfd::{USER_MODE_ONLY, Userfaultfd};

/// How often a thread may be disturbed by signals.
const ATTEMPTS: u32 = 100;

/// A thread that is seized.
pub struct Stopped {
    pid: i32,
    tid: i32,
    deadline: Instant,
    /// Its registers as they are to be when it goes on.
    own: Registers,
    /// Whether it has them.
    has_own: bool,
    /// Where it has stopped; none while it runs.
    stop: Option<Stop>,
}

impl Stopped {
    /// Stops a thread, lets `act` make it do something, and lets it go on as if nothing had been.
    pub fn run<T>(
        pid: i32,
        tid: i32,
        deadline: Instant,
        act: impl Fn(&mut Self) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut options = ptrace::TELL_SYSCALLS;
        if has_seccomp(pid, tid) {
            options |= ptrace::SUSPEND_SECCOMP;
        }
        ptrace::seize(tid, options).map_err(|source| match traced(source) {
            Refusal::Trace { source } if options & ptrace::SUSPEND_SECCOMP != 0 => {
                Refusal::Seccomp { source }
            }
            other => other,
        })?;
        ptrace::interrupt(tid).map_err(traced)?;
        loop {
            match ptrace::wait(tid, Some(deadline)).map_err(traced)? {
                Some(Stop::Trap) => break,
                // It is interrupted behind its delivery.
                Some(Stop::Signal(signal)) => {
                    ptrace::resume(tid, Resume::Free, signal).map_err(traced)?;
                }
                Some(Stop::Syscall) => {
                    ptrace::resume(tid, Resume::Free, 0).map_err(traced)?;
                }
                Some(Stop::Gone) => return Err(Refusal::Ended),
                None => return Err(Refusal::Busy),
            }
        }
        let mut own = ptrace::registers(tid).map_err(traced)?;
        begin_anew(&mut own);
        let mut injection = Self {
            pid,
            tid,
            deadline,
            own,
            has_own: false,
            stop: Some(Stop::Trap),
        };
        act(&mut injection)
    }

    /// Makes a userfaultfd, takes it out and closes it there. Returns what number it had.
    pub fn make(&mut self) -> Result<(Userfaultfd, i32), Refusal> {
        let flags = USER_MODE_ONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let made = self.call(libc::SYS_userfaultfd, flags as u64)?;
        let number = positive(made).map_err(|source| Refusal::Userfaultfd { source })?;
        let taken = self.take(number);
        let closed = self.close(number);
        let uffd = taken.map_err(|source| Refusal::Take { source })?;
        match closed {
            Err(_) => Err(Refusal::Left {
                pid: self.pid,
                number,
                uffd,
            }),
            Ok(()) => Ok((uffd, number)),
        }
    }

    /// Closes a descriptor. That it is not there any more is fine.
    pub fn close(&mut self, number: i32) -> Result<(), Refusal> {
        self.call(libc::SYS_close, number as u64).map(drop)
    }

    /// Lets the thread make a syscall of one argument, and puts its own registers back.
    fn call(&mut self, number: i64, argument: u64) -> Result<i64, Refusal> {
        const USER_CODE_64: u64 = 0x33;
        if self.own.cs != USER_CODE_64 {
            return Err(Refusal::Architecture);
        }
        let syscall = self.find_syscall().ok_or(Refusal::NoSyscall)?;
        for _ in 0..ATTEMPTS {
            if self.in_restartable_sequence() {
                return Err(Refusal::Busy);
            }
            if let Some(result) = self.attempt(syscall, number, argument)? {
                return Ok(result);
            }
        }
        Err(Refusal::Busy)
    }

    /// One attempt, from a trap to a trap; none where a signal came first.
    fn attempt(&mut self, at: u64, number: i64, argument: u64) -> Result<Option<i64>, Refusal> {
        let calling = Registers {
            rip: at,
            rax: number as u64,
            // It is in no call that could begin anew.
            orig_rax: u64::MAX,
            rdi: argument,
            ..self.own
        };
        self.has_own = false;
        ptrace::set_registers(self.tid, &calling).map_err(traced)?;
        loop {
            self.resume(Resume::ToSyscall, 0)?;
            match self.wait()? {
                // The whole process was stopped, or goes on: not our business.
                Stop::Trap => {}
                Stop::Syscall => break,
                Stop::Signal(signal) => {
                    self.put_back()?;
                    self.deliver(signal, number)?;
                    return Ok(None);
                }
                Stop::Gone => return Err(Refusal::Ended),
            }
        }
        // It is at the begin of the call. It stops behind it, where it would look for signals, and only there does
        // the kernel let an interrupted call begin anew.
        ptrace::interrupt(self.tid).map_err(traced)?;
        self.resume(Resume::Free, 0)?;
        let stop = self.wait()?;
        let result = match stop {
            Stop::Gone => return Err(Refusal::Ended),
            _ => ptrace::registers(self.tid).map_err(traced)?.rax as i64,
        };
        self.put_back()?;
        if let Stop::Signal(signal) = stop {
            self.deliver(signal, number)?;
        }
        Ok(Some(result))
    }

    /// Delivers a signal to the thread, which has its own registers, and stops it again behind it. One that our own
    /// call has caused is not delivered.
    fn deliver(&mut self, signal: i32, number: i64) -> Result<(), Refusal> {
        let ours = match signal {
            // If it was not our call: what has caused it happens again.
            libc::SIGSEGV | libc::SIGBUS | libc::SIGILL => true,
            libc::SIGSYS => {
                ptrace::refused_syscall(self.tid).is_ok_and(|refused| i64::from(refused) == number)
            }
            _ => false,
        };
        ptrace::interrupt(self.tid).map_err(traced)?;
        self.resume(Resume::Free, if ours { 0 } else { signal })?;
        loop {
            match self.wait()? {
                Stop::Trap => break,
                Stop::Signal(signal) => self.resume(Resume::Free, signal)?,
                Stop::Syscall => self.resume(Resume::Free, 0)?,
                Stop::Gone => return Err(Refusal::Ended),
            }
        }
        self.own = ptrace::registers(self.tid).map_err(traced)?;
        begin_anew(&mut self.own);
        if ours {
            Err(Refusal::NoSyscall)
        } else {
            Ok(())
        }
    }

    fn resume(&mut self, how: Resume, signal: i32) -> Result<(), Refusal> {
        self.stop = None;
        ptrace::resume(self.tid, how, signal).map_err(traced)
    }

    fn wait(&mut self) -> Result<Stop, Refusal> {
        self.stop = ptrace::wait(self.tid, Some(self.deadline)).map_err(traced)?;
        self.stop.ok_or(Refusal::Busy)
    }

    fn put_back(&mut self) -> Result<(), Refusal> {
        ptrace::set_registers(self.tid, &self.own).map_err(traced)?;
        self.has_own = true;
        Ok(())
    }

    /// A duplicate of a descriptor of the thread, if it is a userfaultfd.
    fn take(&self, number: i32) -> io::Result<Userfaultfd> {
        let process = if self.tid == self.pid {
            pidfd::open(self.pid)
        } else {
            // The leader of the process may have ended, and then it has no files.
            pidfd::open_thread(self.tid).or_else(|_| pidfd::open(self.pid))
        };
        let taken: OwnedFd = pidfd::descriptor(process?.as_fd(), number)?;
        let what = fs::read_link(format!("/proc/self/fd/{}", taken.as_raw_fd()))?;
        if what.as_os_str() != "anon_inode:[userfaultfd]" {
            // Another thread of it has put something else there in between.
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(taken.into())
    }

    /// Whether it is within a restartable sequence, which the kernel would take for finished when it sees the
    /// thread elsewhere.
    fn in_restartable_sequence(&self) -> bool {
        let Ok(Some(rseq)) = ptrace::rseq(self.tid) else {
            return false;
        };
        if rseq.pointer == 0 {
            return false;
        }
        // struct rseq: u32 cpu_id_start, u32 cpu_id, u64 rseq_cs; struct rseq_cs: u32 version, u32 flags,
        // u64 start_ip, u64 post_commit_offset, u64 abort_ip.
        let Some([sequence]) = self.words(rseq.pointer + 8) else {
            return false;
        };
        let Some([_, start, length]) = self.words(sequence).filter(|_| sequence != 0) else {
            return false;
        };
        self.own.rip.wrapping_sub(start) < length
    }

    fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        let memory = File::open(format!("/proc/{}/mem", self.pid)).ok()?;
        let mut words = [0; N];
        for (number, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            let at = address.checked_add(number as u64 * 8)?;
            memory.read_exact_at(&mut bytes, at).ok()?;
            *word = u64::from_ne_bytes(bytes);
        }
        Some(words)
    }

    /// A syscall instruction in the task: the one it was stopped at, one of the vdso, or one anywhere in its code.
    fn find_syscall(&self) -> Option<u64> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        let memory = File::open(format!("/proc/{}/mem", self.pid)).ok()?;
        let just_made = self.own.rip.wrapping_sub(2);
        let mut bytes = [0; 2];
        if memory.read_exact_at(&mut bytes, just_made).is_ok() && bytes == SYSCALL {
            return Some(just_made);
        }
        let text = fs::read_to_string(format!("/proc/{}/maps", self.pid)).ok()?;
        maps::code(&text).into_iter().find_map(|range| {
            let length = (range.end - range.start).min(4 << 20) as usize;
            let mut code = vec![0; length];
            let read = memory.read_at(&mut code, range.start).ok()?;
            let found = code[..read].windows(2).position(|two| two == SYSCALL)?;
            Some(range.start + found as u64)
        })
    }
}

impl Drop for Stopped {
    /// Puts back what must be, however long it takes, and lets go.
    fn drop(&mut self) {
        // If a step fails, the thread has ended.
        self.let_go().ok();
    }
}

impl Stopped {
    fn let_go(&mut self) -> io::Result<()> {
        loop {
            match self.stop {
                None => {
                    ptrace::interrupt(self.tid)?;
                    self.stop = ptrace::wait(self.tid, None)?;
                }
                Some(Stop::Gone) => return Ok(()),
                // At the begin of our call: it is not made, and the thread stops behind it.
                Some(Stop::Syscall) => {
                    let mut registers = ptrace::registers(self.tid)?;
                    registers.orig_rax = u64::MAX;
                    ptrace::set_registers(self.tid, &registers)?;
                    ptrace::interrupt(self.tid)?;
                    ptrace::resume(self.tid, Resume::Free, 0)?;
                    self.stop = ptrace::wait(self.tid, None)?;
                }
                Some(stop @ (Stop::Trap | Stop::Signal(_))) => {
                    if !self.has_own {
                        ptrace::set_registers(self.tid, &self.own)?;
                    }
                    let signal = match stop {
                        Stop::Signal(signal) => signal,
                        _ => 0,
                    };
                    return ptrace::detach(self.tid, signal);
                }
            }
        }
    }
}

/// What stopped a thread has made its call fail where a call cannot begin anew by itself: it does if it fails as
/// those do that can. (A signal with a handler still makes it fail.)
fn begin_anew(registers: &mut Registers) {
    const BEGIN_ANEW_WITHOUT_HANDLER: i64 = -514;
    let Ok(call) = i64::try_from(registers.orig_rax) else {
        return;
    };
    let interrupted = registers.rax as i64 == -i64::from(libc::EINTR);
    if interrupted && INTERRUPTED_FOR_GOOD.contains(&call) {
        registers.rax = BEGIN_ANEW_WITHOUT_HANDLER as u64;
    }
}

/// Missing in the libc crate.
const SYS_IO_PGETEVENTS: i64 = 333;

/// Calls that wait, and that any stop of the thread makes fail (signal(7), "Interruption of system calls … by stop
/// signals"), some of them only where they wait for a limited time.
const INTERRUPTED_FOR_GOOD: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_write,
    libc::SYS_writev,
];

fn positive(result: i64) -> io::Result<i32> {
    i32::try_from(result)
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(|| {
            let number = result
                .checked_neg()
                .and_then(|number| i32::try_from(number).ok());
            io::Error::from_raw_os_error(number.unwrap_or(libc::EINVAL))
        })
}

fn has_seccomp(pid: i32, tid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"));
    let status = status.unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() != "0")
}
