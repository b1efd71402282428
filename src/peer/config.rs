//! TLS as we speak it: 1.3 only, both certificates always, no resumption, one protocol by ALPN.

use std::sync::{Arc, OnceLock};

use rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite};

use super::error::PeerError;
use super::identity::Identity;
use super::verify::{Guard, OnlyThis};

/// The cryptography, named explicitly: whatever else a process installs as its default, this is ring.
///
/// AES-128 comes first: every byte of a migration is encrypted and decrypted, and AES-256 takes two fifths more of a
/// processor for a margin that TLS 1.3 does not ask for.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = || {
        let mut provider = ring::default_provider();
        let first = |suite: &SupportedCipherSuite| suite.suite() != TLS13_AES_128_GCM_SHA256;
        provider.cipher_suites.sort_by_key(first);
        Arc::new(provider)
    };
    PROVIDER.get_or_init(made).clone()
}

/// For the side that dials.
pub(super) fn client(
    identity: &Identity,
    rule: Arc<OnlyThis>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, PeerError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| PeerError::Tls { source })?
        .dangerous()
        .with_custom_certificate_verifier(rule)
        .with_client_cert_resolver(identity.resolver());
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For the side that listens.
pub(super) fn server(
    identity: &Identity,
    guard: Arc<Guard>,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, PeerError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|source| PeerError::Tls { source })?
        .with_client_cert_verifier(guard)
        .with_cert_resolver(identity.resolver());
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session does not show its certificate again: a peer removed meanwhile would walk in.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_faster_cipher_is_offered_first_and_no_other_is_gone() {
        let suites = &provider().cipher_suites;
        assert_eq!(suites[0].suite(), TLS13_AES_128_GCM_SHA256);
        assert_eq!(suites.len(), ring::default_provider().cipher_suites.len());
    }
}
