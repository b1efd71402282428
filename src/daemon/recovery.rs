//! What is true after a restart of the daemon.

use std::sync::Arc;

use super::{Context, Daemon, DaemonError};
use crate::model::ContainerState;

/// Makes what is recorded true again, and takes up what was going on.
pub async fn recover(_context: &Arc<Context>, daemon: &Daemon) -> Result<(), DaemonError> {
    for status in daemon.containers.list().await? {
        if status.state == ContainerState::Running {
            daemon.containers.watch(status.spec.name);
        }
    }
    if let Some(outside) = &daemon.outside {
        outside.migrations.recover().await;
    }
    Ok(())
}
