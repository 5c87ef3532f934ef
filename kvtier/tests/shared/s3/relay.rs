//! Passes connections on, until so many bytes went to the server over one of them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What is done when the limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// The connection breaks.
    Break,
    /// Nothing more is passed on until the relay is opened; then it breaks.
    Hold,
}

#[derive(Debug)]
struct Gate {
    limit: u64,
    then: AtLimit,
    held: usize,
}

pub struct Relay {
    port: u16,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl Relay {
    pub fn to(to: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Gate { limit: u64::MAX, then: AtLimit::Break, held: 0 };
        let gate = Arc::new((Mutex::new(open), Condvar::new()));
        let of_connections = gate.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let gate = of_connections.clone();
                std::thread::spawn(move || relay(from, to, &gate));
            }
        });
        Relay { port, gate }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn limit(&self, bytes: u64, then: AtLimit) {
        *self.gate.0.lock().unwrap() = Gate { limit: bytes, then, held: 0 };
    }

    /// Lets everything through, and breaks connections that are held.
    pub fn open(&self) {
        self.limit(u64::MAX, AtLimit::Break);
        self.gate.1.notify_all();
    }

    pub fn wait_until_held(&self) {
        let gate = self.gate.0.lock().unwrap();
        let wait = self.gate.1.wait_timeout_while(gate, Duration::from_secs(30), |gate| gate.held == 0);
        assert!(!wait.unwrap().1.timed_out(), "nothing was held");
    }
}

fn relay(mut from: TcpStream, to: u16, gate: &(Mutex<Gate>, Condvar)) {
    let Ok(mut to) = TcpStream::connect(("127.0.0.1", to)) else { return };
    let (mut back, mut home) = (to.try_clone().unwrap(), from.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut home);
        let _ = home.shutdown(Shutdown::Both);
    });
    let (mut passed, mut buffer) = (0, [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let limit = gate.0.lock().unwrap().limit;
        let left = limit.saturating_sub(passed).min(n as u64) as usize;
        if to.write_all(&buffer[..left]).is_err() {
            break;
        }
        if left < n {
            let mut now = gate.0.lock().unwrap();
            if now.then == AtLimit::Hold {
                now.held += 1;
                gate.1.notify_all();
                drop(gate.1.wait_while(now, |now| now.then == AtLimit::Hold).unwrap());
            }
            break;
        }
        passed += n as u64;
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
