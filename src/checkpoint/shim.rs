//! What a shim knows of CRIU.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::{Plan, restore};
use crate::container::shim::{RestoreRequest, Restorer, ShimStdio};
use crate::criu::Criu;
use crate::model::CriuVersion;

/// Restores containers for shims.
#[derive(Debug, Clone, Copy)]
pub struct CriuRestorer;

impl Restorer for CriuRestorer {
    fn restore(
        &self,
        request: &RestoreRequest,
        stdio: &ShimStdio,
        hold: &mut dyn FnMut(i32) -> bool,
    ) -> Result<i32, String> {
        let copy = |fd: &OwnedFd| {
            let copied = fd.try_clone();
            copied.map_err(|e| format!("cannot duplicate an output pipe: {e}"))
        };
        let plan = Plan {
            images: request.images.clone(),
            root: request.root.clone(),
            netns: request.netns.clone(),
            cgroup: request.cgroup.clone(),
            stdio: vec![
                (request.stdio_inodes[0], copy(&stdio.stdout)?),
                (request.stdio_inodes[1], copy(&stdio.stderr)?),
            ],
        };
        let criu = criu(&request.criu, &request.extra)?;
        restore(&criu, plan, hold).map_err(|error| chain(&error))
    }
}

/// The CRIU that the daemon has found before: asking it for its version again would cost a start of it.
fn criu(program: &Path, extra: &serde_json::Value) -> Result<Criu, String> {
    let version = extra
        .get("criu_version")
        .and_then(serde_json::Value::as_str);
    let version: Option<CriuVersion> = version.and_then(|text| text.parse().ok());
    match version {
        Some(version) => Ok(Criu::known(program, version)),
        None => Criu::find(Some(program)).map_err(|error| chain(&error)),
    }
}

/// An error and its causes in one line: it crosses a socket as text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
