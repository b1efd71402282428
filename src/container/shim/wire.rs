//! What a daemon and a shim say to each other: one JSON message per packet of `shim.sock`. Pure.
//!
//! ```text
//! client                                    shim
//!   │ connect ─────────────────────────────▶ │
//!   │ ◀───────────────── State (where it is) │
//!   │ Create, Start, Signal, … ────────────▶ │  one request at a time per client
//!   │ ◀──── State … (changes, to all clients)│
//!   │ ◀───────────────────── Done or Refused │  exactly one per request
//! ```
//!
//! Any number of clients may be there, or none; none of them disturbs the container by coming or going.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a client asks of a shim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Request {
    /// Make the container's first process, up to the moment before its command runs.
    Create {
        /// The file with its [`crate::container::init::Entry`].
        plan: PathBuf,
    },
    /// Let the command run.
    Start,
    /// Send a signal to the first process.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Hand out duplicates: the read ends of the output pipes (two, or none), then the pidfd of the first
    /// process where there is one. With them a shim that dies can be replaced.
    Pipes,
    /// Take over a container that runs already, with what `Pipes` handed out.
    Adopt {
        /// The id of its first process on the host.
        pid: i32,
    },
    /// Get ready to bring a container back whose images are still to come, so far as that is possible.
    Prepare(Box<Preparation>),
    /// Bring a container back from images. `Done` means that it has begun; the states tell the rest.
    Restore(Box<RestoreRequest>),
    /// In the state `held`: let it run, or undo it.
    Verdict {
        /// Whether it may run.
        go: bool,
    },
    /// End. Refused while a command runs.
    Leave,
}

/// What a shim tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tell")]
pub enum Report {
    /// Where it is now.
    State {
        /// There.
        state: ShimState,
    },
    /// The request was fulfilled.
    Done,
    /// The request was not fulfilled.
    Refused {
        /// Why.
        why: String,
    },
}

/// Where a shim is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum ShimState {
    /// It has no process yet.
    Idle,
    /// The first process waits to become the command.
    Created {
        /// Its id on the host.
        pid: i32,
    },
    /// The command runs.
    Running {
        /// Its id on the host.
        pid: i32,
    },
    /// Images are being made processes.
    Restoring,
    /// The processes are there, and stand still until the verdict.
    Held {
        /// The first one's id on the host.
        pid: i32,
    },
    /// The command has ended.
    Exited {
        /// How: see [`Exit`].
        exit: Exit,
    },
    /// Making or restoring the container failed; nothing of it is left.
    Failed {
        /// Why.
        why: String,
    },
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, or 128 and the number of the signal that killed it; none where it cannot be known.
    pub code: Option<i32>,
}

/// What can be known of a restore before there is anything to restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preparation {
    /// The directory in which CRIU's images will be.
    pub images: PathBuf,
    /// The pinned user namespace, if it has one.
    #[serde(default)]
    pub userns: Option<PathBuf>,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// The cgroup the processes will be born in.
    pub cgroup: PathBuf,
    /// The CRIU to use.
    pub criu: PathBuf,
    /// Whether its memory will come behind it.
    pub lazy: bool,
    /// Whatever else the restorer wants.
    pub extra: serde_json::Value,
}

/// What a restore needs to know. The shim hands it to the [`super::Restorer`] as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The directory with CRIU's images.
    pub images: PathBuf,
    /// The mounted root of the container.
    pub root: PathBuf,
    /// The pinned user namespace, if it has one.
    #[serde(default)]
    pub userns: Option<PathBuf>,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// The cgroup the processes are born in.
    pub cgroup: PathBuf,
    /// The CRIU to use.
    pub criu: PathBuf,
    /// The inode numbers that the pipes of standard output and standard error had when it was dumped.
    pub stdio_inodes: [u64; 2],
    /// What of this host is mounted in it, by its path here and there.
    #[serde(default)]
    pub bound: Vec<PathBuf>,
    /// What else is mounted in it that is not in the images: by the name that they have for it, and where it is here.
    #[serde(default)]
    pub copies: Vec<(PathBuf, PathBuf)>,
    /// How the images name a `/dev/null` that is in no mount of the container's.
    #[serde(default)]
    pub null: Option<String>,
    /// Where CRIU logs to.
    pub log: PathBuf,
    /// Whether its memory comes behind it: the images leave pages to the fill.
    #[serde(default)]
    pub lazy: bool,
    /// Whatever else the restorer wants.
    pub extra: serde_json::Value,
}

impl ShimState {
    /// The id of the first process, while there is one.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid } | Self::Held { pid } => Some(*pid),
            Self::Idle | Self::Restoring | Self::Exited { .. } | Self::Failed { .. } => None,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn messages_survive_their_text_form() {
        let request = Request::Restore(Box::new(RestoreRequest {
            images: "/a".into(),
            root: "/b".into(),
            userns: Some("/u".into()),
            netns: "/c".into(),
            cgroup: "/d".into(),
            criu: "/e".into(),
            stdio_inodes: [1, u64::MAX],
            bound: vec!["/dev/null".into()],
            copies: Vec::new(),
            null: None,
            log: "/f".into(),
            lazy: true,
            extra: serde_json::json!({ "criu_version": "4.2.1" }),
        }));
        for request in [
            request,
            Request::Signal { signal: 9 },
            Request::Leave,
            Request::Verdict { go: false },
        ] {
            let text = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), request);
        }
        let exit = Exit { code: Some(137) };
        let report = Report::State {
            state: ShimState::Exited { exit },
        };
        let text = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn an_unknown_request_is_an_error() {
        assert!(serde_json::from_str::<Request>(r#"{"ask":"fly"}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"ask":"signal"}"#).is_err());
    }
}
