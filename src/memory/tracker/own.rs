//! The last look at a frozen task: what it has, and what of it is unsent.

use std::ops::Range;

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::list::List;
use super::maps::{Private, Special};
use super::read::Judge;
use super::task::{FileSystems, Task};
use super::{OwnedSpace, RoundStats, SentPages, Target};
use crate::model::PAGE_SIZE;
use crate::sys::pagemap::{Categories, Query, Run};

/// A run of pages of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub pages: Range<u64>,
    pub kind: Kind,
}

/// What there is to do about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The destination has it.
    Sent,
    /// It does not, or that is not known.
    Unsent,
    /// It has no content and is left to CRIU.
    Guard,
}

/// What a mapping has.
#[derive(Debug, Default)]
pub struct Looked {
    /// Its pages, ascending.
    pub found: Vec<Found>,
    /// Whether there are some among them, guard pages apart, that nobody tracks.
    pub untracked: bool,
}

/// How a tracker looks at a task that it knows.
pub trait Look {
    /// How it is known what is news among the unsent.
    fn judge(&self) -> Judge;

    /// The pages of a mapping, ascending.
    fn pages(&self, task: &Task, mapping: &Private) -> Result<Looked, MemoryError>;

    /// Whether a mapping can be filled in behind a restore, where `smaps` was not asked. None where only `smaps`
    /// knows. `untracked` is what [`Self::pages`] has said of it.
    fn lazy(&self, mapping: &Private, untracked: bool) -> Option<bool>;
}

/// Nothing is known: every page is compared with what was sent.
#[derive(Debug)]
pub struct Unknown;

impl Look for Unknown {
    fn judge(&self) -> Judge {
        Judge::Compared
    }

    fn pages(&self, task: &Task, mapping: &Private) -> Result<Looked, MemoryError> {
        let found = scan(task, mapping, Categories::NONE, &mut |_| Kind::Unsent)?;
        Ok(Looked {
            found,
            untracked: true,
        })
    }

    fn lazy(&self, _: &Private, _: bool) -> Option<bool> {
        None
    }
}

/// The pages of a mapping, and of each what `kind` takes it for, by what `tell` asks for.
pub fn scan(
    task: &Task,
    mapping: &Private,
    tell: Categories,
    kind: &mut dyn FnMut(&Run) -> Kind,
) -> Result<Vec<Found>, MemoryError> {
    let query = Query {
        tell: tell | Categories::GUARD | Categories::PRESENT,
        ..mapping.own()
    };
    let mut found: Vec<Found> = Vec::new();
    task.pages_soon(&mapping.range, query, &mut |run| {
        let kind = if run.categories.contains(Categories::GUARD) {
            Kind::Guard
        } else {
            kind(&run)
        };
        match found.last_mut() {
            Some(last) if last.kind == kind && last.pages.end == run.start => {
                last.pages.end = run.end;
            }
            _ => found.push(Found {
                pages: run.start..run.end,
                kind,
            }),
        }
    })?;
    Ok(found)
}

/// Lists every private page of a frozen task, and which are unsent; sends those of them at once that are in
/// executable mappings. None where the task has no memory.
pub fn look(
    target: Target,
    look: &dyn Look,
    file_systems: &mut FileSystems,
    sent: &SentPages,
    sender: &mut Sender<'_>,
) -> Result<Option<OwnedSpace>, MemoryError> {
    let Some(task) = Task::open(target.pid)? else {
        return Ok(None);
    };
    if task.mappings.is_empty() {
        return Ok(None);
    }
    let stacks = task.stacks();
    let mappings = task.private(file_systems);
    let mut special = task.special(false)?;
    let mut special_is_known = false;
    let mut list = List::default();
    for mapping in mappings {
        let Looked { found, untracked } = look.pages(&task, &mapping)?;
        if kind(&special, &mapping.range).shadow_stack || !readable(&task, &found) {
            continue;
        }
        let may_be_lazy = mapping.file.is_none() && stacks.is_some();
        let lazy = match look.lazy(&mapping, untracked).filter(|_| may_be_lazy) {
            _ if !may_be_lazy => false,
            Some(lazy) => lazy,
            None => {
                if !special_is_known {
                    special = task.special(true)?;
                    special_is_known = true;
                }
                true
            }
        };
        let lazy = lazy && !kind(&special, &mapping.range).eager;
        list.add(
            &mapping,
            &found,
            lazy,
            stacks.as_deref().unwrap_or_default(),
        );
    }
    let space = OwnedSpace {
        pid: task.pid,
        space: Space::Task(target.vpid),
        ranges: list.ranges,
        list: list.list,
        memory: task.memory,
        unsent: list.unsent,
        judge: look.judge(),
    };
    let mut stats = RoundStats::default();
    let at_once = list.at_once.into_iter();
    space.send(at_once, sent, sender, &mut stats)?;
    Ok(Some(space))
}

fn kind(special: &[(Range<u64>, Special)], range: &Range<u64>) -> Special {
    let found = special.iter().find(|(known, _)| known == range);
    found.map_or(Special::default(), |(_, special)| *special)
}

/// Whether the first page of these can be read. What cannot be is left to CRIU.
fn readable(task: &Task, found: &[Found]) -> bool {
    let Some(first) = found.iter().find(|found| found.kind != Kind::Guard) else {
        return true;
    };
    let mut page = [0; PAGE_SIZE as usize];
    let read = task.memory.read(first.pages.start, &mut page);
    read.is_ok_and(|read| read == page.len())
}
