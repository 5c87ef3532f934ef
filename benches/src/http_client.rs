//! One keep-alive connection that costs as little as possible, so that the server is measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub struct HttpClient {
    stream: TcpStream,
    at: SocketAddr,
    received: Vec<u8>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer<'c> {
    /// HTTP status.
    pub status: u16,
    /// The body, whole.
    pub body: &'c [u8],
}

/// The bytes of a POST of a JSON body.
pub fn post(host: SocketAddr, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

impl HttpClient {
    /// Connects.
    pub fn connect(at: SocketAddr) -> io::Result<HttpClient> {
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(HttpClient { stream, at, received: vec![0; 1 << 16] })
    }

    /// Asks for `path`.
    pub fn get(&mut self, path: &str) -> io::Result<Answer<'_>> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.at);
        self.send(request.as_bytes())
    }

    /// Sends a whole request and reads the whole answer.
    pub fn send(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        let head = loop {
            filled += self.read_more(filled)?;
            if let Some(end) = self.received[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break Head::read(&self.received[..end])?.ending(end + 4);
            }
        };
        let end = head.body + head.length;
        while filled < end {
            filled += self.read_more(filled)?;
        }
        Ok(Answer { status: head.status, body: &self.received[head.body..end] })
    }

    fn read_more(&mut self, filled: usize) -> io::Result<usize> {
        if filled == self.received.len() {
            self.received.resize(filled * 2, 0);
        }
        match self.stream.read(&mut self.received[filled..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        }
    }
}

/// What an answer's head says.
struct Head {
    status: u16,
    length: usize,
    /// Where the body begins.
    body: usize,
}

impl Head {
    fn read(bytes: &[u8]) -> io::Result<Head> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("answer without {what}"));
        let text = String::from_utf8_lossy(bytes);
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("status"))?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        Ok(Head { status, length: length.ok_or_else(|| bad("content-length"))?, body: 0 })
    }

    fn ending(self, body: usize) -> Head {
        Head { body, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_in_pieces_is_read_whole() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").unwrap();
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(b"Length: 5\r\n\r\nhel").unwrap();
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(b"lo").unwrap();
            String::from_utf8(request[..n].to_vec()).unwrap()
        });
        let mut client = HttpClient::connect(at).unwrap();
        let answer = client.send(&post(at, "/query", b"{}")).unwrap();
        assert_eq!((answer.status, answer.body), (200, &b"hello"[..]));
        assert!(server.join().unwrap().ends_with("content-length: 2\r\n\r\n{}"));
    }
}
