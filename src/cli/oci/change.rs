//! `pause`, `resume`, `update` of containers of bundles.

use std::path::PathBuf;

use clap::Args;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::super::values;
use super::Place;
use crate::model::Bytes;
use crate::runtime::{self, Ended, Id, RuntimeError};

/// Freeze the processes of a container of a bundle.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit pause web")]
pub struct Pause {
    /// The container.
    pub id: Id,
}

/// Let the processes of a paused container go on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  godwit resume web")]
pub struct Resume {
    /// The container.
    pub id: Id,
}

/// Change the resource limits of a container of a bundle.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  godwit update --memory 512M --pids-limit 100 web
  godwit update --resources limits.json web"
)]
pub struct Update {
    /// The container.
    id: Id,
    /// A file with linux.resources as in config.json; `-`: the standard input.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// The most memory.
    #[arg(long, value_name = "AMOUNT", value_parser = amount, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// How much memory is left to it when memory is short.
    #[arg(long, value_name = "AMOUNT", value_parser = amount, allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// The most memory and swap space together; -1: no limit.
    #[arg(long, value_name = "AMOUNT", value_parser = amount, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Processor time in each period, in microseconds; -1: no limit.
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// The period, in microseconds.
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// How much more processor time a burst may use.
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<u64>,
    /// The share of processor time where it is short.
    #[arg(long, visible_alias = "cpu-share", value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// 1: only processor time that nobody else wants.
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// The processors it may use, like 0-3,7.
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The memory nodes it may use.
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// The share of I/O, from 10 to 1000.
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<u16>,
    /// The most processes and threads; -1: no limit.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
}

/// A number of bytes with a unit or without; -1: no limit.
fn amount(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let Bytes(bytes) = values::bytes(text)?;
    i64::try_from(bytes).map_err(|_| format!("{text:?} is too much"))
}

impl Update {
    /// Changes them.
    pub fn carry_out(&self, place: &Place) -> Result<Ended, RuntimeError> {
        let resources = match &self.resources {
            Some(path) => runtime::manage::read_resources(path)?,
            None => self.by_options()?,
        };
        runtime::manage::update(&place.root, &self.id, &resources)?;
        Ok(Ended::With(0))
    }

    fn by_options(&self) -> Result<LinuxResources, RuntimeError> {
        let parts = [
            (
                "memory",
                json!({
                    "limit": self.memory,
                    "reservation": self.memory_reservation,
                    "swap": self.memory_swap,
                }),
            ),
            (
                "cpu",
                json!({
                    "quota": self.cpu_quota,
                    "period": self.cpu_period,
                    "burst": self.cpu_burst,
                    "shares": self.cpu_shares,
                    "idle": self.cpu_idle,
                    "cpus": self.cpuset_cpus,
                    "mems": self.cpuset_mems,
                }),
            ),
            ("blockIO", json!({"weight": self.blkio_weight})),
            ("pids", json!({"limit": self.pids_limit})),
        ];
        let asked = |(name, mut part): (&str, Value)| {
            let fields = part.as_object_mut()?;
            fields.retain(|_, value| !value.is_null());
            (!fields.is_empty()).then(|| (name.to_owned(), part))
        };
        let all: Map<String, Value> = parts.into_iter().filter_map(asked).collect();
        if all.is_empty() {
            return Err(RuntimeError::Option {
                option: "update",
                why: "nothing is to be changed; give --resources or a limit".to_owned(),
            });
        }
        serde_json::from_value(Value::Object(all)).map_err(|error| RuntimeError::Option {
            option: "update",
            why: error.to_string(),
        })
    }
}
