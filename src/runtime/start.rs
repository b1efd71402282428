//! `start`: the process that waits becomes its command.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use super::error::{file, system};
use super::state::{self, Id, Record, Status};
use super::store::Root;
use super::talk::{hear, say};
use super::wire::{FromProcess, ToProcess};
use super::{RuntimeError, agent, run_hooks};
use crate::sys::fdpass;

/// Starts a container that was created. When its command cannot be run, the container has stopped.
pub fn start(root: &Root, id: &Id) -> Result<(), RuntimeError> {
    let (home, record) = root.open(id)?;
    let status = root.status(&record);
    let remedy = match status {
        Status::Created => return start_created(&record, &home.socket()),
        Status::Stopped => "delete it and create it anew",
        Status::Creating => "wait until its creation has ended",
        Status::Running | Status::Paused => "it has been started before",
    };
    Err(RuntimeError::Status {
        verb: "start",
        id: id.to_string(),
        status,
        remedy,
    })
}

fn start_created(record: &Record, socket: &Path) -> Result<(), RuntimeError> {
    let process = fdpass::connect_to(socket).map_err(file("reach the process at", socket))?;
    let pid = record.init.pid;
    let failed = loop {
        let heard = hear::<FromProcess>(process.as_fd());
        match heard.map_err(system("hear the container's process"))? {
            Some(FromProcess::Listener { number }) => {
                agent::pass(record, pid, number)?;
                say(process.as_fd(), &ToProcess::Go { pid })
                    .map_err(system("speak to the container's process"))?;
            }
            Some(FromProcess::Failed { why }) => break Some(why),
            Some(word) => break Some(format!("it has said {word:?}")),
            None => break None,
        }
    };
    // From now on it is running, or has stopped; either way it waits no longer.
    fs::remove_file(socket).map_err(file("remove", socket))?;
    if let Some(why) = failed {
        return Err(RuntimeError::Child { why });
    }
    let state = state::for_hooks(record, Status::Running);
    run_hooks("poststart", record.spec.hooks().as_ref(), &state)
}
