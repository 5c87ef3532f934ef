//! How sockets are set up.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kvproto::frames;
use parking_lot::Mutex;
use zmq::{Context, Socket, SocketEvent, SocketType};

/// Pause before a lost connection is tried again, doubled up to the maximum; milliseconds.
const RECONNECT_MS: i32 = 50;
const RECONNECT_MAX_MS: i32 = 500;
/// Messages of one connection that libzmq keeps until a reader takes them. Beyond that it stops reading, and
/// the engine's PUB socket drops what does not fit, which shows as a gap; without a limit, one engine that
/// publishes faster than it can be read takes all the memory there is.
const LIVE_MESSAGES: i32 = 1_024;
/// The same of a replay: more than an engine keeps (vLLM: 10,000), because a ROUTER drops without a trace.
const REPLAYED_MESSAGES: i32 = 32_768;
/// How long a connection may take to come up; milliseconds.
const CONNECT_TIMEOUT_MS: i32 = 5_000;

/// An address to dial, looked up far enough to know how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    endpoint: String,
    ipv6: bool,
    named: bool,
}

impl Address {
    /// Finds out how to dial `endpoint`. Looks a host name up, which may take seconds.
    pub fn look_up(endpoint: &str) -> Address {
        let host_port = endpoint.strip_prefix("tcp://").unwrap_or_default();
        let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let named = literal.is_none() && !host.is_empty();
        let ipv6 = match literal {
            Some(ip) => ip.is_ipv6(),
            // libzmq dials one family only, and the first one found need not be the one that
            // the engine listens on: IPv4 if there is any.
            None if named => host_port
                .to_socket_addrs()
                .is_ok_and(|mut found| found.len() > 0 && found.all(|a| a.is_ipv6())),
            None => false,
        };
        Address { endpoint: endpoint.to_owned(), ipv6, named }
    }
}

/// Publishers that are dialled from one context: each takes a socket, its monitor's two ends and, now and
/// then, one for a replay, and a context has a limit of 1023.
const PER_CONTEXT: usize = 240;

/// Makes sockets.
pub struct Sockets {
    /// One per reader, to wake it and to listen.
    contexts: Vec<Context>,
    /// For those that are dialled. A context takes no threads before its first socket.
    dialled: Vec<Context>,
    /// For host names: libzmq looks them up on the context's own thread, and a name server
    /// that does not answer must not delay those who need none.
    named: Vec<Context>,
    /// Counts, so that sockets are spread over the contexts.
    next: AtomicUsize,
    farewells: Arc<Farewells>,
    max_message: i64,
}

/// Tells what becomes of a dialled socket's connection. That there is a new one is told before anything
/// that came over it can be read.
pub struct Connections {
    /// The other end of the socket's monitor. Only taken when dropped.
    monitor: Option<Socket>,
    farewells: Arc<Farewells>,
}

/// Ends of monitors whose sockets are being closed.
///
/// libzmq closes a socket some time after it was told to. Until then its own thread tells the monitor what
/// becomes of the connection, and where nobody is at the other end it waits for ever, and with it every
/// other connection of the context. So that end stays open until the monitor has said its last.
#[derive(Default)]
struct Farewells(Mutex<Vec<Socket>>);

/// A turn that a connection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is a new one; who or what is at the other end is not known yet.
    Connected,
    /// The other end speaks ZMQ.
    Greeted,
    /// It ended.
    Ended,
    /// The socket is closed, and nothing is told any more.
    Closed,
}

impl Turn {
    const ALL: [(SocketEvent, Turn); 4] = [
        (SocketEvent::CONNECTED, Turn::Connected),
        (SocketEvent::HANDSHAKE_SUCCEEDED, Turn::Greeted),
        (SocketEvent::DISCONNECTED, Turn::Ended),
        (SocketEvent::MONITOR_STOPPED, Turn::Closed),
    ];

    fn mask() -> i32 {
        Turn::ALL.iter().fold(0, |mask, (event, _)| mask | i32::from(event.to_raw()))
    }

    /// Of a monitor's message: an event's number, in this machine's byte order, and a value.
    fn of(frame: &[u8]) -> Option<Turn> {
        let event = u16::from_ne_bytes(*frame.first_chunk()?);
        Turn::ALL.into_iter().find(|(e, _)| e.to_raw() == event).map(|(_, turn)| turn)
    }
}

impl Connections {
    /// The turns since this was asked last, in order.
    pub fn each(&self, heard: impl FnMut(Turn)) {
        if let Some(monitor) = &self.monitor {
            each_turn(monitor, heard);
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let mut closing = self.farewells.0.lock();
        closing.extend(self.monitor.take());
        closing.retain(|monitor| {
            let mut closed = false;
            each_turn(monitor, |turn| closed |= turn == Turn::Closed);
            !closed
        });
    }
}

fn each_turn(monitor: &Socket, mut heard: impl FnMut(Turn)) {
    let mut scratch = zmq::Message::new();
    // The first frame says what happened, the second to which address.
    let mut first = true;
    while monitor.recv(&mut scratch, zmq::DONTWAIT).is_ok() {
        if first && let Some(turn) = Turn::of(&scratch) {
            heard(turn);
        }
        first = !scratch.get_more();
    }
}

impl Sockets {
    /// For as many readers and publishers, with frames up to `max_message` bytes.
    pub fn new(readers: usize, publishers: usize, max_message: usize) -> Sockets {
        let contexts = |n: usize| (0..n).map(|_| Context::new()).collect::<Vec<_>>();
        let dialled = publishers.div_ceil(PER_CONTEXT).max(1);
        Sockets {
            contexts: contexts(readers),
            dialled: contexts(dialled),
            named: contexts(dialled),
            next: AtomicUsize::new(0),
            farewells: Arc::default(),
            max_message: i64::try_from(max_message).unwrap_or(i64::MAX),
        }
    }

    /// A socket pair's two ends, for waking `reader`.
    pub fn wake_pair(&self, reader: usize) -> zmq::Result<(Socket, Socket)> {
        let context = &self.contexts[reader];
        let (inner, outer) = (context.socket(SocketType::PAIR)?, context.socket(SocketType::PAIR)?);
        inner.bind("inproc://wake")?;
        outer.connect("inproc://wake")?;
        Ok((inner, outer))
    }

    /// Subscribes to an engine.
    pub fn dial(&self, address: &Address) -> zmq::Result<(Socket, Connections)> {
        let context = self.context_for(address);
        let socket = self.open(context, SocketType::SUB, address.ipv6)?;
        socket.set_subscribe(b"")?;
        let monitor = context.socket(SocketType::PAIR)?;
        // libzmq's own thread waits where there is a limit and it is reached.
        monitor.set_rcvhwm(0)?;
        let name = format!("inproc://connections-{}", self.next.fetch_add(1, Relaxed));
        socket.monitor(&name, Turn::mask())?;
        monitor.connect(&name)?;
        let connections = Connections { monitor: Some(monitor), farewells: Arc::clone(&self.farewells) };
        socket.connect(&address.endpoint)?;
        Ok((socket, connections))
    }

    /// Listens for engines that dial in.
    pub fn listen(&self, reader: usize, bind: &str) -> zmq::Result<Socket> {
        let any_family = bind.contains('*') || bind.contains('[');
        let socket = self.open(&self.contexts[reader], SocketType::SUB, any_family)?;
        socket.set_subscribe(b"")?;
        socket.bind(bind)?;
        Ok(socket)
    }

    /// Asks an engine for all batches from `from` on. The request leaves when the connection
    /// is up. (Not a REQ socket: that takes one answer only.)
    pub fn ask(&self, address: &Address, from: u64) -> zmq::Result<Socket> {
        let socket = self.open(self.context_for(address), SocketType::DEALER, address.ipv6)?;
        socket.connect(&address.endpoint)?;
        socket.send_multipart(frames::replay_request(from), zmq::DONTWAIT)?;
        Ok(socket)
    }

    /// A context to dial `address` from.
    fn context_for(&self, address: &Address) -> &Context {
        let all = if address.named { &self.named } else { &self.dialled };
        &all[self.next.fetch_add(1, Relaxed) % all.len()]
    }

    fn open(&self, context: &Context, kind: SocketType, ipv6: bool) -> zmq::Result<Socket> {
        let socket = context.socket(kind)?;
        let messages = if kind == SocketType::DEALER { REPLAYED_MESSAGES } else { LIVE_MESSAGES };
        socket.set_rcvhwm(messages)?;
        socket.set_maxmsgsize(self.max_message)?;
        socket.set_linger(0)?;
        socket.set_ipv6(ipv6)?;
        socket.set_reconnect_ivl(RECONNECT_MS)?;
        socket.set_reconnect_ivl_max(RECONNECT_MAX_MS)?;
        socket.set_connect_timeout(CONNECT_TIMEOUT_MS)?;
        // A node that vanished says no goodbye. (ZMTP's own heartbeats would be asked of publishers that
        // are not libzmq, and some do not answer them.)
        socket.set_tcp_keepalive(1)?;
        socket.set_tcp_keepalive_idle(10)?;
        socket.set_tcp_keepalive_intvl(5)?;
        socket.set_tcp_keepalive_cnt(3)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_need_no_lookup_and_say_their_family() {
        let v4 = Address::look_up("tcp://127.0.0.1:5557");
        assert!(!v4.ipv6 && !v4.named);
        let v6 = Address::look_up("tcp://[::1]:5557");
        assert!(v6.ipv6 && !v6.named);
        let path = Address::look_up("ipc:///tmp/events");
        assert!(!path.ipv6 && !path.named);
    }

    #[test]
    fn a_name_is_dialled_by_ipv4_where_it_can_be() {
        let local = Address::look_up("tcp://localhost:5557");
        assert!(local.named && !local.ipv6);
    }

    /// What a connection ends with must not wait for anybody who listens no more: libzmq's thread would wait
    /// for ever, and with it every other connection of its context.
    #[test]
    fn engines_that_go_as_they_are_given_up_leave_the_others_connected() {
        let sockets = Sockets::new(1, 1, 1 << 20);
        let engines = Context::new();
        for i in 0..1_000u64 {
            let engine = engines.socket(SocketType::PUB).unwrap();
            engine.bind("tcp://127.0.0.1:*").unwrap();
            let address = Address::look_up(&engine.get_last_endpoint().unwrap().unwrap());
            let (socket, connections) = sockets.dial(&address).unwrap();
            let began = std::time::Instant::now();
            let mut greeted = false;
            while !greeted {
                connections.each(|turn| greeted |= turn == Turn::Greeted);
                assert!(began.elapsed().as_secs() < 10, "the {i}th is not connected");
            }
            drop(engine);
            // The news of it comes a little before, while, or after the socket is closed.
            let went = std::time::Instant::now();
            while went.elapsed().as_nanos() < u128::from(i * 7919 % 200_000) {}
            drop((socket, connections));
        }
        assert!(sockets.farewells.0.lock().len() < 100, "closed sockets are let go");
    }
}
