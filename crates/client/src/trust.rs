//! Whom an `https` endpoint has to prove to be: by the authorities that the machine trusts, or by those of one file.
//! TLS 1.2 and 1.3.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

/// Why no server can be trusted.
#[derive(Debug, Error)]
pub enum TrustError {
    /// No file, or none of certificates.
    #[error("no certificate in PEM form can be read")]
    Pem(#[source] pem::Error),
    /// A certificate that is none of an authority.
    #[error("a certificate cannot be used, or there is none")]
    Certificate(#[source] rustls::Error),
    /// The machine has no authorities.
    #[error("this machine trusts no authority: install ca-certificates, or name one")]
    System(#[source] std::io::Error),
}

/// Connections whose server is checked where the endpoint is `https`: only then are authorities looked for.
pub(crate) fn connector(
    http: HttpConnector,
    is_https: bool,
    ca_cert: Option<&Path>,
) -> Result<HttpsConnector<HttpConnector>, TrustError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TrustError::Certificate)?;
    let config = match ca_cert {
        Some(path) => builder.with_root_certificates(only(path)?),
        None if is_https => builder.with_native_roots().map_err(TrustError::System)?,
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    let config = config.with_no_client_auth();
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http))
}

fn only(path: &Path) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(TrustError::Pem)? {
        roots.add(certificate.map_err(TrustError::Pem)?).map_err(TrustError::Certificate)?;
    }
    if roots.is_empty() { Err(TrustError::Pem(pem::Error::NoItemsFound)) } else { Ok(roots) }
}
