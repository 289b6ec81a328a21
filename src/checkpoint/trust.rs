//! An HTTP client for object storage that trusts the authorities of one file, and no others.
//!
//! object_store's own client adds such a file to the system's authorities: whoever gets a certificate of any of those could still
//! stand in for a server that was to be known by its own. So, where there is a file, this client is made instead, with those of the
//! other's settings that matter there; the rest are refused.

use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientConfigKey, ClientOptions, Result};
use reqwest::{Certificate, Client, NoProxy, Proxy};

/// What [`TrustOnly`] honours.
const HONOURED: [ClientConfigKey; 6] = [
    ClientConfigKey::AllowHttp,
    ClientConfigKey::ConnectTimeout,
    ClientConfigKey::Timeout,
    ClientConfigKey::ProxyUrl,
    ClientConfigKey::ProxyExcludes,
    ClientConfigKey::Http1Only,
];

/// See the module's documentation.
#[derive(Debug)]
pub struct TrustOnly(pub Vec<Certificate>);

impl TrustOnly {
    /// Whether a setting means something here.
    pub fn honours(key: ClientConfigKey) -> bool {
        HONOURED.contains(&key)
    }
}

impl HttpConnector for TrustOnly {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let of = |key| options.get_config_value(&key);
        let is_true = |key| of(key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        // As object_store's own: a body that is decompressed has another length than the object.
        let mut builder = Client::builder().tls_built_in_root_certs(false).no_gzip().no_brotli().no_zstd().no_deflate();
        builder = self.0.iter().cloned().fold(builder, |builder, one| builder.add_root_certificate(one));
        builder = builder.https_only(!is_true(ClientConfigKey::AllowHttp));
        if let Some(limit) = of(ClientConfigKey::Timeout) {
            builder = builder.timeout(duration(&limit)?);
        }
        if let Some(limit) = of(ClientConfigKey::ConnectTimeout) {
            builder = builder.connect_timeout(duration(&limit)?);
        }
        if is_true(ClientConfigKey::Http1Only) {
            builder = builder.http1_only();
        }
        if let Some(url) = of(ClientConfigKey::ProxyUrl) {
            let excludes = of(ClientConfigKey::ProxyExcludes).and_then(|hosts| NoProxy::from_string(&hosts));
            builder = builder.proxy(Proxy::all(url).map_err(unusable)?.no_proxy(excludes));
        }
        Ok(HttpClient::new(builder.build().map_err(unusable)?))
    }
}

fn duration(text: &str) -> Result<Duration> {
    humantime::parse_duration(text).map_err(|error| unusable(format!("{text:?} is no length of time: {error}")))
}

fn unusable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: error.into() }
}
