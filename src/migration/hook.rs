//! Where tests stop a migration. In production the hook does nothing.

use std::future::Future;
use std::pin::Pin;

use crate::model::{Phase, Side};

/// Called at the begin of each phase, on either side, before anything of the phase is done.
pub trait Hook: Send + Sync {
    /// The phase is about to begin; it begins when the future is done.
    fn reached(&self, side: Side, phase: Phase) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The hook of production.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl Hook for NoHook {
    fn reached(&self, _: Side, _: Phase) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}
