//! What is refused, before anything exists.

use super::*;

fn said(change: impl FnOnce(&mut Value)) -> String {
    let bundle = Bundle::new();
    let error = bundle.plan(change).unwrap_err();
    assert!(matches!(error, RootfsError::Refused { .. }), "{error}");
    // The directory and the mount points in it are only made when a container is.
    assert_eq!(fs::read_dir(bundle.root()).unwrap().count(), 0);
    error.to_string()
}

#[test]
fn a_configuration_that_cannot_be_done_is_refused_by_the_name_of_the_field() {
    let mounts = |mounts: Value| said(|config| config["mounts"] = mounts);
    let linux = |field: &str, value: Value| said(|config| config["linux"][field] = value);
    let sysctl = |key: &str| linux("sysctl", json!({key: "1"}));
    let range = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let mapped = |options: &str, uids: &Value, kind: &str| {
        let mut mount = mount("/x", kind, "outside", options);
        mount["uidMappings"] = uids.clone();
        mounts(json!([mount]))
    };
    let cases = [
        ("root.path", said(|c| c["root"]["path"] = json!("missing"))),
        (
            "root is missing",
            said(|c| drop(c.as_object_mut().unwrap().remove("root"))),
        ),
        (
            "linux.namespaces",
            linux("namespaces", json!([{"type": "pid"}])),
        ),
        (
            "linux.rootfsPropagation",
            linux("rootfsPropagation", json!("everywhere")),
        ),
        (
            "linux.mountLabel",
            linux("mountLabel", json!("system_u:object_r:x_t:s0")),
        ),
        (
            "mounts[0].destination",
            mounts(json!([mount("/../", "tmpfs", "", "")])),
        ),
        ("mounts[0].type", mounts(json!([mount("/x", "", "", "ro")]))),
        (
            "mounts[0].source is missing",
            mounts(json!([mount("/x", "bind", "", "rbind")])),
        ),
        (
            "mounts[0].source is",
            mounts(json!([mount("/x", "bind", "missing", "rbind")])),
        ),
        (
            "mounts[0].options has \"size=3\"",
            mounts(json!([mount("/x", "bind", ".", "size=3")])),
        ),
        (
            "tmpcopyup",
            mounts(json!([mount("/x", "proc", "proc", "tmpcopyup")])),
        ),
        ("only one of uidMappings", mapped("bind", &range, "bind")),
        ("bind mounts only", mapped("", &range, "tmpfs")),
        (
            "no user namespace",
            mapped("bind,idmap", &json!([]), "bind"),
        ),
        ("linux.sysctl.kernel.pid_max", sysctl("kernel.pid_max")),
        ("the field hostname", sysctl("kernel.hostname")),
        ("no name of a kernel setting", sysctl("net/../kernel/sysrq")),
        (
            "linux.devices[0].type",
            linux("devices", json!([{"path": "/dev/x", "type": "a"}])),
        ),
        (
            "linux.devices[0].minor is -1",
            linux(
                "devices",
                json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": -1}]),
            ),
        ),
    ];
    for (wanted, said) in cases {
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn a_setting_needs_its_namespace() {
    for (key, kind) in [
        ("net.core.somaxconn", "network"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.shmall", "ipc"),
        ("kernel.domainname", "uts"),
    ] {
        let bundle = Bundle::new();
        let plan = bundle.plan(|config| config["linux"]["sysctl"] = json!({key: "1"}));
        assert!(plan.is_ok(), "{key}");
        let said = said(|config| {
            config["linux"]["namespaces"] = json!([{"type": "mount"}]);
            config["linux"]["sysctl"] = json!({key: "1"});
        });
        assert!(said.contains(kind) && said.contains(key), "{said}");
    }
}

#[test]
fn private_without_pivot_root_is_refused() {
    let bundle = Bundle::new();
    let options = Options { no_pivot: true };
    let plan = bundle.plan_with(options, |config| {
        config["linux"]["rootfsPropagation"] = json!("rprivate");
    });
    assert!(plan.unwrap_err().to_string().contains("--no-pivot"));
}
