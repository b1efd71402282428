//! It runs at the destination, and a part of its memory is still here: the frozen copy is kept for it.

use std::time::Duration;

use super::super::behind::OnShelf;
use super::super::conclude::{self, Keeps, World};
use super::super::journal::JournalState;
use super::super::movable::{HandedOver, Movable};
use super::Ended;
use super::run::Run;
use crate::model::{Finding, Outcome, Phase, Side};

/// Between two looks at who fetches.
const LOOK: Duration = Duration::from_millis(500);

impl Run {
    /// What it takes to ask the destination, where that can be asked.
    pub(super) fn world(&self) -> Option<World> {
        let streams = self.services.streams.as_ref()?;
        Some(World {
            dial: streams.dial.clone(),
            journal: self.services.journal.clone(),
            pause: LOOK,
            lost_after: self.services.lost_after,
            shelf: self.services.shelf.clone(),
        })
    }

    /// A destination that does not fetch for this long has done something about its container by itself.
    fn silence(&self) -> Duration {
        self.services.lost_after.saturating_mul(2)
    }

    /// Waits until the destination needs nothing more of the frozen copy. None when it is not heard of any more.
    pub(super) async fn serve(
        &mut self,
        shelf: &mut Option<OnShelf>,
        world: Option<&World>,
    ) -> Option<Keeps> {
        if let Err(error) = self.journal(JournalState::Serving) {
            // `HandedOver` has the same meaning to whoever reads it after a restart.
            tracing::warn!(migration = %self.entry.id, error = %error.chain(), "that it runs elsewhere was not journalled");
        }
        self.timeline.enter(Phase::Fill, self.outbox.written());
        self.tell(None);
        self.services.hook.reached(Side::Source, Phase::Fill).await;
        loop {
            let fetched = conclude::fetched(shelf);
            if let Ok(fetched) = tokio::time::timeout(LOOK, fetched).await {
                let fetched = Some(fetched);
                return Some(Keeps::Destination { fetched });
            }
            let now = shelf.as_ref()?.now();
            if now.connections > 0 {
                continue;
            }
            let mut entry = self.entry.clone();
            let keeps = match world {
                Some(world) => conclude::fate_of(&mut entry, world).await,
                None => None,
            };
            // What it has told meanwhile says more than that it has ended.
            if let Some(fetched) = shelf.as_ref()?.now().fetched {
                let fetched = Some(fetched);
                return Some(Keeps::Destination { fetched });
            }
            match keeps {
                Some(keeps) => return Some(keeps),
                None if now.since.elapsed() >= self.silence() => return None,
                None => {}
            }
        }
    }

    /// It runs there, or did, and is not heard of: it is asked for as long as that takes.
    pub(super) async fn not_fetched<H: HandedOver>(mut self, handed: H) -> Ended<H> {
        let why = format!(
            "it was let run on {}, which has not fetched what was left of its memory for {} s; the frozen copy is kept, \
             and runs nowhere, until that host is heard of, or `godwit migrations resolve --keep destination` frees it",
            self.entry.peer,
            self.silence().as_secs()
        );
        let state = self.entry.state;
        let ended = self.end(Outcome::InDoubt { why }, state, Some(handed));
        self.close().await;
        ended
    }
}

/// Why this host cannot leave memory behind, where that is wished.
pub(super) fn unable<C: Movable>(wished: bool, container: &C) -> Option<Finding> {
    let why = container.cannot_leave_behind().filter(|_| wished)?;
    Some(no_post_copy(&why))
}

pub(super) fn no_post_copy(why: &str) -> Finding {
    let text = format!(
        "post-copy is not available between these hosts: {why}; choose --on-no-convergence throttle, stop-copy or abort"
    );
    Finding::blocking("no-post-copy", text)
}
