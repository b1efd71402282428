//! Which request is allowed in which state of a container, and what is said where it is not. Pure.
//!
//! | state     | start | stop | kill | exec | ps | delete      | migrate |
//! |-----------|-------|------|------|------|----|-------------|---------|
//! | creating  | –     | –    | –    | –    | –  | with force  | –       |
//! | created   | yes   | –    | –    | –    | –  | yes         | –       |
//! | running   | –     | yes  | yes  | yes  | yes| with force  | yes     |
//! | migrating | –     | –    | –    | –    | yes| –           | –       |
//! | arriving  | –     | –    | –    | –    | –  | –           | –       |
//! | in-doubt  | –     | –    | –    | –    | –  | –           | –       |
//! | stopped   | yes   | yes  | –    | –    | –  | yes         | –       |
//!
//! A container that is on its way is left alone: a signal sent after its dump would be lost with the frozen
//! copy, a process added to it could not be moved, and deleting one that is in doubt could delete the only
//! copy there is. Status and log are always told.

use crate::model::{ContainerState, MigrationId, Name};

/// What is asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Start its command.
    Start,
    /// Have its command end; one that has ended stays so.
    Stop,
    /// Send it a signal.
    Kill,
    /// Run another command in it.
    Exec,
    /// List its processes.
    Ps,
    /// Remove it and everything of it.
    Delete {
        /// Even while it runs.
        force: bool,
    },
    /// Move it to another host.
    Migrate,
}

impl Request {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "signal",
            Self::Exec => "run a command in",
            Self::Ps => "list the processes of",
            Self::Delete { .. } => "delete",
            Self::Migrate => "migrate",
        }
    }
}

/// Why a request is not carried out in this state, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} {name}: {why}")]
pub struct Refusal {
    /// Stable, for programs.
    pub code: &'static str,
    verb: &'static str,
    name: Name,
    why: &'static str,
    /// What to do about it.
    pub remedy: String,
}

/// Decides one request on the container `name`, which is in `state` (and in `migration`, where it is in one).
pub fn allowed(
    request: Request,
    name: &Name,
    state: ContainerState,
    migration: Option<MigrationId>,
) -> Result<(), Refusal> {
    use ContainerState::{Arriving, Created, Creating, InDoubt, Migrating, Running, Stopped};
    let no = |code, why, remedy: String| {
        Err(Refusal {
            code,
            verb: request.verb(),
            name: name.clone(),
            why,
            remedy,
        })
    };
    let id = migration.map_or_else(|| "ID".to_owned(), |id| id.to_string());
    match (state, request) {
        (Created, Request::Start | Request::Delete { .. })
        | (
            Running,
            Request::Stop | Request::Kill | Request::Exec | Request::Ps | Request::Migrate,
        )
        | (Running | Creating, Request::Delete { force: true })
        | (Migrating, Request::Ps)
        | (Stopped, Request::Start | Request::Stop | Request::Delete { .. }) => Ok(()),

        (Creating, _) => no(
            "being-created",
            "it is still being made",
            format!(
                "wait until `godwit inspect {name}` says created, or `godwit delete --force {name}`"
            ),
        ),
        (Created, _) => no(
            "not-running",
            "its command has not been started",
            format!("godwit start {name}"),
        ),
        (Running, Request::Start) => no(
            "already-running",
            "it is already running",
            format!("`godwit inspect {name}` shows it"),
        ),
        (Running, Request::Delete { force: false }) => no(
            "running",
            "it is running",
            format!("`godwit stop {name}` first, or `godwit delete --force {name}`"),
        ),
        (Migrating, _) => no(
            "migrating",
            "it is on its way to another host",
            format!("wait for it, or `godwit migrations cancel {id}` first"),
        ),
        (Arriving, _) => no(
            "arriving",
            "it is on its way to this host and does not run here yet",
            format!("wait for it, or cancel the migration {id} on its source"),
        ),
        (InDoubt, _) => no(
            "in-doubt",
            "its handover was not answered, and nobody knows yet which host has it",
            format!(
                "connect the two hosts again and it ends by itself; or fence one of them and run \
                 `godwit migrations resolve {id} --keep source|destination` on the other"
            ),
        ),
        (Stopped, _) => no(
            "stopped",
            "its command has ended",
            format!("`godwit logs {name}` may say why; `godwit start {name}` runs it again"),
        ),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use ContainerState::{Arriving, Created, Creating, InDoubt, Migrating, Running, Stopped};

    const STATES: [ContainerState; 7] = [
        Creating, Created, Running, Migrating, Arriving, InDoubt, Stopped,
    ];
    const REQUESTS: [Request; 8] = [
        Request::Start,
        Request::Stop,
        Request::Kill,
        Request::Exec,
        Request::Ps,
        Request::Delete { force: false },
        Request::Delete { force: true },
        Request::Migrate,
    ];

    #[test]
    fn each_request_is_allowed_in_the_states_of_the_table() {
        let rows = [
            (Creating, "000000 10"),
            (Created, "100001 10"),
            (Running, "011110 11"),
            (Migrating, "000010 00"),
            (Arriving, "000000 00"),
            (InDoubt, "000000 00"),
            (Stopped, "110001 10"),
        ];
        let name = "web".parse().unwrap();
        for (state, row) in rows {
            let found: String = REQUESTS
                .iter()
                .map(|&r| {
                    if allowed(r, &name, state, None).is_ok() {
                        '1'
                    } else {
                        '0'
                    }
                })
                .collect();
            assert_eq!(found, row.replace(' ', ""), "{state:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_why_and_what_to_do() {
        let name = "web".parse().unwrap();
        let id = Some(MigrationId([0xab; 8]));
        for state in STATES {
            for request in REQUESTS {
                if let Err(refusal) = allowed(request, &name, state, id) {
                    let text = refusal.to_string();
                    assert!(
                        text.starts_with("cannot ") && text.contains("web"),
                        "{text}"
                    );
                    assert!(!refusal.remedy.is_empty());
                }
            }
        }
        let refusal = allowed(Request::Kill, &name, Migrating, id).unwrap_err();
        assert!(
            refusal.remedy.contains("cancel abababababababab"),
            "{}",
            refusal.remedy
        );
    }
}
