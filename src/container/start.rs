//! The command of a container begins to run.

use std::time::{SystemTime, UNIX_EPOCH};

use super::record::Life;
use super::shim::Client;
use super::state::{Verb, allow};
use super::status::Seen;
use super::undo::Undo;
use super::{ContainerError, Host, Record, create, place, status};
use crate::model::{ContainerState, Name};

/// Starts the command of a container that is created, or has stopped, and opens its network gate. It returns
/// the host id of its first process.
///
/// On failure the gate is closed. When the command itself cannot be run, the container is then stopped: its
/// files are kept, of the rest nothing is left.
pub fn start(host: &Host, name: &Name) -> Result<i32, ContainerError> {
    let (mut record, seen) = status::look(host, name)?;
    allow(name, seen.state, Verb::Start)?;
    record.life = Life {
        wanted: true,
        started_at: now(),
        ..Life::default()
    };
    let ran = run(host, record, seen);
    if ran.is_err()
        && let Ok(mut record) = Record::load(host, name)
    {
        // Whoever asked is told, and asks again.
        record.life.wanted = false;
        record.save(host)?;
    }
    ran
}

/// The same by what its spec says, of a command that has ended: what is remembered of it stays.
pub(super) fn start_again(host: &Host, name: &Name) -> Result<i32, ContainerError> {
    let (record, seen) = status::look(host, name)?;
    allow(name, seen.state, Verb::Start)?;
    run(host, record, seen)
}

/// The time, in seconds since the epoch.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

fn run(host: &Host, mut record: Record, seen: Seen) -> Result<i32, ContainerError> {
    let name = &record.spec.name.clone();
    let mut shim = if seen.state == ContainerState::Created {
        let run = host.run(name);
        Client::connect(&run).map_err(ContainerError::shim("reach the shim of", name))?
    } else {
        again(host, &record)?
    };
    match let_run(host, &mut record, &mut shim) {
        Ok(pid) => Ok(pid),
        Err(error) => {
            let mut undo = Undo::default();
            undo.push(move || {
                record.state = ContainerState::Stopped;
                record.save(host)
            });
            undo.push(|| place::remove_runtime(host, name));
            Err(undo.unwind(error))
        }
    }
}

/// Makes anew what a stopped container has lost, or has left over.
fn again(host: &Host, record: &Record) -> Result<Client, ContainerError> {
    let name = &record.spec.name;
    if record.spec.bundle.is_some() {
        return Err(ContainerError::OfABundle { name: name.clone() });
    }
    place::remove_runtime(host, name)?;
    place::make(host, &record.spec)?;
    create::prepare(host, &record.spec).map_err(|error| {
        let mut undo = Undo::default();
        undo.push(|| place::remove_runtime(host, name));
        undo.unwind(error)
    })
}

fn let_run(host: &Host, record: &mut Record, shim: &mut Client) -> Result<i32, ContainerError> {
    let name = record.spec.name.clone();
    let network = || ContainerError::network(&name);
    host.network.attach(&name).map_err(network())?;
    let pid = shim.start().map_err(ContainerError::shim("start", &name))?;
    record.state = ContainerState::Running;
    record.exit_code = None;
    record.why = None;
    record.save(host)?;
    // Neighbours may remember somebody else at this address.
    let announced = host
        .network
        .announce(&record.spec.lease, &host.netns(&name));
    announced.map_err(network())?;
    Ok(pid)
}
