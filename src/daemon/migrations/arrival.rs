//! A container of another host on its way to this one: the rooms' side of [`Destination`] and of what follows.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::statvfs::statvfs;

use super::behind::Rest;
use super::incoming::Incoming;
use super::restored::{self, Parts, RestoredArrival};
use crate::checkpoint::ImageDirectory;
use crate::container::shim::Client;
use crate::container::{Record, place};
use crate::daemon::{Context, facts};
use crate::memory::{Decoder, PageStore, SegmentServer, link_images};
use crate::migration::codec::{Chunk, Frame, Kind};
use crate::migration::preflight::{Coming, Here, preflight};
use crate::migration::stream::TakePages;
use crate::migration::{Arriving, Cause, Destination, Left, Offer, Summary};
use crate::model::{
    Bytes, ContainerState, Finding, Name, OfBundle, OnNoConvergence, Rate, RestoreChoice,
};
use crate::net::HeldFrames;
use crate::rootfs::Staging;
use crate::storage::Receiver;

/// What CRIU's images may take, memory apart.
const IMAGES: u64 = 1 << 30;
/// What the page store may take beyond the memory that was announced: it grows while it is copied.
const GROWTH: Bytes = Bytes(256 << 20);
/// What copies of files and directories that were bound in it may take, with what tells of them.
const COPIES: Bytes = Bytes(64 << 20);
/// As many segments of shared memory as are kept where they can stay.
const MOST_SEGMENTS: usize = 1024;
/// Threads that copy what CRIU cannot read out of the store's own files.
const THREADS: usize = 2;

/// This host, for containers that come.
pub struct Arrivals {
    context: Arc<Context>,
    source: Name,
}

impl Arrivals {
    /// This host, for containers that come from `source`.
    pub fn new(context: &Arc<Context>, source: &Name) -> Self {
        Self {
            context: Arc::clone(context),
            source: source.clone(),
        }
    }
}

impl Destination for Arrivals {
    type Arriving = Arrival;

    fn findings(&self, offer: &Offer) -> Result<Vec<Finding>, Cause> {
        let context = &self.context;
        let spec = &offer.spec;
        if let Some(problem) = spec.bundle.as_ref().and_then(OfBundle::problem) {
            let text = format!("what is mounted in the container is not understood: {problem}");
            return Ok(vec![Finding::blocking("mount-places", text)]);
        }
        let mut here = context.facts.clone();
        here.memory_available = facts::memory_available()?;
        let holder = context
            .leases
            .list()
            .into_iter()
            .find(|entry| entry.lease.address == spec.lease.address && entry.name != spec.name);
        let disk = statvfs(&context.config.state_dir)?;
        let coming = Coming {
            name: spec.name.as_str(),
            address: spec.lease.address.to_string(),
            facts: &offer.facts,
            memory: offer.memory,
            files: offer.files,
            restore: offer.options.restore,
            userns: spec.userns,
            post_copy: offer.options.on_no_convergence == OnNoConvergence::PostCopy,
        };
        Ok(preflight(
            &coming,
            &Here {
                facts: &here,
                name_taken: Record::load(&context.host, &spec.name).is_ok(),
                address_holder: holder.map(|entry| entry.name.to_string()),
                address_fits: context.network.config().contains(spec.lease.address),
                disk_available: Bytes(disk.blocks_available() * disk.fragment_size()),
            },
        ))
    }

    fn reserve(&self, offer: &Offer) -> Result<Arrival, Cause> {
        let arrival = Arrival {
            coming: Arc::new(Incoming {
                context: Arc::clone(&self.context),
                source: self.source.clone(),
                id: offer.migration,
                spec: offer.spec.clone(),
                created_at: offer.created_at,
                generation: offer.generation,
            }),
            segments: None,
            rest: None,
            rate: offer.options.bandwidth,
            image: None,
            files: None,
            copies: None,
            copied: Bytes(0),
            first_pass: true,
            pages: None,
            images: None,
            id_map: None,
            frames: None,
            lazy: match offer.options.restore {
                RestoreChoice::Auto | RestoreChoice::Lazy => {
                    self.context.facts.lazy(offer.spec.userns).usable
                }
                RestoreChoice::Eager => false,
            },
            shim: None,
        };
        match arrival.make(offer) {
            Ok(arrival) => Ok(arrival),
            Err((coming, error)) => {
                if let Err(undo) = coming.remove() {
                    tracing::error!(container = %coming.spec.name, "a place for a container that did not come was not removed: {undo}");
                }
                Err(error)
            }
        }
    }
}

/// A container of which parts are here.
pub struct Arrival {
    coming: Arc<Incoming>,
    image: Option<(Staging, Receiver)>,
    files: Option<Receiver>,
    /// Copies of what was bound in it, and how much has come of them.
    copies: Option<Receiver>,
    copied: Bytes,
    first_pass: bool,
    pages: Option<Arc<PageStore>>,
    images: Option<ImageDirectory>,
    /// Whom of this host its users are.
    id_map: Option<File>,
    frames: Option<HeldFrames>,
    /// Whether its memory comes behind it.
    lazy: bool,
    /// Who will restore it.
    shim: Option<Client>,
    segments: Option<SegmentServer>,
    /// What was left behind of its memory.
    rest: Option<Arc<Rest>>,
    /// How fast that may come.
    rate: Option<Rate>,
}

impl Arrival {
    fn make(mut self, offer: &Offer) -> Result<Self, (Arc<Incoming>, Cause)> {
        match self.steps(offer) {
            Ok(()) => Ok(self),
            Err(error) => Err((self.coming, error)),
        }
    }

    fn steps(&mut self, offer: &Offer) -> Result<(), Cause> {
        let coming = Arc::clone(&self.coming);
        let (context, spec) = (&coming.context, &coming.spec);
        context.leases.adopt(&spec.name, &spec.lease)?;
        place::reserve(&context.host, spec)?;
        coming
            .record(ContainerState::Arriving, coming.generation)
            .save(&context.host)?;
        fs::create_dir_all(coming.images())?;
        // In a user namespace CRIU is nobody, and asks somebody else for every image that there is: it must see which
        // there are. Nobody gets here who is not handed the directory.
        fs::set_permissions(coming.images(), fs::Permissions::from_mode(0o711))?;
        self.shim = Some(restored::new_shim(&coming, self.lazy)?);
        self.id_map = place::id_map(&context.host, spec)?;
        match context.network.prepare_to_hold(&spec.name, &spec.lease) {
            Ok(frames) => self.frames = Some(frames),
            Err(error) => {
                tracing::warn!(container = %spec.name, "frames that come for it in the blackout will be lost: {error}");
            }
        }
        let limit = Bytes(offer.memory.0 * 2) + GROWTH;
        let named = offer.segments.iter().take(MOST_SEGMENTS);
        let named = named.map(|segment| (segment.inode, segment.name.clone()));
        let store = PageStore::create(&coming.directory(), limit)?.with_segments(named);
        self.pages = Some(Arc::new(store));
        self.images = Some(ImageDirectory::new(&coming.images(), IMAGES));
        if !context.images.has(spec.image) && !context.images.fetch(spec.image)? {
            let staging = context.images.stage()?;
            let receiver = Receiver::new(staging.path())?;
            self.image = Some((staging, receiver));
        }
        Ok(())
    }

    fn receive_files(&mut self, record: &[u8]) -> Result<(), Cause> {
        if self.files.is_none() {
            let upper = self.coming.context.host.upper(&self.coming.spec.name);
            self.files = Some(Receiver::new(&upper)?);
        }
        self.files
            .as_mut()
            .map_or(Ok(()), |files| files.apply(record))?;
        Ok(())
    }

    /// They are in memory.
    fn receive_copies(&mut self, record: &[u8]) -> Result<(), Cause> {
        self.copied.0 += record.len() as u64;
        if self.copied > COPIES {
            return Err("there is too much in what is bound in it".into());
        }
        if self.copies.is_none() {
            let copies = self.coming.context.host.copies(&self.coming.spec.name);
            fs::create_dir(&copies)?;
            self.copies = Some(Receiver::new(&copies)?);
        }
        self.copies
            .as_mut()
            .map_or(Ok(()), |copies| copies.apply(record))?;
        Ok(())
    }

    /// Everything is here: makes images CRIU can read of it, and hands out what it need not read.
    fn link(&mut self, summary: &Summary) -> Result<Option<SegmentServer>, Cause> {
        let images = self.images.as_ref().ok_or("the images are lost")?;
        images.verify(&summary.images)?;
        images.wind_timers()?;
        let store = self.pages.take().ok_or("the page store is lost")?;
        let coming = &self.coming;
        thread::scope(|scope| {
            let network = (!summary.neighbours.is_empty())
                .then(|| scope.spawn(|| introduce(coming, summary)));
            place::mount_root(&coming.context.host, &coming.spec, self.id_map.as_ref())?;
            let mut complete = store.verify()?;
            if complete.pages != summary.pages {
                let (here, there) = (complete.pages, summary.pages);
                let why = format!("{here} pages are listed here and {there} on the source");
                return Err(why.into());
            }
            if complete.behind != summary.behind {
                let (here, there) = (complete.behind, summary.behind);
                let why = format!("{here} pages are left behind here and {there} on the source");
                return Err(why.into());
            }
            let owner = place::owner(&coming.context.host, &coming.spec, 0)?;
            let segments = complete.take_segments(images.path(), owner)?;
            let handed = segments.pages;
            let placed = link_images(complete, images.path(), THREADS, self.lazy)?;
            tracing::debug!(container = %coming.spec.name, ?placed, ?handed, "its memory is complete");
            if let Some(network) = network {
                network.join().map_err(|_| "its network was not told")?;
            }
            Ok(segments.serve(images.path())?)
        })
    }
}

/// It knows whom it knew elsewhere.
fn introduce(coming: &Incoming, summary: &Summary) {
    let pin = coming.context.host.netns(&coming.spec.name);
    if let Err(error) = coming.context.network.learn(&pin, &summary.neighbours) {
        tracing::warn!(container = %coming.spec.name, "it has to ask for its neighbours anew: {error}");
    }
}

/// The page store, for any number of threads.
struct Pages {
    store: Arc<PageStore>,
    /// Those that no thread uses now.
    decoders: Mutex<Vec<Decoder>>,
}

impl TakePages for Pages {
    fn take(&self, batch: &[u8]) -> Result<(), Cause> {
        let free = || self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        let decoder = free().pop();
        let mut decoder = decoder.map_or_else(Decoder::new, Ok)?;
        self.store.take(&mut decoder, batch)?;
        free().push(decoder);
        Ok(())
    }
}

impl Arriving for Arrival {
    type Restored = RestoredArrival;

    fn needs_image(&self) -> bool {
        self.image.is_some()
    }

    fn way(&self) -> RestoreChoice {
        restored::way(self.lazy)
    }

    fn takes_later(&self) -> bool {
        self.lazy
    }

    fn pages(&self) -> Result<Arc<dyn TakePages>, Cause> {
        let store = self.pages.as_ref().ok_or("the page store is lost")?;
        Ok(Arc::new(Pages {
            store: Arc::clone(store),
            decoders: Mutex::default(),
        }))
    }

    fn take(&mut self, frame: Frame) -> Result<(), Cause> {
        match frame.kind {
            Kind::Image => {
                let (_, receiver) = self.image.as_mut().ok_or("the image is here already")?;
                receiver.apply(&frame.payload)?;
            }
            Kind::Storage => self.receive_files(&frame.payload)?,
            Kind::Copies => self.receive_copies(&frame.payload)?,
            Kind::Dump => {
                let images = self.images.as_mut().ok_or("the images are lost")?;
                let chunk = Chunk::decode(&frame.payload)?;
                images.write(chunk.name, chunk.offset, chunk.bytes)?;
            }
            Kind::Control | Kind::Pages | Kind::Taken | Kind::Ask => {
                return Err("it is none of its own files or images".into());
            }
        }
        Ok(())
    }

    fn image_end(&mut self) -> Result<(), Cause> {
        let (staging, receiver) = self.image.take().ok_or("no image was asked for")?;
        receiver.finish()?;
        staging.commit(self.coming.spec.image)?;
        Ok(())
    }

    fn files_end(&mut self) -> Result<(), Cause> {
        // A pass without a single record changes nothing.
        if let Some(files) = self.files.take() {
            // The bulk goes to the disk now, while the container runs elsewhere. What the last pass adds goes
            // there when it runs here, before the source's copy goes; see `RestoredArrival::run`.
            if self.first_pass {
                files.sync()?;
            }
            files.finish()?;
        }
        if let Some(copies) = self.copies.take() {
            copies.finish()?;
        }
        self.first_pass = false;
        Ok(())
    }

    fn frozen(&mut self) {
        let network = &self.coming.context.network;
        if let Some(Err(error)) = self.frames.as_ref().map(|frames| network.hold(frames)) {
            self.frames = None;
            let name = &self.coming.spec.name;
            tracing::warn!(container = %name, "frames that come for it in the blackout are lost: {error}");
        }
    }

    fn gate_closed(&mut self) {
        if let Some(Err(error)) = self.frames.as_ref().map(HeldFrames::announce) {
            let name = &self.coming.spec.name;
            tracing::warn!(container = %name, "frames that come for it in the blackout may be lost: {error}");
        }
    }

    fn complete(&mut self, summary: &Summary) -> Result<Option<Left>, Cause> {
        self.segments = self.link(summary)?;
        let cgroup = self.coming.context.host.cgroup(&self.coming.spec.name);
        let rest = Rest::of(&self.coming, &self.coming.images(), cgroup.path())?;
        self.rest = rest.map(Arc::new);
        Ok(self.rest.as_ref().map(|rest| rest.left(self.rate)))
    }

    fn restore(mut self, summary: &Summary) -> Result<RestoredArrival, Cause> {
        let parts = Parts {
            frames: self.frames.take(),
            shim: self.shim.take(),
            segments: self.segments.take(),
            rest: self.rest.take(),
            rate: self.rate,
        };
        let restored = RestoredArrival::restore(&self.coming, summary, self.lazy, parts);
        restored.inspect_err(|_| {
            if let Err(undo) = self.coming.remove() {
                tracing::error!(container = %self.coming.spec.name, "a container that was not restored was not removed: {undo}");
            }
        })
    }

    fn discard(self) -> Result<(), Cause> {
        self.coming.remove()
    }
}
