//! Mappings that could not be moved (`criu/proc_parse.c`, `handle_vma` and `vma_get_mapfile`).

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use crate::model::{Bytes, Finding};

use super::{Process, is_memory, plain, too_big_without_name};

/// What is wrong with the mappings of a process, each file once.
pub fn findings(process: &Process) -> Vec<Finding> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid)).unwrap_or_default();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for line in maps.lines() {
        let Some((range, path)) = parse(line) else {
            continue;
        };
        if seen.insert(path)
            && let Some((code, what)) = objection(process.pid, range, path)
        {
            let text = format!("mapping {range} of {} {what}", process.shown());
            found.push(Finding::blocking(code, text));
        }
    }
    found
}

/// Addresses and path of a mapping that has a file.
fn parse(line: &str) -> Option<(&str, &str)> {
    let range = line.split(' ').next()?;
    // Permissions, offset, device and inode have no slash; `[heap]` and its like are no files.
    let path = line.splitn(6, ' ').nth(5)?.trim_start();
    (path.starts_with('/') || path.starts_with("anon_inode:") || path.starts_with("socket:"))
        .then_some((range, path))
}

fn objection(pid: i32, range: &str, path: &str) -> Option<(&'static str, String)> {
    if let Some(kind) = path.strip_prefix("anon_inode:") {
        let code = if kind == "[io_uring]" {
            "io-uring"
        } else {
            "mapping"
        };
        let what = format!(
            "is memory of a kernel object ({}), which CRIU cannot dump; run the program without it",
            plain(kind)
        );
        return Some((code, what));
    }
    if path.starts_with("/secretmem") {
        let what = "is memory that is secret even to the kernel (memfd_secret), which nothing can dump; run the program without it";
        return Some(("secret-memory", what.to_owned()));
    }
    let meta = fs::metadata(format!("/proc/{pid}/map_files/{range}")).ok()?;
    let kind = meta.file_type();
    let device = (major(meta.rdev()), minor(meta.rdev()));
    if (kind.is_char_device() && device != (1, 5)) || kind.is_block_device() {
        let (large, small) = device;
        let what = format!(
            "is of the device {large}:{small} ({}), which stays with this host; unmap it",
            plain(path)
        );
        return Some(("device", what));
    }
    if !is_memory(Path::new(path)) && too_big_without_name(&meta) {
        let what = format!(
            "is of a removed file of {} ({}), more than the images of a container take of one; unmap it",
            Bytes(meta.len()),
            plain(path)
        );
        return Some(("removed-file-too-big", what));
    }
    None
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_mapping_without_a_file_is_none_of_this() {
        let file = "7f00-7f10 r--p 00000000 08:01 42                         /usr/lib/a file";
        assert_eq!(parse(file), Some(("7f00-7f10", "/usr/lib/a file")));
        for line in [
            "7f00-7f10 rw-p 00000000 00:00 0",
            "7f00-7f10 rw-p 00000000 00:00 0          [heap]",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
        let ring = "7f00-7f10 rw-s 00000000 00:0e 12       anon_inode:[io_uring]";
        let (range, path) = parse(ring).unwrap();
        assert_eq!(objection(1, range, path).unwrap().0, "io-uring");
    }
}
