//! Where the bytes of an address space's lazy pages come from.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use super::index::{Done, Index, WORD};
use super::later::Later;
use super::member::Member;
use super::progress::settle;
use crate::memory::images::read_pagemap;
use crate::memory::mappings::Mappings;
use crate::memory::space::PageFlags;
use crate::memory::{MemoryError, store};
use crate::model::PAGE_SIZE;

/// The lazy pages of a process that was dumped, and everybody who needs them: the process itself, and the children it
/// has had since.
#[derive(Debug)]
pub struct Source {
    /// Its process id inside the container when it was dumped.
    pub vpid: u32,
    /// Its lazy pages.
    pub index: Index,
    /// What its children do not inherit, by its addresses when it was dumped.
    pub wiped_on_fork: Vec<Range<u64>>,
    /// The store's file, page at offset = home; none where there are no lazy pages.
    file: Option<File>,
    members: RwLock<Vec<Arc<Member>>>,
    /// A bit per word whose memory was given back.
    given: Vec<AtomicU64>,
    /// Those that were left on the source of a migration.
    later: Option<Later>,
}

impl Source {
    /// What the images say about a process.
    pub fn open(images: &Path, vpid: u32) -> Result<Self, MemoryError> {
        let name = images.join(format!("pagemap-{vpid}.img"));
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| MemoryError::Fill {
                operation,
                path,
                source,
            }
        };
        let bytes = fs::read(&name).map_err(failed("read", &name))?;
        let (number, list) = read_pagemap(&bytes)
            .ok_or_else(|| failed("make sense of", &name)(io::ErrorKind::InvalidData.into()))?;
        let lazy = list.iter().filter(|entry| entry.flags == PageFlags::LAZY);
        let index = Index::new(lazy.map(|entry| entry.vaddr..entry.end()));
        let pages = images.join("parent").join(format!("pages-{number}.img"));
        let open = || {
            let mut how = OpenOptions::new();
            how.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
            how.open(&pages)
        };
        let file = (index.pages() > 0).then(open).transpose();
        let file = file.map_err(failed("open", &pages))?;
        let mm = images.join(format!("mm-{vpid}.img"));
        let mappings = match fs::read(&mm) {
            Ok(bytes) => Mappings::read(&bytes).unwrap_or_else(Mappings::unknown),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Mappings::none(),
            Err(error) => return Err(failed("read", &mm)(error)),
        };
        let given = (0..index.words().div_ceil(WORD)).map(|_| AtomicU64::new(0));
        Ok(Self {
            given: given.collect(),
            later: Later::open(images, vpid)?,
            vpid,
            index,
            wiped_on_fork: mappings.wiped_on_fork(),
            file,
            members: RwLock::default(),
        })
    }

    /// Somebody more needs these pages.
    pub fn join(&self, member: Arc<Member>) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.push(member);
    }

    /// Somebody needs them no more.
    pub fn leave(&self, number: u64) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| member.number() != number);
    }

    /// Whether the bytes of the page with this home are in the store.
    pub fn is_here(&self, home: u64) -> bool {
        let later = self.later.as_ref();
        let coming = later.and_then(|later| Some(later.here().is_done(later.index.number(home)?)));
        coming.unwrap_or(true)
    }

    /// Of a run of these pages, as numbers, those runs whose bytes are in the store.
    pub fn here(&self, run: Range<u64>) -> Vec<Range<u64>> {
        if self.later.is_none() {
            return vec![run];
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (first, homes) in self.index.homes(run) {
            for (number, home) in (first..).zip(homes.step_by(PAGE_SIZE as usize)) {
                match runs.last_mut() {
                    _ if !self.is_here(home) => {}
                    Some(last) if last.end == number => last.end += 1,
                    _ => runs.push(number..number + 1),
                }
            }
        }
        runs
    }

    /// Whether the memory of a word was given back.
    pub fn is_given(&self, word: u64) -> bool {
        Done::new(&self.given, self.index.words()).is_done(word)
    }

    /// Reads pages, all of which are here. What cannot be read is an error, never zeros. A hole reads as what it is, a page of zeros: nobody
    /// asks for holes, as looking for the next one costs a walk over every page before it.
    pub fn read(&self, home: u64, into: &mut [u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(into, home)
    }

    /// Gives back the memory of everything that nobody needs any more.
    pub fn sweep(&self) -> Result<(), MemoryError> {
        (0..self.index.words()).try_for_each(|word| self.give_back(word))
    }

    /// Gives the memory of the pages of a word back, if nobody needs any of them any more.
    pub fn give_back(&self, word: u64) -> Result<(), MemoryError> {
        self.give(word).map_err(|source| MemoryError::Fill {
            operation: "give back the pages of",
            path: format!("process {}", self.vpid).into(),
            source,
        })
    }

    fn give(&self, word: u64) -> io::Result<()> {
        let given = Done::new(&self.given, self.index.words());
        if given.is_done(word) {
            return Ok(());
        }
        // A child that is born meanwhile inherits a member's bits, so it has every bit that all have.
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let needed = members.iter().any(|member| !member.done().is_full(word));
        let Some(file) = self.file.as_ref().filter(|_| !needed) else {
            return Ok(());
        };
        let numbers = word * WORD..(word + 1) * WORD;
        for (_, home) in self.index.homes(numbers) {
            store::punch(file, home.start, home.end - home.start)?;
            // What has not come is not needed any more.
            if let Some(later) = &self.later {
                for home in later.index.within(home) {
                    settle(later.here(), &later.index, home);
                }
            }
        }
        given.set(word..word + 1);
        Ok(())
    }
}
