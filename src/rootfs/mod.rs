//! What a container sees as `/`: mount plan, overlay, pivot, devices, masked paths, image store.
//!
//! The image store takes the digest of a tree from `storage`; nothing else here knows that room.

mod book;
mod build;
mod copy;
mod diagnosis;
mod files;
mod furnish;
mod recipe;
pub mod staging;
pub mod store;
mod store_error;

pub use staging::Staging;
pub use store::ImageStore;
pub use store_error::StoreError;
