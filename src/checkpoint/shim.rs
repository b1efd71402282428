//! What a shim knows of CRIU.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Plan, restore};
use crate::container::shim::{Preparation, Reached, RestoreRequest, Restorer, ShimStdio};
use crate::criu::Criu;
use crate::memory::fill::{FillPlan, Guard};
use crate::model::CriuVersion;

/// This program, even where its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// Restores the container of a shim.
#[derive(Debug, Default)]
pub struct CriuRestorer {
    /// Who will bring memory that comes behind the container.
    fill: Mutex<Option<Arc<Guard>>>,
}

impl CriuRestorer {
    /// Who brings memory, started now where nobody was yet, or whoever was is gone.
    fn fill(&self, images: &Path, cgroup: &Path) -> Result<Arc<Guard>, String> {
        let mut fill = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = fill.as_ref().filter(|guard| guard.is_well()) {
            return Ok(Arc::clone(guard));
        }
        let plan = FillPlan {
            program: PROGRAM.into(),
            images: images.to_owned(),
            cgroup: cgroup.to_owned(),
        };
        let guard = Arc::new(Guard::start(plan).map_err(|error| chain(&error))?);
        Ok(Arc::clone(fill.insert(guard)))
    }
}

impl Restorer for CriuRestorer {
    fn prepare(&self, preparation: &Preparation) -> Result<(), String> {
        self.fill(&preparation.images, &preparation.cgroup)
            .map(drop)
    }

    fn restore(
        &self,
        request: &RestoreRequest,
        stdio: &ShimStdio,
        reached: &mut dyn FnMut(Reached) -> bool,
    ) -> Result<i32, String> {
        let copy = |fd: &OwnedFd| {
            let copied = fd.try_clone();
            copied.map_err(|e| format!("cannot duplicate an output pipe: {e}"))
        };
        let fill = request
            .lazy
            .then(|| self.fill(&request.images, &request.cgroup));
        let plan = Plan {
            images: request.images.clone(),
            root: request.root.clone(),
            netns: request.netns.clone(),
            cgroup: request.cgroup.clone(),
            stdio: vec![
                (request.stdio_inodes[0], copy(&stdio.stdout)?),
                (request.stdio_inodes[1], copy(&stdio.stderr)?),
            ],
            fill: fill.transpose()?,
        };
        let criu = criu(&request.criu, &request.extra)?;
        restore(&criu, plan, reached).map_err(|error| {
            // Nothing runs, and nothing is to be brought.
            *self.fill.lock().unwrap_or_else(PoisonError::into_inner) = None;
            chain(&error)
        })
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
