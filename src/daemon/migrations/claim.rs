//! A container is taken into a migration, and given back when it stays.

use std::io;
use std::sync::Arc;

use super::home::{Bundled, Home};
use super::{Migrations, remains};
use crate::container::{self, ContainerError, Record};
use crate::daemon::containers::blocking;
use crate::daemon::{Bundles, DaemonError};
use crate::model::{ContainerState, Finding, MigrationId, Name};

/// A container that may leave, its first process, and what is known already of what prevents it.
pub type Found = (Home, i32, Vec<Finding>);

impl Migrations {
    /// Whether a container may leave: it is here, and nothing else goes on with it.
    ///
    /// # Errors
    /// When it is not, or something does.
    pub async fn may(&self, name: &Name) -> Result<(), DaemonError> {
        match self.containers.may_migrate(name).await {
            Err(error @ DaemonError::NoSuchContainer { .. }) => {
                let bundles = Bundles::of(&self.context.config.run_dir)?;
                bundles.find(name).map(drop).ok_or(error)
            }
            other => other,
        }
    }

    /// The container runs here as before, or has ended meanwhile by itself.
    pub(super) async fn stayed(&self, name: &Name) {
        self.mark(name, ContainerState::Running).await;
        self.context.events.container(name, ContainerState::Running);
        self.containers.watch(name.clone());
    }

    /// The same of a container of a bundle, which ended before it was frozen or after it was let go.
    pub(super) async fn stayed_a_bundle(&self, id: MigrationId, bundled: Box<Bundled>) {
        let context = Arc::clone(&self.context);
        let asked = bundled.spec.name.clone();
        let stays = blocking(asked.as_str(), move || {
            let directory = remains::directory(&context, id);
            let stays = Home::Bundle(bundled).stays(&context);
            let cleared = remains::remove_directory(&directory);
            stays
                .and_then(|()| Ok(cleared?))
                .map_err(|error| DaemonError::Io {
                    what: "give it back to the command line".to_owned(),
                    source: io::Error::other(error),
                })
        });
        if let Err(error) = stays.await {
            tracing::error!(container = %asked, "it stays, but: {}", error.chain());
        }
    }

    /// Takes a container that runs into a migration to the host `to`.
    pub(super) async fn claim(
        &self,
        name: &Name,
        id: MigrationId,
        to: &Name,
    ) -> Result<Found, DaemonError> {
        let locked = self.context.locks.lock(name).await?;
        if self.containers.status(name).await.is_ok() {
            self.containers.tend(name).await?;
        }
        let (home, pid, findings) = self.running(name).await?;
        let (context, to) = (Arc::clone(&self.context), to.clone());
        let kept = blocking(name.as_str(), move || {
            let _locked = locked;
            Ok(match home {
                Home::Own(mut record) => {
                    record.state = ContainerState::Migrating;
                    record.migration = Some(id);
                    record.save(&context.host)?;
                    Home::Own(record)
                }
                Home::Bundle(bundled) => {
                    let bundles = Bundles::of(&context.config.run_dir)?;
                    bundled.begin(&context, &bundles, id, &to)?;
                    Home::Bundle(bundled)
                }
            })
        })
        .await?;
        Ok((kept, pid, findings))
    }

    /// A container that runs and may leave, be it one of the daemon's own or one of a bundle.
    pub(super) async fn running(&self, name: &Name) -> Result<Found, DaemonError> {
        let own = match self.containers.may_migrate(name).await {
            Err(DaemonError::NoSuchContainer { .. }) => false,
            other => other.map(|()| true)?,
        };
        let (context, name) = (Arc::clone(&self.context), name.clone());
        let asked = name.clone();
        blocking(asked.as_str(), move || {
            if !own {
                let bundles = Bundles::of(&context.config.run_dir)?;
                let (bundled, findings) = Bundled::look(&context, &bundles, &name)?;
                let pid = bundled.init;
                return Ok((Home::Bundle(Box::new(bundled)), pid, findings));
            }
            let record = Record::load(&context.host, &name)?;
            let pid = container::status(&context.host, &name)?.pid;
            let pid = pid.ok_or(DaemonError::NoSuchContainer { name })?;
            Ok((Home::Own(Box::new(record)), pid, Vec::new()))
        })
        .await
    }

    /// Writes a container's state down. A failure is logged: the journal of migrations is what counts.
    pub(super) async fn mark(&self, name: &Name, state: ContainerState) {
        let (context, name) = (Arc::clone(&self.context), name.clone());
        let asked = name.clone();
        let marked = blocking(asked.as_str(), move || {
            let mut record = match Record::load(&context.host, &name) {
                // It is one of a bundle, and nothing is written down about it but that it is lent.
                Err(ContainerError::NotFound { .. }) => return Ok(()),
                other => other?,
            };
            if state == ContainerState::Running {
                record.migration = None;
            }
            record.state = state;
            Ok(record.save(&context.host)?)
        });
        if let Err(error) = marked.await {
            tracing::warn!(container = %asked, "its state was not recorded: {}", error.chain());
        }
    }
}
