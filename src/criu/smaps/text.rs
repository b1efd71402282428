//! What `/proc/PID/smaps` says: a line for every mapping, as in `/proc/PID/maps`, and then lines of its counts, of
//! which the one of its flags is the last.

use std::ops::Range;
use std::sync::Arc;

/// The flags of a mapping in the kernel's words of two letters, as smaps has them behind `VmFlags: `.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Letters(Arc<str>);

impl Letters {
    /// The longest there may be; the kernel has 64 flags, a blank behind each.
    pub const LONGEST: usize = 255;

    fn new(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
        (plain && text.len() <= Self::LONGEST).then(|| Self(text.into()))
    }

    /// As the kernel writes them.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A mapping as it is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its addresses.
    pub range: Range<u64>,
    /// Its flags.
    pub letters: Letters,
}

/// The mappings with their flags. One whose flags are not told, or not in plain letters, is left out.
pub fn mappings(smaps: &str) -> Vec<Told> {
    let mut all = Vec::new();
    let mut at = None;
    for line in smaps.lines() {
        if let Some(letters) = line.strip_prefix("VmFlags: ") {
            let told = at.take().zip(Letters::new(letters));
            all.extend(told.map(|(range, letters)| Told { range, letters }));
        } else if let Some(range) = first_line(line) {
            at = Some(range);
        }
    }
    all
}

/// The addresses of a mapping, where this is its first line.
fn first_line(line: &str) -> Option<Range<u64>> {
    let (addresses, _) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_mapping_is_told_with_the_flags_that_follow_it() {
        let text = "7f0000-7f2000 rw-p 00000000 00:00 0 \nSize:    8 kB\nVmFlags: rd wr mr mw me ac \n\
                    7f3000-7f4000 r--p 00000000 fe:00 12    /a b-c d\nSize:    4 kB\n\
                    ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0      [vsyscall]\n\
                    VmFlags: ex \nVmFlags: zz \n";
        let told = mappings(text);
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].range, 0x7f_0000..0x7f_2000);
        assert_eq!(told[0].letters.as_str(), "rd wr mr mw me ac ");
        assert_eq!(told[1].range.start, 0xffff_ffff_ff60_0000);
        assert_eq!(told[1].letters.as_str(), "ex ");
        assert!(mappings("VmFlags: rd\n1-g x\nVmFlags: rd\n1-2 x\nVmFlags: \u{e4}\n").is_empty());
        let long = format!("1-2 x\nVmFlags: {}\n", "rd ".repeat(100));
        assert!(mappings(&long).is_empty());
    }

    #[test]
    fn this_process_has_flags() {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let told = mappings(&text);
        let lines = text.lines().filter(|line| first_line(line).is_some());
        assert_eq!(told.len(), lines.count());
        assert!(
            told.iter()
                .any(|told| told.letters.as_str().contains("ex "))
        );
    }
}
