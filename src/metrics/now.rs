//! What is true at the moment of a scrape.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::model::{ContainerState, Pressure, Reading, Usage};

type Seconds = Counter<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Whose {
    container: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    container: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waited {
    container: String,
    resource: &'static str,
    tasks: &'static str,
}

/// Every state, so that those in which no container is are 0.
const STATES: [(ContainerState, &str); 7] = [
    (ContainerState::Creating, "creating"),
    (ContainerState::Created, "created"),
    (ContainerState::Running, "running"),
    (ContainerState::Migrating, "migrating"),
    (ContainerState::Arriving, "arriving"),
    (ContainerState::InDoubt, "in-doubt"),
    (ContainerState::Stopped, "stopped"),
];

/// One family for each number that the kernel tells of a container.
#[derive(Default)]
struct Families {
    states: Family<State, Gauge>,
    cpu: Family<Whose, Seconds>,
    throttled: Family<Whose, Seconds>,
    memory: Family<Whose, Gauge<u64, AtomicU64>>,
    memory_limit: Family<Whose, Gauge<u64, AtomicU64>>,
    oom_kills: Family<Whose, Counter>,
    pids: Family<Whose, Gauge<u64, AtomicU64>>,
    io: Family<Direction, Counter>,
    pressure: Family<Waited, Seconds>,
}

/// What a scrape finds now. What is missing of a container is not there, rather than 0.
pub fn registry(usage: &[Usage]) -> Registry {
    let families = Families::default();
    for (state, name) in STATES {
        let number = usage.iter().filter(|usage| usage.state == state).count();
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        families
            .states
            .get_or_create(&State { state: name })
            .set(number);
    }
    usage.iter().for_each(|usage| families.add(usage));
    families.registered()
}

impl Families {
    fn add(&self, usage: &Usage) {
        let whose = || Whose {
            container: usage.name.to_string(),
        };
        if let Some(cpu) = usage.cpu.value() {
            self.cpu
                .get_or_create(&whose())
                .inc_by(seconds(cpu.total_us));
            self.throttled
                .get_or_create(&whose())
                .inc_by(seconds(cpu.throttled_us));
        }
        if let Some(memory) = usage.memory.value() {
            self.memory.get_or_create(&whose()).set(memory.current.0);
            if let Some(limit) = memory.limit {
                self.memory_limit.get_or_create(&whose()).set(limit.0);
            }
            self.oom_kills
                .get_or_create(&whose())
                .inc_by(memory.oom_kills);
        }
        if let Some(pids) = usage.pids.value() {
            self.pids.get_or_create(&whose()).set(pids.current);
        }
        if let Some(io) = usage.io.value() {
            for (direction, bytes) in [("read", io.read), ("write", io.written)] {
                let container = usage.name.to_string();
                let label = Direction {
                    container,
                    direction,
                };
                self.io.get_or_create(&label).inc_by(bytes.0);
            }
        }
        self.add_pressure(usage, "cpu", &usage.pressure.cpu);
        self.add_pressure(usage, "memory", &usage.pressure.memory);
        self.add_pressure(usage, "io", &usage.pressure.io);
    }

    fn add_pressure(&self, usage: &Usage, resource: &'static str, reading: &Reading<Pressure>) {
        let Some(pressure) = reading.value() else {
            return;
        };
        for (tasks, stall) in [("some", pressure.some), ("all", pressure.full)] {
            let label = Waited {
                container: usage.name.to_string(),
                resource,
                tasks,
            };
            self.pressure
                .get_or_create(&label)
                .inc_by(seconds(stall.total_us));
        }
    }

    fn registered(self) -> Registry {
        let mut all = Registry::with_prefix("godwit");
        all.register(
            "containers",
            "Containers of this host by their state",
            self.states,
        );
        let own = all.sub_registry_with_prefix("container");
        own.register_with_unit("cpu", "Processor time used here", Unit::Seconds, self.cpu);
        own.register_with_unit(
            "cpu_throttled",
            "How long the limit of processor time kept it waiting",
            Unit::Seconds,
            self.throttled,
        );
        own.register_with_unit("memory", "Memory in use", Unit::Bytes, self.memory);
        own.register_with_unit(
            "memory_limit",
            "The most it may use",
            Unit::Bytes,
            self.memory_limit,
        );
        own.register(
            "oom_kills",
            "Processes killed for want of memory",
            self.oom_kills,
        );
        own.register("pids", "Processes and threads", self.pids);
        own.register_with_unit(
            "io",
            "What went from and to block devices",
            Unit::Bytes,
            self.io,
        );
        own.register_with_unit(
            "pressure",
            "How long some of its tasks, or all at once, waited for a resource",
            Unit::Seconds,
            self.pressure,
        );
        all
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
