//! Output as lines of a log. Pure.
//!
//! The format is that of the Kubernetes CRI, which log collectors read:
//!
//! ```text
//! 2026-11-24T03:59:22.673123456Z stdout F 1:M Ready to accept connections
//! └ when, UTC                    └ stream └ F: a whole line. P: a part of one, the rest follows
//! ```

use std::time::Duration;

use crate::model::time::rfc3339;

/// The longest part of a line in one record; longer lines become several.
const PART_MAX: usize = 16 * 1024;

/// One of the two outputs, on its way into lines.
pub struct Lines {
    stream: &'static str,
    rest: Vec<u8>,
}

impl Lines {
    /// Nothing yet of this stream.
    pub fn of(stream: &'static str) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    /// Takes what was printed at `when` (since the epoch) and adds the records that are complete to `out`.
    pub fn take(&mut self, when: Duration, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                self.cut(when, out);
                self.record(when, 'F', out);
            } else {
                self.cut(when, out);
            }
        }
    }

    /// There will be no more: adds what has no end of line.
    pub fn end(&mut self, when: Duration, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.record(when, 'P', out);
        }
    }

    /// Puts all parts but the last into records of their own.
    fn cut(&mut self, when: Duration, out: &mut Vec<u8>) {
        while self.rest.len() > PART_MAX {
            let tail = self.rest.split_off(PART_MAX);
            self.record(when, 'P', out);
            self.rest = tail;
        }
    }

    fn record(&mut self, when: Duration, tag: char, out: &mut Vec<u8>) {
        out.extend_from_slice(rfc3339(when).as_bytes());
        out.extend_from_slice(format!(" {} {tag} ", self.stream).as_bytes());
        out.append(&mut self.rest);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn text(bytes: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::of("stdout"), Vec::new());
        let when = Duration::new(1_795_492_762, 5);
        bytes.iter().for_each(|b| lines.take(when, b, &mut out));
        lines.end(when, &mut out);
        String::from_utf8(out)
            .unwrap()
            .replace("2026-11-24T03:59:22.000000005Z stdout ", "")
    }

    #[test]
    fn lines_are_put_together_from_what_arrives() {
        assert_eq!(
            text(&[b"one\ntw", b"o\n", b"\nrest"]),
            "F one\nF two\nF \nP rest\n"
        );
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn a_long_line_becomes_parts() {
        let long = vec![b'x'; 2 * PART_MAX + 1];
        let parts: Vec<usize> = text(&[&long, b"\n"]).lines().map(|l| l.len() - 2).collect();
        assert_eq!(parts, [PART_MAX, PART_MAX, 1]);
        let just = vec![b'x'; PART_MAX];
        assert!(text(&[&just, b"\n"]).starts_with("F "));
    }
}
