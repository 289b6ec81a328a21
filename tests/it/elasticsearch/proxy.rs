//! TLS before a server that has none, and a look at who asks: one request a connection, on a port of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

/// `ca.pem`, which has signed `server.pem` for 127.0.0.1, and `other-ca.pem`, which has signed nothing.
pub struct Certificates(TempDir);

impl Certificates {
    pub fn make() -> Self {
        let folder = TempDir::new().unwrap();
        let openssl = |arguments: &str| {
            let output = Command::new("openssl").args(arguments.split(' ')).current_dir(&folder).output();
            let output = output.expect("openssl is installed: see tests/services/prerequisites");
            assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        };
        std::fs::write(folder.path().join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
        for name in ["ca", "other-ca"] {
            openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            ));
        }
        openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server -keyout server.key -out server.csr",
        );
        openssl(
            "x509 -req -days 30 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem",
        );
        Self(folder)
    }

    pub fn path(&self, file: &str) -> String {
        self.0.path().join(file).to_str().unwrap().to_string()
    }

    fn config(&self) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_file_iter(Path::new(&self.path("server.pem"))).unwrap();
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(Path::new(&self.path("server.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
    }
}

pub struct Proxy {
    port: u16,
}

impl Proxy {
    /// Lets through requests with one of these as `Authorization`.
    pub fn start(certificates: &Certificates, upstream: &str, welcome: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (config, upstream) = (certificates.config(), upstream.trim_start_matches("http://").to_string());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, upstream) = (Arc::clone(&config), upstream.clone());
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(config).unwrap();
                    // A client that does not like the certificate goes away.
                    serve(StreamOwned::new(connection, stream.unwrap()), &upstream, welcome).ok();
                });
            }
        });
        Self { port }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

fn serve(client: StreamOwned<ServerConnection, TcpStream>, upstream: &str, welcome: &[&str]) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let (mut head, mut length, mut who) = (String::new(), 0, String::new());
    loop {
        let begin = head.len();
        if client.read_line(&mut head)? == 0 {
            return Ok(());
        }
        let line = head[begin..].trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => who = value.to_string(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    let mut answer = vec![];
    if welcome.contains(&who.as_str()) {
        let mut server = TcpStream::connect(upstream)?;
        let (first, rest) = head.split_once("\r\n").unwrap();
        server.write_all(format!("{first}\r\nconnection: close\r\n{rest}").as_bytes())?;
        server.write_all(&body)?;
        server.read_to_end(&mut answer)?;
        // Elasticsearch 8 does not say that it closes: the client would send its next request here.
        if let Some(end) = answer.windows(2).position(|pair| pair == b"\r\n") {
            answer.splice(end + 2..end + 2, b"connection: close\r\n".iter().copied());
        }
    } else {
        let body = r#"{"error":{"type":"security_exception","reason":"missing or wrong credentials"},"status":401}"#;
        let head = "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\nconnection: close\r\n";
        answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    }
    let client = client.get_mut();
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()
}
