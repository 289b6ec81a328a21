//! A way to a server that can be cut, frozen, or lose an answer, while others use the server undisturbed.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a thread that waits for bytes looks whether the way is still open.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Nothing comes through, nothing is closed: as of a server that is stopped, or a cable that is cut.
    Frozen,
    /// Connections end at once: as of a server that was killed.
    Closed,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// Answers are lost of puts that have this in their first line: each once.
    to_lose: Vec<String>,
    lost: Vec<String>,
}

pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Before the server at `http://HOST:PORT`. It ends with the test's process.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { way: Way::Open, to_lose: vec![], lost: vec![] }));
        let (shared, upstream) = (Arc::clone(&state), upstream.trim_start_matches("http://").to_string());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (state, upstream) = (Arc::clone(&shared), upstream.clone());
                // A connection that breaks is what a test wants, or sees.
                std::thread::spawn(move || serve(&client.unwrap(), &upstream, &state).ok());
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, way: Way) {
        self.state.lock().unwrap().way = way;
    }

    /// The server does what the next put with this in its address asks for, and nobody learns of it.
    pub fn lose_answer_to(&self, what: &str) {
        self.state.lock().unwrap().to_lose.push(what.to_string());
    }

    /// First lines of the requests whose answers were lost.
    pub fn lost(&self) -> Vec<String> {
        self.state.lock().unwrap().lost.clone()
    }
}

fn serve(client: &TcpStream, upstream: &str, state: &Arc<Mutex<State>>) -> std::io::Result<()> {
    if state.lock().unwrap().way == Way::Closed {
        return client.shutdown(Shutdown::Both);
    }
    let server = TcpStream::connect(upstream)?;
    let loses = Arc::new(Mutex::new(false));
    let requests = {
        let (from, to, state, loses) =
            (client.try_clone()?, server.try_clone()?, Arc::clone(state), Arc::clone(&loses));
        std::thread::spawn(move || {
            let ended = pump(&from, &to, &state, |bytes, state| {
                let first = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let first = String::from_utf8_lossy(first).into_owned();
                let asked = state.to_lose.iter().position(|what| first.starts_with("PUT ") && first.contains(what));
                if let Some(found) = asked {
                    state.to_lose.remove(found);
                    state.lost.push(first);
                    *loses.lock().unwrap() = true;
                }
                true
            });
            drop(ended);
            to.shutdown(Shutdown::Both).ok();
            from.shutdown(Shutdown::Both).ok();
        })
    };
    let ended = pump(&server, client, state, |_, _| !*loses.lock().unwrap());
    client.shutdown(Shutdown::Both).ok();
    server.shutdown(Shutdown::Both).ok();
    requests.join().unwrap();
    ended
}

/// Until one side ends, the way is closed, or `look` says no to what has come.
fn pump(
    mut from: &TcpStream,
    mut to: &TcpStream,
    state: &Mutex<State>,
    mut look: impl FnMut(&[u8], &mut State) -> bool,
) -> std::io::Result<()> {
    from.set_read_timeout(Some(LOOK))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match state.lock().unwrap().way {
            Way::Open => {}
            Way::Closed => return Ok(()),
            Way::Frozen => {
                std::thread::sleep(LOOK);
                continue;
            }
        }
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => continue,
            Err(error) => return Err(error),
        };
        // What was read is held back as well.
        while state.lock().unwrap().way == Way::Frozen {
            std::thread::sleep(LOOK);
        }
        if !look(&buffer[..length], &mut state.lock().unwrap()) {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
    }
}
