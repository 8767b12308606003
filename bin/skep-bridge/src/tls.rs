//! Mutual TLS: both sides show a certificate, and the caller's is of an authority that the bridge was given.
//!
//! The workspace's own processes can read what the bridge reads, its key included. So a certificate of the bridge
//! that would be taken for a caller's is refused at start: with it every process of the workspace could call.

use std::env;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

pub(crate) const CERTIFICATE_VARIABLE: &str = "BRIDGE_TLS_CERT_FILE";
pub(crate) const KEY_VARIABLE: &str = "BRIDGE_TLS_KEY_FILE";
pub(crate) const CLIENT_AUTHORITY_VARIABLE: &str = "BRIDGE_TLS_CLIENT_CA_FILE";

/// From the files that the environment names, read now and never again.
///
/// # Errors
/// InvalidInput that names the variable, the file and what is wrong with it.
pub(crate) fn acceptor() -> io::Result<TlsAcceptor> {
    let certificates = certificates(CERTIFICATE_VARIABLE)?;
    let key = named_file(KEY_VARIABLE)?;
    let key = PrivateKeyDer::from_pem_file(&key)
        .map_err(|error| invalid(KEY_VARIABLE, format!("{}: {error}", key.display())))?;
    let clients = clients()?;
    refuse_as_client(&*clients, &certificates)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates, key)
        .map_err(|error| invalid(KEY_VARIABLE, format!("not the key of {CERTIFICATE_VARIABLE}: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn clients() -> io::Result<Arc<dyn ClientCertVerifier>> {
    let told = |error: &dyn std::fmt::Display| invalid(CLIENT_AUTHORITY_VARIABLE, error.to_string());
    let mut authorities = RootCertStore::empty();
    for authority in certificates(CLIENT_AUTHORITY_VARIABLE)? {
        authorities.add(authority).map_err(|error| told(&error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
    built.map_err(|error| told(&error))
}

fn certificates(variable: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let file = named_file(variable)?;
    let told = |error: &dyn std::fmt::Display| invalid(variable, format!("{}: {error}", file.display()));
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&file)
        .map_err(|error| told(&error))?
        .collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(told(&"no certificate in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(told(&error)),
    }
}

fn refuse_as_client(clients: &dyn ClientCertVerifier, own: &[CertificateDer<'static>]) -> io::Result<()> {
    let Some((certificate, chain)) = own.split_first() else {
        return Err(invalid(CERTIFICATE_VARIABLE, "no certificate in it".to_owned()));
    };
    match clients.verify_client_cert(certificate, chain, UnixTime::now()) {
        Ok(_) => Err(invalid(
            CERTIFICATE_VARIABLE,
            format!(
                "{CLIENT_AUTHORITY_VARIABLE} takes it for a client's; give it the extended key usage serverAuth alone, \
                 or another authority"
            ),
        )),
        // Of another authority, or for servers alone: it can never be a client's.
        Err(Error::InvalidCertificate(
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. },
        )) => Ok(()),
        Err(error) => Err(invalid(CERTIFICATE_VARIABLE, error.to_string())),
    }
}

fn named_file(variable: &str) -> io::Result<PathBuf> {
    let named = env::var_os(variable).filter(|path| !path.is_empty());
    named
        .map(PathBuf::from)
        .ok_or_else(|| invalid(variable, "not set, and BRIDGE_TLS_MODE is strict".to_owned()))
}

fn invalid(variable: &str, why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{variable}: {why}"))
}
