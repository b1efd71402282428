//! Post-copy: the rooms' side of [`Remainder`] and [`Later`].

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::incoming::Incoming as Coming;
use crate::cgroup::Cgroup;
use crate::checkpoint::frozen_memory;
use crate::container::Record;
use crate::memory::fill::{
    FillState, Incoming, Listening, Run as Wanted, fill_state, kill_container,
};
use crate::memory::{Decoder, Frozen};
use crate::migration::behind::HandOn;
use crate::migration::behind::wire::Run;
use crate::migration::{Cause, Later, Left, Remainder};
use crate::model::{PAGE_SIZE, Pages, Rate};

/// Who waits for a page waits for those behind it soon: so many are asked for with it.
const WITH_IT: u32 = 7;

/// The memory of a frozen copy.
pub struct FrozenCopy {
    cgroup: Cgroup,
    opened: Mutex<Option<Arc<Frozen>>>,
}

impl FrozenCopy {
    /// That of the container in this cgroup.
    pub fn of(cgroup: Cgroup) -> Self {
        Self {
            cgroup,
            opened: Mutex::default(),
        }
    }

    fn opened(&self) -> Result<Arc<Frozen>, Cause> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frozen) = &*opened {
            return Ok(Arc::clone(frozen));
        }
        let frozen = Arc::new(frozen_memory(&self.cgroup)?);
        Ok(Arc::clone(opened.insert(frozen)))
    }
}

impl Remainder for FrozenCopy {
    fn open(&self) -> Result<(), Cause> {
        self.opened().map(drop)
    }

    fn read(&self, run: Run, out: &mut HandOn<'_>) -> Result<(), Cause> {
        let range: Range<u64> = run.address..run.address + u64::from(run.pages) * PAGE_SIZE;
        Ok(self.opened()?.send(run.process, range, out)?)
    }
}

/// What of a container that runs here is still on its source.
pub struct Rest {
    coming: Arc<Coming>,
    images: PathBuf,
    cgroup: PathBuf,
    incoming: Arc<Incoming>,
    decoder: Mutex<Option<Decoder>>,
    wake: Arc<Notify>,
    _listening: Listening,
}

impl Rest {
    /// That of the container with these images; none where nothing was left behind.
    pub fn of(coming: &Arc<Coming>, images: &Path, cgroup: &Path) -> Result<Option<Self>, Cause> {
        let Some(incoming) = Incoming::open(images)? else {
            return Ok(None);
        };
        let (incoming, wake) = (Arc::new(incoming), Arc::new(Notify::new()));
        let told = Arc::clone(&wake);
        let listening = incoming.listen(move || told.notify_one())?;
        Ok(Some(Self {
            coming: Arc::clone(coming),
            images: images.to_owned(),
            cgroup: cgroup.to_owned(),
            incoming,
            decoder: Mutex::default(),
            wake,
            _listening: listening,
        }))
    }

    /// The same, for a migration.
    pub fn left(self: &Arc<Self>, rate: Option<Rate>) -> Left {
        let later = Arc::clone(self);
        Left { later, rate }
    }

    /// Notes why it was killed, where its users look for that.
    fn note(&self, why: &str) -> Result<(), Cause> {
        let (context, name) = (&self.coming.context, &self.coming.spec.name);
        let _locked = Handle::current().block_on(context.locks.lock(name))?;
        let mut record = Record::load(&context.host, name)?;
        record.why = Some(why.to_owned());
        Ok(record.save(&context.host)?)
    }
}

fn told(run: Wanted) -> Run {
    Run {
        process: run.vpid,
        address: run.vaddr,
        pages: run.pages,
    }
}

impl Later for Rest {
    fn missing(&self) -> Pages {
        self.incoming.missing()
    }

    fn is_over(&self) -> Result<bool, Cause> {
        Ok(match fill_state(&self.images)? {
            FillState::Filled => true,
            FillState::Filling | FillState::None => self.missing() == Pages(0),
            FillState::Lost => {
                // What it reads from now on is not what it wrote.
                kill_container(&self.cgroup)?;
                true
            }
        })
    }

    fn begin(&self) {
        self.incoming.begin();
    }

    fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    fn wanted(&self) -> Vec<Run> {
        let wanted = self.incoming.wanted(WITH_IT).into_iter();
        wanted.map(told).collect()
    }

    fn next(&self, most: u32) -> Option<Run> {
        self.incoming.next(most).map(told)
    }

    fn take(&self, batch: &[u8]) -> Result<Pages, Cause> {
        let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let decoder = match &mut *decoder {
            Some(decoder) => decoder,
            none => none.insert(Decoder::new()?),
        };
        Ok(self.incoming.take(decoder, batch)?)
    }

    fn lose(&self, why: &str) -> Result<(), Cause> {
        kill_container(&self.cgroup)?;
        if let Err(error) = self.note(why) {
            tracing::warn!(container = %self.coming.spec.name, "why it was killed was not noted: {error}");
        }
        Ok(())
    }
}
