//! The only unsafe code: one syscall family per file; says what the kernel said.

pub mod before_exec;
pub mod ethernet;
pub mod file;
pub mod netns;
pub mod packet;
pub mod pagemap;
pub mod signal;
pub mod socket_buffer;
pub mod tree;
pub mod xattr;
