//! A server for HTTP that answers as a test decides: one request a connection, on a port of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

type Answer = Box<dyn Fn(&str) -> (u16, String) + Send>;

#[derive(Clone)]
pub struct Answering {
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Answering {
    /// `answer`: from `GET /path` to status and body. It ends with the test's process.
    pub fn start(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, answer: Arc::new(Mutex::new(Box::new(answer))), requests: Arc::default() };
        let own = server.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Who asks may go away.
                own.serve(&client).ok();
            }
        });
        server
    }

    pub fn answers(&self, answer: impl Fn(&str) -> (u16, String) + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    /// Methods and addresses.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn serve(&self, mut client: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap();
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        let request = first.trim().trim_end_matches(" HTTP/1.1").to_string();
        let (status, body) = (self.answer.lock().unwrap())(&request);
        self.requests.lock().unwrap().push(request);
        let head = format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\n");
        client.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
    }
}
