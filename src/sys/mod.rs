//! The only unsafe code: one syscall family per file; says what the kernel said.

pub mod before_exec;
pub mod beneath;
pub mod clone;
pub mod descriptor;
pub mod ethernet;
pub mod fdpass;
pub mod file;
pub mod kcmp;
pub mod mount;
pub mod namespace;
pub mod netns;
pub mod packet;
pub mod pagemap;
pub mod perf;
pub mod pidfd;
pub mod process;
pub mod process_memory;
pub mod ptrace;
pub mod shared;
pub mod signal;
pub mod socket_buffer;
pub mod tap;
pub mod tcp;
pub mod tree;
pub mod userfaultfd;
pub mod xattr;
