//! `/proc/PID/maps` and `smaps`: which mappings hold memory that a dump sends page by page. Parsing is pure, and
//! total: a container chooses the names of what it maps.

use std::ops::Range;

use crate::sys::pagemap::{OWN, OWN_ANONYMOUS, Query};

/// A mapping whose pages are worth sending before the dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// Private: the pages of its own, whether it is anonymous or a file's.
    Private(Private),
    /// Shared anonymous memory: a segment, wherever it is mapped.
    Shared {
        /// Its addresses here.
        range: Range<u64>,
        /// The inode by which CRIU names the segment; of a SysV segment its id.
        inode: u64,
        /// Whether it is a SysV segment.
        sysv: bool,
    },
}

/// A private mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Private {
    /// Its addresses.
    pub range: Range<u64>,
    /// Whether code may run in it: CRIU puts code of its own there for a moment.
    pub executable: bool,
    /// The device of the file behind it; none of anonymous memory.
    pub file: Option<Device>,
}

impl Private {
    /// Which of its pages are its own.
    pub fn own(&self) -> Query {
        match self.file {
            Some(_) => OWN,
            None => OWN_ANONYMOUS,
        }
    }
}

/// Major and minor number.
pub type Device = (u32, u32);

/// The mappings in the text of a maps file. Lines that cannot be read are left to the dump.
pub fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(line).collect()
}

/// `start-end perms offset dev inode   path`
fn line(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let range = addresses(fields.next()?)?;
    let permissions = fields.next()?.as_bytes();
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let device = (
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    );
    let inode: u64 = fields.next()?.parse().ok()?;
    let path = fields.next().unwrap_or("").trim_start();
    let shared_names = ["/dev/zero (deleted)", "/memfd:"];
    let sysv = path.starts_with("/SYSV");
    match permissions.get(3)? {
        b'p' if is_kernel_s(path) => None,
        b'p' => Some(Mapping::Private(Private {
            range,
            executable: permissions.get(2) == Some(&b'x'),
            file: (inode != 0 || path.starts_with('/')).then_some(device),
        })),
        b's' if sysv || inode > 0 && shared_names.iter().any(|name| path.starts_with(name)) => {
            Some(Mapping::Shared { range, inode, sysv })
        }
        // A file shared with others moves with the files.
        _ => None,
    }
}

/// Whether a mapping is not memory of the task: the kernel's own, an AIO ring, or pages of another size, which a
/// dump handles in a way of its own. (A file's path begins with a slash.)
fn is_kernel_s(path: &str) -> bool {
    let kernel = ["[v", "[uprobes]", "[sigpage]", "[vectors]"];
    let other = ["/[aio]", "/anon_hugepage"];
    kernel
        .iter()
        .chain(&other)
        .any(|name| path.starts_with(name))
}

/// Where code is in the text of a maps file: the kernel's own (vdso) first, which is always in memory.
pub fn code(text: &str) -> Vec<Range<u64>> {
    let code = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let range = addresses(fields.next()?)?;
        let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
        let path = fields.nth(3).unwrap_or_default();
        let can_be_read = executable && path != "[vsyscall]";
        can_be_read.then_some((path != "[vdso]", range))
    };
    let mut found: Vec<_> = text.lines().filter_map(code).collect();
    found.sort_by_key(|(not_vdso, _)| *not_vdso);
    found.into_iter().map(|(_, range)| range).collect()
}

fn addresses(field: &str) -> Option<Range<u64>> {
    let (start, end) = field.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (start < end).then_some(start..end)
}

/// What only `smaps` tells of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Special {
    /// Its pages are to be in memory at once: locked ones, and those the kernel may drop.
    pub eager: bool,
    /// A shadow stack, which cannot be written like other memory.
    pub shadow_stack: bool,
}

/// The special ones among the mappings in the text of an smaps file.
pub fn special(text: &str) -> Vec<(Range<u64>, Special)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags: ") {
            let has = |name| flags.split_ascii_whitespace().any(|flag| flag == name);
            let special = Special {
                eager: has("lo") || has("dp"),
                shadow_stack: has("ss"),
            };
            if let (Some(range), true) = (current.take(), special != Special::default()) {
                found.push((range, special));
            }
        } else if let Some(range) = line.split(' ').next().and_then(addresses) {
            current = Some(range);
        }
    }
    found
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
7f0000003000-7f0000004000 r--s 00000000 00:01 0                          /SYSV00000000 (deleted)
7f0000004000-7f0000005000 rw-s 00000000 08:02 7                          /data/file
7f0000006000-7f0000007000 ---p 00000000 00:00 0                          [anon:[vdso]]
7f0000200000-7f0000400000 rw-p 00000000 00:0f 12                         /anon_hugepage (deleted)
7f0000800000-7f0000801000 rw-p 00000000 00:10 13                         /[aio] (deleted)
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
7fff00004000-7fff00002000 rw-p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        assert_eq!(
            code(text),
            [0x7fff_0000_0000..0x7fff_0000_2000, 0x40_0000..0x45_2000]
        );
        let private = |range, executable, file| {
            Mapping::Private(Private {
                range,
                executable,
                file,
            })
        };
        let shared = |range, inode, sysv| Mapping::Shared { range, inode, sysv };
        assert_eq!(
            parse(text),
            [
                private(0x40_0000..0x45_2000, true, Some((8, 2))),
                private(0x35_b180_0000..0x35_b182_0000, false, None),
                shared(0x7f00_0000_0000..0x7f00_0000_1000, 99, false),
                shared(0x7f00_0000_2000..0x7f00_0000_3000, 4, false),
                shared(0x7f00_0000_3000..0x7f00_0000_4000, 0, true),
                private(0x7f00_0000_6000..0x7f00_0000_7000, false, None),
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
            "1-2 rwxp 0 0:0",
            "zz-1 rw-p 0 0:0 0 ",
        ] {
            assert_eq!(parse(text), [], "{text:?}");
            assert_eq!(special(text), [], "{text:?}");
        }
    }

    #[test]
    fn what_only_smaps_tells_is_found() {
        let text = "\
1000-2000 rw-p 00000000 00:00 0
Size:                  4 kB
VmFlags: rd wr mr mw me ac lo
2000-3000 rw-p 00000000 00:00 0    VmFlags: lo
Rss:                   0 kB
VmFlags: rd wr mr mw me ac
3000-4000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me dp
4000-5000 rw-p 00000000 00:00 0
VmFlags: rd wr ss
";
        let special = |range, eager, shadow_stack| {
            let special = Special {
                eager,
                shadow_stack,
            };
            (range, special)
        };
        assert_eq!(
            super::special(text),
            [
                special(0x1000..0x2000, true, false),
                special(0x3000..0x4000, true, false),
                special(0x4000..0x5000, false, true),
            ]
        );
    }
}
