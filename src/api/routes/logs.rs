//! What a container has printed.

use std::io;
use std::path::Path;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, Handle, Options, Segment};
use crate::daemon::{Containers, DaemonError};
use crate::model::{ContainerState, Name};

/// The most bytes read at once.
const CHUNK: usize = 64 * 1024;
/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// `?follow=&tail=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogOptions {
    #[serde(default)]
    follow: bool,
    tail: Option<u64>,
}

/// `GET /v1/containers/{name}/logs`: the bytes as they were printed.
pub async fn logs(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Options(options): Options<LogOptions>,
) -> Answer<Response> {
    let path = daemon.containers.log(&name).await?;
    let failed = |source| DaemonError::Io {
        what: format!("read the log of {name}"),
        source,
    };
    let file = match open(&path, options.tail).await {
        Ok(file) => Some(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(e).into()),
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(8);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    let ends = if options.follow {
        Ends::WithContainer(daemon.containers.clone(), name, daemon.stopping.clone())
    } else {
        Ends::AtOnce
    };
    if let Some(file) = file {
        tokio::spawn(send(file, ends, sender));
    }
    let headers = [(CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// When the answer ends, once everything there is has been sent.
enum Ends {
    AtOnce,
    /// When the command has ended, the container has gone, or the daemon ends.
    WithContainer(Containers, Name, CancellationToken),
}

impl Ends {
    async fn now(&self) -> bool {
        match self {
            Self::AtOnce => true,
            Self::WithContainer(_, _, stopping) if stopping.is_cancelled() => true,
            Self::WithContainer(containers, name, _) => match containers.status(name).await {
                Ok(status) => status.state == ContainerState::Stopped,
                Err(_) => true,
            },
        }
    }
}

async fn send(mut file: File, ends: Ends, to: mpsc::Sender<io::Result<Bytes>>) {
    let mut over = false;
    let mut idle = 0_u32;
    loop {
        let mut chunk = vec![0; CHUNK];
        let chunk = match file.read(&mut chunk).await {
            Ok(0) if over => return,
            Ok(0) => {
                // Asked every ten looks only; and what was printed just before the end is still read.
                over = idle.is_multiple_of(10) && ends.now().await;
                idle = idle.wrapping_add(1);
                if !over {
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => {}
                        () = to.closed() => return,
                    }
                }
                continue;
            }
            Ok(n) => {
                chunk.truncate(n);
                Ok(Bytes::from(chunk))
            }
            Err(e) => Err(e),
        };
        let failed = chunk.is_err();
        if to.send(chunk).await.is_err() || failed {
            return;
        }
    }
}

/// Opens a log at the begin of its last `tail` lines.
async fn open(path: &Path, tail: Option<u64>) -> io::Result<File> {
    let mut file = File::open(path).await?;
    if let Some(lines) = tail {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    Ok(file)
}

/// Where the last `lines` lines begin: read backwards, a chunk at a time.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut seen = 0;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let size = usize::try_from(end - begin).unwrap_or(CHUNK);
        file.seek(SeekFrom::Start(begin)).await?;
        file.read_exact(&mut buffer[..size]).await?;
        for at in (0..size).rev() {
            let position = begin + at as u64;
            // The newline that ends the last line begins no line.
            if buffer[at] == b'\n' && position + 1 < length {
                seen += 1;
                if seen == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test]
    async fn a_tail_begins_at_the_right_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let long = "x".repeat(CHUNK);
        std::fs::write(&path, format!("one\n{long}\nthree\nfour")).unwrap();
        for (tail, expected) in [
            (Some(0), String::new()),
            (Some(1), "four".to_owned()),
            (Some(2), "three\nfour".to_owned()),
            (Some(3), format!("{long}\nthree\nfour")),
            (Some(4), format!("one\n{long}\nthree\nfour")),
            (Some(99), format!("one\n{long}\nthree\nfour")),
            (None, format!("one\n{long}\nthree\nfour")),
        ] {
            let mut text = String::new();
            open(&path, tail)
                .await
                .unwrap()
                .read_to_string(&mut text)
                .await
                .unwrap();
            assert!(text == expected, "{tail:?}");
        }
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let mut text = String::new();
        open(&path, Some(1))
            .await
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert_eq!(text, "two\n");
    }
}
