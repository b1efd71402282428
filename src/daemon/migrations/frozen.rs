//! A container of this host that is frozen: the rooms' side of [`Held`] and of what follows it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::backlog::{self, Listeners};
use super::behind::FrozenCopy;
use super::departure::{FREEZE_WITHIN, Parts, Rounds, into};
use super::home::Home;
use super::remains;
use crate::checkpoint::{Held as HeldDump, Precopy, for_each_chunk, mapped_files};
use crate::daemon::Context;
use crate::migration::codec::{Chunk, Kind};
use crate::migration::message::NullName;
use crate::migration::{Cause, HandedOver, Held, Outbox, Remainder, Summary};
use crate::model::{MigrationId, Name, Neighbour, Spans, Step};
use crate::storage::{Snapshot, send_all, send_changes};

const LOST: &str = "the rounds of this migration are lost";

/// What is known of a frozen container, and what it takes to move it or to let it go on.
pub struct Frozen {
    pub parts: Parts,
    pub snapshot: Option<Snapshot>,
    pub stdio: Option<[u64; 2]>,
    pub rounds: Option<Rounds>,
    pub listeners: Option<Listeners>,
    /// Frames of pages that go out when it is certain that it has not run since they were made.
    pub early: Vec<Vec<u8>>,
    /// Whom it knew on its network just before.
    pub neighbours: Vec<Neighbour>,
    /// `/dev/null` of its host among its streams.
    pub null: Option<NullName>,
    /// What copied its memory, once it is dumped: what that left in the tasks is of no harm while they stand still.
    pub precopy: Option<Precopy>,
    pub dump: Option<HeldDump>,
    /// Whether what can come later is left behind.
    pub behind: bool,
    pub spans: Spans,
}

/// A container that is frozen, its gate closed. Dropping it resumes it.
pub struct HeldDeparture(Option<Frozen>);

impl HeldDeparture {
    /// What a daemon before this one may have left of a container that was leaving.
    pub fn after_restart(context: &Arc<Context>, id: MigrationId, to: &Name, home: Home) -> Self {
        let (context, to) = (Arc::clone(context), to.clone());
        let parts = Parts {
            context,
            id,
            to,
            home,
            pid: 0,
        };
        Frozen {
            parts,
            snapshot: None,
            stdio: None,
            rounds: None,
            listeners: None,
            early: Vec::new(),
            neighbours: Vec::new(),
            null: None,
            precopy: None,
            dump: None,
            behind: false,
            spans: Spans::new(Instant::now),
        }
        .held()
    }

    fn frozen(&mut self) -> &mut Frozen {
        self.0
            .as_mut()
            .expect("held until it is resumed or handed over")
    }
}

impl Frozen {
    /// The same, for a migration.
    pub fn held(self) -> HeldDeparture {
        HeldDeparture(Some(self))
    }

    /// Finds out what of its memory is unsent. What had been found before is void.
    fn look(&mut self) -> Result<(), Cause> {
        let rounds = self.rounds.as_mut().ok_or(LOST)?;
        let _step = self.spans.begin("scan memory");
        let early = Mutex::default();
        let out = |frame| {
            let mut early: MutexGuard<'_, Vec<_>> = lock(&early);
            early.push(frame);
            Ok(())
        };
        rounds.precopy.look(&rounds.standby, &out)?;
        self.early = early.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(())
    }

    fn resume(self) -> Result<(), Cause> {
        if let Some(dump) = self.dump {
            dump.release();
        }
        drop((self.precopy, self.rounds));
        self.parts.go_on()
    }
}

impl Held for HeldDeparture {
    type HandedOver = HandedOverDeparture;

    fn leave_behind(&mut self) {
        self.frozen().behind = true;
    }

    fn remainder(&self) -> Option<Arc<dyn Remainder>> {
        self.0.as_ref().map(|frozen| remainder(&frozen.parts))
    }

    fn look(&mut self) -> Result<(), Cause> {
        self.frozen().look()
    }

    fn close_gate(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        let frozen = self.frozen();
        let (parts, spans) = (&frozen.parts, &frozen.spans);
        let step = spans.begin("close the gate");
        parts.home.detach(&parts.context)?;
        drop(step);
        let step = spans.begin("let it accept");
        let listeners = frozen.listeners.as_ref().ok_or(LOST)?;
        let ran = backlog::let_accept(&parts.cgroup(), listeners, FREEZE_WITHIN)?;
        drop(step);
        if ran {
            frozen.look()?;
        }
        for frame in std::mem::take(&mut frozen.early) {
            into(outbox, Kind::Pages, frame)?;
        }
        frozen.rounds.as_mut().ok_or(LOST)?.standby.begin();
        Ok(())
    }

    fn dump(&mut self, outbox: &Outbox) -> Result<Summary, Cause> {
        let frozen = self.frozen();
        let (parts, spans) = (&frozen.parts, &frozen.spans);
        let images = parts.directory().join("images");
        let stdio_inodes = frozen.stdio.ok_or("the container's output is not known")?;
        let Rounds {
            standby,
            mut precopy,
        } = frozen.rounds.take().ok_or(LOST)?;
        let out = |frame| into(outbox, Kind::Pages, frame);
        let dump = HeldDump::dump(standby, &mut precopy, &out, spans, frozen.behind)?;
        frozen.precopy = Some(precopy);
        let (pages, behind) = (dump.pages, dump.sent.behind);
        frozen.dump = Some(dump);
        let _step = spans.begin("send the images");
        let images = for_each_chunk(&images, &mut |name, offset, bytes| {
            let chunk = Chunk {
                name,
                offset,
                bytes,
            };
            into(outbox, Kind::Dump, chunk.encode())
        })?;
        Ok(Summary {
            images,
            pages,
            behind,
            stdio_inodes,
            null: frozen.null,
            neighbours: std::mem::take(&mut frozen.neighbours),
        })
    }

    fn send_changes(&mut self, outbox: &Outbox) -> Result<(), Cause> {
        let frozen = self.frozen();
        let _step = frozen.spans.begin("send changed files");
        let parts = &frozen.parts;
        let snapshot = frozen
            .snapshot
            .as_ref()
            .ok_or("the first pass of files is lost")?;
        let suspects = mapped_files(&parts.cgroup())?;
        let layer = parts.home.layer(&parts.context);
        let mut sink = |record| into(outbox, Kind::Storage, record);
        send_changes(&layer, snapshot, &suspects, &mut sink)?;
        if let Some(copies) = parts.home.copies(&parts.context, &parts.directory())? {
            send_all(&copies, &mut |record| into(outbox, Kind::Copies, record))?;
        }
        Ok(())
    }

    fn steps(&mut self) -> Vec<Step> {
        self.0
            .as_ref()
            .map_or_else(Vec::new, |frozen| frozen.spans.take())
    }

    fn resume(mut self) -> Result<(), Cause> {
        self.0.take().map_or(Ok(()), Frozen::resume)
    }

    fn hand_over(mut self) -> HandedOverDeparture {
        HandedOverDeparture(
            self.0
                .take()
                .expect("held until it is resumed or handed over"),
        )
    }
}

impl Drop for HeldDeparture {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Frozen::resume) {
            tracing::error!(%error, "a frozen container could not be resumed");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remainder(parts: &Parts) -> Arc<dyn Remainder> {
    Arc::new(FrozenCopy::of(parts.cgroup()))
}

/// The frozen copy of a container that was handed over.
pub struct HandedOverDeparture(Frozen);

impl HandedOver for HandedOverDeparture {
    /// A daemon that was restarted does not know whether anything was left behind.
    fn remainder(&self) -> Option<Arc<dyn Remainder>> {
        Some(remainder(&self.0.parts))
    }

    fn settle(self) -> Result<(), Cause> {
        let Frozen {
            parts,
            dump,
            precopy,
            ..
        } = self.0;
        if let Some(Err(error)) = dump.map(HeldDump::kill) {
            // A CRIU that was killed kills nobody; the cgroup's removal does.
            tracing::warn!(container = %parts.name(), "CRIU did not kill the copy that was handed over: {error}");
        }
        drop(precopy);
        parts.home.gone(&parts.context, &parts.to)?;
        remains::remove_directory(&parts.directory())?;
        Ok(())
    }

    fn take_back(self) -> Result<(), Cause> {
        self.0.resume()
    }
}
