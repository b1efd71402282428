//! The standard streams of a container that no shim of ours keeps, as `/proc` tells of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::stat::{major, minor};

use crate::migration::message::NullName;

/// `/dev/null` (Linux, admin-guide/devices.rst).
const NULL: (u64, u64) = (1, 3);

/// The inode numbers of the pipes of its output; 0 for a stream that is none.
pub fn pipes(first: i32) -> [u64; 2] {
    [1, 2].map(|number| {
        let path = format!("/proc/{first}/fd/{number}");
        let link = fs::read_link(&path).unwrap_or_default();
        let is_pipe = link.to_str().is_some_and(|link| link.starts_with("pipe:["));
        let inode = fs::metadata(&path).map_or(0, |meta| meta.ino());
        if is_pipe { inode } else { 0 }
    })
}

/// The host's `/dev/null` among the streams of its first process: one that is in none of its mounts.
pub fn null(first: i32) -> Option<NullName> {
    let mounts = fs::read_to_string(format!("/proc/{first}/mountinfo")).ok()?;
    let numbers: Vec<u32> = mounts
        .lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect();
    (0..3).find_map(|number| {
        let path = PathBuf::from(format!("/proc/{first}/fd/{number}"));
        let meta = fs::metadata(&path).ok()?;
        let device = (major(meta.rdev()), minor(meta.rdev()));
        let info = fs::read_to_string(format!("/proc/{first}/fdinfo/{number}")).ok()?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        let mount = mount.trim().parse().ok()?;
        let outside = device == NULL && !numbers.contains(&mount);
        outside.then_some(NullName {
            mount,
            inode: meta.ino(),
        })
    })
}
