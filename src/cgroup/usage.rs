//! What a cgroup has used (Linux, Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::io;
use std::str::FromStr;

use super::Cgroup;
use crate::model::{
    Bytes, CpuUsage, IoUsage, MemoryUsage, PidsUsage, Pressure, Pressures, Reading, Stall,
};

/// What was read of a cgroup at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Processor time.
    pub cpu: Reading<CpuUsage>,
    /// Memory.
    pub memory: Reading<MemoryUsage>,
    /// Processes and threads.
    pub pids: Reading<PidsUsage>,
    /// Block devices.
    pub io: Reading<IoUsage>,
    /// Pressure.
    pub pressure: Pressures,
}

impl Counts {
    /// None of them, all for one reason.
    pub fn missing(why: &str) -> Self {
        Self {
            cpu: missing(why),
            memory: missing(why),
            pids: missing(why),
            io: missing(why),
            pressure: Pressures {
                cpu: missing(why),
                memory: missing(why),
                io: missing(why),
            },
        }
    }
}

fn missing<T>(why: &str) -> Reading<T> {
    Reading::Missing {
        missing: why.to_owned(),
    }
}

impl Cgroup {
    /// What it has used, as far as the kernel tells: what it does not tell is missing, with the reason.
    pub fn counts(&self) -> Counts {
        Counts {
            cpu: self.cpu(),
            memory: self.memory(),
            pids: self.pids(),
            io: self.text("io", "io.stat", |text| Some(io_of(text))),
            pressure: Pressures {
                cpu: self.pressure("cpu.pressure"),
                memory: self.pressure("memory.pressure"),
                io: self.pressure("io.pressure"),
            },
        }
    }

    /// There in every cgroup, with or without the controller; without it, there is no limit to wait for.
    fn cpu(&self) -> Reading<CpuUsage> {
        self.text("cpu", "cpu.stat", |text| {
            Some(CpuUsage {
                total_us: keyed(text, "usage_usec")?,
                user_us: keyed(text, "user_usec")?,
                system_us: keyed(text, "system_usec")?,
                throttled_us: keyed(text, "throttled_usec").unwrap_or(0),
            })
        })
    }

    fn memory(&self) -> Reading<MemoryUsage> {
        let optional = |file: &str| self.read(file).ok().and_then(|text| amount(&text));
        self.text("memory", "memory.current", |text| {
            Some(MemoryUsage {
                current: Bytes(amount(text)?),
                limit: optional("memory.max").map(Bytes),
                peak: optional("memory.peak").map(Bytes),
                swap: optional("memory.swap.current").map(Bytes),
                oom_kills: self
                    .read("memory.events")
                    .ok()
                    .and_then(|text| keyed(&text, "oom_kill"))
                    .unwrap_or(0),
            })
        })
    }

    fn pids(&self) -> Reading<PidsUsage> {
        self.text("pids", "pids.current", |text| {
            Some(PidsUsage {
                current: amount(text)?,
                limit: self.read("pids.max").ok().and_then(|text| amount(&text)),
            })
        })
    }

    fn pressure(&self, file: &str) -> Reading<Pressure> {
        let path = self.path().join(file);
        match fs::read_to_string(path) {
            Ok(text) => Reading::Value(pressure_of(&text)),
            // Switched off at boot: the file is there, and cannot be read.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                missing("the kernel was booted without pressure information (psi=1)")
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                missing("the kernel has no pressure information (CONFIG_PSI)")
            }
            Err(e) => missing(&format!("{file} cannot be read: {e}")),
        }
    }

    /// A file of a controller, which may not be there.
    fn text<T>(
        &self,
        controller: &str,
        file: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Reading<T> {
        match fs::read_to_string(self.path().join(file)) {
            Ok(text) => parse(&text).map_or_else(
                || missing(&format!("{file} makes no sense")),
                Reading::Value,
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.exists() => missing(&format!(
                "the cgroup v2 controller `{controller}` is not available: boot with cgroup v2 alone"
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing("the container has ended"),
            Err(e) => missing(&format!("{file} cannot be read: {e}")),
        }
    }
}

/// A number; none for `max`.
fn amount(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after this key, in lines of both.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let value = |line: &str| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    };
    text.lines().find_map(value)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`, a line for each device.
fn io_of(text: &str) -> IoUsage {
    let mut all = IoUsage::default();
    for (key, value) in text
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
    {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => all.read += Bytes(value),
            "wbytes" => all.written += Bytes(value),
            "rios" => all.reads += value,
            "wios" => all.writes += value,
            _ => {}
        }
    }
    all
}

/// `some avg10=0.12 avg60=0.00 avg300=0.00 total=34`, and the same for `full`.
fn pressure_of(text: &str) -> Pressure {
    let line = |kind: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(kind))
            .unwrap_or("");
        Stall {
            avg10_bp: (100.0 * field::<f64>(line, "avg10")).round() as u32,
            total_us: field(line, "total"),
        }
    };
    Pressure {
        some: line("some "),
        full: line("full "),
    }
}

fn field<T: FromStr + Default>(line: &str, key: &str) -> T {
    let value = |word: &str| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
    line.split(' ').find_map(value).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let cgroup = Cgroup::at(directory.path().to_owned());
        (directory, cgroup)
    }

    #[test]
    fn the_kernels_files_become_numbers() {
        let (_directory, cgroup) = cgroup(&[
            ("cgroup.procs", ""),
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nthrottled_usec 5\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.peak", "5000\n"),
            ("memory.swap.current", "7\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=9\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.25 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=11\n",
            ),
            ("memory.pressure", ""),
            (
                "io.pressure",
                "some avg10=100.00 avg60=0.00 avg300=0.00 total=1\n",
            ),
        ]);
        let counts = cgroup.counts();
        let cpu = counts.cpu.value().unwrap();
        assert_eq!(
            (cpu.total_us, cpu.user_us, cpu.system_us, cpu.throttled_us),
            (30, 20, 10, 5)
        );
        let memory = counts.memory.value().unwrap();
        assert_eq!(memory.current, Bytes(4096));
        assert_eq!(memory.limit, Some(Bytes(8192)));
        assert_eq!(memory.peak, Some(Bytes(5000)));
        assert_eq!((memory.swap, memory.oom_kills), (Some(Bytes(7)), 2));
        let pids = counts.pids.value().unwrap();
        assert_eq!((pids.current, pids.limit), (3, None));
        let io = counts.io.value().unwrap();
        assert_eq!((io.read, io.written), (Bytes(11), Bytes(22)));
        assert_eq!((io.reads, io.writes), (33, 44));
        let pressure = counts.pressure;
        let cpu = pressure.cpu.value().unwrap();
        assert_eq!((cpu.some.avg10_bp, cpu.some.total_us), (125, 77));
        assert_eq!(cpu.full.total_us, 11);
        assert_eq!(pressure.memory.value(), Some(&Pressure::default()));
        assert_eq!(pressure.io.value().unwrap().some.avg10_bp, 10_000);
    }

    #[test]
    fn what_the_kernel_does_not_tell_has_a_reason() {
        let (directory, cgroup) = cgroup(&[
            ("cgroup.procs", ""),
            ("cpu.stat", "usage_usec 1\nuser_usec 1\nsystem_usec 0\n"),
            ("memory.current", "nonsense\n"),
        ]);
        let counts = cgroup.counts();
        assert_eq!(counts.cpu.value().unwrap().throttled_us, 0);
        let why = |reading: Reading<PidsUsage>| match reading {
            Reading::Missing { missing } => missing,
            Reading::Value(value) => panic!("{value:?}"),
        };
        assert!(why(counts.pids).contains("`pids` is not available"));
        assert!(
            matches!(counts.memory, Reading::Missing { missing } if missing.contains("memory.current"))
        );
        assert!(
            matches!(counts.pressure.io, Reading::Missing { missing } if missing.contains("CONFIG_PSI"))
        );
        drop(directory);
        assert!(why(cgroup.counts().pids).contains("has ended"));
    }

    #[test]
    fn a_reason_and_a_value_are_told_apart_in_json() {
        let text = serde_json::to_string(&missing::<PidsUsage>("because")).unwrap();
        assert_eq!(text, r#"{"missing":"because"}"#);
        let back: Reading<PidsUsage> = serde_json::from_str(&text).unwrap();
        assert_eq!(back, missing("because"));
        let value = Reading::Value(PidsUsage {
            current: 1,
            limit: None,
        });
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(
            serde_json::from_str::<Reading<PidsUsage>>(&text).unwrap(),
            value
        );
    }
}
