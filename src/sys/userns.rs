//! User namespaces that nobody is in: made for their maps, and for what belongs to them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Makes a user namespace with these maps of users and groups (user_namespaces(7)), and new namespaces of the kinds
/// `with`, which belong to it. The user `owner` of this host owns it: what the kernel counts by user, it counts in there
/// for each and for him, with the limits that the caller has (`kernel/ucount.c`). `work` is given the directory in `/proc` of a process that is in them; what it does not
/// keep open or pin is gone afterwards.
///
/// It may be called where there are many threads: the process executes system calls and nothing else.
pub fn make<T>(
    owner: u32,
    uids: &str,
    gids: &str,
    with: i32,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    // It waits for the end of one pipe, which comes with our own end, too, and says by another how it went.
    let (wait, go) = io::pipe()?;
    let (mut hear, say) = io::pipe()?;
    let child = Child {
        owner,
        kinds: libc::CLONE_NEWUSER | with,
        wait: wait.as_raw_fd(),
        go: go.as_raw_fd(),
        say: say.as_raw_fd(),
    };
    let pid = child.start()?;
    drop(say);
    let made = there(&mut hear)
        .and_then(|()| mapped(pid, uids, gids))
        .and_then(|process| work(&process));
    drop(go);
    let ended = loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WCLONE)) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    let made = made?;
    ended?;
    Ok(made)
}

fn mapped(pid: i32, uids: &str, gids: &str) -> io::Result<PathBuf> {
    let process = Path::new("/proc").join(pid.to_string());
    for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
        // At once: the kernel takes one write.
        fs::File::options()
            .write(true)
            .open(process.join(name))?
            .write_all(map.as_bytes())?;
    }
    Ok(process)
}

/// Hears of the process that it is in its namespaces, or why not.
fn there(hear: &mut io::PipeReader) -> io::Result<()> {
    let mut answer = [0_u8; 4];
    hear.read_exact(&mut answer)?;
    match i32::from_ne_bytes(answer) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The process, and what it has to do.
struct Child {
    owner: u32,
    kinds: i32,
    wait: i32,
    go: i32,
    say: i32,
}

impl Child {
    /// Without a signal at its end: nobody else is to take it for one of his children.
    fn start(&self) -> io::Result<i32> {
        const CLEAR_HANDLERS: u64 = 0x1_0000_0000;
        // `struct clone_args`, version 0 (Linux 5.3): flags, and seven fields that stay empty.
        let mut arguments = [0_u64; 8];
        arguments[0] = CLEAR_HANDLERS;
        // SAFETY: live arguments of the size given, without CLONE_VM and without a stack, as fork(2). What the copy
        // does is `live`: system calls on numbers and on its own stack, without a lock or an allocation, until it ends.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const arguments,
                size_of_val(&arguments),
            )
        };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => self.live(),
            pid => Ok(pid as i32),
        }
    }

    fn live(&self) -> ! {
        // SAFETY: system calls on numbers and on this stack; the last does not return.
        unsafe {
            libc::syscall(libc::SYS_close, self.go);
            let errno = self.enter();
            libc::syscall(
                libc::SYS_write,
                self.say,
                &raw const errno,
                size_of_val(&errno),
            );
            let mut byte = 0_u8;
            while libc::syscall(libc::SYS_read, self.wait, &raw mut byte, 1_usize) < 0 {}
            libc::syscall(libc::SYS_exit_group, 0);
        }
        unreachable!("a process that has ended");
    }

    /// Becomes the owner, without losing a capability by that, and makes the namespaces: 0, or why not.
    fn enter(&self) -> i32 {
        const KEEP_CAPABILITIES: libc::c_int = 1 << 2; // SECBIT_NO_SETUID_FIXUP
        let owner = self.owner;
        // SAFETY: numbers alone. Not by way of the C library, which would have all threads change their user.
        let done = unsafe {
            (owner == 0
                || libc::syscall(
                    libc::SYS_prctl,
                    libc::PR_SET_SECUREBITS,
                    KEEP_CAPABILITIES,
                    0,
                    0,
                    0,
                ) == 0
                    && libc::syscall(libc::SYS_setresuid, owner, owner, owner) == 0)
                && libc::syscall(libc::SYS_unshare, self.kinds) == 0
        };
        if done {
            return 0;
        }
        // SAFETY: the number of the last error, which this thread has to itself.
        unsafe { *libc::__errno_location() }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_namespace_has_its_maps_and_outlives_the_process_as_long_as_it_is_open() {
        if !crate::sys::process::is_root() {
            assert!(std::env::var_os("GODWIT_REQUIRE_ROOT").is_none());
            println!("SKIP a_namespace_has_its_maps…: needs root");
            return;
        }
        let own = |kind: &str| fs::metadata(Path::new("/proc/self/ns").join(kind)).unwrap();
        let maps = "0 700000 65536\n65536 0 1\n";
        let mut path = PathBuf::new();
        let (file, map) = make(700_000, maps, maps, libc::CLONE_NEWNET, |process| {
            process.clone_into(&mut path);
            for kind in ["user", "net"] {
                let there = fs::metadata(process.join("ns").join(kind))?;
                assert_ne!(there.ino(), own(kind).ino(), "{kind}");
            }
            let status = fs::read_to_string(process.join("status"))?;
            assert!(status.contains("\nUid:\t700000\t700000"), "{status}");
            let map = fs::read_to_string(process.join("gid_map"))?;
            Ok((fs::File::open(process.join("ns/user"))?, map))
        })
        .unwrap();
        let words: Vec<&str> = map.split_whitespace().collect();
        assert_eq!(words, ["0", "700000", "65536", "65536", "0", "1"]);
        assert!(!path.exists(), "it has not ended");
        assert_ne!(file.metadata().unwrap().ino(), own("user").ino());
    }

    #[test]
    fn what_the_kernel_does_not_take_is_told_and_leaves_no_process() {
        if !crate::sys::process::is_root() {
            return;
        }
        let error = make(0, "0 0 0\n", "0 0 1\n", 0, |_| Ok(())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let none = waitpid(None, Some(WaitPidFlag::__WCLONE | WaitPidFlag::WNOHANG));
        assert!(matches!(none, Err(Errno::ECHILD) | Ok(_)));
    }
}
