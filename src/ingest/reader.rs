//! The threads that read sockets. They move messages into lanes and do nothing else, so that
//! they are never the reason why something is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kvindex::HolderId;
use parking_lot::Mutex;
use tracing::{debug, error, warn};
use zmq::{POLLIN, Socket};

use super::follow::Request;
use super::hub::Hub;
use super::lane::Lane;
use super::message::Message;
use super::socket::{Connections, Sockets, Turn};
use super::vital::Sign;

/// Frames of a message; one with more is no event and is not kept.
const MAX_FRAMES: usize = 16;
/// Messages read of one socket before the next one's turn.
const TURN: usize = 128;

/// How often sockets that bring no messages are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where a socket's messages go.
pub enum Inflow {
    /// To the publisher that was dialled.
    Lane {
        /// Whose messages they are.
        lane: Arc<Lane>,
        /// Tells when its socket was connected.
        connections: Connections,
    },
    /// To the publisher that the topic names.
    Hub(Arc<Hub>),
    /// To the publisher that asked for a replay.
    Answers {
        /// Who asked.
        lane: Arc<Lane>,
        /// Which request.
        ask: u64,
    },
}

/// Names a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inlet {
    /// Live messages of a dialled publisher.
    Live(HolderId),
    /// Answers to a publisher's latest replay request.
    Replay(HolderId),
    /// A bound socket.
    Hub(u64),
}

enum Command {
    /// Adds a socket, in the place of one of the same name.
    Add(Inlet, Socket, Inflow),
    Remove(Inlet),
    Stop,
}

/// The readers, as seen by everyone else.
pub struct Readers {
    sockets: Sockets,
    desks: Vec<Desk>,
}

/// Where one reader takes commands.
struct Desk {
    commands: Sender<Command>,
    wake: Mutex<Socket>,
}

/// One reader's own end.
pub struct Reader {
    commands: Receiver<Command>,
    wake: Socket,
    inlets: Vec<(Inlet, Socket, Inflow)>,
    max_message: usize,
}

impl Readers {
    /// Makes `n` readers; each is to be [run](Reader::run) on a thread.
    pub fn new(n: usize, publishers: usize, max_message: usize) -> zmq::Result<(Readers, Vec<Reader>)> {
        let sockets = Sockets::new(n, publishers, max_message);
        let mut desks = Vec::new();
        let mut readers = Vec::new();
        for i in 0..n {
            let (inner, outer) = sockets.wake_pair(i)?;
            let (tx, rx) = unbounded();
            desks.push(Desk { commands: tx, wake: Mutex::new(outer) });
            readers.push(Reader { commands: rx, wake: inner, inlets: Vec::new(), max_message });
        }
        Ok((Readers { sockets, desks }, readers))
    }

    /// The sockets' maker.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Which reader has a socket.
    pub fn desk_of(&self, inlet: Inlet) -> usize {
        let n = match inlet {
            Inlet::Live(holder) | Inlet::Replay(holder) => u64::from(holder.0),
            Inlet::Hub(n) => n,
        };
        (n % self.desks.len() as u64) as usize
    }

    /// Has `socket` read.
    pub fn add(&self, inlet: Inlet, socket: Socket, inflow: Inflow) {
        self.tell(self.desk_of(inlet), Command::Add(inlet, socket, inflow));
    }

    /// Closes a socket, if there is one of this name.
    pub fn remove(&self, inlet: Inlet) {
        self.tell(self.desk_of(inlet), Command::Remove(inlet));
    }

    /// Does what a follower wants of its replay socket.
    pub fn replay(&self, lane: &Arc<Lane>, request: Request) {
        let inlet = Inlet::Replay(lane.holder);
        let (ask, from) = match request {
            Request::Ask { ask, from } => (ask, from),
            Request::Close => return self.remove(inlet),
        };
        let Some(address) = &lane.replay else { return };
        match self.sockets.ask(address, from) {
            Ok(socket) => self.add(inlet, socket, Inflow::Answers { lane: Arc::clone(lane), ask }),
            // Like an engine that does not answer: it is asked again after a while.
            Err(e) => {
                warn!(publisher = %lane.spec.instance_id, error = %e, "replay socket cannot be opened");
                lane.note_error(format!("replay socket: {e}"));
            }
        }
    }

    /// Tells all readers to stop.
    pub fn stop(&self) {
        for desk in 0..self.desks.len() {
            self.tell(desk, Command::Stop);
        }
    }

    fn tell(&self, desk: usize, command: Command) {
        let desk = &self.desks[desk];
        // A reader that is gone needs no command.
        if desk.commands.send(command).is_ok()
            && let Err(e) = desk.wake.lock().send("", zmq::DONTWAIT)
        {
            // With a thousand wake-ups waiting, one more changes nothing.
            debug!(error = %e, "reader not woken");
        }
    }
}

impl Reader {
    /// Reads until told to stop.
    pub fn run(mut self) {
        let mut looked = Instant::now();
        loop {
            let mut items = Vec::with_capacity(1 + self.inlets.len());
            items.push(self.wake.as_poll_item(POLLIN));
            items.extend(self.inlets.iter().map(|(_, socket, _)| socket.as_poll_item(POLLIN)));
            match zmq::poll(&mut items, LOOK_EVERY.as_millis() as i64) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(e) => return error!(error = %e, "reader cannot wait for messages and stops"),
            }
            let woken = items[0].is_readable();
            let readable: Vec<usize> =
                (1..items.len()).filter(|&i| items[i].is_readable()).map(|i| i - 1).collect();
            drop(items);
            let mut full = Vec::new();
            for i in readable {
                let (inlet, socket, inflow) = &self.inlets[i];
                if !read(socket, inflow, self.max_message) {
                    full.push(*inlet);
                }
            }
            self.inlets.retain(|(inlet, ..)| !full.contains(inlet));
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.look();
            }
            if woken && !self.obey() {
                return;
            }
        }
    }

    /// Tells lanes what became of connections over which nothing comes.
    fn look(&self) {
        for (_, _, inflow) in &self.inlets {
            if let Inflow::Lane { lane, connections } = inflow {
                tell(lane, connections);
            }
        }
    }

    /// Does what it was told. False when told to stop.
    fn obey(&mut self) -> bool {
        let mut scratch = zmq::Message::new();
        while self.wake.recv(&mut scratch, zmq::DONTWAIT).is_ok() {}
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add(inlet, socket, inflow) => {
                    self.inlets.retain(|(i, ..)| *i != inlet);
                    self.inlets.push((inlet, socket, inflow));
                }
                Command::Remove(inlet) => self.inlets.retain(|(i, ..)| *i != inlet),
                Command::Stop => return false,
            }
        }
        true
    }
}

/// Moves messages of one socket. False where it is to be closed.
fn read(socket: &Socket, inflow: &Inflow, max_message: usize) -> bool {
    if let Inflow::Lane { lane, connections } = inflow {
        read_lane(socket, lane, connections, max_message);
        return true;
    }
    let mut scratch = zmq::Message::new();
    for _ in 0..TURN {
        let message = match receive(socket, &mut scratch, max_message) {
            Ok(Some(message)) => message,
            Ok(None) => return true,
            Err(TooMuch) => {
                match inflow {
                    Inflow::Lane { lane, .. } | Inflow::Answers { lane, .. } => {
                        lane.counters.malformed.add(1);
                    }
                    Inflow::Hub(hub) => hub.unclaimed(),
                }
                continue;
            }
        };
        match inflow {
            Inflow::Lane { lane, .. } => lane.push_live(message, Instant::now()),
            Inflow::Hub(hub) => hub.push(message, Instant::now()),
            Inflow::Answers { lane, ask } => {
                if !lane.push_answer(*ask, message) {
                    return false;
                }
            }
        }
    }
    true
}

/// Moves messages of a dialled publisher.
fn read_lane(socket: &Socket, lane: &Arc<Lane>, connections: &Connections, max_message: usize) {
    let mut scratch = zmq::Message::new();
    let mut messages = Vec::new();
    for _ in 0..TURN {
        match receive(socket, &mut scratch, max_message) {
            Ok(Some(message)) => messages.push((message, Instant::now())),
            Ok(None) => break,
            Err(TooMuch) => lane.counters.malformed.add(1),
        }
    }
    // Asked after they were read and told before them: a connection is told of before anything can be read
    // that came over it, so that none of these is from one that the lane does not know of. Some may be
    // from the one before, which costs a question and no more.
    if !messages.is_empty() {
        tell(lane, connections);
    }
    for (message, at) in messages {
        lane.push_live(message, at);
    }
}

/// Tells a lane what became of its connection.
fn tell(lane: &Arc<Lane>, connections: &Connections) {
    connections.each(|turn| match turn {
        Turn::Connected => lane.push_connected(),
        Turn::Greeted => lane.push_sign(Sign::Greeted),
        Turn::Ended => lane.push_sign(Sign::Lost),
        // Told of sockets that are read no more.
        Turn::Closed => {}
    });
}

/// A message with more frames or bytes than any event.
struct TooMuch;

/// Receives a whole message; `None` where none is waiting.
fn receive(socket: &Socket, scratch: &mut zmq::Message, max: usize) -> Result<Option<Message>, TooMuch> {
    let mut message = Message::default();
    let mut fits = true;
    for frame in 1.. {
        // The frames of a message arrive together, so only before the first can one be missing.
        match socket.recv(scratch, zmq::DONTWAIT) {
            Ok(()) => {}
            Err(zmq::Error::EINTR) => continue,
            Err(_) => return Ok(None),
        }
        fits = fits && frame <= MAX_FRAMES && message.bytes() + scratch.len() <= max;
        if fits {
            message.push(scratch);
        }
        if !scratch.get_more() {
            break;
        }
    }
    if fits { Ok(Some(message)) } else { Err(TooMuch) }
}
