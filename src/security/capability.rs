//! Capabilities: the few that root keeps inside a container, and none for others.

use caps::{CapSet, Capability, CapsHashSet};

use super::SecurityError;

/// What the container's root may do, each with its reason. All of it is bounded by the namespaces.
pub const KEPT: [Capability; 11] = [
    // Package scripts and services set up the files of their own users …
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    // … and stop being root, sometimes in a smaller root directory.
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_CHROOT,
    // A supervisor ends its services whoever they run as.
    Capability::CAP_KILL,
    // Ports below 1024 of its own network.
    Capability::CAP_NET_BIND_SERVICE,
    // sshd and login write a record; where the kernel audits containers not at all it is without effect.
    Capability::CAP_AUDIT_WRITE,
];

fn failed(set: &'static str) -> impl FnOnce(caps::errors::CapsError) -> SecurityError {
    move |source| SecurityError::Capability { set, source }
}

/// Bounds what any program can ever get, set-user-id or not. While still root.
pub fn bound_capabilities() -> Result<(), SecurityError> {
    for capability in caps::read(None, CapSet::Bounding).map_err(failed("bounding"))? {
        if !KEPT.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed("bounding"))?;
        }
    }
    Ok(())
}

/// Leaves root what is kept, and others nothing: ambient and inheritable sets are empty, so that nothing
/// passes to a program by inheritance. After the change to the container's user.
pub fn settle_capabilities(root: bool) -> Result<(), SecurityError> {
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    let kept: CapsHashSet = if root {
        KEPT.into_iter().collect()
    } else {
        CapsHashSet::new()
    };
    caps::set(None, CapSet::Effective, &kept).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("permitted"))
}
