//! The daemon's end: takes pages in, and says which are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::desk::{self, Wanted};
use super::{Later, directory, failed};
use crate::memory::fill::index::WORD;
use crate::memory::frame::{Decoder, Frame};
use crate::memory::images::read_pagemap;
use crate::memory::{MemoryError, Space};
use crate::model::{PAGE_SIZE, Pages};
use crate::sys::fdpass;

/// The most fillers that are listened to at once: one, and some that are dead and not known to be.
const MOST_FILLERS: usize = 16;
/// The most pages that are noted as waited for; what is beyond them is asked for again.
const MOST_WANTED: usize = 4096;

/// A run of pages: process id, first address when it was dumped, how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The process, by its id in the container.
    pub vpid: u32,
    /// The first page.
    pub vaddr: u64,
    /// How many.
    pub pages: u32,
}

/// The pages of a container that come later, on the way into its store.
#[derive(Debug)]
pub struct Incoming {
    images: PathBuf,
    spaces: BTreeMap<u32, Arriving>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Arriving {
    later: Later,
    /// The store's file.
    file: File,
}

#[derive(Debug, Default)]
struct State {
    /// What somebody waits for.
    wanted: BTreeSet<Wanted>,
    /// What was asked for and has not come.
    asked: BTreeMap<u32, Vec<u64>>,
    /// Where the next that nobody waits for is looked for.
    at: (u32, u64),
    fillers: Vec<Arc<OwnedFd>>,
}

impl Incoming {
    /// What the images say; none where nothing was left behind.
    pub fn open(images: &Path) -> Result<Option<Self>, MemoryError> {
        let place = directory(images);
        let names = match fs::read_dir(&place) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("list", &place)(error)),
        };
        let mut spaces = BTreeMap::new();
        for name in names {
            let name = name.map_err(failed("list", &place))?.file_name();
            let vpid = name.to_str().and_then(|name| name.strip_suffix(".runs"));
            let Some(vpid) = vpid.and_then(|vpid| vpid.parse().ok()) else {
                continue;
            };
            if let Some(later) = Later::open(images, vpid)? {
                let file = open_store(images, vpid)?;
                spaces.insert(vpid, Arriving { later, file });
            }
        }
        Ok((!spaces.is_empty()).then(|| Self {
            images: images.to_owned(),
            spaces,
            state: Mutex::default(),
        }))
    }

    /// How many pages are not here and still needed.
    pub fn missing(&self) -> Pages {
        let spaces = self.spaces.values();
        spaces.map(|space| Pages(space.later.here().left())).sum()
    }

    /// Nothing is on its way: what was asked for is to be asked for again.
    pub fn begin(&self) {
        self.state().asked.clear();
    }

    /// Pages that somebody waits for, and a few behind each of them, that are not on their way: these are from now on.
    pub fn wanted(&self, behind: u32) -> Vec<Run> {
        let mut state = self.state();
        let mut runs = Vec::new();
        for (vpid, home) in state.wanted.clone() {
            let Some(space) = self.spaces.get(&vpid) else {
                continue;
            };
            if let Some(number) = space.later.index.number(home) {
                runs.extend(state.ask(vpid, &space.later, number, u64::from(behind) + 1));
            }
        }
        runs
    }

    /// The next pages that are not on their way; they are from now on. None when all are here or on their way.
    pub fn next(&self, most: u32) -> Option<Run> {
        let mut state = self.state();
        let (from, at) = state.at;
        let rest = self.spaces.range(from..).map(|(vpid, space)| {
            let first = if *vpid == from { at } else { 0 };
            (vpid, space, first)
        });
        let again = self.spaces.iter().map(|(vpid, space)| (vpid, space, 0));
        for (vpid, space, first) in rest.chain(again) {
            for word in first..space.later.index.words() {
                let run = state.first_of(*vpid, &space.later, word);
                if let Some(number) = run {
                    state.at = (*vpid, word);
                    return state.ask(*vpid, &space.later, number, most.into());
                }
            }
            state.at = (*vpid, 0);
        }
        None
    }

    /// Takes a batch of frames with pages that come later. How many there were.
    pub fn take(&self, decoder: &mut Decoder, batch: &[u8]) -> Result<Pages, MemoryError> {
        let mut state = self.state();
        let mut all = Pages(0);
        decoder.decode(batch, &mut |frame| {
            let (space, vaddr, pages) = match frame {
                Frame::Pages {
                    space,
                    vaddr,
                    bytes,
                } => (*space, *vaddr, bytes.len() as u64 / PAGE_SIZE),
                Frame::Zero {
                    space,
                    vaddr,
                    pages,
                } => (*space, *vaddr, *pages),
                _ => {
                    let what = "it is no page that comes later";
                    return Err(MemoryError::Frame { length: 0, what });
                }
            };
            for number in 0..pages {
                let at = vaddr + number * PAGE_SIZE;
                let bytes = match frame {
                    Frame::Pages { bytes, .. } => {
                        let from = (number * PAGE_SIZE) as usize;
                        bytes.get(from..from + PAGE_SIZE as usize)
                    }
                    _ => None,
                };
                self.keep(&mut state, space, at, bytes)?;
                all += Pages(1);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Keeps a page; without bytes it is zero, which is what a hole reads as. One that is here stays as it is.
    fn keep(
        &self,
        state: &mut State,
        space: Space,
        vaddr: u64,
        bytes: Option<&[u8]>,
    ) -> Result<(), MemoryError> {
        let not_behind = || MemoryError::NotBehind { space, vaddr };
        let Space::Task(vpid) = space else {
            return Err(not_behind());
        };
        let arriving = self.spaces.get(&vpid).ok_or_else(not_behind)?;
        let number = arriving.later.index.number(vaddr).ok_or_else(not_behind)?;
        state.arrived(vpid, number);
        if arriving.later.here().is_done(number) {
            return Ok(());
        }
        if let Some(bytes) = bytes {
            let written = arriving.file.write_all_at(bytes, vaddr);
            written.map_err(failed("write", &self.images))?;
        }
        arriving.later.here().set(number..number + 1);
        if state.wanted.remove(&(vpid, vaddr)) {
            state.tell();
        }
        Ok(())
    }

    /// Listens to fillers until what this returns is dropped. `wake` is called when a page is wanted.
    pub fn listen(
        self: &Arc<Self>,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Listening, MemoryError> {
        let path = directory(&self.images).join(desk::NAME);
        // A daemon that was here before has left it.
        let _ = fs::remove_file(&path);
        let listener = fdpass::listen_at(&path).map_err(failed("listen at", &path))?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let stop = Arc::new(stop.map_err(|e| failed("listen at", &path)(e.into()))?);
        let (this, stopped) = (Arc::clone(self), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            if let Err(error) = this.hear(&listener, &stopped, &wake) {
                tracing::error!("nobody hears any more for which pages a container waits: {error}");
            }
        });
        Ok(Listening {
            stop,
            thread: Some(thread),
        })
    }

    fn hear(&self, listener: &OwnedFd, stop: &EventFd, wake: &dyn Fn()) -> io::Result<()> {
        loop {
            let fillers = self.state().fillers.clone();
            let mut polled: Vec<PollFd<'_>> = [listener.as_fd(), stop.as_fd()]
                .into_iter()
                .chain(fillers.iter().map(|filler| filler.as_fd()))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready[1] {
                self.state().fillers.clear();
                return Ok(());
            }
            if ready[0] {
                let filler = Arc::new(fdpass::accept(listener.as_fd())?);
                let mut state = self.state();
                if state.fillers.len() >= MOST_FILLERS {
                    state.fillers.remove(0);
                }
                state.fillers.push(filler);
            }
            for (filler, _) in fillers.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
                match fdpass::receive(filler.as_fd()) {
                    Ok(Some((word, _))) => {
                        if let Some(page) = desk::meaning(&word) {
                            self.want(page);
                            wake();
                        }
                    }
                    _ => self
                        .state()
                        .fillers
                        .retain(|f| f.as_raw_fd() != filler.as_raw_fd()),
                }
            }
        }
    }

    /// Somebody waits for a page. One that has come meanwhile is told at once.
    fn want(&self, page: Wanted) {
        let mut state = self.state();
        let Some(space) = self.spaces.get(&page.0) else {
            return;
        };
        match space.later.index.number(page.1) {
            Some(number) if !space.later.here().is_done(number) => {
                if state.wanted.len() < MOST_WANTED {
                    state.wanted.insert(page);
                }
            }
            _ => state.tell(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Pages from this number on, as far as they follow each other and are neither here nor on their way: these are
    /// from now on.
    fn ask(&mut self, vpid: u32, later: &Later, number: u64, most: u64) -> Option<Run> {
        let (_, homes) = later
            .index
            .homes(number..number + most)
            .into_iter()
            .next()?;
        let words = later.index.words() as usize;
        let asked = self.asked.entry(vpid).or_insert_with(|| vec![0; words]);
        let count = (homes.end - homes.start) / PAGE_SIZE;
        let mut end = number;
        while end < number + count && !later.here().is_done(end) {
            let (word, bit) = ((end / WORD) as usize, 1u64 << (end % WORD));
            if asked[word] & bit != 0 {
                break;
            }
            asked[word] |= bit;
            end += 1;
        }
        (end > number).then(|| Run {
            vpid,
            vaddr: homes.start,
            // As many as were asked for at most.
            pages: (end - number) as u32,
        })
    }

    /// The first page of a word that is neither here nor on its way.
    fn first_of(&self, vpid: u32, later: &Later, word: u64) -> Option<u64> {
        let asked = self
            .asked
            .get(&vpid)
            .map_or(0, |words| words[word as usize]);
        let here = later.here();
        let missing = here.full(word) & !here.word(word) & !asked;
        (missing != 0).then(|| word * WORD + u64::from(missing.trailing_zeros()))
    }

    fn arrived(&mut self, vpid: u32, number: u64) {
        if let Some(asked) = self.asked.get_mut(&vpid) {
            asked[(number / WORD) as usize] &= !(1u64 << (number % WORD));
        }
    }

    /// Whoever waits looks again. Who has been told and has not looked yet will.
    fn tell(&self) {
        for filler in &self.fillers {
            let _ = fdpass::send(filler.as_fd(), &[1], &[], false);
        }
    }
}

/// Fillers are listened to.
#[derive(Debug)]
pub struct Listening {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The store's file of a process.
fn open_store(images: &Path, vpid: u32) -> Result<File, MemoryError> {
    let name = images.join(format!("pagemap-{vpid}.img"));
    let bytes = fs::read(&name).map_err(failed("read", &name))?;
    let (number, _) = read_pagemap(&bytes)
        .ok_or_else(|| failed("make sense of", &name)(io::ErrorKind::InvalidData.into()))?;
    let pages = images.join("parent").join(format!("pages-{number}.img"));
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    how.open(&pages).map_err(failed("open", &pages))
}
