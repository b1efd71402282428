//! What a container has printed.

use std::thread;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::runtime::Handle as Runtime;
use tokio_util::sync::CancellationToken;

use super::ndjson::{self, Lines, ReaderGone};
use super::types::LogLine;
use super::{Answer, Handle, Options, Segment};
use crate::daemon::log::{LogReader, parse};
use crate::daemon::{Containers, DaemonError};
use crate::model::{ContainerState, Name};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How many looks there are between two questions whether the container still runs.
const LOOKS: u32 = 10;

/// `?follow=&tail=`
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogOptions {
    #[serde(default)]
    follow: bool,
    tail: Option<u64>,
}

/// `GET /v1/containers/{name}/logs`: a line for each line that was printed. Followed, it ends when the
/// container's command has.
pub async fn logs(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Options(options): Options<LogOptions>,
) -> Answer<Response> {
    let path = daemon.containers.log(&name).await?;
    let failed = |what: &str, source| DaemonError::Io {
        what: format!("{what} the log of {name}"),
        source,
    };
    let reader = LogReader::open(&path, options.tail).map_err(|e| failed("open", e))?;
    let ends = Ends {
        follow: options.follow,
        containers: daemon.containers.clone(),
        name: name.clone(),
        stopping: daemon.stopping.clone(),
        runtime: Runtime::current(),
    };
    let (lines, response) = ndjson::lines();
    // A thread of its own: reading files blocks, and a log may be followed for days.
    let spawned = thread::Builder::new()
        .name("logs".to_owned())
        .spawn(move || {
            // A reader that has gone needs nothing more.
            let _ = send(reader, &ends, &lines);
        });
    spawned.map_err(|e| failed("start a thread for", e))?;
    Ok(response)
}

/// When the answer ends, once everything there is has been sent.
struct Ends {
    follow: bool,
    containers: Containers,
    name: Name,
    stopping: CancellationToken,
    runtime: Runtime,
}

impl Ends {
    /// At once, unless it is followed; else when the command has ended, the container has gone, or the
    /// daemon ends.
    fn now(&self) -> bool {
        if !self.follow || self.stopping.is_cancelled() {
            return true;
        }
        match self.runtime.block_on(self.containers.status(&self.name)) {
            Ok(status) => status.state == ContainerState::Stopped,
            Err(_) => true,
        }
    }
}

fn send(mut reader: LogReader, ends: &Ends, lines: &Lines<LogLine>) -> Result<(), ReaderGone> {
    let mut looks = 0;
    let mut over = false;
    loop {
        match reader.read_record() {
            Ok(Some(record)) => {
                if let Some(line) = line(record) {
                    lines.send_blocking(line)?;
                }
            }
            // What was printed just before the end is read after the end was seen.
            Ok(None) if over => return Ok(()),
            Ok(None) => {
                over = looks % LOOKS == 0 && ends.now();
                looks += 1;
                if !over {
                    thread::sleep(LOOK);
                    lines.still_read()?;
                }
            }
            Err(e) => {
                tracing::warn!(container = %ends.name, "cannot read a log: {e}");
                return Ok(());
            }
        }
    }
}

fn line(record: &[u8]) -> Option<LogLine> {
    let record = parse(record)?;
    let (text, data) = match std::str::from_utf8(record.bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(record.bytes))),
    };
    Some(LogLine {
        at: record.at.to_owned(),
        stream: record.stream,
        partial: !record.whole,
        text,
        data,
    })
}
