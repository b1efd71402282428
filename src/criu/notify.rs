//! The steps at which CRIU asks before it goes on.

use std::os::fd::OwnedFd;

use super::CriuError;

/// A step CRIU has come to. It waits there for the [`Verdict`].
///
/// A dump comes through `PreDump`, `NetworkLock`, `QueryExternalFiles`, `PostDump` (and `NetworkUnlock` when it
/// fails or was refused); a restore through `PreRestore`, `SetupNamespaces`, `PostSetupNamespaces`,
/// `PostRestore`, `NetworkUnlock`, `PreResume`, `PostResume`. The network and namespace steps are told only
/// where the tree has such namespaces.
#[derive(Debug)]
pub enum Notify {
    /// A stream of images is about to begin.
    PreStream,
    /// Nothing has been done to the tasks yet: this may be answered long after the request, and the tasks be frozen
    /// and their memory hidden in the meantime.
    PreDump,
    /// Every image is written, every page was sent and acknowledged, and the tasks are still held.
    ///
    /// Accepting kills them (or leaves them, as the request says). Refusing **resumes** them, and so does the
    /// end of this process: whoever must not let them run freezes their cgroup before answering.
    PostDump,
    /// Packets must no longer reach the tasks.
    NetworkLock,
    /// Packets may reach the tasks again. CRIU ignores a refusal.
    NetworkUnlock,
    /// Whether there are further external files to name: there are none.
    QueryExternalFiles,
    /// Nothing has been restored yet.
    PreRestore,
    /// The root task exists, in its namespaces.
    SetupNamespaces {
        /// Its host process id.
        pid: i32,
    },
    /// The namespaces have their content.
    PostSetupNamespaces,
    /// Everything is restored and no task runs. A refusal kills the restored tasks.
    ///
    /// A restore can still fail after this step: only its end says that the tasks run.
    PostRestore {
        /// The root task's host process id.
        pid: i32,
    },
    /// The tasks run with the next step. CRIU ignores a refusal.
    PreResume,
    /// The tasks run. CRIU ignores a refusal.
    PostResume,
    /// The master end of a restored terminal whose master was outside.
    OrphanPtsMaster {
        /// The master.
        master: OwnedFd,
    },
    /// A page server of CRIU's own listens.
    StatusReady,
}

/// What is answered to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Give the whole request up.
    Refuse,
}

impl Notify {
    /// The step that CRIU calls `name`. One that is not known is an error: what it would ask cannot be guessed.
    pub(super) fn parse(
        name: &str,
        pid: Option<i32>,
        fd: Option<OwnedFd>,
    ) -> Result<Self, CriuError> {
        let lacks = |what| CriuError::NotificationLacks {
            name: name.to_owned(),
            what,
        };
        let pid = || pid.filter(|&pid| pid > 0).ok_or_else(|| lacks("pid"));
        Ok(match name {
            "pre-stream" => Self::PreStream,
            "pre-dump" => Self::PreDump,
            "post-dump" => Self::PostDump,
            "network-lock" => Self::NetworkLock,
            "network-unlock" => Self::NetworkUnlock,
            "query-ext-files" => Self::QueryExternalFiles,
            "pre-restore" => Self::PreRestore,
            "setup-namespaces" => Self::SetupNamespaces { pid: pid()? },
            "post-setup-namespaces" => Self::PostSetupNamespaces,
            "post-restore" => Self::PostRestore { pid: pid()? },
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            "orphan-pts-master" => Self::OrphanPtsMaster {
                master: fd.ok_or_else(|| lacks("file descriptor"))?,
            },
            "status-ready" => Self::StatusReady,
            _ => {
                return Err(CriuError::UnknownNotification {
                    name: name.chars().take(60).collect(),
                });
            }
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_unknown_notification_is_an_error_and_not_ignored() {
        assert!(matches!(
            Notify::parse("pre-breakfast", None, None),
            Err(CriuError::UnknownNotification { name }) if name == "pre-breakfast"
        ));
    }

    #[test]
    fn a_notification_without_its_pid_is_an_error() {
        assert!(matches!(
            Notify::parse("post-restore", Some(7), None),
            Ok(Notify::PostRestore { pid: 7 })
        ));
        for pid in [None, Some(0), Some(-1)] {
            assert!(matches!(
                Notify::parse("post-restore", pid, None),
                Err(CriuError::NotificationLacks { what: "pid", .. })
            ));
        }
    }
}
