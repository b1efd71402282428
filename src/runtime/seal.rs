//! The program that goes into containers cannot be written to from there (CVE-2019-5736).
//!
//! A container may have its command be `/proc/self/exe`, or open the program of a process that enters it: either
//! way it gets hold of this program's file, which on the host is root's to write. So the verbs that go into
//! containers run from a read-only mount of that one file, which is in no mount namespace and which nobody but
//! this process has. A copy in a sealed memfd would do as well, and would cost its size in memory and time for
//! every container. The process exchanges the file that it runs from for that one as it runs; where it may not, it is
//! executed once more. Besides, the process is not dumpable while it is inside, so that nobody there can look into it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::RuntimeError;
use super::error::system;
use crate::sys::{mount, own_program};

/// Says that this program has started itself anew. It is believed only of a program that cannot be written to.
const MARK: &str = "GODWIT_SEALED";
const OWN: &str = "/proc/self/exe";

/// Has this program run sealed, then hides it from other processes. No thread may exist yet.
pub fn seal() -> Result<(), RuntimeError> {
    let from = "run from a read-only mount of the own program (root is needed)";
    let before = std::env::var_os(MARK).is_some();
    if !(before && cannot_be_written().map_err(system(from))?) {
        let program = mount::open_read_only(Path::new(OWN)).map_err(system(from))?;
        if let Err(error) = own_program::exchange(program.as_fd()) {
            tracing::debug!(%error, "the program is executed anew");
            match start_anew(&program).map_err(system(from))? {}
        }
    }
    nix::sys::prctl::set_name(c"godwit")
        .and_then(|()| nix::sys::prctl::set_dumpable(false))
        .map_err(|errno| system("hide from the container")(errno.into()))
}

fn cannot_be_written() -> io::Result<bool> {
    let facts = fstatvfs(File::open(OWN)?)?;
    Ok(facts.flags().contains(FsFlags::ST_RDONLY))
}

fn start_anew(program: &File) -> io::Result<Infallible> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::from);
    let arguments = std::env::args_os().map(|argument| text(argument.into_vec()));
    let arguments = arguments.collect::<io::Result<Vec<_>>>()?;
    let environment = std::env::vars_os()
        .filter(|(name, _)| name != MARK)
        .map(|(name, value)| text([name.into_vec(), value.into_vec()].join(&b'=')));
    let mut environment = environment.collect::<io::Result<Vec<_>>>()?;
    environment.push(text(format!("{MARK}=1").into_bytes())?);
    Ok(nix::unistd::fexecve(program, &arguments, &environment)?)
}
