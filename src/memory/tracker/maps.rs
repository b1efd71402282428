//! `/proc/PID/maps`: which mappings hold memory that a dump sends page by page. Parsing is pure.

use std::ops::Range;

/// A mapping whose pages are worth sending before the dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// Private: the pages of its own, whether it is anonymous or a file's.
    Private {
        /// Its addresses.
        range: Range<u64>,
    },
    /// Shared anonymous memory: a segment, wherever it is mapped.
    Shared {
        /// Its addresses here.
        range: Range<u64>,
        /// The inode by which CRIU names the segment.
        inode: u64,
    },
}

/// The mappings in the text of a maps file. Lines that cannot be read are left to the dump.
pub fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(line).collect()
}

/// `start-end perms offset dev inode   path`
fn line(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let permissions = fields.next()?.as_bytes();
    let inode: u64 = fields.nth(2)?.parse().ok()?;
    let path = fields.next().unwrap_or("").trim_start();
    if start >= end {
        return None;
    }
    let range = start..end;
    let shared_names = ["/dev/zero (deleted)", "/memfd:", "/SYSV"];
    match permissions.get(3)? {
        // The kernel's own: not memory of the task, or (vdso) dumped whole and small.
        b'p' if path.starts_with("[v") => None,
        b'p' => Some(Mapping::Private { range }),
        b's' if inode > 0 && shared_names.iter().any(|name| path.starts_with(name)) => {
            Some(Mapping::Shared { range, inode })
        }
        // A file shared with others moves with the files.
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn private_and_shared_memory_is_found_and_files_are_not() {
        let text = "\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus daemon
35b1800000-35b1820000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 rw-s 00000000 00:01 99                         /dev/zero (deleted)
7f0000002000-7f0000003000 rw-s 00000000 00:01 4                          /memfd:x (deleted)
7f0000004000-7f0000005000 rw-s 00000000 08:02 7                          /data/file
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
7fff00004000-7fff00002000 rw-p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        let private = |range| Mapping::Private { range };
        let shared = |range, inode| Mapping::Shared { range, inode };
        assert_eq!(
            parse(text),
            [
                private(0x40_0000..0x45_2000),
                private(0x35_b180_0000..0x35_b182_0000),
                shared(0x7f00_0000_0000..0x7f00_0000_1000, 99),
                shared(0x7f00_0000_2000..0x7f00_0000_3000, 4),
            ]
        );
    }

    #[test]
    fn garbage_is_skipped() {
        for text in [
            "",
            "\n\n",
            "x",
            "1-2",
            "1-2 rw",
            "1-2 rwxp 0 0",
            "zz-1 rw-p 0 0:0 0 ",
        ] {
            assert_eq!(parse(text), [], "{text:?}");
        }
    }
}
