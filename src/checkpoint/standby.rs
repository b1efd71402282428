//! A CRIU that was started in good time, on either side: the blackout does not pay for its start.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::criu::{Criu, DumpRequest, HideTable, Session, SmapsTable, Spawn, may_read_limits};
use crate::memory::PageServer;

use super::conversation::Conversation;
use super::{CheckpointError, Subject};

/// What a stream is that leads nowhere.
const NULL: &str = "/dev/null";

/// A CRIU that was asked for a dump and waits for its container to be frozen. It has done nothing to it yet; dropping
/// it ends it.
#[derive(Debug)]
pub struct Standby {
    /// Goes first: a CRIU that gives up says goodbye to its page server, and waits for an answer or the end.
    pub(super) server: PageServer,
    pub(super) conversation: Conversation,
    /// Where it is told which pages it is not to see; none where it cannot be kept from seeing them.
    pub(super) hide: Option<HideTable>,
    /// Where it is told which mappings there are; none where it has to ask the kernel.
    pub(super) smaps: Option<SmapsTable>,
}

impl Standby {
    /// Starts it, for a container that runs. With `hide` it can be told which pages are not its business ([`Criu::hides_pages`]).
    ///
    /// # Errors
    /// When CRIU cannot be started.
    pub fn start(criu: &Criu, hide: bool, subject: &Subject) -> Result<Self, CheckpointError> {
        Self::begin_with(criu, hide, subject, None)
    }

    /// The same, after rounds of CRIU's own, the last of which will be at `parent`, seen from the images: it looks at all
    /// memory itself, and takes nobody's word for anything.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub fn after(criu: &Criu, subject: &Subject, parent: PathBuf) -> Result<Self, CheckpointError> {
        Self::begin_with(criu, false, subject, Some(parent))
    }

    fn begin_with(
        criu: &Criu,
        hide: bool,
        subject: &Subject,
        parent: Option<PathBuf>,
    ) -> Result<Self, CheckpointError> {
        let (server, theirs) =
            PageServer::pair(criu.version()).map_err(|source| CheckpointError::Memory {
                operation: "sent",
                source,
            })?;
        let failed = |source| CheckpointError::Criu {
            operation: "dump",
            source,
        };
        let mut spawn = Spawn {
            limits_from_proc: !may_read_limits(),
            spare_conntrack: true,
            spare_tar: true,
            urgent: true,
            ..Spawn::default()
        };
        let page_server = spawn.pass(theirs);
        spawn.hide = hide.then(HideTable::new).transpose().map_err(failed)?;
        let told = parent.is_none() && criu.mapping_flags().is_ok();
        spawn.smaps = told.then(SmapsTable::new).transpose().map_err(failed)?;
        let (hide, smaps) = (spawn.hide.clone(), spawn.smaps.clone());
        let session = Session::start(criu, spawn).map_err(failed)?;
        let request = DumpRequest {
            track_mem: parent.is_some(),
            parent,
            ..subject.request(page_server)
        };
        Ok(Self {
            conversation: Conversation::start(session, request, subject.cgroup.clone()),
            server,
            hide,
            smaps,
        })
    }

    /// The container is frozen, and nobody else has to take hold of its tasks: CRIU does, and waits again, until no
    /// frame reaches them.
    pub fn begin(&mut self) {
        self.conversation.begin();
    }
}

/// A CRIU that waits for the images of a container, in the cgroup that the container will live in. It has done nothing
/// yet; dropping it ends it.
///
/// It starts inside that cgroup, and in a cgroup namespace rooted there, because it does not restore either when
/// cgroups are none of its business (`manage_cgroups: ignore`). Moving a process into a cgroup takes the kernel some
/// milliseconds, and starting CRIU some more.
#[derive(Debug)]
pub struct StandbyRestore {
    pub(super) session: Session,
    /// The network namespace, as CRIU numbers it.
    pub(super) netns: i32,
    /// The pipes of standard output and error, as CRIU numbers them.
    pub(super) stdio: [i32; 2],
    /// This host's `/dev/null`, as CRIU numbers it.
    pub(super) null: i32,
}

impl StandbyRestore {
    /// Starts it, with the network namespace that has the container's address and a closed gate, the user namespace that
    /// that belongs to where it is not the host's, and the ends to write to of the pipes for standard output and error.
    ///
    /// # Errors
    /// When CRIU cannot be started, or a namespace not be opened.
    pub fn start(
        criu: &Criu,
        cgroup: &Path,
        userns: Option<&Path>,
        netns: &Path,
        stdio: [OwnedFd; 2],
    ) -> Result<Self, CheckpointError> {
        let open = |path: &Path| {
            File::open(path).map_err(|source| CheckpointError::Open {
                what: path.display().to_string(),
                source,
            })
        };
        let opened = open(netns)?;
        let null = File::options().read(true).write(true).open(NULL);
        let null = null.map_err(|source| CheckpointError::Open {
            what: NULL.to_owned(),
            source,
        })?;
        let users = userns.map(open).transpose()?;
        let mut spawn = Spawn {
            cgroup: Some(cgroup.to_owned()),
            new_cgroup_namespace: true,
            user_namespace: users.map(OwnedFd::from),
            spare_tar: true,
            hand_segments: true,
            urgent: true,
            ..Spawn::default()
        };
        let netns = spawn.pass(opened.into());
        let stdio = stdio.map(|pipe| spawn.pass(pipe));
        let null = spawn.pass(null.into());
        let session = Session::start(criu, spawn).map_err(|source| CheckpointError::Criu {
            operation: "restore",
            source,
        })?;
        Ok(Self {
            session,
            netns,
            stdio,
            null,
        })
    }

    /// Whether it still waits.
    pub fn waits(&mut self) -> bool {
        self.session.waits()
    }
}
