//! The last look at a frozen task: what it has, and what of it is unsent.

use std::ops::Range;

use super::super::space::Space;
use super::super::{MemoryError, Sender};
use super::maps::{Private, Special};
use super::read::Judge;
use super::residual::extend;
use super::task::{FileSystems, Task};
use super::{OwnedSpace, RoundStats, SentPages, Target};
use crate::model::PAGE_SIZE;
use crate::sys::pagemap::{Categories, OWN, Query, Run};

/// Which of the pages that exist are unsent.
pub type Unsent<'a> = dyn Fn(&Run) -> bool + 'a;

/// How to look.
pub struct Look<'a> {
    /// What is told of each page.
    pub tell: Categories,
    /// Which are unsent.
    pub unsent: &'a Unsent<'a>,
    /// How it is known what is news among the unsent.
    pub judge: Judge,
    /// Whether to look for locked mappings and the like where nothing hints at them.
    pub special: bool,
    /// Whether a mapping can be filled in later, as far as is known otherwise.
    pub lazy: &'a dyn Fn(&Range<u64>) -> bool,
}

/// Lists every private page of a frozen task, and which are unsent; sends those of them at once that are in
/// executable mappings. None where the task has no memory.
pub fn look(
    target: Target,
    look: &Look<'_>,
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
    let special = task.special(look.special)?;
    let stacks = task.stacks();
    let mappings = task.private(file_systems);
    let Task {
        pid,
        pagemap,
        memory,
        ..
    } = task;
    let scan = |range: &Range<u64>, each: &mut dyn FnMut(Run)| {
        let query = Query {
            tell: look.tell | Categories::GUARD | Categories::PRESENT,
            ..OWN
        };
        crate::sys::pagemap::pages(&pagemap, range.clone(), query, each).map_err(|source| {
            MemoryError::Task {
                operation: "read the page table",
                pid,
                source,
            }
        })
    };
    let mut space = OwnedSpace {
        pid,
        space: Space::Task(target.vpid),
        ranges: Vec::new(),
        list: Vec::new(),
        memory,
        unsent: Vec::new(),
        judge: look.judge,
    };
    let mut at_once = Vec::new();
    for mapping in mappings {
        let Private {
            range, executable, ..
        } = &mapping;
        let kind = kind(&special, range);
        if kind.shadow_stack {
            continue;
        }
        let mut runs = Vec::new();
        scan(range, &mut |run| runs.push(run))?;
        if !readable(&space, &runs) {
            continue;
        }
        let guard = |run: &Run| run.categories.contains(Categories::GUARD);
        space.own(range.clone(), runs.iter().any(guard));
        let lazy = mapping.file.is_none() && !kind.eager && stacks.is_some() && (look.lazy)(range);
        for run in runs.iter().filter(|run| !guard(run)) {
            let pages = run.start..run.end;
            space.list(pages.clone(), lazy, stacks.as_deref().unwrap_or_default());
            if (look.unsent)(run) {
                let unsent = if *executable {
                    &mut at_once
                } else {
                    &mut space.unsent
                };
                extend(unsent, pages);
            }
        }
    }
    let mut stats = RoundStats::default();
    space.send(at_once.into_iter(), sent, sender, &mut stats)?;
    Ok(Some(space))
}

fn kind(special: &[(Range<u64>, Special)], range: &Range<u64>) -> Special {
    let found = special.iter().find(|(known, _)| known == range);
    found.map_or(Special::default(), |(_, special)| *special)
}

/// Whether the first page of these can be read. What cannot be is left to CRIU.
fn readable(space: &OwnedSpace, runs: &[Run]) -> bool {
    let guard = |run: &&Run| run.categories.contains(Categories::GUARD);
    let Some(first) = runs.iter().find(|run| !guard(run)) else {
        return true;
    };
    let mut page = [0; PAGE_SIZE as usize];
    let read = space.memory.read(first.start, &mut page);
    read.is_ok_and(|read| read == page.len())
}
