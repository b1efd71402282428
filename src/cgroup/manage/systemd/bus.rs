//! What is said to systemd: start this scope, change its limits (org.freedesktop.systemd1(5)). It is said over the
//! system's bus; systemd's private socket speaks a dialect of its own that the library does not.

use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedObjectPath, Value};

use super::unit::{Property, Unit};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// Starts a scope with this process in it, and waits until that has happened. Returns the path of its cgroup, below the
/// root of systemd's hierarchy.
pub fn start(unit: &Unit, pid: u32, limits: &[Property]) -> zbus::Result<String> {
    let connection = Connection::system()?;
    let manager = Proxy::new(&connection, SERVICE, PATH, MANAGER)?;
    // Without it no signals are sent.
    manager.call_method("Subscribe", &())?;
    let ended = manager.receive_signal("JobRemoved")?;
    let ask = || -> zbus::Result<OwnedObjectPath> {
        let more: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
        let properties = properties(unit, pid, limits);
        manager.call(
            "StartTransientUnit",
            &(&unit.name, "replace", properties, more),
        )
    };
    let job = match ask() {
        // One of that name that has failed is remembered.
        Err(zbus::Error::MethodError(name, _, _)) if name == EXISTS => {
            manager.call_method("ResetFailedUnit", &(&unit.name))?;
            ask()?
        }
        asked => asked?,
    };
    for signal in ended {
        let body = signal.body();
        let (_, ours, _, result): (u32, OwnedObjectPath, &str, &str) = body.deserialize()?;
        if ours == job {
            return match result {
                "done" => cgroup(&connection, &manager, unit),
                other => Err(zbus::Error::Failure(format!(
                    "the job of the unit is {other}"
                ))),
            };
        }
    }
    Err(zbus::Error::Failure("systemd has hung up".to_owned()))
}

fn cgroup(connection: &Connection, manager: &Proxy<'_>, unit: &Unit) -> zbus::Result<String> {
    let object: OwnedObjectPath = manager.call("GetUnit", &(&unit.name))?;
    let scope = Proxy::new(
        connection,
        SERVICE,
        object,
        "org.freedesktop.systemd1.Scope",
    )?;
    scope.get_property("ControlGroup")
}

/// Lets a unit know of new limits, until it ends.
pub fn update(name: &str, limits: &[Property]) -> zbus::Result<()> {
    let connection = Connection::system()?;
    let manager = Proxy::new(&connection, SERVICE, PATH, MANAGER)?;
    let limits: Vec<_> = limits.iter().map(limit).collect();
    manager.call_method("SetUnitProperties", &(name, true, limits))?;
    Ok(())
}

/// Ends a unit, and forgets that it failed. That there is none is no error.
pub fn stop(name: &str) -> zbus::Result<()> {
    let connection = Connection::system()?;
    let manager = Proxy::new(&connection, SERVICE, PATH, MANAGER)?;
    for (method, arguments) in [("StopUnit", Some("replace")), ("ResetFailedUnit", None)] {
        let asked = match arguments {
            Some(mode) => manager.call_method(method, &(name, mode)),
            None => manager.call_method(method, &(name)),
        };
        match asked {
            Err(zbus::Error::MethodError(error, _, _)) if error.ends_with(".NoSuchUnit") => {}
            asked => drop(asked?),
        }
    }
    Ok(())
}

fn properties<'a>(unit: &'a Unit, pid: u32, limits: &'a [Property]) -> Vec<(&'a str, Value<'a>)> {
    let mut all: Vec<(&str, Value<'_>)> = vec![
        ("Description", format!("container {}", unit.name).into()),
        ("Slice", unit.slice.as_str().into()),
        // What is below it is the container's and ours, and every controller is there.
        ("Delegate", true.into()),
        ("DefaultDependencies", false.into()),
        ("CPUAccounting", true.into()),
        ("MemoryAccounting", true.into()),
        ("IOAccounting", true.into()),
        ("TasksAccounting", true.into()),
        ("PIDs", vec![pid].into()),
    ];
    all.extend(limits.iter().map(limit));
    all
}

fn limit(property: &Property) -> (&str, Value<'_>) {
    match property {
        Property::Number(name, value) => (name, (*value).into()),
        Property::Set(name, bits) => (name, bits.clone().into()),
    }
}
