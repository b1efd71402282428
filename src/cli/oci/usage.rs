//! `events` of a container of a bundle: what it uses, now or again and again.

use std::time::Duration;

use clap::Args;

use super::super::values;
use super::{Place, print};
use crate::runtime::{Ended, Id, RuntimeError, Status, manage};

/// A container of a bundle: instead of the daemon's events.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options for containers of OCI bundles")]
pub struct Usage {
    /// The container whose use of resources is printed.
    pub id: Option<Id>,
    /// Once, and not again and again.
    #[arg(long, requires = "id")]
    stats: bool,
    /// How long from one time to the next.
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "5s")]
    interval: Duration,
}

impl Usage {
    /// Prints it, until the container has stopped.
    pub fn watch(&self, place: &Place) -> Result<Ended, RuntimeError> {
        let Some(id) = &self.id else {
            return Ok(Ended::With(0));
        };
        loop {
            let record = place.root.read(id)?;
            let status = place.root.status(&record);
            if status == Status::Stopped {
                if self.stats {
                    return Err(RuntimeError::NotRunning {
                        id: id.to_string(),
                        status,
                    });
                }
                return Ok(Ended::With(0));
            }
            let data = manage::stats(&record);
            let event = serde_json::json!({"type": "stats", "id": id.as_str(), "data": data});
            print(&format!("{event}\n"))?;
            if self.stats {
                return Ok(Ended::With(0));
            }
            std::thread::sleep(self.interval);
        }
    }
}
