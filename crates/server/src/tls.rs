//! TLS: the certificate and its key, read when the server starts and again when a file changes, as API keys are; and
//! the handshake, within its time limit. TLS 1.2 and 1.3, HTTP/1.1 only, no client certificates.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{error, info};

use crate::stamp::Stamp;

/// Permissions that a key's file must not have: any of others, and writing of the group's. A group may be made to
/// read it, as Debian's `ssl-cert` is.
const FORBIDDEN: u32 = 0o027;

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file operation.
    #[error("cannot read {path}")]
    Io {
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others could take the key.
    #[error("{path} has mode {mode:03o}: others may read it, or its group write it; chmod 600 it")]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not what should be in there.
    #[error("{path} holds no {what} in PEM form")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The two are no pair, or of a kind that is not supported.
    #[error("the certificate in {cert} and the key in {key} cannot be used together")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

/// The certificate as it is at each handshake.
#[derive(Debug)]
pub(crate) struct LiveTls {
    cert: PathBuf,
    key: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The files as they were when they were last read; none for one that could not be looked at.
    stamps: [Option<Stamp>; 2],
    /// Held open, so that the numbers of their inodes are not given to their successors.
    _files: Vec<File>,
    config: Arc<ServerConfig>,
}

impl LiveTls {
    /// Reads certificate chain and key.
    ///
    /// # Errors
    /// A server must not start with something else than what was asked for.
    pub(crate) fn open(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let stamps = [stamp(&cert), stamp(&key)];
        let (config, files) = load(&cert, &key)?;
        Ok(Self { cert, key, seen: Mutex::new(Seen { stamps, _files: files, config }) })
    }

    /// Completes a handshake, with the certificate as it is now.
    ///
    /// # Errors
    /// Whatever is wrong with what the client sends, or that it takes longer than `limit`.
    pub(crate) async fn accept<S>(&self, stream: S, limit: Duration) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::time::timeout(limit, TlsAcceptor::from(self.config()).accept(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Two `stat`s; reads the files again when one has changed. What cannot be used then leaves the old in place: a
    /// certificate and its key are two files, and not changed at once.
    fn config(&self) -> Arc<ServerConfig> {
        let stamps = [stamp(&self.cert), stamp(&self.key)];
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.stamps != stamps {
            match load(&self.cert, &self.key) {
                Ok((config, files)) => {
                    info!(cert = %self.cert.display(), "certificate read");
                    (seen.config, seen._files) = (config, files);
                }
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    error!(%error, reason, "the changed certificate cannot be used: the one from before stays");
                    if matches!(error, TlsError::Io { .. }) && stamps.iter().all(Option::is_some) {
                        // For want of descriptors perhaps: it is tried again without another change.
                        return Arc::clone(&seen.config);
                    }
                }
            }
            seen.stamps = stamps;
        }
        Arc::clone(&seen.config)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|found| Stamp::of(&found))
}

fn load(cert: &Path, key: &Path) -> Result<(Arc<ServerConfig>, Vec<File>), TlsError> {
    let (chain_text, cert_file) = read(cert)?;
    let (key_text, key_file) = read(key)?;
    let mode = key_file.metadata().map_err(failed(key))?.permissions().mode() & 0o777;
    if mode & FORBIDDEN != 0 {
        return Err(TlsError::Exposed { path: key.to_owned(), mode });
    }
    let content = |path: &Path, what| {
        let path = path.to_owned();
        move |source| TlsError::Content { path, what, source }
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain_text)
        .collect::<Result<_, _>>()
        .and_then(|chain: Vec<_>| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(content(cert, "certificate"))?;
    let private = PrivateKeyDer::from_pem_slice(&key_text).map_err(content(key, "private key"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), vec![cert_file, key_file]))
}

fn read(path: &Path) -> Result<(Vec<u8>, File), TlsError> {
    let mut text = Vec::new();
    let mut file = File::open(path).map_err(failed(path))?;
    file.read_to_end(&mut text).map_err(failed(path))?;
    Ok((text, file))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> TlsError {
    move |source| TlsError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
    use tempfile::TempDir;

    use super::*;

    struct Files {
        dir: TempDir,
        cert: PathBuf,
        key: PathBuf,
    }

    impl Files {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
            let files = Self { dir, cert, key };
            let made = made();
            files.put(&files.cert, &made.cert.pem());
            files.put(&files.key, &made.signing_key.serialize_pem());
            files
        }

        /// As who renews certificates does: another file of the same name.
        fn put(&self, path: &Path, text: &str) {
            let unfinished = self.dir.path().join("unfinished");
            fs::write(&unfinished, text).unwrap();
            fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).unwrap();
            fs::rename(unfinished, path).unwrap();
        }

        fn open(&self) -> Result<LiveTls, TlsError> {
            LiveTls::open(self.cert.clone(), self.key.clone())
        }
    }

    fn made() -> CertifiedKey<KeyPair> {
        generate_simple_self_signed(["localhost".to_owned()]).unwrap()
    }

    #[test]
    fn a_certificate_is_used_only_with_its_own_key_which_nobody_else_can_read() {
        let files = Files::new();
        files.open().unwrap();
        for (mode, exposed) in [(0o400, false), (0o640, false), (0o660, true), (0o644, true), (0o604, true)] {
            fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap();
            let opened = files.open();
            assert_eq!(matches!(opened, Err(TlsError::Exposed { .. })), exposed, "{mode:o}: {opened:?}");
        }
        files.put(&files.key, &made().signing_key.serialize_pem());
        assert!(matches!(files.open(), Err(TlsError::Pair { .. })));
        for (path, what) in [(&files.key, "private key"), (&files.cert, "certificate")] {
            for wrong in ["", "-----BEGIN CERTIFICATE-----\n", "no PEM"] {
                files.put(path, wrong);
                let opened = files.open();
                assert!(
                    matches!(&opened, Err(TlsError::Content { what: w, .. }) if *w == what),
                    "{opened:?}"
                );
            }
            files.put(&files.key, &made().signing_key.serialize_pem());
        }
        fs::remove_file(&files.cert).unwrap();
        assert!(matches!(files.open(), Err(TlsError::Io { path, .. }) if path == files.cert));
    }

    #[test]
    fn a_renewed_certificate_counts_when_both_files_are_there_and_the_old_one_until_then() {
        let files = Files::new();
        let live = files.open().unwrap();
        let first = live.config();
        assert!(Arc::ptr_eq(&first, &live.config()), "nothing has changed");
        let next = made();
        files.put(&files.cert, &next.cert.pem());
        assert!(Arc::ptr_eq(&first, &live.config()), "half of the new one");
        files.put(&files.key, &next.signing_key.serialize_pem());
        let second = live.config();
        assert!(!Arc::ptr_eq(&first, &second));
        fs::remove_file(&files.key).unwrap();
        assert!(Arc::ptr_eq(&second, &live.config()), "a lost key ends nothing");
        files.put(&files.key, &next.signing_key.serialize_pem());
        assert!(!Arc::ptr_eq(&second, &live.config()));
    }
}
