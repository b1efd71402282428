//! Whose a container's cgroup is.

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::plan::{Namespaces, host_id};

/// The host's id of the container's user, where the cgroup is to be theirs: the container has user and cgroup
/// namespaces of its own, and its cgroup mounted to be written to. A systemd inside needs that.
pub(super) fn of_cgroup(spec: &Spec, namespaces: &Namespaces) -> Option<u32> {
    let own = [LinuxNamespaceType::User, LinuxNamespaceType::Cgroup];
    let mut mounts = spec.mounts().iter().flatten();
    if !own.into_iter().all(|kind| namespaces.is_new(kind)) || !mounts.any(is_writable_cgroup) {
        return None;
    }
    let maps = spec.linux().as_ref()?.uid_mappings().as_deref();
    host_id(maps, spec.process().as_ref()?.user().uid())
}

fn is_writable_cgroup(mount: &Mount) -> bool {
    let kind = mount.typ().as_deref().unwrap_or_default();
    let mut options = mount.options().iter().flatten().rev();
    let last = options.find(|option| ["ro", "rw", "rro"].contains(&option.as_str()));
    ["cgroup", "cgroup2"].contains(&kind) && last.is_none_or(|option| option == "rw")
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    fn owner(user: u32, kinds: &[LinuxNamespaceType], options: &[&str]) -> Option<u32> {
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": user, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": options}],
            "linux": {"uidMappings": [{"containerID": 0, "hostID": 5000, "size": 10}]},
        });
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let namespaces = Namespaces {
            new: kinds.to_vec(),
            joined: Vec::new(),
        };
        of_cgroup(&spec, &namespaces)
    }

    #[test]
    fn it_is_the_users_where_all_is_their_own() {
        let both = [LinuxNamespaceType::User, LinuxNamespaceType::Cgroup];
        assert_eq!(owner(0, &both, &["nosuid"]), Some(5000));
        assert_eq!(owner(3, &both, &["ro", "rw"]), Some(5003));
        assert_eq!(owner(10, &both, &[]), None);
        assert_eq!(owner(0, &both, &["rw", "ro"]), None);
        assert_eq!(owner(0, &both[..1], &[]), None);
        assert_eq!(owner(0, &both[1..], &[]), None);
    }
}
