//! A container that is restored here and held, until the source's word lets it run or undoes it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::syncfs;

use super::behind::Rest;
use super::incoming::Incoming;
use super::remains;
use crate::container::shim::{Client, Preparation, RestoreRequest, ShimError, ShimState};
use crate::container::{Record, create};
use crate::criu::Criu;
use crate::daemon::Context;
use crate::memory::SegmentServer;
use crate::memory::fill::fill_is_spent;
use crate::migration::{Cause, Left, Restored, RunError, Summary};
use crate::model::{
    ContainerSpec, ContainerState, Generation, MigrationId, Name, Rate, RestoreChoice, Spans, Step,
};
use crate::net::HeldFrames;
use crate::rootfs::bundle::COVER;
use crate::rootfs::plan::DEVICES;

/// How long it may take to see what became of a container whose shim died.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);
/// More than a record and its directory entry take, in bytes.
const ROOM: usize = 16 * 1024;
/// How often a container that died before it ran is restored.
const TRIES: u32 = 3;

/// How memory comes back, for the report.
pub fn way(lazy: bool) -> RestoreChoice {
    if lazy {
        RestoreChoice::Lazy
    } else {
        RestoreChoice::Eager
    }
}

/// Starts the shim of a container that comes, ready to restore it: none of that is to be waited for later. What is
/// left after a failure goes with the place.
pub fn new_shim(coming: &Incoming, lazy: bool) -> Result<Client, Cause> {
    let host = &coming.context.host;
    let mut shim = create::new_shim(host, &coming.spec, true)?;
    let criu = criu(coming)?;
    shim.prepare(Preparation {
        images: coming.images(),
        userns: userns(coming),
        netns: host.netns(&coming.spec.name),
        cgroup: host.cgroup(&coming.spec.name).path().to_owned(),
        criu: criu.program().to_owned(),
        lazy,
        extra: extra(criu),
    })?;
    Ok(shim)
}

fn criu(coming: &Incoming) -> Result<&Criu, Cause> {
    let criu = coming.context.criu.as_ref();
    criu.ok_or_else(|| "CRIU cannot be used on this host".into())
}

fn userns(coming: &Incoming) -> Option<PathBuf> {
    let own = !coming.spec.userns.is_host();
    own.then(|| coming.context.host.userns(&coming.spec.name))
}

/// What of its host is mounted in a container.
fn bound(spec: &ContainerSpec) -> impl Iterator<Item = &'static str> {
    let devices = DEVICES.iter().filter(|_| !spec.userns.is_host());
    devices.map(|(path, ..)| *path)
}

/// What is mounted in a container and stays outside of the images: where, and the name that they have for it.
pub fn outside(spec: &ContainerSpec) -> Vec<(PathBuf, PathBuf)> {
    let same = |place: PathBuf| (place.clone(), place);
    let mut all: Vec<_> = bound(spec).map(|path| same(path.into())).collect();
    if let Some(bundle) = &spec.bundle {
        all.extend(bundle.copies.iter().cloned().map(same));
        let cover = |place: &PathBuf| (place.clone(), PathBuf::from(COVER));
        all.extend(bundle.covered.iter().map(cover));
    }
    all
}

/// Where what is mounted in a container that was made of a bundle is on this host, by its name in the images.
fn copies(coming: &Incoming) -> Vec<(PathBuf, PathBuf)> {
    let Some(bundle) = &coming.spec.bundle else {
        return Vec::new();
    };
    let copies = coming.context.host.copies(&coming.spec.name);
    let numbered = bundle.copies.iter().enumerate();
    let mut all: Vec<_> = numbered
        .map(|(number, place)| (place.clone(), copies.join(number.to_string())))
        .collect();
    if !bundle.covered.is_empty() {
        all.push((COVER.into(), COVER.into()));
    }
    all
}

/// What [`crate::checkpoint::CriuRestorer`] wants to know besides.
fn extra(criu: &Criu) -> serde_json::Value {
    serde_json::json!({ "criu_version": criu.version() })
}

fn request(coming: &Incoming, summary: &Summary, lazy: bool) -> Result<RestoreRequest, Cause> {
    let host = &coming.context.host;
    let name = &coming.spec.name;
    let criu = criu(coming)?;
    Ok(RestoreRequest {
        images: coming.images(),
        root: host.rootfs(name),
        userns: userns(coming),
        netns: host.netns(name),
        cgroup: host.cgroup(name).path().to_owned(),
        criu: criu.program().to_owned(),
        stdio_inodes: summary.stdio_inodes,
        bound: bound(&coming.spec).map(PathBuf::from).collect(),
        copies: copies(coming),
        null: summary.null.map(|name| name.to_string()),
        log: coming.images().join("restore.log"),
        lazy,
        extra: extra(criu),
    })
}

/// What others have sent to a container while it ran nowhere reaches it.
fn deliver(name: &Name, frames: Option<&HeldFrames>) {
    if let Some(frames) = frames {
        let delivered = frames.deliver();
        tracing::debug!(container = %name, ?delivered, "frames that came in the blackout");
    }
}

/// What an arrival has of a container besides its images.
pub struct Parts {
    pub frames: Option<HeldFrames>,
    /// Who will restore it.
    pub shim: Option<Client>,
    pub segments: Option<SegmentServer>,
    /// What was left behind, and how fast it may come.
    pub rest: Option<Arc<Rest>>,
    pub rate: Option<Rate>,
}

/// The name, in a migration's directory, of how fast what was left behind may come.
const RATE: &str = "rate.json";

/// A container that is restored here and held by its shim.
pub struct RestoredArrival {
    coming: Arc<Incoming>,
    request: RestoreRequest,
    shim: Option<Client>,
    frames: Option<HeldFrames>,
    /// Who hands shared memory to CRIU; a daemon that dies takes it with it. What has not run then never will.
    segments: Option<SegmentServer>,
    /// What was left behind, and how fast it may come.
    rest: Option<Arc<Rest>>,
    rate: Option<Rate>,
    spans: Spans,
}

impl RestoredArrival {
    /// Restores a container of which everything is here. What a failure leaves goes with the place.
    pub fn restore(
        coming: &Arc<Incoming>,
        summary: &Summary,
        lazy: bool,
        parts: Parts,
    ) -> Result<Self, Cause> {
        let Parts {
            frames,
            shim,
            segments,
            rest,
            rate,
        } = parts;
        fs::write(coming.directory().join(RATE), serde_json::to_vec(&rate)?)?;
        let request = request(coming, summary, lazy)?;
        let coming = Arc::clone(coming);
        let mut restored = Self {
            coming,
            request,
            shim: None,
            frames,
            segments,
            rest,
            rate,
            spans: Spans::new(Instant::now),
        };
        restored.hold(shim)?;
        Ok(restored)
    }

    /// What a daemon before this one may have left of a container that was coming. None when its record is
    /// gone, and so everything else.
    pub fn after_restart(
        context: &Arc<Context>,
        id: MigrationId,
        source: &Name,
        record: Record,
    ) -> Result<Self, Cause> {
        let coming = Arc::new(Incoming {
            context: Arc::clone(context),
            source: source.clone(),
            id,
            spec: record.spec,
            created_at: record.created_at,
            generation: record.generation,
        });
        let kept = fs::read(coming.directory().join(remains::REQUEST));
        let request = match kept {
            Ok(text) => serde_json::from_slice(&text)?,
            // It was never ready to be restored, and will be discarded.
            Err(_) => request(&coming, &Summary::default(), false)?,
        };
        let shim = Client::connect(&context.host.run(&coming.spec.name)).ok();
        let rate = fs::read(coming.directory().join(RATE)).ok();
        let rate = rate.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(Self {
            coming,
            request,
            shim,
            // A daemon that dies takes what it held with it.
            frames: None,
            segments: None,
            rest: None,
            rate: rate.flatten(),
            spans: Spans::new(Instant::now),
        })
    }

    /// Restores from the images, up to the moment before the first instruction, with a shim that is ready for that or
    /// a new one.
    fn hold(&mut self, shim: Option<Client>) -> Result<(), Cause> {
        let coming = &self.coming;
        if fill_is_spent(&self.request.images) {
            return Err("its memory was given away as it ran; it cannot be restored again".into());
        }
        let text = serde_json::to_vec(&self.request)?;
        fs::write(coming.directory().join(remains::REQUEST), text)?;
        let mut shim = match shim {
            Some(shim) => shim,
            None => new_shim(coming, self.request.lazy)?,
        };
        shim.restore(self.request.clone())?;
        // From now on a shim that dies can be replaced without losing the container's output.
        let outputs = shim.pipes()?;
        coming.context.outputs.keep(&coming.spec.name, outputs);
        self.shim = Some(shim);
        Ok(())
    }

    /// Lets it run, its gate open: the first thing that it says is not lost. When what was held has died meanwhile, it
    /// is restored again, behind its closed gate.
    fn let_run(&mut self) -> Result<(), RunError> {
        let mut last: Cause = "its shim is gone".into();
        for _ in 0..TRIES {
            let step = self.spans.begin("open the gate");
            let network = &self.coming.context.host.network;
            if let Err(error) = network.attach(&self.coming.spec.name) {
                return Err(RunError::NeverRan(error.into()));
            }
            drop(step);
            let _step = self.spans.begin("let it run");
            let verdict = match &mut self.shim {
                Some(shim) => shim.verdict(true),
                None => Err(ShimError::Gone {
                    directory: self.coming.context.host.run(&self.coming.spec.name),
                }),
            };
            match verdict {
                Ok(()) => return Ok(()),
                Err(_) if self.runs() => return Ok(()),
                Err(error) => last = error.into(),
            }
            tracing::warn!(container = %self.coming.spec.name, "what was restored has died before it ran and is restored again: {last}");
            self.shim = None;
            if let Err(error) = self
                .coming
                .context
                .host
                .network
                .detach(&self.coming.spec.name)
            {
                return Err(RunError::NeverRan(error.into()));
            }
            let cgroup = self.coming.context.host.cgroup(&self.coming.spec.name);
            let again = cgroup.remove().and_then(|()| cgroup.create());
            let again = again.map_err(Cause::from).and_then(|()| self.hold(None));
            if let Err(error) = again {
                last = error;
            }
        }
        Err(RunError::NeverRan(last))
    }

    /// Keeps room on the disk for the record that it runs, which a full disk would not take: it then never runs here, and
    /// goes on where it came from. Not synced, this costs no time.
    fn keep_room(&self) -> Result<(), Cause> {
        let room = self.room();
        fs::write(&room, [0; ROOM]).map_err(|error| {
            let _ = fs::remove_file(&room);
            format!("there is no room for its record on this host: {error}").into()
        })
    }

    fn room(&self) -> PathBuf {
        self.coming
            .context
            .host
            .state(&self.coming.spec.name)
            .join(".room")
    }

    fn cgroup(&self) -> PathBuf {
        let host = &self.coming.context.host;
        host.cgroup(&self.coming.spec.name).path().to_owned()
    }

    /// Whether it runs, or has run. Where the shim is gone the cgroup tells: CRIU, which lives in it, kills what
    /// it has not let go when its client dies, and leaves what it has; so once CRIU is gone it is known.
    fn runs(&mut self) -> bool {
        let host = &self.coming.context.host;
        let name = &self.coming.spec.name;
        self.shim = Client::connect(&host.run(name)).ok();
        if let Some(shim) = &self.shim {
            return matches!(
                shim.state(),
                ShimState::Running { .. } | ShimState::Exited { .. }
            );
        }
        let cgroup = host.cgroup(name);
        remains::wait_until_criu_has_left(&cgroup, SETTLES_WITHIN);
        cgroup.procs().is_ok_and(|procs| !procs.is_empty())
    }
}

impl Restored for RestoredArrival {
    fn run(&mut self, generation: Generation) -> Result<Instant, RunError> {
        let ran_before = self.runs();
        if !ran_before {
            self.keep_room().map_err(RunError::NeverRan)?;
            self.let_run()?;
        }
        let since = Instant::now();
        self.segments = None;
        let frames = self.frames.take();
        let coming = &self.coming;
        let host = &coming.context.host;
        let name = &coming.spec.name;
        let opened = || -> Result<(), Cause> {
            if ran_before {
                host.network.attach(name)?;
            }
            let step = self.spans.begin("hand over its frames");
            // In their order: first what has come, then what comes until nobody sends it that way any more.
            deliver(name, frames.as_ref());
            host.network
                .announce(&coming.spec.lease, &host.netns(name))?;
            deliver(name, frames.as_ref());
            drop(step);
            // What the container has once synced to the source's disk must be on this one before that copy goes.
            syncfs(File::open(host.upper(name))?)?;
            // It is for this.
            let _ = fs::remove_file(self.room());
            coming
                .record(ContainerState::Running, generation)
                .save(host)?;
            // The kernel takes its time to remove an interface.
            deliver(name, frames.as_ref());
            drop(frames);
            Ok(())
        };
        opened().map_err(RunError::HasRun)?;
        coming
            .context
            .events
            .container(name, ContainerState::Running);
        Ok(since)
    }

    fn steps(&mut self) -> Vec<Step> {
        self.spans.take()
    }

    fn way(&self) -> RestoreChoice {
        way(self.request.lazy)
    }

    fn later(&mut self) -> Result<Option<Left>, Cause> {
        if self.rest.is_none() {
            let rest = Rest::of(&self.coming, &self.request.images, &self.cgroup())?;
            self.rest = rest.map(Arc::new);
        }
        Ok(self.rest.as_ref().map(|rest| rest.left(self.rate)))
    }

    fn settle(self) -> Result<(), Cause> {
        remains::wait_until_filled(&self.coming.images(), &self.cgroup())?;
        Ok(remains::remove_directory(&self.coming.directory())?)
    }

    fn discard(mut self) -> Result<(), Cause> {
        if let Some(shim) = &mut self.shim {
            // It may be dead, or never have held anything; what is left is removed with the place.
            let _ = shim.verdict(false);
        }
        self.coming.remove()
    }
}
