//! The images of a host: read-only file trees, each under the name of its own content.
//!
//! ```text
//! state_dir/images/HEX-DIGEST/   an image, whole and on the disk, never written to again
//!                 .staging-…     one being made or received (see `staging`)
//!                 .lock          held while names in here change
//!                 .build-lock    held while an image is built: one at a time
//! state_dir/templates.json       which image came of which recipe
//! ```
//!
//! **Invariant:** what lies under a digest has that digest. An image gets its name by one rename, after its
//! content was hashed and written to the disk.
//!
//! **Invariant:** nothing in an image may be changed. Stores may share the files of an image by hard links.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::book::Book;
use super::build;
use super::copy::{self, Content};
use super::recipe::Recipe;
use super::staging::{self, Staging};
use super::store_error::StoreError;
use crate::model::Digest;
use crate::oci::Template;

/// The images of a host.
#[derive(Debug)]
pub struct ImageStore {
    images: PathBuf,
    book: Book,
    cache: Option<PathBuf>,
}

impl ImageStore {
    /// Opens the store in `state_dir`, makes it where there is none, and removes what builds and transfers
    /// left behind whose process has died.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let images = state_dir.join("images");
        fs::create_dir_all(&images).map_err(StoreError::io("create", &images))?;
        // Images hold set-uid programs of releases of any age. No user of the host may reach them.
        fs::set_permissions(&images, Permissions::from_mode(0o700))
            .map_err(StoreError::io("set the mode of", &images))?;
        staging::sweep(&images)?;
        Ok(Self {
            images,
            book: Book::of(state_dir),
            cache: None,
        })
    }

    /// The same store, which shares what is built with others: `cache` is the `state_dir` of a second store.
    /// What this one lacks is taken over from there (by hard links where the file system can), and what is
    /// built here is put there too, unless it cannot be written to. An image from the cache is hashed before
    /// it counts, but which image came of a template the cache is believed: it must be as trusted as this
    /// host's own state.
    #[must_use]
    pub fn with_cache(self, cache: Option<PathBuf>) -> Self {
        Self { cache, ..self }
    }

    /// Whether the image is in this store (or, until [`ImageStore::fetch`] takes it over, not in its cache).
    pub fn has(&self, digest: Digest) -> bool {
        self.lower(digest).is_dir()
    }

    /// Where the image lies or would lie: the read-only lower layer of its containers.
    pub fn lower(&self, digest: Digest) -> PathBuf {
        self.images.join(digest.to_string())
    }

    /// The images in this store, sorted.
    pub fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let fail = || StoreError::io("list", &self.images);
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.images).map_err(fail())? {
            let name = entry.map_err(fail())?.file_name();
            digests.extend(name.to_str().and_then(|name| name.parse::<Digest>().ok()));
        }
        digests.sort();
        Ok(digests)
    }

    /// Removes an image. That no container uses it is the caller's to know: the mounts of one that does
    /// would lose their files.
    pub fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        {
            let _store = staging::lock(&self.images, "lock")?;
            self.book.strike(digest)?;
        }
        staging::remove_image(&self.images, digest)
    }

    /// An empty directory to receive an image into.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        Staging::make(&self.images)
    }

    /// The image of `template`, which lies in the directory `dir`: the one that was built of it before, here
    /// or in the cache, or else a new one. Steps of a build are told to `progress`.
    ///
    /// It blocks, for a minute or so where it builds. On failure the store is as it was before.
    pub fn build(
        &self,
        template: &Template,
        dir: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Digest, StoreError> {
        let recipe = Recipe::of(template, dir)?;
        if let Some(digest) = self.find(&recipe) {
            return Ok(digest);
        }
        let _turn = staging::lock(&self.images, "build-lock")?;
        // It may have been built while we waited for our turn.
        if let Some(digest) = self.find(&recipe) {
            return Ok(digest);
        }
        if let Some(digest) = self.find_in_cache(&recipe, progress)? {
            return Ok(digest);
        }
        self.build_now(&recipe, progress)
    }

    /// The image that was built of `template` and is here. Builds nothing and takes nothing over.
    pub fn built(&self, template: &Template, dir: &Path) -> Result<Option<Digest>, StoreError> {
        Ok(self.find(&Recipe::of(template, dir)?))
    }

    /// The image of `template` made anew from what the archive holds today, whatever was built before. The
    /// one from before stays until it is removed.
    pub fn rebuild(
        &self,
        template: &Template,
        dir: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Digest, StoreError> {
        let recipe = Recipe::of(template, dir)?;
        let _turn = staging::lock(&self.images, "build-lock")?;
        self.build_now(&recipe, progress)
    }

    /// Copies the tree at `directory` into the store as an image, as it is. Needs no network.
    pub fn import_tree(&self, directory: &Path) -> Result<Digest, StoreError> {
        let staging = self.stage()?;
        copy::copy(directory, staging.path(), Content::Copied)?;
        staging.settle()
    }

    /// Takes the image over from the cache, if it is there; tells whether the store now has it.
    pub fn fetch(&self, digest: Digest) -> Result<bool, StoreError> {
        if self.has(digest) {
            return Ok(true);
        }
        let Some(cache) = &self.cache else {
            return Ok(false);
        };
        let cached = cache.join("images").join(digest.to_string());
        if !cached.is_dir() {
            return Ok(false);
        }
        let staging = self.stage()?;
        copy::copy(&cached, staging.path(), Content::Shared)?;
        staging.commit(digest)?;
        Ok(true)
    }

    fn find(&self, recipe: &Recipe) -> Option<Digest> {
        self.book.find(recipe.id).filter(|&digest| self.has(digest))
    }

    fn find_in_cache(
        &self,
        recipe: &Recipe,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Option<Digest>, StoreError> {
        let Some(cache) = self.cache.as_deref() else {
            return Ok(None);
        };
        let Some(digest) = Book::of(cache).find(recipe.id) else {
            return Ok(None);
        };
        progress("taking the image from the cache");
        match self.fetch(digest) {
            Ok(true) => {
                self.remember(recipe, digest)?;
                Ok(Some(digest))
            }
            Ok(false) => Ok(None),
            // A damaged cache costs a build, not the container.
            Err(StoreError::Mismatch { found, .. }) => {
                tracing::warn!(%digest, %found, "the image cache is damaged; the image is built anew");
                // Where it can be written to, the new image takes the damaged one's place.
                let _ = ImageStore::open(cache).and_then(|store| store.remove(digest));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn build_now(
        &self,
        recipe: &Recipe,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Digest, StoreError> {
        let staging = self.stage()?;
        build::make(recipe, &staging, progress)?;
        progress("writing the image to the disk");
        let digest = staging.settle()?;
        self.remember(recipe, digest)?;
        self.share(recipe, digest);
        Ok(digest)
    }

    /// Puts an image into the cache. That it cannot be shared must not keep it from being used.
    fn share(&self, recipe: &Recipe, digest: Digest) {
        let Some(cache) = &self.cache else { return };
        let shared = ImageStore::open(cache).and_then(|store| {
            if !store.has(digest) {
                let staging = store.stage()?;
                copy::copy(&self.lower(digest), staging.path(), Content::Shared)?;
                staging.commit(digest)?;
            }
            store.remember(recipe, digest)
        });
        if let Err(error) = shared {
            let error: &dyn std::error::Error = &error;
            tracing::info!(error, %digest, "the image is not shared through the cache");
        }
    }

    fn remember(&self, recipe: &Recipe, digest: Digest) -> Result<(), StoreError> {
        let _store = staging::lock(&self.images, "lock")?;
        self.book.write(recipe.id, &recipe.template, digest)
    }
}
