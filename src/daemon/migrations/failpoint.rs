//! Stops a migration at the begin of a phase, for tests that kill things there.
//!
//! Only a daemon that was started with `GODWIT_FAILPOINTS=1` looks. A test writes `source dump` (side and
//! phase) into `failpoint` in the run directory; the daemon that comes there makes `failpoint.reached` and
//! goes on when `failpoint` is gone.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::migration::{Hook, NoHook};
use crate::model::{Phase, Side};

/// How often a stopped migration looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);

struct Failpoint {
    run_dir: PathBuf,
}

/// The hook of this daemon.
pub fn hook(run_dir: PathBuf) -> Arc<dyn Hook> {
    match std::env::var_os("GODWIT_FAILPOINTS") {
        Some(value) if value == "1" => Arc::new(Failpoint { run_dir }),
        _ => Arc::new(NoHook),
    }
}

impl Hook for Failpoint {
    fn reached(&self, side: Side, phase: Phase) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let side = match side {
            Side::Source => "source",
            Side::Destination => "destination",
        };
        let wanted = format!("{side} {}", phase.as_str());
        Box::pin(async move {
            let file = self.run_dir.join("failpoint");
            let is_set = || std::fs::read_to_string(&file).is_ok_and(|text| text.trim() == wanted);
            if !is_set() {
                return;
            }
            tracing::warn!("stopped at the failpoint {wanted}");
            let reached = std::fs::write(self.run_dir.join("failpoint.reached"), &wanted);
            if let Err(error) = reached {
                tracing::warn!("cannot tell that the failpoint was reached: {error}");
            }
            while is_set() {
                tokio::time::sleep(LOOK).await;
            }
        })
    }
}
