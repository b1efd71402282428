//! A filler that takes up what another has left.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use super::{Filler, Place, RESTORER, said, stuck};
use crate::memory::MemoryError;
use crate::memory::fill::member::{Heirs, Member};
use crate::memory::fill::progress::{parent_of, vpid_of};
use crate::memory::fill::restorer::Restorer;
use crate::memory::fill::wire::{ToFiller, ToGuard};
use crate::memory::fill::work::Work;
use crate::sys::pidfd;
use crate::sys::userfaultfd::Userfaultfd;

impl<'a> Filler<'a> {
    /// One that goes on where another has died.
    pub fn resuming(place: Place, guard: OwnedFd, work: &'a Work) -> Result<Self, MemoryError> {
        let mut filler = Self::empty(place, guard, work)?;
        let mut uffds = BTreeMap::new();
        let mut keeper = None;
        let released = loop {
            match (filler.hear(true)?, filler.guard.is_some()) {
                (Some((ToFiller::Uffd { number }, Some(fd))), _) => {
                    uffds.insert(number, Userfaultfd::from(fd));
                }
                (Some((ToFiller::Connection, Some(fd))), _) => {
                    filler.watch(fd.as_fd(), RESTORER)?;
                    filler.restorer = Some(Restorer::new(fd));
                }
                (Some((ToFiller::Keeper, Some(process))), _) => keeper = Some(process),
                (Some((ToFiller::Go { released }, _)), _) => break released,
                (None, true) => {}
                _ => return Err(stuck("its guard has nothing to go on with")),
            }
        };
        filler.take_up(uffds, keeper)?;
        if released {
            filler.release()?;
        }
        Ok(filler)
    }

    /// Takes up what a dead filler has left.
    fn take_up(
        &mut self,
        uffds: BTreeMap<u64, Userfaultfd>,
        keeper: Option<OwnedFd>,
    ) -> Result<(), MemoryError> {
        let directory = self.place.directory.clone();
        let mut parents = Vec::new();
        for number in uffds.keys() {
            parents.push((*number, parent_of(&directory, *number)?));
        }
        for (number, uffd) in uffds {
            let vpid = vpid_of(&directory, number)?;
            let source = self.source(vpid)?;
            let guard = &self.guard;
            let mut heirs = Heirs {
                held: &|parent| {
                    let child = parents.iter().find(|(_, theirs)| *theirs == Some(parent));
                    child.map(|(number, _)| *number)
                },
                kept: &|descriptor| {
                    let kept = pidfd::descriptor(keeper.as_ref()?.as_fd(), descriptor);
                    kept.ok().map(Userfaultfd::from)
                },
                numbers: &self.numbers,
                keep: &mut |number, uffd| match guard {
                    Some(guard) => said(guard, &ToGuard::Hold { number }, Some(uffd)).map(drop),
                    None => Ok(()),
                },
            };
            let (member, born) = Member::resumed(&directory, number, uffd, source, &mut heirs)?;
            self.add(member)?;
            if let Some(child) = born {
                self.add(child)?;
            }
        }
        Ok(())
    }
}
