//! Life of a container on the real kernel.

use crate::model::{ContainerSpec, Digest, Lease, Limits, Mac, Restart, User, Userns};

/// A spec to begin with.
pub(super) fn spec(name: &str, command: &[&str]) -> ContainerSpec {
    let address = [10, 77, 0, 10].into();
    ContainerSpec {
        name: name.parse().unwrap(),
        template: "test".to_owned(),
        image: Digest([0; 32]),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".into(),
        user: User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        },
        ports: Vec::new(),
        limits: Limits::default(),
        restart: Restart::No,
        userns: Userns::Host,
        lease: Lease {
            address,
            prefix: 24,
            gateway: None,
            mac: Mac::of(address),
        },
        bundle: None,
    }
}
