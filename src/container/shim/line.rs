//! Output as lines of a log. Pure.
//!
//! The format is that of the Kubernetes CRI, which log collectors read:
//!
//! ```text
//! 2026-11-24T03:59:22.673123456Z stdout F 1:M Ready to accept connections
//! └ when, UTC                    └ stream └ F: a whole line. P: a part of one, the rest follows
//! ```

use std::time::Duration;

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
        out.extend_from_slice(time(when).as_bytes());
        out.extend_from_slice(format!(" {} {tag} ", self.stream).as_bytes());
        out.append(&mut self.rest);
        out.push(b'\n');
    }
}

/// A time since the epoch, as RFC 3339 writes it.
fn time(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanos = since_epoch.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a number of days since the epoch, in the Gregorian calendar: eras of 400 years that
/// begin in March, so that the leap day is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
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

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| time(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00.000000000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59.000000000Z");
    }
}
