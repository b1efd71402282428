//! Reads the log of a container, while its shim goes on writing it.
//!
//! The shim writes one record a line, in the format of the Kubernetes CRI, and at a certain length makes the
//! file `log` to `log.1`, in the place of the one before:
//!
//! ```text
//! 2026-11-24T03:59:22.673123456Z stdout F 1:M Ready to accept connections
//! └ when, UTC                    └ stream └ F: a whole line. P: a part of one, the rest follows
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::api::types::Output;

/// How much is read at once.
const CHUNK: u64 = 64 * 1024;
/// The longest record that is taken for one; the shim's are shorter.
const RECORD_MAX: usize = 1 << 20;

/// What a container printed at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, as RFC 3339 has it.
    pub at: &'a str,
    /// On which of its outputs.
    pub stream: Output,
    /// Whether the line ends here.
    pub whole: bool,
    /// What, without the end of the line.
    pub bytes: &'a [u8],
}

/// Reads one record; none where it is not one.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Output::Stdout,
        b"stderr" => Output::Stderr,
        _ => return None,
    };
    let whole = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let bytes = parts.next()?;
    Some(Record {
        at,
        stream,
        whole,
        bytes,
    })
}

/// A log, read from some place to its end, and beyond as it grows.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// What is read after the current file: the newer one, from this place.
    then: Option<(BufReader<File>, u64)>,
    file: Option<BufReader<File>>,
    record: Vec<u8>,
}

impl LogReader {
    /// Opens the log at `path`, at its begin or at the begin of its last `tail` records. One that does not
    /// exist yet is empty.
    pub fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let newer = open(path)?;
        let older = open(&older(path))?;
        let mut reader = Self {
            path: path.to_owned(),
            then: None,
            file: None,
            record: Vec::new(),
        };
        let wanted = tail.unwrap_or(u64::MAX);
        let Some(mut newer) = newer else {
            return Ok(reader);
        };
        let (start, found) = tail_start(&mut newer, wanted)?;
        match older {
            Some(mut older) if found < wanted && inode(&older)? != inode(&newer)? => {
                let (older_start, _) = tail_start(&mut older, wanted - found)?;
                reader.file = Some(at(older, older_start)?);
                reader.then = Some((at(newer, start)?, start));
            }
            _ => reader.file = Some(at(newer, start)?),
        }
        Ok(reader)
    }

    /// The next record, without its end of line; none when there is nothing more for now.
    pub fn read_record(&mut self) -> io::Result<Option<&[u8]>> {
        if self.record.last() == Some(&b'\n') {
            self.record.clear();
        }
        loop {
            if self.file.is_none() {
                self.file = open(&self.path)?.map(BufReader::new);
            }
            let Some(file) = &mut self.file else {
                return Ok(None);
            };
            let room = (RECORD_MAX - self.record.len()) as u64;
            file.take(room).read_until(b'\n', &mut self.record)?;
            if self.record.len() == RECORD_MAX {
                self.record.clear();
                continue;
            }
            if self.record.last() == Some(&b'\n') {
                return Ok(Some(&self.record[..self.record.len() - 1]));
            }
            // The end, for now; of the last file, or of one that another has taken the place of.
            if let Some((newer, _)) = self.then.take() {
                self.file = Some(newer);
            } else if !self.moved_on()? {
                return Ok(None);
            }
        }
    }

    /// Goes over to the file that is now in the place of the one being read. What was written to that one in
    /// the meantime is read first.
    fn moved_on(&mut self) -> io::Result<bool> {
        let (Some(file), Some(newer)) = (&mut self.file, open(&self.path)?) else {
            return Ok(false);
        };
        if inode(&newer)? == inode(file.get_ref())? {
            return Ok(false);
        }
        if file.fill_buf()?.is_empty() {
            self.record.clear();
            self.file = Some(BufReader::new(newer));
        }
        Ok(true)
    }
}

fn older(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".1");
    path.into()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn inode(file: &File) -> io::Result<u64> {
    file.metadata().map(|meta| meta.ino())
}

fn at(mut file: File, start: u64) -> io::Result<BufReader<File>> {
    file.seek(SeekFrom::Start(start))?;
    Ok(BufReader::new(file))
}

/// Where the last `wanted` records begin, and how many there are of them: read backwards.
fn tail_start(file: &mut File, wanted: u64) -> io::Result<(u64, u64)> {
    let length = file.seek(SeekFrom::End(0))?;
    if wanted == 0 || wanted == u64::MAX {
        return Ok((if wanted == 0 { length } else { 0 }, 0));
    }
    let (mut end, mut seen) = (length, 0);
    let mut buffer = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(begin))?;
        buffer.clear();
        file.take(end - begin).read_to_end(&mut buffer)?;
        for (at, _) in buffer
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            let next = begin + at as u64 + 1;
            // The last end of line ends the last record and begins none.
            if next < length {
                seen += 1;
                if seen == wanted {
                    return Ok((next, seen));
                }
            }
        }
        end = begin;
    }
    Ok((0, seen + u64::from(length > 0)))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn all(reader: &mut LogReader) -> Vec<String> {
        let mut records = Vec::new();
        while let Some(record) = reader.read_record().unwrap() {
            records.push(String::from_utf8(record.to_vec()).unwrap());
        }
        records
    }

    #[test]
    fn a_record_is_read_and_anything_else_is_none() {
        let record = parse(b"2026-11-24T03:59:22.1Z stderr P a b ").unwrap();
        assert_eq!(record.at, "2026-11-24T03:59:22.1Z");
        assert_eq!(
            (record.stream, record.whole, record.bytes),
            (Output::Stderr, false, &b"a b "[..])
        );
        assert_eq!(parse(b"t stdout F ").unwrap().bytes, b"");
        for bad in [
            "",
            "t",
            "t stdout",
            "t stdout F",
            "t stdin F x",
            "t stdout X x",
        ] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_tail_reaches_into_the_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let long = "x".repeat(100_000);
        assert!(all(&mut LogReader::open(&log, None).unwrap()).is_empty());
        fs::write(older(&log), format!("one\n{long}\n")).unwrap();
        fs::write(&log, "three\nfour\n").unwrap();
        let whole = ["one", &long, "three", "four"];
        for tail in 0..6 {
            let records = all(&mut LogReader::open(&log, Some(tail)).unwrap());
            let expected = &whole[4 - usize::try_from(tail.min(4)).unwrap()..];
            assert!(records == expected, "{tail}");
        }
        assert!(all(&mut LogReader::open(&log, None).unwrap()) == whole);
    }

    #[test]
    fn a_log_is_followed_as_it_grows_and_turns() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut reader = LogReader::open(&log, None).unwrap();
        let append = |text: &str| {
            let mut options = fs::OpenOptions::new();
            let mut file = options.append(true).create(true).open(&log).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("one\nha");
        assert_eq!(all(&mut reader), ["one"]);
        append("lf\n");
        assert_eq!(all(&mut reader), ["half"]);
        append("last\n");
        fs::rename(&log, older(&log)).unwrap();
        assert_eq!(all(&mut reader), ["last"]);
        append("first\n");
        assert_eq!(all(&mut reader), ["first"]);
        assert!(all(&mut reader).is_empty());
    }
}
