//! What a cgroup has used, in the words in which runtimes tell it.
//!
//! The fields are those of `events --stats` of other runtimes, which engines read. What the kernel does not tell,
//! because the controller is not there, is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory and swap.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block devices.
    pub blkio: BlockIo,
    /// Huge pages, by their size.
    pub hugetlb: BTreeMap<String, HugePages>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Cpu {
    /// What was used.
    pub usage: CpuUsage,
    /// What was waited for.
    pub throttling: Throttling,
}

/// Processor time that was used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// Of it in the kernel.
    pub kernel: u64,
    /// Of it outside.
    pub user: u64,
}

/// Slices of time in which the limit was reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Slices in which something ran.
    pub periods: u64,
    /// Of these with the limit reached.
    pub throttled_periods: u64,
    /// How long that was, in nanoseconds.
    pub throttled_time: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    /// Pages of files.
    pub cache: u64,
    /// All memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Everything the kernel counts, by its own names.
    pub raw: BTreeMap<String, u64>,
}

/// One amount that has a limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct MemoryEntry {
    /// The limit; the greatest number is none.
    pub limit: u64,
    /// Now.
    pub usage: u64,
    /// The most there ever was.
    pub max: u64,
    /// How often the limit was reached.
    pub failcnt: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// The limit; 0 is none.
    pub limit: u64,
}

/// Block devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    /// Bytes, by device and direction.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    /// Requests, by device and direction.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
}

/// One number of one device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct BlockIoEntry {
    /// The device.
    pub major: u64,
    /// The device.
    pub minor: u64,
    /// The direction.
    pub op: &'static str,
    /// The number.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct HugePages {
    /// Now.
    pub usage: u64,
    /// The limit; the greatest number is none.
    pub max: u64,
    /// How often the limit was reached.
    pub failcnt: u64,
}

impl Stats {
    pub(super) fn of(cgroup: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        let cpu = keyed(&text("cpu.stat"));
        let micros = |key: &str| 1000 * cpu.get(key).copied().unwrap_or_default();
        let count = |key: &str| cpu.get(key).copied().unwrap_or_default();
        Self {
            cpu: Cpu {
                usage: CpuUsage {
                    total: micros("usage_usec"),
                    kernel: micros("system_usec"),
                    user: micros("user_usec"),
                },
                throttling: Throttling {
                    periods: count("nr_periods"),
                    throttled_periods: count("nr_throttled"),
                    throttled_time: micros("throttled_usec"),
                },
            },
            memory: memory(&text),
            pids: Pids {
                current: amount(&text("pids.current")),
                limit: Some(amount(&text("pids.max")))
                    .filter(|n| *n != u64::MAX)
                    .unwrap_or(0),
            },
            blkio: block_io(&text("io.stat")),
            hugetlb: huge_pages(cgroup, &text),
        }
    }
}

/// A number, or `max`; 0 where there is nothing.
fn amount(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or_default(),
    }
}

/// Lines of a key and a number.
fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn memory(text: &impl Fn(&str) -> String) -> Memory {
    let raw = keyed(&text("memory.stat"));
    let events = |file: &str| keyed(&text(file)).get("max").copied().unwrap_or_default();
    let usage = MemoryEntry {
        limit: amount(&text("memory.max")),
        usage: amount(&text("memory.current")),
        max: amount(&text("memory.peak")),
        failcnt: events("memory.events"),
    };
    Memory {
        cache: raw.get("file").copied().unwrap_or_default(),
        swap: MemoryEntry {
            limit: usage.limit.saturating_add(amount(&text("memory.swap.max"))),
            usage: usage.usage + amount(&text("memory.swap.current")),
            max: usage.max.saturating_add(amount(&text("memory.swap.peak"))),
            failcnt: events("memory.swap.events"),
        },
        usage,
        raw,
    }
}

/// Lines of a device and keys with numbers: `8:0 rbytes=1 wbytes=2 rios=3 …`.
fn block_io(text: &str) -> BlockIo {
    let mut stats = BlockIo::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (major, minor) = (amount(major), amount(minor));
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlockIoEntry {
                major,
                minor,
                op,
                value: amount(value),
            });
        }
    }
    stats
}

fn huge_pages(cgroup: &Path, text: &impl Fn(&str) -> String) -> BTreeMap<String, HugePages> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let pages = |size: String| {
        let file = |what: &str| text(&format!("hugetlb.{size}.{what}"));
        let failcnt = keyed(&file("events"))
            .get("max")
            .copied()
            .unwrap_or_default();
        let pages = HugePages {
            usage: amount(&file("current")),
            max: amount(&file("max")),
            failcnt,
        };
        (size, pages)
    };
    names.filter_map(size).map(pages).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_kernels_files_become_what_engines_read() {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 5\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "100\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.events", "low 0\nmax 7\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n\n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "4194304\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let stats = serde_json::to_value(Stats::of(directory.path())).unwrap();
        for (pointer, expected) in [
            ("/cpu/usage/total", 30_000),
            ("/cpu/throttling/throttledPeriods", 2),
            ("/memory/usage/usage", 4096),
            ("/memory/usage/failcnt", 7),
            ("/memory/usage/limit", u64::MAX),
            ("/memory/swap/usage", 4196),
            ("/memory/cache", 2),
            ("/memory/raw/anon", 1),
            ("/pids/limit", 10),
            ("/blkio/ioServiceBytesRecursive/1/value", 2),
            ("/blkio/ioServicedRecursive/0/value", 3),
            ("/hugetlb/2MB/usage", 2_097_152),
        ] {
            let value = stats.pointer(pointer).and_then(serde_json::Value::as_u64);
            assert_eq!(value, Some(expected), "{pointer}");
        }
        assert_eq!(
            stats
                .pointer("/hugetlb")
                .unwrap()
                .as_object()
                .unwrap()
                .len(),
            1
        );
    }
}
