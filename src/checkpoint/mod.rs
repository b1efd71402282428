//! A container becomes images, images become a container, on one host.
//!
//! **Invariant:** nothing is decided here. A [`Held`] dump waits, every task standing still, until its owner
//! says whether they die or live; a restore waits in the same way before its first instruction.
//!
//! ```text
//! Precopy::round …      pages, while the tasks run
//! Standby               a CRIU that waits
//! Precopy::look         the tasks stand still: what is unsent of their memory, most of which CRIU never sees
//! Standby::begin        CRIU takes hold of the tasks, while the gate is closed
//! Held::dump ─▶ that ─▶ frames
//!          └──▶ CRIU ─▶ page server ─▶ frames
//!                  └──▶ images in a tmpfs ─▶ chunks
//!              CRIU waits in post-dump; cgroup frozen ─▶ Held::kill | Held::release
//!
//! StandbyRestore        a CRIU that waits
//! ImageDirectory ◀─ chunks,  PageStore ◀─ frames ─▶ link_images
//! restore ─▶ CRIU waits in post-restore ─▶ reached() ─▶ run | undo
//! ```

mod behind;
mod conversation;
mod dump;
mod error;
mod heal;
mod image;
mod mappings;
mod precopy;
mod predump;
mod restore;
mod shim;
mod standby;

pub use behind::frozen_memory;
pub use dump::{Held, Subject};
pub use error::CheckpointError;
pub use heal::end_repair;
pub use image::{ImageDirectory, for_each_chunk};
pub use precopy::{Precopy, SharedOut, mapped_files};
pub use restore::{Plan, restore};
pub use shim::CriuRestorer;
pub use standby::{Standby, StandbyRestore};
