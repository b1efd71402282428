//! The only unsafe code: one syscall family per file; says what the kernel said.

pub mod file;
pub mod tree;
pub mod xattr;
