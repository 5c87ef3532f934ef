//! The server that `KVD_S3_SERVER` names: a program that takes `-H host -p port`, as moto's does.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "blocks";
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with a bucket, killed when dropped.
pub struct Server {
    program: String,
    port: u16,
    child: Child,
}

impl Server {
    /// `None`, and said so, where none is named.
    pub fn start() -> Option<Server> {
        let Ok(program) = std::env::var("KVD_S3_SERVER") else {
            eprintln!("skipped: KVD_S3_SERVER names no S3-compatible server; tests/s3/run.sh brings one");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = spawn(&program, port);
        let server = Server { program, port, child };
        server.wait();
        Some(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// After [`kill`](Self::kill), at the same port.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.program, self.port);
        self.wait();
    }

    /// Whether it keeps objects in memory alone.
    pub fn forgets(&self) -> bool {
        self.program.ends_with("moto_server")
    }

    fn wait(&self) {
        let began = Instant::now();
        while !self.make_bucket() {
            assert!(began.elapsed() < PATIENCE, "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn make_bucket(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request = format!(
            "PUT /{BUCKET} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && (answer.contains(" 200 ") || answer.contains(" 409 "))
    }
}

fn spawn(program: &str, port: u16) -> Child {
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
