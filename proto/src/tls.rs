//! Mutual TLS 1.3: credentials from files, a server that accepts with them and a client that dials with them.
//!
//! Invariants:
//! - A peer is who its certificate's SPIFFE id says (see [`crate::identity`]); host names play no part.
//! - Handshakes run in tasks of their own with a deadline: a slow peer delays nobody.
//! - No session is ever resumed (no tickets, no storage), so a peer that is refused today cannot come in on an old
//!   session.
//! - Credentials can be replaced while running; the next handshake uses the new ones.
//!
//! Leaves out revocation and authority: both are checked on every call, by whoever serves it.

mod accept;
mod connect;
mod credentials;

pub use accept::{ClientCertificate, Connection, PeerInfo, incoming};
pub use connect::{Connect, Expect, connect};
pub use credentials::{CredentialError, CredentialFiles, CredentialStore, Credentials, install_crypto, write_private};
