//! What was sent over a stream and is not confirmed yet.

use std::collections::VecDeque;
use std::sync::Arc;

use super::queue::Page;

/// The most bytes that are unconfirmed on one stream: a 10 Gbit/s link of 6 ms.
const BYTES: usize = 8 << 20;
/// The most frames.
const FRAMES: usize = 256;

/// What would have to be sent again if the stream broke now.
#[derive(Debug, Default)]
pub(super) struct Window {
    frames: VecDeque<Arc<Page>>,
    bytes: usize,
    confirmed: u64,
}

/// The other host has confirmed what it was never sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Impossible;

impl Window {
    /// Whether another frame may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BYTES && self.frames.len() < FRAMES
    }

    /// A frame is about to be sent.
    pub(super) fn push(&mut self, frame: Arc<Page>) {
        self.bytes += frame.payload.len();
        self.frames.push_back(frame);
    }

    /// So many frames of this stream have been taken.
    pub(super) fn confirm(&mut self, taken: u64) -> Result<(), Impossible> {
        let new = taken.checked_sub(self.confirmed).ok_or(Impossible)?;
        let new = usize::try_from(new).map_err(|_| Impossible)?;
        if new > self.frames.len() {
            return Err(Impossible);
        }
        let gone = self.frames.drain(..new);
        self.bytes -= gone.map(|frame| frame.payload.len()).sum::<usize>();
        self.confirmed = taken;
        Ok(())
    }

    /// How many frames of this stream have been taken.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// What is not confirmed, oldest first.
    pub(super) fn unconfirmed(&mut self) -> VecDeque<Arc<Page>> {
        self.bytes = 0;
        std::mem::take(&mut self.frames)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn frame(number: u64) -> Arc<Page> {
        let payload = vec![0; 1000];
        Arc::new(Page { number, payload })
    }

    #[test]
    fn what_is_confirmed_is_forgotten_and_nothing_else() {
        let mut window = Window::default();
        (0..5).for_each(|number| window.push(frame(number)));
        window.confirm(2).unwrap();
        window.confirm(2).unwrap();
        assert_eq!(window.confirm(1), Err(Impossible));
        assert_eq!(window.confirm(6), Err(Impossible));
        assert_eq!(window.confirm(u64::MAX), Err(Impossible));
        window.confirm(4).unwrap();
        let left: Vec<u64> = window.unconfirmed().iter().map(|f| f.number).collect();
        assert_eq!(left, [4]);
    }

    #[test]
    fn it_is_full_after_so_many_frames() {
        let mut window = Window::default();
        let mut pushed = 0;
        while window.has_room() {
            window.push(frame(pushed));
            pushed += 1;
        }
        assert_eq!(pushed as usize, FRAMES);
        window.confirm(1).unwrap();
        assert!(window.has_room());
    }
}
