//! The authenticated link between two daemons: who the other one is, and a stream to it.
//!
//! ```text
//! joining, once (ALPN godwit-join/1)                every connection after that (ALPN godwit/1)
//!
//! B  join              A  accept                    dialler                 listener
//! │                    │ token → a person → B       │                       │
//! │── TLS 1.3 ────────▶│ A's certificate must be    │── TLS 1.3 ───────────▶│ both certificates must
//! │                    │ the one the token names    │                       │ be the pinned ones
//! │── Ask ────────────▶│ secret good: spend it and  │◀── welcome byte ──────│ still pinned: go on
//! │                    │ pin B, one durable step    │◀══ the stream ═══════▶│
//! │◀─ Welcome|Refused ─│
//! │ pins A, durably    │
//! │── Kept|Withdrawn ─▶│ withdrawn: B is unpinned
//! ```
//!
//! A host is its certificate: self-signed, made at the first start, known by its fingerprint (BLAKE3 of the DER).
//! There is no authority, no name check and no expiry: a certificate is pinned, or it is a stranger's.
//!
//! **Invariant:** a [`PeerStream`] exists only to a host whose exact certificate was in the book when the
//! handshake had ended, and which has signed this very handshake with the key of that certificate.
//!
//! **Invariant:** nothing is sent to a host, and nothing but bounded messages is read from it, before that. No
//! session is ever resumed, because a resumed one would skip the check.
//!
//! **Invariant:** a token is spent, on the disk, before its bearer hears that it was good; of two bearers of one
//! token at most one is let in. The book holds no secrets, only their hashes.

mod accept;
mod address;
mod admit;
mod book;
mod config;
mod dial;
mod error;
mod identity;
mod join;
mod limit;
mod record;
mod refusals;
mod socket;
mod state;
mod stream;
mod token;
mod verify;
mod wire;

pub use accept::{OnRefused, accept};
pub use address::{Address, AddressError};
pub use book::PeerBook;
pub use dial::dial;
pub use error::PeerError;
pub use identity::Identity;
pub use join::join;
pub use refusals::Refusals;
pub use state::{Peer, PinError};
pub use stream::PeerStream;
pub use token::{JoinToken, TokenError};
pub use wire::{Refusal, WireError};

/// What two pinned hosts speak.
const ALPN_PEER: &[u8] = b"godwit/1";
/// What a host speaks that bears a token.
const ALPN_JOIN: &[u8] = b"godwit-join/1";
