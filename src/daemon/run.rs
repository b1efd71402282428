//! From the configuration to the end.
//!
//! ```text
//! log, directories, lock ─▶ context ─▶ recovery ─▶ listen (API, peers) ─▶ READY
//!      SIGTERM ─▶ STOPPING ─▶ accept nothing, finish ─▶ end; containers run on, unless the host goes down
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::make_directories;
use super::kept::Outputs;
use super::peers::Peers;
use super::rooms::Rooms;
use super::tmpfs::Tmpfs;
use super::{Bundles, Config, Containers, Context, Daemon, DaemonError, Migrations, Outside};
use super::{farewell, recovery, service};
use crate::api::server;
use crate::api::types::{MigrationState, MigrationStatus};
use crate::sys::perf;

/// The name of the file in the run directory that the one daemon has locked.
pub(super) const LOCK: &str = "daemon.lock";

/// How long requests and migrations may take to finish once the daemon is to end.
const FAREWELL: Duration = Duration::from_secs(60);

/// Is the daemon of this host until it is asked to end. Nothing has been started before: no thread exists.
pub fn run(config: Config) -> Result<(), DaemonError> {
    service::start_log(&config.log.filter);
    // The files of an image are for the container's users, whatever who started this wants for its own. What is
    // nobody else's is made with a mode that says so.
    umask(Mode::from_bits_truncate(0o022));
    make_directories(&config)?;
    let _lock = lock(&config.run_dir)?;
    let arrivals = config.run_dir.join("migrations");
    let memory = Tmpfs::on(&arrivals).map_err(io(format!(
        "mount a tmpfs on {} for memory that arrives",
        arrivals.display()
    )))?;
    service::become_subreaper();
    let outputs = Outputs::left();
    service::keep_descriptors_private();
    // Nothing depends on it but a few milliseconds of every blackout.
    let _breakpoint = perf::hold_breakpoint().inspect_err(|error| {
        tracing::info!("no breakpoint is held, so a freeze takes longer: {error}")
    });
    // Opened and closed outside the runtime: the network has one of its own, which may not end within another.
    let context = Arc::new(Context::open(config, outputs)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(io("start the runtime"))?;
    let ended = runtime.block_on(serve(Arc::clone(&context)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if farewell::host_goes_down() {
        farewell::end_all(&context);
    }
    match memory.remove() {
        Ok(true) => {}
        Ok(false) => tracing::info!("memory is still being filled in: its tmpfs stays"),
        Err(e) => tracing::warn!("the tmpfs on {} stays: {e}", arrivals.display()),
    }
    ended
}

async fn serve(context: Arc<Context>) -> Result<(), DaemonError> {
    let daemon = Arc::new(assemble(&context)?);
    recovery::recover(&context, &daemon).await?;

    let socket = context.config.socket();
    let api = server::listen(&socket).map_err(io(format!("listen at {}", socket.display())))?;
    let door = context.config.peer.listen;
    let peers = TcpListener::bind(door)
        .await
        .map_err(io(format!("listen at {door} (peer.listen)")))?;

    let tasks = TaskTracker::new();
    let metrics = server::count(&daemon);
    if let Some(address) = context.config.metrics.listen {
        let listener = TcpListener::bind(address)
            .await
            .map_err(io(format!("listen at {address} (metrics.listen)")))?;
        let served = server::serve_metrics(listener, Arc::clone(&daemon), Arc::clone(&metrics));
        tasks.spawn(served);
    }
    tasks.spawn(server::serve(api, Arc::clone(&daemon), metrics));
    if let Some(outside) = &daemon.outside {
        let migrations = Arc::clone(&outside.migrations);
        let stopping = daemon.stopping.clone();
        tasks.spawn(outside.peers.clone().serve(peers, migrations, stopping));
    }
    tasks.spawn(service::reap_strays(daemon.stopping.clone()));
    tasks.spawn(service::feed_watchdog(daemon.stopping.clone()));
    service::tell(&[NotifyState::Ready]);
    tracing::info!(name = %context.config.name, socket = %socket.display(), peers = %door, "ready");

    let why = until_asked_to_end().await?;
    tracing::info!("{why}: ending; containers run on");
    service::tell(&[NotifyState::Stopping]);
    if let Some(outside) = &daemon.outside {
        outside.migrations.stop();
        tasks.spawn(until_settled(Arc::clone(&outside.migrations)));
    }
    daemon.stopping.cancel();
    // Whoever comes now is told that there is no daemon, and not kept waiting for one.
    let _ = std::fs::remove_file(&socket);
    tasks.close();
    if tokio::time::timeout(FAREWELL, tasks.wait()).await.is_err() {
        tracing::warn!("some requests did not finish within {FAREWELL:?} and are left");
    }
    Ok(())
}

fn assemble(context: &Arc<Context>) -> Result<Daemon, DaemonError> {
    let backend = Arc::new(Rooms::new(Arc::clone(context)));
    let events = context.events.clone();
    let containers = Containers::new(backend, Arc::clone(&context.locks), events.clone());
    let migrations = Migrations::new(Arc::clone(context), containers.clone())?;
    Ok(Daemon {
        facts: context.facts.clone(),
        containers,
        bundles: Bundles::of(&context.config.run_dir)?,
        outside: Some(Outside {
            peers: Peers::new(Arc::clone(&context.peers), events.clone()),
            migrations: Arc::new(migrations),
        }),
        events,
        stopping: CancellationToken::new(),
    })
}

/// One daemon per run directory. The lock ends with the process, however that ends.
pub(super) fn lock(run_dir: &Path) -> Result<Flock<File>, DaemonError> {
    let path = run_dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io(format!("open {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DaemonError::AnotherDaemon {
            run_dir: run_dir.to_owned(),
        },
        errno => io(format!("lock {}", path.display()))(errno.into()),
    })
}

/// Until no migration is under way. One in doubt may stay so for days; the next daemon takes it up.
async fn until_settled(migrations: Arc<Migrations>) {
    const LOOK: Duration = Duration::from_millis(100);
    let under_way = |status: &MigrationStatus| status.state == MigrationState::UnderWay;
    while migrations.list().iter().any(under_way) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn until_asked_to_end() -> Result<&'static str, DaemonError> {
    let listen = |kind| signal(kind).map_err(io("listen to signals"));
    let (mut terminate, mut interrupt) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DaemonError {
    let what = what.into();
    |source| DaemonError::Io { what, source }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_second_daemon_on_one_run_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err();
        assert!(
            matches!(error, DaemonError::AnotherDaemon { .. }),
            "{error}"
        );
        drop(first);
        assert!(lock(dir.path()).is_ok());
    }
}
