//! Resources of a bundle as values for files of cgroup v2. Pure.
//!
//! The runtime specification was written for cgroup v1, and so are its fields; the conversions are those that other
//! runtimes agree on. 0 is "not set" wherever v1 had no such limit, and -1 is "none". What v2 has not is an error that
//! names the field, unless it asks for nothing.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::cgroup::CgroupError;

/// One value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The field it comes from.
    pub field: String,
    /// The controller the file belongs to; empty for files that every cgroup has.
    pub controller: String,
    /// The file.
    pub file: String,
    /// What is written, in one piece.
    pub value: String,
    /// Whether it is an error that the file is not there. It is none where the value lifts a limit, or sets one on
    /// what this kernel does not count.
    pub required: bool,
}

const MAX: &str = "max";
/// Slices of processor time, in microseconds, where a bundle does not say how long they are: the kernel's default.
const PERIOD: u64 = 100_000;

/// Files by which processes are moved, stopped or ended, or the tree is changed: not resources.
const NOT_RESOURCES: [&str; 6] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.freeze",
    "cgroup.type",
    "cgroup.subtree_control",
];

fn refused(field: impl Into<String>, reason: impl Into<String>) -> CgroupError {
    CgroupError::Resource {
        field: field.into(),
        reason: reason.into(),
    }
}

fn not_in_v2(field: &str) -> CgroupError {
    refused(field, "cgroup v2 does not have it; leave it out")
}

/// The settings, in the order in which they are to be made.
///
/// # Errors
/// What cannot be kept by any kernel, by its field.
pub fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Settings(Vec::new());
    if let Some(memory) = resources.memory() {
        settings.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        settings.cpu(cpu)?;
    }
    if let Some(pids) = resources.pids()
        && pids.limit() != 0
    {
        let value = amount("pids.limit", pids.limit())?;
        settings.add("pids.limit", "pids.max", value);
    }
    if let Some(io) = resources.block_io() {
        settings.block_io(io)?;
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        let field = format!("hugepageLimits[{index}]");
        settings.huge_pages(&field, limit.page_size(), limit.limit())?;
    }
    if let Some(network) = resources.network() {
        if network.class_id().is_some_and(|class| class != 0) {
            return Err(not_in_v2("network.classID"));
        }
        if network
            .priorities()
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            return Err(not_in_v2("network.priorities"));
        }
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let field = format!("rdma.{device}");
        if !is_name(device) {
            return Err(refused(field, "it is no name of a device"));
        }
        let part = |name, limit: Option<u32>| limit.map(|limit| format!(" {name}={limit}"));
        let handles = part("hca_handle", limit.hca_handles()).unwrap_or_default();
        let objects = part("hca_object", limit.hca_objects()).unwrap_or_default();
        if handles.is_empty() && objects.is_empty() {
            return Err(refused(field, "give hcaHandles or hcaObjects"));
        }
        settings.add(&field, "rdma.max", format!("{device}{handles}{objects}"));
    }
    settings.unified(resources)?;
    Ok(settings.0)
}

/// A limit as the kernel reads it.
fn amount(field: &str, limit: i64) -> Result<String, CgroupError> {
    match limit {
        -1 => Ok(MAX.to_owned()),
        0.. => Ok(limit.to_string()),
        _ => Err(refused(
            field,
            format!("{limit}: -1 is unlimited, and nothing is less"),
        )),
    }
}

/// A name in a file that separates by spaces and lines.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, field: &str, file: &str, value: String) {
        let required = value != MAX;
        self.push(field, file, value, required);
    }

    fn push(&mut self, field: &str, file: &str, value: String, required: bool) {
        let controller = file.split('.').next().unwrap_or_default();
        self.0.push(Setting {
            field: field.to_owned(),
            controller: controller.to_owned(),
            file: file.to_owned(),
            value,
            required,
        });
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        #[allow(deprecated)]
        let kernel = memory.kernel();
        for (field, limit) in [
            ("memory.kernel", kernel),
            ("memory.kernelTCP", memory.kernel_tcp()),
        ] {
            if limit.is_some_and(|limit| limit > 0) {
                return Err(not_in_v2(field));
            }
        }
        if memory.swappiness().is_some() {
            return Err(not_in_v2("memory.swappiness"));
        }
        if memory.disable_oom_killer() == Some(true) {
            return Err(not_in_v2("memory.disableOOMKiller"));
        }
        if memory.use_hierarchy() == Some(false) {
            return Err(refused(
                "memory.useHierarchy",
                "cgroup v2 always counts what is below; leave it out",
            ));
        }
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(limit) = limit {
            let value = amount("memory.limit", limit)?;
            self.add("memory.limit", "memory.max", value);
        }
        self.swap(limit, memory.swap().filter(|swap| *swap != 0))?;
        if let Some(reservation) = memory.reservation().filter(|bytes| *bytes != 0) {
            let value = amount("memory.reservation", reservation)?;
            self.add("memory.reservation", "memory.low", value);
        }
        Ok(())
    }

    /// v1's limit was on memory and swap together, v2's is on swap.
    fn swap(&mut self, limit: Option<i64>, both: Option<i64>) -> Result<(), CgroupError> {
        const FIELD: &str = "memory.swap";
        let value = match (limit, both) {
            // Unlimited memory has unlimited swap, unless something else is said.
            (Some(-1), None) | (_, Some(-1)) => MAX.to_owned(),
            (_, None) => return Ok(()),
            (Some(limit @ 0..), Some(both)) if both >= limit => (both - limit).to_string(),
            (Some(0..), Some(_)) => {
                let reason = "it is the limit of memory and swap together, and below memory.limit";
                return Err(refused(FIELD, reason));
            }
            (_, Some(_)) => {
                let reason = "it is the limit of memory and swap together; give memory.limit too";
                return Err(refused(FIELD, reason));
            }
        };
        // Where the kernel does not count swap there is none to be had.
        let required = value != MAX && value != "0";
        self.push(FIELD, "memory.swap.max", value, required);
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), CgroupError> {
        if cpu.realtime_runtime().is_some_and(|time| time != 0) {
            return Err(not_in_v2("cpu.realtimeRuntime"));
        }
        if cpu.realtime_period().is_some_and(|time| time != 0) {
            return Err(not_in_v2("cpu.realtimePeriod"));
        }
        if let Some(idle) = cpu.idle() {
            if !matches!(idle, 0 | 1) {
                return Err(refused("cpu.idle", format!("{idle}: use 0 or 1")));
            }
            self.push("cpu.idle", "cpu.idle", idle.to_string(), idle == 1);
        }
        // An idle cgroup has the least weight of all, and the kernel takes no other.
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0)
            && cpu.idle() != Some(1)
        {
            self.add("cpu.shares", "cpu.weight", weight(shares).to_string());
        }
        let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
        if quota != 0 || period != 0 {
            let value = if quota > 0 {
                quota.to_string()
            } else {
                MAX.to_owned()
            };
            let period = if period == 0 { PERIOD } else { period };
            let value = format!("{value} {period}");
            self.push("cpu.quota", "cpu.max", value, quota > 0);
        }
        if let Some(burst) = cpu.burst() {
            self.push("cpu.burst", "cpu.max.burst", burst.to_string(), burst > 0);
        }
        let lists = [
            ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
            ("cpu.mems", "cpuset.mems", cpu.mems()),
        ];
        for (field, file, list) in lists {
            let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
                continue;
            };
            if !list
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b",-".contains(&byte))
            {
                return Err(refused(field, format!("{list:?} is no list like 0-2,7")));
            }
            self.add(field, file, list.to_owned());
        }
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo) -> Result<(), CgroupError> {
        if io.leaf_weight().is_some_and(|weight| weight != 0) {
            return Err(not_in_v2("blockIO.leafWeight"));
        }
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            let value = io_weight("blockIO.weight", weight)?;
            self.add("blockIO.weight", "io.weight", format!("default {value}"));
        }
        for (index, device) in io.weight_device().iter().flatten().enumerate() {
            let field = format!("blockIO.weightDevice[{index}]");
            if device.leaf_weight().is_some_and(|weight| weight != 0) {
                return Err(not_in_v2(&format!("{field}.leafWeight")));
            }
            if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
                let value = io_weight(&field, weight)?;
                let device = number(&field, device.major(), device.minor())?;
                self.add(&field, "io.weight", format!("{device} {value}"));
            }
        }
        self.throttle(
            "throttleReadBpsDevice",
            "rbps",
            io.throttle_read_bps_device(),
        )?;
        self.throttle(
            "throttleWriteBpsDevice",
            "wbps",
            io.throttle_write_bps_device(),
        )?;
        self.throttle(
            "throttleReadIOPSDevice",
            "riops",
            io.throttle_read_iops_device(),
        )?;
        self.throttle(
            "throttleWriteIOPSDevice",
            "wiops",
            io.throttle_write_iops_device(),
        )
    }

    fn throttle(
        &mut self,
        list: &str,
        key: &str,
        devices: &Option<Vec<LinuxThrottleDevice>>,
    ) -> Result<(), CgroupError> {
        for (index, device) in devices.iter().flatten().enumerate() {
            let field = format!("blockIO.{list}[{index}]");
            let number = number(&field, device.major(), device.minor())?;
            let lifted = device.rate() == 0;
            let rate = if lifted {
                MAX.to_owned()
            } else {
                device.rate().to_string()
            };
            self.push(&field, "io.max", format!("{number} {key}={rate}"), !lifted);
        }
        Ok(())
    }

    fn huge_pages(&mut self, field: &str, size: &str, limit: i64) -> Result<(), CgroupError> {
        let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let is_size =
            digits.parse::<u32>().is_ok() && matches!(&size[digits.len()..], "KB" | "MB" | "GB");
        if !is_size {
            return Err(refused(
                field,
                format!("pageSize {size:?} is no size like 2MB"),
            ));
        }
        let value = amount(field, limit)?;
        self.add(field, &format!("hugetlb.{size}.max"), value.clone());
        // Reserved pages are counted since Linux 5.7.
        self.push(field, &format!("hugetlb.{size}.rsvd.max"), value, false);
        Ok(())
    }

    /// What is written as it is. It comes last: it is the more exact word.
    fn unified(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let mut files: Vec<_> = resources.unified().iter().flatten().collect();
        files.sort();
        for (file, value) in files {
            let field = format!("unified[{file:?}]");
            let is_file = file.contains('.') && !file.starts_with('.');
            if !is_file || !is_name(file) || file.contains('/') {
                return Err(refused(
                    field,
                    "it is no file of a cgroup, like memory.high",
                ));
            }
            if NOT_RESOURCES.contains(&file.as_str()) {
                return Err(refused(field, "it is no resource; leave it out"));
            }
            // The kernel reads one line at a time.
            for line in value.lines().filter(|line| !line.trim().is_empty()) {
                self.push(&field, file, line.to_owned(), true);
                if let Some(setting) = self.0.last_mut()
                    && setting.controller == "cgroup"
                {
                    setting.controller.clear();
                }
            }
        }
        Ok(())
    }
}

/// Shares of v1 (2 to 262144, usually 1024) as a weight of v2 (1 to 10000, usually 100): a curve through the three.
pub fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[allow(clippy::cast_precision_loss)]
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

/// Weights of v1 (10 to 1000) as those of v2 (1 to 10000).
fn io_weight(field: &str, weight: u16) -> Result<u64, CgroupError> {
    match u64::from(weight) {
        weight @ 10..=1000 => Ok(1 + (weight - 10) * 9999 / 990),
        other => Err(refused(field, format!("{other}: a weight is 10 to 1000"))),
    }
}

fn number(field: &str, major: i64, minor: i64) -> Result<String, CgroupError> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(refused(field, format!("{major}:{minor} is no device"))),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn of(json: serde_json::Value) -> Result<Vec<String>, CgroupError> {
        let resources: LinuxResources = serde_json::from_value(json).unwrap();
        let text = |s: Setting| {
            let must = if s.required { "" } else { " (if there)" };
            format!("{}={}{must}", s.file, s.value)
        };
        Ok(settings(&resources)?.into_iter().map(text).collect())
    }

    #[test]
    fn limits_become_values() {
        for (json, expected) in [
            (
                serde_json::json!({"memory": {"limit": 100, "swap": 150, "reservation": 50}}),
                vec!["memory.max=100", "memory.swap.max=50", "memory.low=50"],
            ),
            (
                serde_json::json!({"memory": {"limit": 100, "swap": 100}}),
                vec!["memory.max=100", "memory.swap.max=0 (if there)"],
            ),
            (
                serde_json::json!({"memory": {"limit": -1}}),
                vec![
                    "memory.max=max (if there)",
                    "memory.swap.max=max (if there)",
                ],
            ),
            (
                serde_json::json!({"cpu": {"shares": 1024, "quota": 50000, "period": 20000, "burst": 5}}),
                vec!["cpu.weight=100", "cpu.max=50000 20000", "cpu.max.burst=5"],
            ),
            (
                serde_json::json!({"cpu": {"quota": -1, "cpus": "0-2,7", "mems": "0", "idle": 1}}),
                vec![
                    "cpu.idle=1",
                    "cpu.max=max 100000 (if there)",
                    "cpuset.cpus=0-2,7",
                    "cpuset.mems=0",
                ],
            ),
            (
                serde_json::json!({"pids": {"limit": 5}}),
                vec!["pids.max=5"],
            ),
            (
                serde_json::json!({"blockIO": {"weight": 500,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 1000}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}),
                vec![
                    "io.weight=default 4950",
                    "io.weight=8:0 10000",
                    "io.max=8:16 rbps=1000",
                    "io.max=8:16 wiops=max (if there)",
                ],
            ),
            (
                serde_json::json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
                vec!["hugetlb.2MB.max=0", "hugetlb.2MB.rsvd.max=0 (if there)"],
            ),
            (
                serde_json::json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}}}),
                vec!["rdma.max=mlx5_1 hca_handle=3 hca_object=4"],
            ),
            (
                serde_json::json!({"unified": {"memory.high": "9", "io.max": "8:0 rbps=1\n8:16 rbps=2\n"}}),
                vec!["io.max=8:0 rbps=1", "io.max=8:16 rbps=2", "memory.high=9"],
            ),
        ] {
            assert_eq!(of(json).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_limit_asks_for_nothing() {
        let nothing = serde_json::json!({
            "memory": {"limit": 0, "swap": 0, "kernel": -1, "disableOOMKiller": false, "useHierarchy": true},
            "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "realtimeRuntime": 0},
            "pids": {"limit": 0}, "blockIO": {"weight": 0}, "network": {"priorities": []},
            "devices": [{"allow": false, "access": "rwm"}], "hugepageLimits": [], "unified": {},
        });
        assert_eq!(of(nothing).unwrap(), Vec::<String>::new());
        let lifted =
            of(serde_json::json!({"pids": {"limit": -1}, "memory": {"swap": -1}})).unwrap();
        assert_eq!(
            lifted,
            ["memory.swap.max=max (if there)", "pids.max=max (if there)"]
        );
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_field() {
        for (json, word) in [
            (
                serde_json::json!({"memory": {"swappiness": 60}}),
                "memory.swappiness",
            ),
            (
                serde_json::json!({"memory": {"kernel": 1}}),
                "memory.kernel",
            ),
            (
                serde_json::json!({"memory": {"disableOOMKiller": true}}),
                "memory.disableOOMKiller",
            ),
            (serde_json::json!({"memory": {"swap": 5}}), "memory.swap"),
            (
                serde_json::json!({"memory": {"limit": 6, "swap": 5}}),
                "memory.swap",
            ),
            (serde_json::json!({"memory": {"limit": -2}}), "memory.limit"),
            (
                serde_json::json!({"cpu": {"realtimeRuntime": 5}}),
                "cpu.realtimeRuntime",
            ),
            (serde_json::json!({"cpu": {"idle": 2}}), "cpu.idle"),
            (serde_json::json!({"cpu": {"cpus": "0\n1"}}), "cpu.cpus"),
            (serde_json::json!({"pids": {"limit": -5}}), "pids.limit"),
            (
                serde_json::json!({"blockIO": {"weight": 5}}),
                "blockIO.weight",
            ),
            (
                serde_json::json!({"blockIO": {"leafWeight": 5}}),
                "blockIO.leafWeight",
            ),
            (
                serde_json::json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 0}]}),
                "hugepageLimits[0]",
            ),
            (
                serde_json::json!({"network": {"classID": 5}}),
                "network.classID",
            ),
            (
                serde_json::json!({"rdma": {"a b": {"hcaHandles": 3}}}),
                "rdma.a b",
            ),
            (
                serde_json::json!({"unified": {"../memory.max": "5"}}),
                "unified",
            ),
            (
                serde_json::json!({"unified": {"cgroup.procs": "5"}}),
                "unified",
            ),
        ] {
            let text = of(json).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn shares_and_weights_meet_at_the_ends_and_in_the_middle() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
        assert_eq!([0, 1, u64::MAX].map(weight), [1, 1, 10_000]);
        assert!(
            (3..262_144)
                .step_by(997)
                .all(|s| (1..=10_000).contains(&weight(s)))
        );
    }
}
