//! What the kernel's own flags of mappings are called.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::codec::Described;
use super::text::{Letters, Told, mappings};
use crate::sys::pagemap;
use crate::sys::sample_mappings::SampleMappings;
use crate::sys::vma_iter::{Vma, VmaIter, VmaIterError};

/// Addresses from here on are the kernel's, and no task's.
const KERNEL: u64 = 1 << 63;

/// The flags of mappings, without a look at their pages: the kernel's numbers from an iterator, and a dictionary of
/// what it calls them in smaps.
///
/// **Invariant:** nothing is guessed. Which letters belong to a number is only known of numbers that were seen with
/// them: a mapping had that number before and after smaps told its letters. A number that was ever seen with other
/// letters is not known any more.
///
/// A copy learns for itself: what a container shows of its own mappings, which it may change while they are looked
/// at, is good for that container alone.
#[derive(Debug, Clone)]
pub struct MappingFlags {
    iter: Arc<VmaIter>,
    /// None: it was seen with several.
    letters: BTreeMap<u64, Option<Letters>>,
    /// Numbers that smaps was read for without success.
    tried: BTreeSet<u64>,
    /// What the kernel shows of every task and no iterator does.
    everybody: Vec<Told>,
}

impl MappingFlags {
    /// What this process can learn from mappings of its own, which it makes of many kinds for that.
    ///
    /// # Errors
    /// When there is no iterator here.
    pub(in crate::criu) fn of_this_process() -> Result<Self, VmaIterError> {
        let mut flags = Self {
            iter: Arc::new(VmaIter::load()?),
            letters: BTreeMap::new(),
            tried: BTreeSet::new(),
            everybody: Vec::new(),
        };
        let own = std::process::id().cast_signed();
        let samples = SampleMappings::make();
        // What cannot be learnt here is not known, which is no error.
        let learnt = flags.look(own).and_then(|()| {
            // New mappings are dirty where the kernel tracks that. A task that was tracked has others.
            pagemap::clear_soft_dirty(own)?;
            flags.look(own)
        });
        drop(samples);
        if let Err(error) = learnt {
            tracing::debug!(%error, "not all of this process's mappings could be looked at");
        }
        Ok(flags)
    }

    /// Learns what a task's flags are called that are not known yet. Its smaps is read only if there are any, which
    /// takes the longer the more memory it has.
    ///
    /// # Errors
    /// When the task cannot be looked at: it may have ended.
    pub fn learn(&mut self, pid: i32) -> io::Result<()> {
        let unknown = |flags: &Self| -> io::Result<BTreeSet<u64>> {
            let numbers = flags.iter.vmas(pid)?.into_iter().map(|vma| vma.flags);
            let new = |number: &u64| !flags.letters.contains_key(number);
            Ok(numbers.filter(new).collect())
        };
        if unknown(self)?.is_subset(&self.tried) {
            return Ok(());
        }
        self.look(pid)?;
        let still = unknown(self)?;
        self.tried.extend(still);
        Ok(())
    }

    /// All mappings of a task that stands still, with their flags; none if those of one are not known.
    ///
    /// # Errors
    /// When the task cannot be looked at.
    pub fn describe(&self, pid: i32) -> io::Result<Option<Described>> {
        let told = |vma: Vma| {
            let letters = self.letters.get(&vma.flags).cloned().flatten()?;
            Some(Told {
                range: vma.range,
                letters,
            })
        };
        let mappings: Option<Vec<Told>> = self.iter.vmas(pid)?.into_iter().map(told).collect();
        Ok(mappings.map(|mappings| Described { pid, mappings }))
    }

    /// What the kernel shows of every task.
    pub fn everybody(&self) -> &[Told] {
        &self.everybody
    }

    fn look(&mut self, pid: i32) -> io::Result<()> {
        let before = self.iter.vmas(pid)?;
        let smaps = fs::read(format!("/proc/{pid}/smaps"))?;
        let after = self.iter.vmas(pid)?;
        self.note(&before, &mappings(&String::from_utf8_lossy(&smaps)), &after);
        Ok(())
    }

    /// Notes what was the same before and after.
    fn note(&mut self, before: &[Vma], told: &[Told], after: &[Vma]) {
        let key = |range: &Range<u64>| (range.start, range.end);
        let numbers = |vmas: &[Vma]| -> BTreeMap<(u64, u64), u64> {
            vmas.iter()
                .map(|vma| (key(&vma.range), vma.flags))
                .collect()
        };
        let (before, after) = (numbers(before), numbers(after));
        for told in told {
            if told.range.start >= KERNEL {
                if !self.everybody.contains(told) {
                    self.everybody.push(told.clone());
                }
                continue;
            }
            let at = key(&told.range);
            let Some(number) = before
                .get(&at)
                .filter(|_| before.get(&at) == after.get(&at))
            else {
                continue;
            };
            let known = self
                .letters
                .entry(*number)
                .or_insert_with(|| Some(told.letters.clone()));
            if known.as_ref() != Some(&told.letters) {
                *known = None;
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn vma(range: Range<u64>, flags: u64) -> Vma {
        Vma { range, flags }
    }

    fn told(range: Range<u64>, letters: &str) -> Told {
        let text = format!("{:x}-{:x} x\nVmFlags: {letters}\n", range.start, range.end);
        mappings(&text).remove(0)
    }

    #[test]
    fn only_what_stayed_as_it_was_is_learnt_and_a_contradiction_is_not_forgotten() {
        let Ok(iter) = VmaIter::load() else {
            println!("SKIP: no iterator here");
            return;
        };
        let mut flags = MappingFlags {
            iter: Arc::new(iter),
            letters: BTreeMap::new(),
            tried: BTreeSet::new(),
            everybody: Vec::new(),
        };
        let known = |flags: &MappingFlags, number| {
            let letters = flags.letters.get(&number).cloned().flatten();
            letters.map(|letters| letters.as_str().to_owned())
        };
        let before = [vma(1..2, 7), vma(2..3, 8), vma(3..4, 9), vma(5..6, 10)];
        let after = [vma(1..2, 7), vma(2..3, 80), vma(3..5, 9)];
        let smaps = [
            told(1..2, "rd "),
            told(2..3, "wr "),
            told(3..4, "ex "),
            told(5..6, "io "),
            told(KERNEL..KERNEL + 1, "ex "),
        ];
        flags.note(&before, &smaps, &after);
        assert_eq!(known(&flags, 7).as_deref(), Some("rd "));
        for number in [8, 80, 9, 10] {
            assert_eq!(known(&flags, number), None, "{number}");
        }
        assert_eq!(flags.everybody(), [told(KERNEL..KERNEL + 1, "ex ")]);
        flags.note(&before, &[told(1..2, "rd wr ")], &after);
        assert_eq!(known(&flags, 7), None);
        flags.note(&before, &smaps, &after);
        assert_eq!(known(&flags, 7), None);
        assert_eq!(flags.everybody().len(), 1);
    }
}
