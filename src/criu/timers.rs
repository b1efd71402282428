//! Timers that would stand still after a restore.
//!
//! A timerfd that repeats and has expired is wound up again when it is read. Until then the kernel shows that nothing
//! is left of it (`fs/timerfd.c`, `timerfd_show`), CRIU writes that down, and restores a timer with nothing left: one
//! that was never started (`criu/timerfd.c`, `prepare_timerfds`). So the images are told that a whole interval is left.

use prost::Message;

const COMMON_MAGIC: u32 = 0x5456_4319;
const FILES_MAGIC: u32 = 0x5630_3138;
/// `fd_types` of CRIU's `fdinfo.proto`.
const TIMERFD: i32 = 17;

/// `file_entry`, as far as it says something of a timer.
#[derive(Clone, PartialEq, Eq, Message)]
struct File {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(uint32, required, tag = "2")]
    id: u32,
    #[prost(message, optional, tag = "12")]
    timer: Option<Timer>,
}

/// `timerfd_entry`, whole.
#[derive(Clone, PartialEq, Eq, Message)]
struct Timer {
    #[prost(uint32, required, tag = "1")]
    id: u32,
    #[prost(uint32, required, tag = "2")]
    flags: u32,
    /// A message that is passed on as it is.
    #[prost(bytes = "vec", required, tag = "3")]
    owner: Vec<u8>,
    #[prost(uint32, required, tag = "4")]
    clock: u32,
    #[prost(uint64, required, tag = "5")]
    ticks: u64,
    #[prost(uint32, required, tag = "6")]
    settime_flags: u32,
    #[prost(uint64, required, tag = "7")]
    left_seconds: u64,
    #[prost(uint64, required, tag = "8")]
    left_nanoseconds: u64,
    #[prost(uint64, required, tag = "9")]
    interval_seconds: u64,
    #[prost(uint64, required, tag = "10")]
    interval_nanoseconds: u64,
}

impl Timer {
    fn stands_still(&self) -> bool {
        let left = (self.left_seconds, self.left_nanoseconds);
        let interval = (self.interval_seconds, self.interval_nanoseconds);
        left == (0, 0) && interval != (0, 0)
    }
}

/// The `files` image in which all timers go on; none when they do so already, or when it is no such image.
pub fn wound(image: &[u8]) -> Option<Vec<u8>> {
    let mut rest = image;
    if word(&mut rest)? != COMMON_MAGIC || word(&mut rest)? != FILES_MAGIC {
        return None;
    }
    let mut changed = false;
    let mut out = image[..8].to_vec();
    while !rest.is_empty() {
        let length = usize::try_from(word(&mut rest)?).ok()?;
        let (record, after) = rest.split_at_checked(length)?;
        rest = after;
        let mended = mended(record);
        changed |= mended.is_some();
        let record = mended.as_deref().unwrap_or(record);
        out.extend(u32::try_from(record.len()).ok()?.to_le_bytes());
        out.extend(record);
    }
    changed.then_some(out)
}

fn mended(record: &[u8]) -> Option<Vec<u8>> {
    let mut file = File::decode(record).ok()?;
    let timer = file.timer.as_mut()?;
    if file.kind != TIMERFD || !timer.stands_still() {
        return None;
    }
    timer.left_seconds = timer.interval_seconds;
    timer.left_nanoseconds = timer.interval_nanoseconds;
    Some(file.encode_to_vec())
}

fn word(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod test {
    use super::*;

    fn file(id: u32, left: u64, interval: u64) -> File {
        let timer = Timer {
            id,
            flags: 2,
            owner: vec![8, 1],
            clock: 1,
            ticks: 3,
            settime_flags: 1,
            left_seconds: 0,
            left_nanoseconds: left,
            interval_seconds: 0,
            interval_nanoseconds: interval,
        };
        File {
            kind: TIMERFD,
            id,
            timer: Some(timer),
        }
    }

    fn image(files: &[Vec<u8>]) -> Vec<u8> {
        let mut image = Vec::new();
        image.extend(COMMON_MAGIC.to_le_bytes());
        image.extend(FILES_MAGIC.to_le_bytes());
        for record in files {
            image.extend((record.len() as u32).to_le_bytes());
            image.extend(record);
        }
        image
    }

    #[test]
    fn a_repeating_timer_that_has_expired_goes_on_and_others_are_left_alone() {
        // Something else, with fields that are not known here.
        let pipe = vec![8, 6, 16, 9, 90, 2, 8, 1];
        let (runs, once) = (file(2, 5, 7).encode_to_vec(), file(3, 0, 0).encode_to_vec());
        let before = image(&[
            pipe.clone(),
            file(1, 0, 7).encode_to_vec(),
            runs.clone(),
            once.clone(),
        ]);
        let after = image(&[pipe, file(1, 7, 7).encode_to_vec(), runs, once]);
        assert_eq!(wound(&before).unwrap(), after);
        assert_eq!(wound(&after), None);
    }

    #[test]
    fn what_is_no_image_of_files_is_left_alone() {
        let good = image(&[file(1, 0, 7).encode_to_vec()]);
        assert!(wound(&good).is_some());
        for length in 0..good.len() {
            assert_eq!(wound(&good[..length]), None, "{length}");
        }
        assert_eq!(wound(&[7; 64]), None);
    }
}
