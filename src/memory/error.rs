//! What can go wrong with pages on the move.

use std::io;
use std::path::PathBuf;

use super::Space;
use crate::model::Bytes;

/// Why memory could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A page server header of the wrong length.
    #[error("a page server header of CRIU's has {length} bytes")]
    PageServerHeader {
        /// Its length.
        length: usize,
    },
    /// A page server command that is not known.
    #[error(
        "CRIU sent its page server the command {command:#x}, which is not known: is the header layout of another version?"
    )]
    PageServerCommand {
        /// The command, flags included.
        command: u32,
    },
    /// A page server command about a space that cannot be.
    #[error("CRIU sent its page server pages of {id:#x}, which is no address space")]
    PageServerSpace {
        /// Id and type.
        id: u64,
    },
    /// A run of pages that cannot be.
    #[error("CRIU sent its page server {pages} pages at {vaddr:#x}, which is no run of pages")]
    PageServerRun {
        /// Its address.
        vaddr: u64,
        /// Its length.
        pages: u64,
    },
    /// Pages of a space that was not opened.
    #[error("CRIU sent its page server pages of {space} without opening it")]
    PageServerNotOpen {
        /// The space.
        space: Space,
    },
    /// The page server's connection broke.
    #[error("the page server cannot {operation}")]
    PageServer {
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The page server's connection ended before CRIU had said that this was all.
    #[error("CRIU left its page server in the middle of its pages")]
    PageServerUnfinished,
    /// A frame that is no frame.
    #[error("a page frame of {length} bytes is damaged: {what}")]
    Frame {
        /// Its length.
        length: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A run of pages could not be compressed.
    #[error("cannot compress {length} bytes of pages")]
    Compress {
        /// How many bytes.
        length: usize,
        /// What the compressor said.
        #[source]
        source: io::Error,
    },
    /// A thread that packs pages could not be started.
    #[error("cannot start a thread that packs pages")]
    Worker {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A thread that packs pages has died; its panic is in the log.
    #[error("a thread that packs pages has died")]
    WorkerLost,
    /// A frame could not be handed on.
    #[error("cannot send a page frame")]
    Send {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The memory of a task could not be looked at.
    #[error("cannot {operation} of process {pid}")]
    Task {
        /// What was being done.
        operation: &'static str,
        /// Its host process id.
        pid: i32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A page of a task that stands still, whose content is needed, cannot be read.
    #[error(
        "the page at {vaddr:#x} of process {pid} exists and cannot be read: has the process ended, or is the kernel's proc_mem.force_override set to never?"
    )]
    Unreadable {
        /// Its host process id.
        pid: i32,
        /// The page's address.
        vaddr: u64,
    },
    /// A segment of shared memory.
    #[error("cannot {operation} the shared memory segment {inode} of the container")]
    Segment {
        /// What was being done.
        operation: &'static str,
        /// Its inode number, or the id of a SysV segment.
        inode: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The page store's directory or a file of it.
    #[error("the page store in {} cannot {operation}", directory.display())]
    Store {
        /// What was being done.
        operation: &'static str,
        /// Where.
        directory: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The page store may not hold more.
    #[error(
        "the page store is full: {limit} were set aside for this container; it needs more memory than it said"
    )]
    Full {
        /// How much it may hold.
        limit: Bytes,
    },
    /// More address spaces than can be.
    #[error("more than {most} address spaces arrived")]
    TooManySpaces {
        /// How many are allowed.
        most: usize,
    },
    /// A page that the source believes to be here is not.
    #[error("the page at {vaddr:#x} of {space} is missing: it never arrived")]
    PageMissing {
        /// The space.
        space: Space,
        /// Its address.
        vaddr: u64,
    },
    /// What has changed in pages was told, and does not make of what is here what was meant.
    #[error(
        "the changes of the pages at {vaddr:#x} of {space} do not fit what was sent of them before: the memory of one of the hosts may be faulty; move it again"
    )]
    Changes {
        /// The space.
        space: Space,
        /// The first page's address.
        vaddr: u64,
    },
    /// The list of a space's pages is not what a list must be.
    #[error("the list of the pages of {space} is {what}")]
    List {
        /// The space.
        space: Space,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No list of pages at all.
    #[error("no list of pages arrived")]
    NoList,
    /// An image could not be written.
    #[error("cannot {operation} {}", path.display())]
    Image {
        /// What was being done.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The fill could not go on.
    #[error("the fill cannot {operation} {}", path.display())]
    Fill {
        /// What was being done.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A page that was left on the source, and that the container cannot wait for.
    #[error("the page at {vaddr:#x} of {space} was left behind and cannot come later")]
    NotBehind {
        /// Whose.
        space: Space,
        /// Its address.
        vaddr: u64,
    },
    /// What was found is not what a fill can go on with.
    #[error("the fill cannot go on: {what}")]
    FillStuck {
        /// What is wrong.
        what: String,
    },
}
