//! The filler: takes CRIU's userfaultfds, answers faults, follows what the container does to its mappings, and places
//! what nobody has asked for yet a few pages at a time, in between.

mod between;
mod later;
mod resume;
mod talk;
mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use self::between::come_first;
pub use self::talk::said;
use super::index::WORD;
use super::later::{Desk, Wanted};
use super::member::{Happened, Member, Outcome};
use super::place;
use super::progress::Numbers;
use super::restorer::{Heard, Restorer};
use super::source::Source;
use super::wire::{ToFiller, ToGuard};
use super::work::{Batch, Work};
use crate::memory::MemoryError;
use crate::model::PAGE_SIZE;
use crate::sys::userfaultfd::Userfaultfd;

/// As many events of one space are taken in a row; then it is the others' turn.
const IN_A_ROW: usize = 64;
/// How often it is looked whether something is complete.
const TICK: Duration = Duration::from_millis(10);
/// How often it is told how far this is.
const TELL: Duration = Duration::from_millis(500);
/// How soon it is tried again what could not be done while a space was being changed.
const SOON: Duration = Duration::from_micros(100);

const GUARD: u64 = 0;
const LISTENER: u64 = 1;
const RESTORER: u64 = 2;
const DESK: u64 = 3;
/// Tokens of members are their numbers after this.
const MEMBERS: u64 = 16;

/// Where a filler begins.
#[derive(Debug, Clone)]
pub struct Place {
    /// CRIU's images, the store's files among them.
    pub images: PathBuf,
    /// Where the state of the fill is kept.
    pub directory: PathBuf,
    /// The container's cgroup.
    pub cgroup: PathBuf,
}

/// A filler.
pub struct Filler<'a> {
    place: Place,
    epoll: Epoll,
    /// None when nobody guards it any more.
    guard: Option<OwnedFd>,
    listener: Option<UnixListener>,
    restorer: Option<Restorer>,
    sources: HashMap<u32, Arc<Source>>,
    members: BTreeMap<u64, Arc<Member>>,
    numbers: Numbers,
    /// Faults that came while their space was being changed.
    again: VecDeque<(u64, u64)>,
    /// Faults on pages that have not come yet, and where that is said.
    later: VecDeque<((u64, u64), Wanted)>,
    desk: Desk,
    work: &'a Work,
    /// A word that is being placed.
    batch: Option<Batch>,
    /// Words that were.
    placed: Vec<Batch>,
    /// Until when nothing is placed that nobody waits for.
    rests: Option<Instant>,
    /// Whether nobody else runs unless this thread rests.
    works_in_shifts: bool,
    /// When somebody was answered last.
    answered: Option<Instant>,
    /// A page.
    buffer: Vec<u8>,
    /// The container runs, or nobody is there who would say so: everything may be filled.
    begun: bool,
    spent: bool,
    told: Instant,
}

impl<'a> Filler<'a> {
    /// One that waits for CRIU.
    pub fn listening(
        place: Place,
        guard: OwnedFd,
        listener: UnixListener,
        work: &'a Work,
    ) -> Result<Self, MemoryError> {
        let mut filler = Self::empty(place, guard, work)?;
        filler.watch(listener.as_fd(), LISTENER)?;
        filler.listener = Some(listener);
        Ok(filler)
    }

    fn empty(place: Place, guard: OwnedFd, work: &'a Work) -> Result<Self, MemoryError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let numbers = Numbers::of(&place.directory)?;
        let filler = Self {
            desk: Desk::of(&place.images),
            later: VecDeque::new(),
            place,
            epoll: epoll.map_err(|e| failed("watch", "anything")(e.into()))?,
            guard: None,
            listener: None,
            restorer: None,
            sources: HashMap::new(),
            members: BTreeMap::new(),
            numbers,
            again: VecDeque::new(),
            work,
            batch: None,
            placed: Vec::new(),
            rests: None,
            works_in_shifts: false,
            answered: None,
            buffer: vec![0; PAGE_SIZE as usize],
            begun: false,
            spent: false,
            told: Instant::now(),
        };
        filler.watch(guard.as_fd(), GUARD)?;
        Ok(Self {
            guard: Some(guard),
            ..filler
        })
    }

    /// Serves until everything is there.
    pub fn serve(&mut self) -> Result<(), MemoryError> {
        self.tell(&ToGuard::Ready, None)?;
        self.works_in_shifts = come_first();
        let mut looked = Instant::now();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let more = self.place_some()?;
            let patience = match () {
                () if more => Duration::ZERO,
                () if self.rests.is_some() => self.rest(),
                () if !self.again.is_empty() => SOON,
                () if self.begun => TICK,
                () => TELL,
            };
            for token in self.wait(&mut events, patience)? {
                self.take(token)?;
            }
            for _ in 0..self.again.len() {
                if let Some((number, address)) = self.again.pop_front() {
                    self.answer(number, address)?;
                }
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.ask_again()?;
                if self.look()? {
                    return Ok(());
                }
            }
        }
    }

    fn wait(&self, events: &mut [EpollEvent], patience: Duration) -> Result<Vec<u64>, MemoryError> {
        let mut timeout = EpollTimeout::try_from(patience).unwrap_or(EpollTimeout::ZERO);
        if !patience.is_zero() && patience < Duration::from_millis(1) {
            // What epoll knows is milliseconds.
            let mut polled = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut polled, Some(patience.into()), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(failed("wait for", "events")(error.into())),
            }
            timeout = EpollTimeout::ZERO;
        }
        match self.epoll.wait(events, timeout) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(failed("wait for", "events")(error.into())),
        }
    }

    fn take(&mut self, token: u64) -> Result<(), MemoryError> {
        match token {
            GUARD => self.obey(),
            LISTENER | RESTORER => self.listen(),
            DESK => self.came(),
            token => self.follow(token.saturating_sub(MEMBERS)),
        }
    }

    /// Takes what the guard says.
    fn obey(&mut self) -> Result<(), MemoryError> {
        match self.hear(false)? {
            Some((ToFiller::Sync, _)) => {
                self.listen()?;
                match self.check() {
                    Ok(()) => self.tell(&ToGuard::Synced, None),
                    Err(error) => {
                        let why = error.to_string();
                        self.tell(&ToGuard::Refused { why }, None)
                    }
                }
            }
            Some((ToFiller::Release, _)) => self.release(),
            Some(_) => Err(stuck("its guard speaks out of turn")),
            None => Ok(()),
        }
    }

    /// Asks whether all that CRIU has told of is registered.
    fn check(&self) -> Result<(), MemoryError> {
        let restored = self.members.values().filter(|member| !member.is_child());
        for member in restored {
            member.check()?;
        }
        Ok(())
    }

    /// Takes what CRIU says.
    fn listen(&mut self) -> Result<(), MemoryError> {
        if let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((stream, _)) => {
                    let fd = OwnedFd::from(stream);
                    self.tell(&ToGuard::Connection, Some(fd.as_fd()))?;
                    self.watch(fd.as_fd(), RESTORER)?;
                    self.restorer = Some(Restorer::new(fd));
                    if let Some(listener) = self.listener.take() {
                        self.unwatch(listener.as_fd())?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed("accept", "CRIU")(error)),
            }
        }
        while let Some(restorer) = &mut self.restorer {
            let heard = restorer.hear().map_err(failed("hear", "CRIU"))?;
            match heard {
                Heard::Nothing => break,
                Heard::Task(vpid, uffd) => self.restored(vpid, uffd)?,
                // It still has to let the tasks go, and needs its processor for that: they have what they ask for, and
                // the rest begins when they run.
                Heard::Finished => {}
                Heard::End => {
                    if let Some(restorer) = self.restorer.take() {
                        self.unwatch(restorer.as_fd())?;
                    }
                    if self.guard.is_none() {
                        self.begin();
                    }
                }
                Heard::Nonsense => {
                    return Err(stuck(
                        "CRIU says what is not known: is it of another version?",
                    ));
                }
            }
        }
        Ok(())
    }

    /// CRIU has told of a task.
    fn restored(&mut self, vpid: u32, uffd: Userfaultfd) -> Result<(), MemoryError> {
        let number = self.numbers.next();
        let source = self.source(vpid)?;
        let member = Member::restored(&self.place.directory, number, uffd, source)?;
        self.tell(&ToGuard::Hold { number }, Some(member.as_fd()))?;
        self.add(member)
    }

    fn source(&mut self, vpid: u32) -> Result<Arc<Source>, MemoryError> {
        if let Some(source) = self.sources.get(&vpid) {
            return Ok(Arc::clone(source));
        }
        let source = Arc::new(Source::open(&self.place.images, vpid)?);
        self.sources.insert(vpid, Arc::clone(&source));
        Ok(source)
    }

    fn add(&mut self, member: Arc<Member>) -> Result<(), MemoryError> {
        self.watch(member.as_fd(), MEMBERS + member.number())?;
        self.work.add(Arc::clone(&member));
        self.members.insert(member.number(), member);
        Ok(())
    }

    /// Takes the events of a space.
    fn follow(&mut self, number: u64) -> Result<(), MemoryError> {
        let Some(member) = self.members.get(&number).map(Arc::clone) else {
            return Ok(());
        };
        for _ in 0..IN_A_ROW {
            let (guard, directory) = (&self.guard, &self.place.directory);
            let mut lost = false;
            let mut keep = |number, uffd: BorrowedFd<'_>| {
                if let Some(guard) = guard {
                    lost = !said(guard, &ToGuard::Hold { number }, Some(uffd))?;
                }
                Ok(())
            };
            let happened = member.read(directory, &self.numbers, &mut keep)?;
            if lost {
                self.orphaned();
            }
            match happened {
                None => break,
                Some(Happened::Fault(address)) => self.answer(number, address)?,
                Some(Happened::Changed) => {}
                Some(Happened::Born(child)) => {
                    self.add(child)?;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, number: u64, address: u64) -> Result<(), MemoryError> {
        let Some(member) = self.members.get(&number) else {
            return Ok(());
        };
        match member.answer(address, &mut self.buffer)? {
            Outcome::Again => self.again.push_back((number, address)),
            Outcome::Later(home) => {
                let vpid = member.source().vpid;
                self.wait_for((number, address), (vpid, home))?;
            }
            Outcome::Done => {
                self.answered = Some(Instant::now());
                if let Some(page) = member.number_at(address / PAGE_SIZE * PAGE_SIZE) {
                    self.work.urgent(member, page / WORD);
                }
            }
        }
        Ok(())
    }

    /// Everything may be filled now.
    fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            self.work.begin();
        }
    }

    /// The container runs: everything may be filled, and what is used of the store may go.
    fn release(&mut self) -> Result<(), MemoryError> {
        if !self.spent {
            let marked = place::mark(&self.place.directory, "spent");
            marked.map_err(failed("mark", "the store"))?;
            self.spent = true;
        }
        self.work.release();
        self.begin();
        Ok(())
    }

    /// Nobody guards this any more; it goes on, and gives nothing back that it was not allowed to.
    fn orphaned(&mut self) {
        self.guard = None;
        if self.restorer.is_none() {
            self.begin();
        }
    }

    /// Lets go of what is complete. Returns whether that was all.
    fn look(&mut self) -> Result<bool, MemoryError> {
        if let Some(error) = self.work.failure() {
            return Err(error);
        }
        if !self.begun {
            return Ok(false);
        }
        let mut complete = Vec::new();
        let mut left = 0;
        for member in self.members.values() {
            let missing = member.done().left();
            if missing > 0 {
                member.look()?;
            }
            if missing == 0 || member.is_gone() {
                complete.push(Arc::clone(member));
                continue;
            }
            left += missing;
            let placing = self.batch.as_ref().map(Batch::number) == Some(member.number());
            if member.is_taken() && !placing && !self.work.is_busy(member.number()) {
                member.start_over();
            }
        }
        for member in complete {
            self.let_go(&member)?;
        }
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            self.tell(&ToGuard::Left { pages: left }, None)?;
        }
        Ok(self.members.is_empty())
    }

    fn let_go(&mut self, member: &Member) -> Result<(), MemoryError> {
        let number = member.number();
        // An event that is not read any more changes nothing: nothing is left to be placed.
        let removed = self.epoll.delete(member.as_fd());
        removed.map_err(|e| failed("let go of", "a userfaultfd")(e.into()))?;
        self.work.remove(number);
        self.members.remove(&number);
        self.tell(&ToGuard::Drop { number }, None)?;
        member.retire();
        // What it alone needed may be given back.
        self.work.sweep(member.source());
        Ok(())
    }

    /// Says that everything is there.
    pub fn farewell(&mut self) -> Result<(), MemoryError> {
        let marked = place::mark(&self.place.directory, "filled");
        marked.map_err(failed("mark", "the end"))?;
        self.tell(&ToGuard::Filled, None)
    }
}

fn failed(operation: &'static str, what: &str) -> impl FnOnce(io::Error) -> MemoryError {
    let path = Path::new(what).to_owned();
    move |source| MemoryError::Fill {
        operation,
        path,
        source,
    }
}

fn stuck(what: &str) -> MemoryError {
    let what = what.to_owned();
    MemoryError::FillStuck { what }
}

#[cfg(test)]
mod test;
