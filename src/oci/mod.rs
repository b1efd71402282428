//! What users wrote (templates, `config.json`) becomes a trusted [`crate::model::ContainerSpec`].
//!
//! ```text
//! template.toml ──parse──▶ Template ──┐
//! the image's passwd and group ───────┼──resolve──▶ ContainerSpec, trusted by every room
//! name, lease, overrides ─────────────┘
//! ```
//!
//! **Invariant:** an unknown field is an error, and every error names the file, the field and the remedy.
//!
//! **Invariant:** [`template`], [`quantity`] and [`account`] are pure; only [`catalogue`] and [`spec`] read
//! files, and what they read in an image they read without being led out of it.

pub mod account;
pub mod catalogue;
mod error;
pub mod quantity;
mod rule;
pub mod spec;
pub mod template;

pub use error::OciError;
pub use spec::{Overrides, resolve};
pub use template::{Defaults, Rootfs, Template, Variant, parse};
