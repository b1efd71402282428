//! `linux.netDevices`: devices of this host that a container gets.
//!
//! They belong to its network namespace from then on. With that the kernel ends them, or gives them back to the host
//! (hardware, under the name that it had inside); one that others keep, keeps them.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::RuntimeError;
use super::error::{refused, system};
use super::plan::Namespaces;
use crate::net::{Moved, check_device, give_device};
use crate::sys::netns::NetNs;

/// `IFNAMSIZ`, with the zero at the end (`linux/if.h`).
const NAME_SPACE: usize = 16;

/// The devices that a configuration asks for, checked; each with its name inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NetDevices(Vec<(String, String)>);

impl NetDevices {
    /// Those of a configuration.
    pub fn of(linux: &Linux, namespaces: &Namespaces) -> Result<Self, RuntimeError> {
        let mut all = Vec::new();
        for (device, about) in linux.net_devices().iter().flatten() {
            let field = format!("linux.netDevices.{device}");
            let given = about.name().as_ref().filter(|name| !name.is_empty());
            let inside = given.unwrap_or(device);
            if !is_name(device) || device.contains('%') {
                return Err(refused(field, "is no name of a network device"));
            }
            let patterned = inside.replacen("%d", "", 1);
            if !is_name(inside) || patterned.contains('%') {
                let why = format!(
                    "{inside:?} is no name of a network device: use up to 15 letters, digits and signs, one `%d` among \
                     them for a number that the container has not"
                );
                return Err(refused(field + ".name", why));
            }
            all.push((device.clone(), inside.clone()));
        }
        all.sort();
        if !all.is_empty() && !namespaces.has(LinuxNamespaceType::Network) {
            let why = "needs a network namespace: add {\"type\": \"network\"} to linux.namespaces";
            return Err(refused("linux.netDevices", why));
        }
        for (i, (device, inside)) in all.iter().enumerate() {
            let twice = all[..i].iter().any(|(_, other)| other == inside);
            if twice && !inside.contains("%d") {
                let why = format!("another device is called {inside}, too");
                return Err(refused(format!("linux.netDevices.{device}.name"), why));
            }
        }
        Ok(Self(all))
    }

    /// Fails unless all are there.
    pub fn check(&self) -> Result<(), RuntimeError> {
        let mut names = self.0.iter().map(|(device, _)| device);
        Ok(names.try_for_each(|name| check_device(name))?)
    }

    /// Moves them to a process's network namespace. What is there already is kept in `moved`, whatever comes.
    pub fn give(&self, pid: i32, moved: &mut Vec<Moved>) -> Result<(), RuntimeError> {
        for (device, inside) in &self.0 {
            let there = NetNs::open(Path::new(&format!("/proc/{pid}/ns/net")))
                .map_err(system("open the container's network namespace"))?;
            moved.push(give_device(device, there, inside)?);
        }
        Ok(())
    }
}

/// As `dev_valid_name` of the kernel (`net/core/dev.c`) has it.
fn is_name(text: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace() || c == '\x0b';
    !text.is_empty()
        && text.len() < NAME_SPACE
        && text != "."
        && text != ".."
        && !text.contains(odd)
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::{Value, json};

    fn of(devices: Value) -> Result<NetDevices, String> {
        let linux: Linux = serde_json::from_value(json!({"netDevices": devices})).unwrap();
        let namespaces = Namespaces {
            new: vec![LinuxNamespaceType::Network],
            joined: Vec::new(),
        };
        NetDevices::of(&linux, &namespaces).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_kept_or_given() {
        let found = of(json!({"b0": {}, "a0": {"name": "eth%d"}, "c0": {"name": ""}})).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let all = [pair("a0", "eth%d"), pair("b0", "b0"), pair("c0", "c0")];
        assert_eq!(found, NetDevices(all.to_vec()));
        assert!(of(json!({"a0": {"name": "eth%d"}, "b0": {"name": "eth%d"}})).is_ok());
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let refusals = [
            (json!({"": {}}), "no name"),
            (json!({"a/b": {}}), "netDevices.a/b"),
            (json!({"eth%d": {}}), "netDevices.eth%d"),
            (
                json!({"a": {"name": "sixteen-letters-"}}),
                "netDevices.a.name",
            ),
            (json!({"a": {"name": ".."}}), "netDevices.a.name"),
            (json!({"a": {"name": "a b"}}), "netDevices.a.name"),
            (json!({"a": {"name": "a%s"}}), "netDevices.a.name"),
            (json!({"a": {"name": "a%d%d"}}), "netDevices.a.name"),
            (json!({"a": {}, "b": {"name": "a"}}), "netDevices.b.name"),
        ];
        for (devices, words) in refusals {
            let said = of(devices).unwrap_err();
            assert!(said.contains(words), "{said} lacks {words}");
        }
    }

    #[test]
    fn a_network_namespace_is_needed() {
        let linux: Linux = serde_json::from_value(json!({"netDevices": {"a": {}}})).unwrap();
        let refused = NetDevices::of(&linux, &Namespaces::default()).unwrap_err();
        assert!(
            refused.to_string().contains("linux.netDevices: needs"),
            "{refused}"
        );
    }
}
