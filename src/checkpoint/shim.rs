//! What a shim knows of CRIU.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Plan, StandbyRestore, restore};
use crate::container::shim::{Preparation, Reached, RestoreRequest, Restorer, ShimStdio};
use crate::criu::Criu;
use crate::memory::fill::{FillPlan, Guard};
use crate::model::CriuVersion;

/// This program, even where its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// Restores the container of a shim.
#[derive(Debug, Default)]
pub struct CriuRestorer {
    /// What was started before there were images.
    ready: Mutex<Ready>,
}

#[derive(Debug, Default)]
struct Ready {
    /// Who will bring memory that comes behind the container.
    fill: Option<Arc<Guard>>,
    /// Who will restore it.
    criu: Option<StandbyRestore>,
}

impl Ready {
    /// Who brings memory, started now where nobody was yet, or whoever was is gone.
    fn fill(&mut self, images: &Path, cgroup: &Path) -> Result<Arc<Guard>, String> {
        if let Some(guard) = self.fill.as_ref().filter(|guard| guard.is_well()) {
            return Ok(Arc::clone(guard));
        }
        let plan = FillPlan {
            program: PROGRAM.into(),
            images: images.to_owned(),
            cgroup: cgroup.to_owned(),
        };
        let guard = Arc::new(Guard::start(plan).map_err(|error| chain(&error))?);
        Ok(Arc::clone(self.fill.insert(guard)))
    }

    /// The CRIU that waits, or, where there is none or it has ended, a new one.
    fn criu(&mut self, with: &With<'_>) -> Result<StandbyRestore, String> {
        if let Some(mut waiting) = self.criu.take()
            && waiting.waits()
        {
            return Ok(waiting);
        }
        with.standby()
    }
}

/// What a CRIU is started with.
struct With<'a> {
    program: &'a Path,
    extra: &'a serde_json::Value,
    cgroup: &'a Path,
    userns: Option<&'a Path>,
    netns: &'a Path,
    stdio: &'a ShimStdio,
}

impl With<'_> {
    fn standby(&self) -> Result<StandbyRestore, String> {
        let copy = |fd: &OwnedFd| {
            let copied = fd.try_clone();
            copied.map_err(|e| format!("cannot duplicate an output pipe: {e}"))
        };
        let stdio = [copy(&self.stdio.stdout)?, copy(&self.stdio.stderr)?];
        let criu = criu(self.program, self.extra)?;
        StandbyRestore::start(&criu, self.cgroup, self.userns, self.netns, stdio)
            .map_err(|error| chain(&error))
    }
}

impl CriuRestorer {
    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Restorer for CriuRestorer {
    fn prepare(&self, preparation: &Preparation, stdio: &ShimStdio) -> Result<(), String> {
        let mut ready = self.ready();
        if preparation.lazy {
            ready.fill(&preparation.images, &preparation.cgroup)?;
        }
        let with = With {
            program: &preparation.criu,
            extra: &preparation.extra,
            cgroup: &preparation.cgroup,
            userns: preparation.userns.as_deref(),
            netns: &preparation.netns,
            stdio,
        };
        ready.criu = Some(with.standby()?);
        Ok(())
    }

    fn restore(
        &self,
        request: &RestoreRequest,
        stdio: &ShimStdio,
        reached: &mut dyn FnMut(Reached) -> bool,
    ) -> Result<i32, String> {
        let mut ready = self.ready();
        let fill = request
            .lazy
            .then(|| ready.fill(&request.images, &request.cgroup));
        let plan = Plan {
            images: request.images.clone(),
            root: request.root.clone(),
            stdio_inodes: request.stdio_inodes,
            bound: request.bound.clone(),
            copies: request.copies.clone(),
            null: request.null.clone(),
            fill: fill.transpose()?,
        };
        let standby = ready.criu(&With {
            program: &request.criu,
            extra: &request.extra,
            cgroup: &request.cgroup,
            userns: request.userns.as_deref(),
            netns: &request.netns,
            stdio,
        })?;
        drop(ready);
        restore(standby, plan, reached).map_err(|error| {
            // Nothing runs, and nothing is to be brought.
            self.ready().fill = None;
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
