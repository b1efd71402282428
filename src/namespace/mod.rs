//! Which namespaces a container has, and in which order they are entered.
//!
//! **Invariant:** every container has all of them of its own, because that is what can be moved: a shared
//! namespace ties a container to its host. Only that of users may be the host's.
//!
//! ```text
//! parent   user     joined: it was made, with the one of the network, before the container; what follows belongs to it
//!          net      joined: it was made, with its port, before the container
//!          time     left behind: the next child gets a new one (offsets zero)
//!          clone3   pid, mount, uts, ipc: new; born in the container's cgroup
//! child    cgroup   left for a new one, once the process is in its cgroup, which becomes the visible root
//! ```
//!
//! The time namespace is there from the beginning because a moved program must not see its clocks jump:
//! CRIU can set the offsets of a time namespace, and only of a new one.

mod ids;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

pub use ids::IdRange;

use crate::sys::clone::{self, Clone, Forked};
use crate::sys::namespace::{self, CGROUP, IPC, MOUNT, NET, PID, TIME, USER, UTS};
use crate::sys::{netns, userns};

/// What went wrong on the way into a namespace.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct NamespaceError {
    operation: &'static str,
    #[source]
    source: io::Error,
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> NamespaceError {
    move |source| NamespaceError { operation, source }
}

/// Makes a user namespace in which these ids are a container's, and a network namespace that belongs to it, and pins
/// them at `user` and `net`, which must not exist. On failure nothing is left.
pub fn pin_users(ids: IdRange, user: &Path, net: &Path) -> io::Result<()> {
    let maps = ids.maps();
    // Root of the host would be charged for what all containers have, and could be left with nothing.
    userns::make(ids.first(), &maps, &maps, NET, |process| {
        netns::pin(&process.join("ns/user"), user)?;
        netns::pin(&process.join("ns/net"), net).inspect_err(|_| {
            // The first failure is the one worth telling.
            let _ = netns::unpin(user);
        })
    })
}

/// Makes the first process of a new container, as the child of the caller's parent, and returns in both.
/// The caller is changed (its user and network namespaces) and should end soon.
pub fn make_first(
    user: Option<BorrowedFd<'_>>,
    net: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> Result<Forked, NamespaceError> {
    if let Some(user) = user {
        namespace::enter(user, USER).map_err(failed("join the user namespace"))?;
    }
    namespace::enter(net, NET).map_err(failed("join the network namespace"))?;
    namespace::leave(TIME).map_err(failed("make a time namespace"))?;
    clone::clone(&Clone {
        namespaces: PID | MOUNT | UTS | IPC,
        sibling: true,
        cgroup: Some(cgroup),
        ..Clone::default()
    })
    .map_err(failed("make the first process"))
}

/// Makes one more process in the container whose first process is `init`, as the caller's own child, and
/// returns in both. The caller is changed (all its namespaces but the cgroup's) and should end soon.
pub fn make_another(
    init: BorrowedFd<'_>,
    own_users: bool,
    cgroup: BorrowedFd<'_>,
) -> Result<Forked, NamespaceError> {
    namespace::enter(init, PID | NET | UTS | IPC | TIME | MOUNT)
        .map_err(failed("join the namespaces of the container"))?;
    let forked = clone::clone(&Clone {
        cgroup: Some(cgroup),
        ..Clone::default()
    })
    .map_err(failed("make a process in the container"))?;
    if forked == Forked::Child {
        // After the birth in the cgroup: from inside the namespace its directory is out of bounds.
        namespace::enter(init, CGROUP).map_err(failed("join the cgroup namespace"))?;
        if own_users {
            // Last: none of the others can be entered from it that does not belong to it.
            namespace::enter(init, USER).map_err(failed("join the user namespace"))?;
        }
    }
    Ok(forked)
}

/// Makes the cgroup that the calling process is in the root of all that it sees.
pub fn hide_cgroups() -> Result<(), NamespaceError> {
    namespace::leave(CGROUP).map_err(failed("make a cgroup namespace"))
}
