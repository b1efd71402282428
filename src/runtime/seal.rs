//! The program that goes into containers cannot be written to from there (CVE-2019-5736).
//!
//! A container may have its command be `/proc/self/exe`, or open the program of a process that enters it: either
//! way it gets hold of this program's file, which on the host is root's to write. So the verbs that go into
//! containers run from a read-only mount of that one file, which is in no mount namespace and which nobody but
//! this process has. A copy in a sealed memfd would do as well, and would cost its size in memory and time for
//! every container; the mount costs one exec. Besides, the process is not dumpable while it is inside, so that
//! nobody there can look into it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::RuntimeError;
use super::error::system;
use crate::sys::mount;

/// Says that this program has started itself anew. It is believed only of a program that cannot be written to.
const MARK: &str = "GODWIT_SEALED";
const OWN: &str = "/proc/self/exe";

/// Starts this program anew, sealed, unless it is; then hides it from other processes. No thread may exist yet.
pub fn seal() -> Result<(), RuntimeError> {
    if !is_sealed().map_err(system("look at the own program"))? {
        let failed = system("run from a read-only mount of the own program (root is needed)");
        match start_anew() {
            Ok(never) => match never {},
            Err(error) => return Err(failed(error)),
        }
    }
    nix::sys::prctl::set_name(c"godwit")
        .and_then(|()| nix::sys::prctl::set_dumpable(false))
        .map_err(|errno| system("hide from the container")(errno.into()))
}

fn is_sealed() -> io::Result<bool> {
    if std::env::var_os(MARK).is_none() {
        return Ok(false);
    }
    let facts = fstatvfs(File::open(OWN)?)?;
    Ok(facts.flags().contains(FsFlags::ST_RDONLY))
}

fn start_anew() -> io::Result<std::convert::Infallible> {
    let program = mount::open_read_only(Path::new(OWN))?;
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::from);
    let arguments = std::env::args_os().map(|argument| text(argument.into_vec()));
    let arguments = arguments.collect::<io::Result<Vec<_>>>()?;
    let environment = std::env::vars_os()
        .filter(|(name, _)| name != MARK)
        .map(|(name, value)| text([name.into_vec(), value.into_vec()].join(&b'=')));
    let mut environment = environment.collect::<io::Result<Vec<_>>>()?;
    environment.push(text(format!("{MARK}=1").into_bytes())?);
    Ok(nix::unistd::fexecve(&program, &arguments, &environment)?)
}
