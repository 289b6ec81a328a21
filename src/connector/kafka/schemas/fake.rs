//! A schema registry for tests: a socket on this machine, a thread, and answers that a test decides.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::client::RegistryOptions;
use crate::connector::kafka::client::lock;

type Answer = Box<dyn Fn(&str) -> (u16, String) + Send>;

/// Answers until it is dropped with the process; `Mutex` so that a test can change its mind.
#[derive(Clone)]
pub struct FakeRegistry {
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    /// First lines and bodies.
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeRegistry {
    /// `answer`: from `GET /path` or `POST /path body` to status and body.
    pub fn start(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let registry = Self { url, answer: Arc::new(Mutex::new(Box::new(answer))), requests: Arc::default() };
        let own = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                own.serve(stream);
            }
        });
        registry
    }

    pub fn answers(&self, answer: impl Fn(&str) -> (u16, String) + Send + 'static) {
        *lock(&self.answer) = Box::new(answer);
    }

    pub fn options(&self) -> RegistryOptions {
        RegistryOptions::new(vec![self.url.clone()])
    }

    pub fn requests(&self) -> Vec<String> {
        lock(&self.requests).clone()
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let (mut first, mut length, mut credentials) = (String::new(), 0, String::new());
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => credentials = format!(" {value}"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let line = first.trim().trim_end_matches(" HTTP/1.1");
        let request = format!("{line} {}{credentials}", String::from_utf8(body).unwrap());
        lock(&self.requests).push(request.trim().to_string());
        let (status, answer) = (lock(&self.answer))(request.trim());
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
        // Who asked may have gone away.
        drop(reader.get_mut().write_all(format!("{head}{answer}").as_bytes()));
    }
}
