//! Which verb is allowed in which state. Pure.
//!
//! The daemon asks its own table before, about requests of people; this one is the last word, and also for
//! callers who are not people.

use crate::model::{ContainerState, Name};

/// What somebody wants to do with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Run its command.
    Start,
    /// Send a signal.
    Kill,
    /// Run one more command in it.
    Exec,
    /// Remove it.
    Delete {
        /// Even when it runs.
        force: bool,
    },
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} {name}: it is {state}; {instead}")]
pub struct Refusal {
    name: Name,
    verb: &'static str,
    state: &'static str,
    instead: &'static str,
}

/// Whether the verb is allowed; if not, what to do instead.
pub fn allow(name: &Name, state: ContainerState, verb: Verb) -> Result<(), Refusal> {
    use ContainerState as S;
    let instead = match (verb, state) {
        (Verb::Start, S::Created | S::Stopped) => return Ok(()),
        (Verb::Start, S::Running) => "there is nothing to do",
        (Verb::Kill | Verb::Exec, S::Running) => return Ok(()),
        (Verb::Kill | Verb::Exec, S::Created | S::Stopped) => "start it first",
        (Verb::Delete { .. }, S::Created | S::Stopped) => return Ok(()),
        // A host that fell over in the middle has left it so.
        (Verb::Delete { force: true }, S::Creating | S::Running) => return Ok(()),
        (Verb::Delete { force: false }, S::Running) => "kill it first, or use force",
        (_, S::Creating) => "wait, or delete it with force",
        (_, S::Migrating | S::Arriving) => "wait until the migration has ended, or cancel it",
        (_, S::InDoubt) => "resolve its migration first",
    };
    Err(Refusal {
        name: name.clone(),
        verb: match verb {
            Verb::Start => "start",
            Verb::Kill => "signal",
            Verb::Exec => "run a command in",
            Verb::Delete { .. } => "delete",
        },
        state: word(state),
        instead,
    })
}

fn word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Creating => "being created",
        ContainerState::Created => "created and not started",
        ContainerState::Running => "running",
        ContainerState::Migrating => "migrating",
        ContainerState::Arriving => "arriving from another host",
        ContainerState::InDoubt => "in doubt",
        ContainerState::Stopped => "stopped",
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const ALL: [ContainerState; 7] = [
        ContainerState::Creating,
        ContainerState::Created,
        ContainerState::Running,
        ContainerState::Migrating,
        ContainerState::Arriving,
        ContainerState::InDoubt,
        ContainerState::Stopped,
    ];

    fn allowed(verb: Verb) -> Vec<ContainerState> {
        let name: Name = "web".parse().unwrap();
        ALL.into_iter()
            .filter(|&state| allow(&name, state, verb).is_ok())
            .collect()
    }

    #[test]
    fn the_table_is_as_meant() {
        use ContainerState as S;
        assert_eq!(allowed(Verb::Start), [S::Created, S::Stopped]);
        assert_eq!(allowed(Verb::Kill), [S::Running]);
        assert_eq!(allowed(Verb::Exec), [S::Running]);
        assert_eq!(
            allowed(Verb::Delete { force: false }),
            [S::Created, S::Stopped]
        );
        assert_eq!(
            allowed(Verb::Delete { force: true }),
            [S::Creating, S::Created, S::Running, S::Stopped]
        );
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let name: Name = "web".parse().unwrap();
        let refusal = allow(
            &name,
            ContainerState::Running,
            Verb::Delete { force: false },
        );
        assert_eq!(
            refusal.unwrap_err().to_string(),
            "cannot delete web: it is running; kill it first, or use force"
        );
    }
}
