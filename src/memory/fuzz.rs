//! How long decoders are fed random bytes.

use std::time::{Duration, Instant};

/// Calls `step` some times; or, where `GODWIT_FUZZ_SECONDS` is set, as long as that says.
pub fn run(times: u32, mut step: impl FnMut()) {
    let seconds = std::env::var("GODWIT_FUZZ_SECONDS");
    match seconds.ok().and_then(|text| text.parse().ok()) {
        Some(seconds) => {
            let end = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < end {
                step();
            }
        }
        None => (0..times).for_each(|_| step()),
    }
}
