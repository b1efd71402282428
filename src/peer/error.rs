//! Everything that can fail on this side of a link.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::{Digest, Name};

use super::address::AddressError;
use super::state::PinError;
use super::token::TokenError;
use super::wire::{Refusal, WireError};

/// Why there is no identity, no book, no stream or no new peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// A file of the identity or the book could not be handled.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was to be done with it.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// One half of the identity is missing. A new one is never made in its place, because peers have pinned the old.
    #[error(
        "the identity in {dir} has no {missing}: restore it from a backup, or remove the directory and join every peer \
         anew",
        dir = dir.display()
    )]
    IdentityIncomplete {
        /// The directory.
        dir: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// Others can read the key.
    #[error(
        "the key {path} can be read by others (mode {mode:o}): use chmod 600, and if somebody may have read it, remove \
         the directory and join every peer anew",
        path = path.display()
    )]
    KeyExposed {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file of the identity is not PEM of the right kind.
    #[error("{path} does not hold what it should: restore it from a backup", path = path.display())]
    IdentityPem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The key is not that of the certificate.
    #[error(
        "the certificate and the key in {dir} cannot be used together: restore both from one backup",
        dir = dir.display()
    )]
    IdentityMismatch {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with them.
        #[source]
        source: rustls::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for {name}")]
    Certificate {
        /// The host.
        name: Name,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// The book is not what this program writes.
    #[error(
        "the peer book {path} cannot be understood: restore it, or remove it and join every peer anew",
        path = path.display()
    )]
    BookFormat {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The book has two entries for one name or one certificate.
    #[error(
        "the peer book {path} has two peers with the name or the certificate of {name}: remove one of them",
        path = path.display()
    )]
    BookAmbiguous {
        /// The file.
        path: PathBuf,
        /// The second of the two.
        name: Name,
    },
    /// A token cannot live that long, or that short.
    #[error("a token cannot be good for {ttl:?}: choose between a second and a week")]
    TokenLife {
        /// How long it was to live.
        ttl: Duration,
    },
    /// Too many tokens wait for their bearers.
    #[error("too many tokens are waiting to be used: let some of them expire first")]
    TooManyTokens,
    /// The kernel gives no random bytes.
    #[error("cannot get random bytes for a token")]
    Random {
        /// Why not.
        #[source]
        source: rand::rand_core::OsError,
    },
    /// No such peer.
    #[error("no peer is called {name}: see `godwit peer list`, or join it with `godwit peer join`")]
    UnknownPeer {
        /// The name.
        name: Name,
    },
    /// The other host cannot be pinned here.
    #[error("{name} cannot be a peer of this host")]
    Pin {
        /// The name it gave.
        name: Name,
        /// Why not.
        #[source]
        source: PinError,
    },
    /// The address is none.
    #[error("the address of the host to join is malformed")]
    Address {
        /// What is wrong with it.
        #[source]
        source: AddressError,
    },
    /// The token is none.
    #[error("the token is malformed")]
    Token {
        /// What is wrong with it.
        #[source]
        source: TokenError,
    },
    /// The token was made here.
    #[error("this token was made by this very host: use it on the host that shall join")]
    OwnToken,
    /// The host's name has no address.
    #[error("cannot find the address of {address}")]
    Resolve {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody answers there.
    #[error(
        "cannot connect to {address}: is the daemon running there, and does a firewall let its port through?"
    )]
    Connect {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{address} did not finish to {operation} within {limit:?}")]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// Host and port.
        address: String,
        /// For how long.
        limit: Duration,
    },
    /// A TLS configuration could not be made.
    #[error("cannot set up TLS 1.3")]
    Tls {
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The handshake failed for a reason other than a certificate.
    #[error("the TLS handshake with {address} failed: is that a godwit daemon?")]
    Handshake {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The other side does not speak this protocol.
    #[error("{address} does not speak the protocol of godwit daemons")]
    Protocol {
        /// Host and port.
        address: String,
    },
    /// The peer has another certificate than the pinned one.
    #[error(
        "the host at {address} is not the {peer} that is pinned here: it shows certificate {presented}, expected is \
         {expected}; if {peer} was installed anew, `godwit peer remove {peer}` on this host and join again"
    )]
    WrongCertificate {
        /// The peer.
        peer: Name,
        /// Host and port.
        address: String,
        /// What is pinned.
        expected: Digest,
        /// What was shown.
        presented: Digest,
    },
    /// The peer does not know this host.
    #[error(
        "{peer} at {address} refuses this host: its certificate is not pinned there (any more); join again with a token \
         from `godwit peer token` there"
    )]
    NotPinnedThere {
        /// The peer.
        peer: Name,
        /// Host and port.
        address: String,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// The connection ended in the middle of a sentence.
    #[error("{address} broke off the connection instead of answering")]
    BrokenOff {
        /// Host and port.
        address: String,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The host that answers has not made the token. Nothing was sent to it.
    #[error(
        "the host at {address} has not made this token: it shows certificate {presented}, the token names {expected}; \
         check the address, and whether somebody sits in between. The token was not sent"
    )]
    TokenOfAnother {
        /// Host and port.
        address: String,
        /// What the token names.
        expected: Digest,
        /// What was shown.
        presented: Digest,
    },
    /// The host does not let this one in.
    #[error("{address} does not let this host in")]
    JoinRefused {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// The host answered something that is no answer.
    #[error("{address} gave an answer that makes no sense")]
    Answer {
        /// Host and port.
        address: String,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The host answered with another message than is due now.
    #[error("{address} answered with a message that is not due; its version may not fit this one")]
    OutOfTurn {
        /// Host and port.
        address: String,
    },
    /// Work in the background has been lost.
    #[error("the work of writing the peer book was lost")]
    Lost {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// The error and all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What TLS says inside of an I/O error, if it is TLS that speaks.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}
