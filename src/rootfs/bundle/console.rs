//! A terminal of the container's own, and its place `/dev/console`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};

use super::place::{self, Links, Make};
use super::{Root, RootfsError, path_error};
use crate::sys::mount::{attach, clone_of};
use crate::sys::{pty, tree};

/// The two ends of a terminal.
#[derive(Debug)]
pub struct Console {
    /// Goes to whoever asked for the terminal.
    pub master: OwnedFd,
    /// Becomes the standard streams of the container's process.
    pub slave: OwnedFd,
}

/// Opens a new terminal of the devpts in the container whose root is `root`; rows and columns, where known.
///
/// Both ends are opened through the pair itself, and the first through a file that is made sure to be devpts':
/// what an image has in `/dev` does not count.
pub fn open(root: BorrowedFd<'_>, size: Option<(u16, u16)>) -> Result<Console, RootfsError> {
    let failed = |operation| move |source| RootfsError::Console { operation, source };
    let master = open_master(root).map_err(failed("open a terminal"))?;
    pty::unlock(master.as_fd()).map_err(failed("unlock the terminal"))?;
    let slave = pty::slave(master.as_fd()).map_err(failed("open the terminal's other end"))?;
    if let Some((rows, columns)) = size {
        pty::resize(slave.as_fd(), rows, columns).map_err(failed("size the terminal"))?;
    }
    Ok(Console { master, slave })
}

fn open_master(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = Path::new("dev/pts/ptmx");
    let held = place::find(root, path, Links::Inside)?;
    let stat = fstat(&held)?;
    let numbers = (major(stat.st_rdev), minor(stat.st_rdev));
    let device = tree::kind(stat.st_mode) == SFlag::S_IFCHR && numbers == (5, 2);
    if !device || fstatfs(&held)?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        let problem = "/dev/pts/ptmx in the container does not belong to a devpts";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    // By the path again: a descriptor cannot be opened without a /proc. It must be the same one.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let master = place::open(root, path, flags, Links::Inside)?;
    let now = fstat(&master)?;
    if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let blocking = nix::fcntl::FcntlArg::F_SETFL(OFlag::O_RDWR);
    nix::fcntl::fcntl(&master, blocking)?;
    Ok(master)
}

impl Root<'_> {
    /// Opens a terminal and puts it at `/dev/console`.
    pub fn console(&self, size: Option<(u16, u16)>) -> Result<Console, RootfsError> {
        let console = open(self.fd.as_fd(), size)?;
        let path = Path::new("dev/console");
        // No link: it would put the terminal over something else of the container.
        let at = place::ensure(self.fd.as_fd(), path, Make::File, Links::None);
        let mounted = at.and_then(|at| {
            let tree = clone_of(console.slave.as_fd(), false)?;
            place::guard(at.fd.as_fd(), path, tree.as_fd())?;
            attach(tree.as_fd(), at.fd.as_fd())
        });
        mounted.map_err(path_error("put the terminal at", path))?;
        Ok(console)
    }
}
