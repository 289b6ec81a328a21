//! Addresses, TLS and connections.
//!
//! `sslmode` in the URL says what TLS protects against:
//!
//! | sslmode            | encrypted          | server's certificate checked                             |
//! |--------------------|--------------------|----------------------------------------------------------|
//! | `disable`          | no                 | no                                                       |
//! | `prefer` (default) | if the server can; over loopback if it must | no                             |
//! | `require`          | yes, or no connection | only if `sslrootcert` is given                        |
//! | `verify-full`      | yes, or no connection | chain and host name, against `sslrootcert` or the system's roots |
//!
//! Everything else in the URL is read by tokio-postgres. The server's notices go to the log.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use percent_encoding::percent_decode_str;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::failure;
use crate::connector::redact;
use crate::{Error, Result};

/// A server that was silent so long while it owes an answer is taken for lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A `postgres://` URL, read but not connected.
#[derive(Clone)]
pub struct Address {
    config: Config,
    verify: Verify,
    /// Fit to be printed.
    printed: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verify {
    Nothing,
    /// Against this file, or the system's roots.
    Full(Option<PathBuf>),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.printed)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.printed)
    }
}

impl Address {
    /// # Errors
    /// Not an address, or a parameter that nobody knows (user).
    pub fn parse(url: &str) -> Result<Self> {
        let printed = redact(url);
        let wrong = |what: String| {
            let error = Error::user(format!("{what} in the database address {printed:?}"));
            error.hint("write 'postgres://user:password@host:5432/database'; '@', '/', '?', '#' and '%' of a password as %40, %2F, %3F, %23, %25")
        };
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut roots, mut rest) = ("prefer", None, vec![]);
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", value)) => mode = value,
                Some(("sslrootcert", "system")) => {}
                Some(("sslrootcert", value)) => {
                    roots = Some(PathBuf::from(percent_decode_str(value).decode_utf8_lossy().as_ref()))
                }
                _ => rest.push(parameter),
            }
        }
        let url = if rest.is_empty() { base.to_string() } else { format!("{base}?{}", rest.join("&")) };
        let parsed: std::result::Result<Config, _> = url.parse();
        let mut config = parsed.map_err(|e| wrong("something is wrong".into()).cause(super::error::reason(&e)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("no host".into()));
        }
        let (tls, verify) = match mode {
            "disable" => (SslMode::Disable, Verify::Nothing),
            "prefer" => (SslMode::Prefer, Verify::Nothing),
            "require" if roots.is_none() => (SslMode::Require, Verify::Nothing),
            "require" | "verify-full" => (SslMode::Require, Verify::Full(roots)),
            other => {
                let hint = "sslmode is one of: disable, prefer, require, verify-full";
                return Err(wrong(format!("sslmode {other:?}")).hint(hint));
            }
        };
        config.ssl_mode(tls);
        if config.get_application_name().is_none() {
            config.application_name("poundlock");
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT).keepalives_idle(TCP_USER_TIMEOUT);
        }
        Ok(Self { config, verify, printed })
    }

    /// `host-port-database`: the same for every user and parameter.
    pub fn server(&self) -> String {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let addresses = self.config.get_hostaddrs().iter().map(ToString::to_string);
        let mut hosts: Vec<String> = hosts.collect();
        if hosts.is_empty() {
            hosts = addresses.collect();
        }
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("{}-{port}-{database}", hosts.join("-"))
    }
}

/// Connects, and runs the connection in a task that ends when the client is dropped.
///
/// Values travel in UTC; a commit is on the server's disk when it returns, whatever the server's default.
///
/// # Errors
/// The server does not answer in time (external, retryable), refuses us or its certificate is not accepted (user).
pub async fn connect(address: &Address, connect_timeout: Duration, statement_timeout: Duration) -> Result<Client> {
    let mut config = address.config.clone();
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(connect_timeout);
    }
    let tls = MakeRustlsConnect::new(tls(&address.verify)?);
    // Name look-up and log-in have no time-out of their own, and each host of a list has the one above.
    let all_hosts = connect_timeout * (config.get_hosts().len().max(1) as u32) + connect_timeout;
    let connecting = async {
        // What does not leave the machine is read by nobody on its way: to encrypt it takes time on both ends.
        if config.get_ssl_mode() == SslMode::Prefer && is_loopback(&config) {
            let mut plain = config.clone();
            match plain.ssl_mode(SslMode::Disable).connect(tls.clone()).await {
                Err(error) if error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {}
                done => return done,
            }
        }
        config.connect(tls).await
    };
    let late = || Error::external(format!("could not connect to {address} in time")).retryable();
    let failed = |e: tokio_postgres::Error| failure(&e, &format!("could not connect to {address}"));
    let began = Instant::now();
    let connected = tokio::time::timeout(all_hosts, connecting).await.map_err(|_| late())?;
    let (client, mut connection) = connected.map_err(failed)?;
    let printed = address.printed.clone();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notice(notice)) => tracing::debug!(database = %printed, "{}", notice.message()),
                Ok(_) => {}
                // Whoever waits for an answer gets an error of its own.
                Err(error) => return tracing::debug!(database = %printed, %error, "the connection ended"),
            }
        }
    });
    let settings = format!(
        "SET TIME ZONE 'UTC'; SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; \
         SET statement_timeout = {}; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
        statement_timeout.as_millis()
    );
    // One that lets us in and then says nothing is away as well.
    let left = all_hosts.saturating_sub(began.elapsed());
    let set = tokio::time::timeout(left, client.batch_execute(&settings)).await.map_err(|_| late())?;
    set.map_err(failed)?;
    Ok(client)
}

/// By name or number, as it is written.
fn is_loopback(config: &Config) -> bool {
    let host = |host: &Host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
        Host::Unix(_) => true,
    };
    config.get_hosts().iter().all(host) && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

fn tls(verify: &Verify) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| Error::internal("could not set up TLS").cause(e))?;
    let config = match verify {
        Verify::Nothing => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unchecked(provider))),
        Verify::Full(file) => builder.with_root_certificates(roots(file.as_ref())?),
    };
    Ok(config.with_no_client_auth())
}

fn roots(file: Option<&PathBuf>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let Some(file) = file else {
        let found = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            return Err(Error::user("the system has no root certificates to check the database's certificate against")
                .hint("install ca-certificates, or name a file: sslrootcert=PATH"));
        }
        return Ok(store);
    };
    let unreadable =
        |e: &dyn fmt::Display| Error::user(format!("could not read the root certificate {}", file.display())).cause(e);
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unreadable(&e))? {
        let certificate = certificate.map_err(|e| unreadable(&e))?;
        store.add(certificate).map_err(|e| unreadable(&e))?;
    }
    if store.is_empty() {
        return Err(unreadable(&"there is no certificate in it"));
    }
    Ok(store)
}

/// `prefer` and `require` ask for encryption, not for identity (as libpq does).
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
