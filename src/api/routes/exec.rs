//! A command in a container: its output as it comes, then its exit code.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdout, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::ndjson::{self, Lines};
use super::types::{ApiError, ExecLine, ExecRequest, Output};
use super::{Answer, Body, Handle, Segment};
use crate::daemon::DaemonError;
use crate::model::Name;

/// The most bytes of output in one line.
const CHUNK: usize = 32 * 1024;
/// How long a command may go on once the daemon is to end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a command that has closed its outputs is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// `POST /v1/containers/{name}/exec`
pub async fn exec(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Body(request): Body<ExecRequest>,
) -> Answer<Response> {
    if request.command.first().is_none_or(String::is_empty) {
        return Err(DaemonError::Field {
            field: "command",
            problem: "it is empty".to_owned(),
            remedy: "give a program and its arguments".to_owned(),
        }
        .into());
    }
    let mut child = daemon.containers.exec(&name, request).await?;
    let outputs = (child.stdout.take(), child.stderr.take());
    let child = Arc::new(Mutex::new(child));
    let (lines, response) = ndjson::lines();
    let (done, is_done) = oneshot::channel::<()>();
    let stopping = daemon.stopping.clone();
    tokio::spawn(kill_when_gone(
        Arc::clone(&child),
        lines.clone(),
        is_done,
        stopping,
    ));
    // A thread of its own: a command may run for days, and the blocking pool is for short work.
    let spawned = thread::Builder::new()
        .name("exec".to_owned())
        .spawn(move || {
            pump(outputs, &child, &lines);
            drop(done);
        });
    spawned.map_err(|source| DaemonError::Io {
        what: format!("start a thread for the command in {name}"),
        source,
    })?;
    Ok(response)
}

/// A command whose reader has gone is killed, even if it never prints anything; and one that would keep the
/// daemon from ending.
async fn kill_when_gone(
    child: Arc<Mutex<Child>>,
    lines: Lines<ExecLine>,
    is_done: oneshot::Receiver<()>,
    stopping: CancellationToken,
) {
    let too_long = async {
        stopping.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        () = lines.closed() => {}
        () = too_long => {}
        _ = is_done => return,
    }
    // Already ended is as good as killed.
    let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
}

/// Sends the command's outputs until both end, then its exit code.
fn pump(
    (stdout, stderr): (Option<ChildStdout>, Option<ChildStderr>),
    child: &Mutex<Child>,
    lines: &Lines<ExecLine>,
) {
    thread::scope(|scope| {
        scope.spawn(|| copy(stdout, Output::Stdout, lines));
        copy(stderr, Output::Stderr, lines)
    })
    .ok();
    // Its outputs have ended, so it has most often ended too; the lock is not held while waiting.
    let ended = loop {
        let ended = child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait();
        match ended {
            Ok(None) => thread::sleep(LOOK),
            Ok(Some(status)) => break Ok(exit_code(status)),
            Err(e) => break Err(e),
        }
    };
    let last = match ended {
        Ok(exit) => ExecLine::Exit { exit },
        Err(e) => ExecLine::Failed {
            error: ApiError {
                code: "system".to_owned(),
                message: format!("cannot wait for the command: {e}"),
                field: None,
                remedy: None,
            },
        },
    };
    // Whoever has gone does not want to know.
    let _ = lines.send_blocking(last);
}

fn copy(
    from: Option<impl Read>,
    stream: Output,
    lines: &Lines<ExecLine>,
) -> Result<(), ndjson::ReaderGone> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => lines.send_blocking(ExecLine::Output {
                stream,
                data: STANDARD.encode(&buffer[..n]),
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    let signalled = || status.signal().map_or(-1, |signal| 128 + signal);
    status.code().unwrap_or_else(signalled)
}
