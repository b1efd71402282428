//! The object that CRIU preloads; `preload.c` says what it does.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{HideTable, SmapsTable};
use crate::sys::before_exec;

/// What the preloaded object is asked to do.
#[derive(Default)]
pub(super) struct Asked<'a> {
    pub limits: bool,
    pub conntrack: bool,
    pub tar: bool,
    pub segments: bool,
    pub hide: Option<&'a HideTable>,
    pub smaps: Option<&'a SmapsTable>,
    /// It is passed by whoever asks.
    pub users: Option<&'a OwnedFd>,
}

impl Asked<'_> {
    /// Makes `command` preload the object and tells it what is asked, if anything is; the file descriptors it needs.
    pub fn preload(&self, command: &mut Command) -> io::Result<Vec<OwnedFd>> {
        let mut pass = Vec::new();
        let asked = [
            (self.limits, "GODWIT_CRIU_LIMITS"),
            (self.conntrack, "GODWIT_CRIU_CONNTRACK"),
            (self.tar, "GODWIT_CRIU_TAR"),
            (self.segments, "GODWIT_CRIU_SEGMENTS"),
        ];
        for (_, variable) in asked.iter().filter(|(asked, _)| *asked) {
            command.env(variable, "1");
        }
        let tables = [
            (self.hide.map(HideTable::descriptor), "GODWIT_CRIU_HIDE"),
            (self.smaps.map(SmapsTable::descriptor), "GODWIT_CRIU_SMAPS"),
        ];
        for (table, variable) in tables {
            if let Some(table) = table.transpose()? {
                let number = before_exec::number(&table);
                command.env(variable, number.to_string());
                pass.push(table);
            }
        }
        if let Some(users) = self.users {
            command.env("GODWIT_CRIU_USERNS", before_exec::number(users).to_string());
        }
        if !pass.is_empty() || self.users.is_some() || asked.iter().any(|(asked, _)| *asked) {
            let object = object()?;
            let number = before_exec::number(&object);
            command.env("LD_PRELOAD", format!("/proc/self/fd/{number}"));
            pass.push(object);
        }
        Ok(pass)
    }
}

/// The object of `preload.c`, as a file without a name.
fn object() -> io::Result<OwnedFd> {
    static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
    let file = File::from(memfd_create("criu-preload", MFdFlags::MFD_CLOEXEC)?);
    (&file).write_all(OBJECT)?;
    Ok(file.into())
}

#[cfg(test)]
mod test;
