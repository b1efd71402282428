//! `godwit stats`: what containers use.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::output::Failure;
use super::table::{right, table, word};
use super::{Format, Session, values};
use crate::model::{ContainerState, Name, Pressure, Reading, Usage};

/// Show what containers use.
///
/// Processor time is that of the time between two readings; what a controller that is not there would have to tell
/// is shown as `-`, and in JSON with the reason. IO and pressure count from when the container came to this host.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  godwit stats
  godwit stats --watch --interval 5s cache
  godwit stats --format json")]
pub struct Stats {
    /// The containers; all that run where none is named.
    #[arg(value_name = "NAME")]
    names: Vec<Name>,
    /// Go on until it is interrupted.
    #[arg(short, long)]
    watch: bool,
    /// The time between two readings.
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = values::duration)]
    interval: Duration,
}

impl Stats {
    pub async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        if self.interval.is_zero() {
            let problem = "--interval is no time at all";
            return Err(Failure::new(problem, "give a time like 500ms or 2s"));
        }
        let mut before = self.read(session).await?;
        loop {
            tokio::time::sleep(self.interval).await;
            let now = self.read(session).await?;
            if !self.watch {
                return session.print(&now, |now| show(&before, now));
            }
            if session.format == Format::Table && io::stdout().is_terminal() {
                // Home, and everything below it away: the table stays where it is.
                io::stdout().lock().write_all(b"\x1b[H\x1b[J")?;
            }
            session.print_line(&now, |now| show(&before, now))?;
            before = now;
        }
    }

    async fn read(&self, session: &Session) -> Result<Vec<Usage>, Failure> {
        if self.names.is_empty() {
            let all: Vec<Usage> = session.client.get("/v1/stats").await?;
            let uses = |usage: &Usage| usage.state != ContainerState::Stopped;
            return Ok(all.into_iter().filter(uses).collect());
        }
        let mut all = Vec::new();
        for name in &self.names {
            let path = format!("/v1/containers/{name}/stats");
            all.extend(session.client.get::<Vec<Usage>>(&path).await?);
        }
        Ok(all)
    }
}

fn show(before: &[Usage], now: &[Usage]) -> String {
    let earlier: HashMap<&Name, &Usage> = before.iter().map(|usage| (&usage.name, usage)).collect();
    let mut table = table(&[
        "NAME",
        "STATE",
        "CPU",
        "MEMORY",
        "LIMIT",
        "PIDS",
        "READ",
        "WRITTEN",
        "WAITS CPU",
        "WAITS MEMORY",
        "WAITS IO",
    ]);
    right(&mut table, &[2, 3, 4, 5, 6, 7, 8, 9, 10]);
    for usage in now {
        let memory = usage.memory.value();
        let io = usage.io.value();
        table.add_row([
            usage.name.to_string(),
            word(usage.state),
            share(earlier.get(&usage.name).copied(), usage),
            dash(memory.map(|memory| memory.current)),
            dash(memory.and_then(|memory| memory.limit)),
            dash(usage.pids.value().map(|pids| pids.current)),
            dash(io.map(|io| io.read)),
            dash(io.map(|io| io.written)),
            waits(&usage.pressure.cpu),
            waits(&usage.pressure.memory),
            waits(&usage.pressure.io),
        ]);
    }
    table.trim_fmt()
}

fn dash(value: Option<impl ToString>) -> String {
    super::table::or_dash(value)
}

/// The processor time between two readings, in percent of one processor's.
fn share(before: Option<&Usage>, now: &Usage) -> String {
    let used = || {
        let before = before?;
        let time = now
            .at_us
            .checked_sub(before.at_us)
            .filter(|&time| time > 0)?;
        // One that has ended and was started again meanwhile begins anew.
        let used = now
            .cpu
            .value()?
            .total_us
            .checked_sub(before.cpu.value()?.total_us)?;
        Some(format!("{:.1} %", 100.0 * used as f64 / time as f64))
    };
    dash(used())
}

/// The share of the last ten seconds in which a task waited.
fn waits(reading: &Reading<Pressure>) -> String {
    dash(
        reading
            .value()
            .map(|pressure| format!("{:.2} %", f64::from(pressure.some.avg10_bp) / 100.0)),
    )
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Bytes, CpuUsage, MemoryUsage, PidsUsage, Pressures};

    fn usage(at_us: u64, total_us: u64) -> Usage {
        let missing = || "no controller".to_owned();
        Usage {
            name: "web".parse().unwrap(),
            state: ContainerState::Running,
            at_us,
            cpu: Reading::Value(CpuUsage {
                total_us,
                ..CpuUsage::default()
            }),
            memory: Reading::Value(MemoryUsage {
                current: Bytes(3 << 20),
                ..MemoryUsage::default()
            }),
            pids: Reading::Value(PidsUsage {
                current: 4,
                limit: None,
            }),
            io: Reading::Missing { missing: missing() },
            pressure: Pressures {
                cpu: Reading::Missing { missing: missing() },
                memory: Reading::Missing { missing: missing() },
                io: Reading::Missing { missing: missing() },
            },
        }
    }

    #[test]
    fn a_row_has_shares_amounts_and_dashes() {
        let text = show(&[usage(1_000_000, 0)], &[usage(2_000_000, 500_000)]);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "web", "running", "50.0", "%", "3.00", "MiB", "-", "4", "-", "-", "-", "-", "-"
            ],
            "{text}"
        );
    }

    #[test]
    fn without_an_earlier_reading_there_is_no_share() {
        let now = usage(2_000_000, 10);
        assert_eq!(share(None, &now), "-");
        assert_eq!(share(Some(&now), &now), "-");
        // It was started again.
        assert_eq!(share(Some(&usage(1_000_000, 500)), &now), "-");
    }
}
