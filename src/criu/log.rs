//! The lines of CRIU's log that say why something failed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// As much of a log's end as is looked at.
const LOOKED_AT: u64 = 256 * 1024;
/// As many error lines as are told.
const ERRORS: usize = 8;
/// As many lines as are told where none is an error.
const LAST: usize = 3;
/// As much of a line as is told.
const LINE: usize = 300;

/// The relevant last lines of a log; prints as nothing where there are none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogTail {
    /// The lines, oldest first.
    pub lines: Vec<String>,
}

impl LogTail {
    /// The relevant lines of `text`: its errors, the last few, or its very last lines where no line is one.
    pub fn of(text: &str) -> Self {
        let told = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let all: Vec<&str> = told.collect();
        let errors: Vec<&str> = all.iter().copied().filter(|l| is_error(l)).collect();
        let (lines, most) = if errors.is_empty() {
            (all, LAST)
        } else {
            (errors, ERRORS)
        };
        let first = lines.len().saturating_sub(most);
        let lines = lines[first..].iter();
        Self {
            lines: lines
                .map(|line| line.chars().take(LINE).collect())
                .collect(),
        }
    }

    /// What to say first: `told`, CRIU's own choice, unless that is noise; then the first line here. The line is
    /// taken out, so that it is not said twice.
    pub(super) fn headline(&mut self, told: Option<&str>) -> Option<String> {
        let told = told
            .map(str::trim)
            .filter(|text| !text.is_empty() && !is_noise(text));
        let Some(told) = told else {
            return (!self.lines.is_empty()).then(|| self.lines.remove(0));
        };
        self.lines.retain(|line| !line.ends_with(told));
        Some(told.chars().take(LINE).collect())
    }

    /// The relevant lines of a log file.
    pub fn read(file: &mut File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
        let mut bytes = Vec::new();
        file.take(LOOKED_AT).read_to_end(&mut bytes)?;
        Ok(Self::of(&String::from_utf8_lossy(&bytes)))
    }
}

/// CRIU writes `(00.012345) Error (criu/mem.c:46): text`, with the process id in between where it forked.
fn is_error(line: &str) -> bool {
    let error = line.contains("Error (") || line.contains("Error:") || line.contains("BUG at");
    error && !is_noise(line)
}

/// Logged as an error in every run without CAP_SYS_RESOURCE, and never the reason for anything.
fn is_noise(line: &str) -> bool {
    line.contains("Can't setup RLIMIT_NOFILE")
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            write!(f, "\n  | {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_the_errors_of_a_log_are_told() {
        let text = "(00.1) Warn  (criu/x.c:1): w\n(00.2) Error (criu/a.c:1): one\n(00.3) info\n\
                    (00.4)      7: Error (criu/b.c:2): two\n";
        let tail = LogTail::of(text);
        assert_eq!(tail.lines.len(), 2);
        assert!(tail.to_string().starts_with("\n  | (00.2) Error"));
    }

    #[test]
    fn noise_is_never_the_reason() {
        let noise = "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self";
        let mut tail = LogTail::of(&format!(
            "(0.1) {noise}\n(0.2) Error (a.c:1): first\n(0.3) Error (a.c:2): next\n"
        ));
        assert_eq!(tail.lines.len(), 2);
        assert_eq!(
            tail.clone().headline(Some(noise)).unwrap(),
            "(0.2) Error (a.c:1): first"
        );
        assert_eq!(
            tail.headline(Some("Error (a.c:2): next")).unwrap(),
            "Error (a.c:2): next"
        );
        assert_eq!(tail.lines, ["(0.2) Error (a.c:1): first"]);
        assert_eq!(LogTail::default().headline(Some(noise)), None);
    }

    #[test]
    fn a_log_without_errors_tells_its_last_lines() {
        assert_eq!(LogTail::of("a\nb\nc\nd\n").lines, ["b", "c", "d"]);
        assert_eq!(LogTail::of("").to_string(), "");
    }

    #[test]
    fn of_many_errors_the_last_are_told() {
        let text: String = (0..50).map(|n| format!("Error (x): {n}\n")).collect();
        let tail = LogTail::of(&text);
        assert_eq!(tail.lines.len(), ERRORS);
        assert_eq!(tail.lines.last().unwrap(), "Error (x): 49");
    }
}
