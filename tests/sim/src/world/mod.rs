//! Everything together: what happens when, until nothing goes wrong any more and everything must be
//! right.

mod left_out;
mod processes;
mod tally;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kvd::ingest::pure::{Request, Rules};

use crate::disk::Disk;
use crate::engine::{Engine, Published};
use crate::faults::{Fault, Menu};
use crate::link::Link;
use crate::node::{Node, Room};
use crate::rng::Rng;
use crate::snapshot::{Cutting, Target};
use crate::talk::Talk;
use crate::trace::{Trace, say};
pub use left_out::{Flaw, LeftOut};
pub use processes::shape;
pub use tally::Tally;

/// Microseconds since the beginning.
pub type Time = u64;
pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000 * MS;

/// A batch's payload, or the end of a replay.
pub type Payload = Option<(u64, Rc<[u8]>)>;

/// Something due.
#[derive(Debug)]
pub enum Due {
    /// An engine computes.
    Step { e: usize },
    /// A request reaches an engine.
    Ask { e: usize },
    /// An engine's process comes up.
    EngineUp { e: usize },
    /// A node's process comes up.
    NodeUp { n: usize },
    /// A connection is tried.
    Dial { e: usize, n: usize, epoch: u32 },
    /// A subscription reaches the engine.
    Subscribed { e: usize, n: usize, epoch: u32 },
    /// A live message reaches a node.
    Live { e: usize, n: usize, epoch: u32, batch: Published },
    /// A replay request reaches an engine.
    Replay { e: usize, n: usize, boot: u32, ask: u64, from: u64 },
    /// An answer reaches a node.
    Answer { e: usize, n: usize, epoch: u32, boot: u32, ask: u64, answer: Payload },
    /// A lane's turn.
    Turn { e: usize, n: usize, boot: u32 },
    /// A node begins a snapshot for its disk.
    Keep { n: usize },
    /// The next lane is cut.
    Cut { n: usize, boot: u32 },
    /// A peer's snapshot reaches a node.
    Snapshot { n: usize, boot: u32, bytes: Vec<u8> },
    /// A node waits no longer for a peer's snapshot.
    Begin { n: usize, boot: u32 },
    /// Something goes wrong.
    Fault,
}

struct Entry(Reverse<(Time, u64)>, Due);

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.0 == other.0
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// A node's place: its process, if it runs, and which one it is.
pub struct Place {
    pub node: Option<Node>,
    pub boot: u32,
    /// Until when it is too busy to apply anything.
    pub busy_until: Time,
    pub room: Room,
    pub disk: Disk,
    pub cutting: Option<Cutting>,
}

pub struct World {
    pub now: Time,
    origin: Instant,
    order: u64,
    due: BinaryHeap<Entry>,
    pub engines: Vec<Engine>,
    pub places: Vec<Place>,
    /// By engine, then node.
    pub links: Vec<Vec<Link>>,
    pub talk: Rc<Talk>,
    pub menu: Menu,
    /// Whether things go wrong.
    pub faulty: bool,
    /// Whether requests come in by themselves.
    pub lively: bool,
    rules: Rules,
    pub flaw: Option<Flaw>,
    pub trace: Trace,
    pub tally: Tally,
    pub rng: Rng,
    /// The engines' clock before the beginning, and what restarts added to it, by engine, seconds.
    skew: Vec<f64>,
}

impl World {
    pub fn new(seed: u64, left_out: LeftOut, trace: Trace) -> World {
        let (rules, flaw) = match left_out {
            LeftOut::Nothing => (Rules::default(), None),
            LeftOut::Rule(rule) => (Rules::without(rule), None),
            LeftOut::Flaw(flaw) => (Rules::default(), Some(flaw)),
        };
        let mut rng = Rng::new(seed);
        let talk = Rc::new(Talk::new(&mut rng));
        let menu = Menu::new(&mut rng);
        let engines: Vec<Engine> = (0..rng.between(1, 3))
            .map(|_| {
                let shape = shape(&mut rng);
                Engine::new(shape, Rc::clone(&talk), rng.fork())
            })
            .collect();
        let nodes = rng.between(1, 2) as usize;
        let places = (0..nodes)
            .map(|_| {
                let room =
                    Room { queue_messages: rng.pick(&[4, 16, 256]), held_batches: rng.pick(&[2, 8, 64]) };
                Place { node: None, boot: 0, busy_until: 0, room, disk: Disk::default(), cutting: None }
            })
            .collect();
        let links = engines.iter().map(|_| (0..nodes).map(|_| Link::new(&mut rng)).collect()).collect();
        let skew = vec![0.0; engines.len()];
        let mut world = World {
            now: 0,
            origin: Instant::now(),
            order: 0,
            due: BinaryHeap::new(),
            engines,
            places,
            links,
            talk,
            menu,
            faulty: true,
            lively: true,
            rules,
            flaw,
            trace,
            tally: Tally::default(),
            rng,
            skew,
        };
        for (e, engine) in world.engines.iter().enumerate() {
            say!(world.trace, 0, "engine{e} is {:?}", engine.shape);
        }
        for n in 0..nodes {
            // Some come when engines have been at work for a while.
            let at = if world.rng.one_in(3) { world.rng.below(8 * SECOND) } else { 0 };
            world.at(at, Due::NodeUp { n });
            if world.rng.one_in(2) {
                world.after(SECOND, Due::Keep { n });
            }
        }
        for e in 0..world.engines.len() {
            world.after(0, Due::Ask { e });
        }
        world.next_fault();
        world
    }

    /// The time as kvd sees it.
    pub fn instant(&self) -> Instant {
        self.origin + Duration::from_micros(self.now)
    }

    pub fn at(&mut self, at: Time, due: Due) {
        self.order += 1;
        self.due.push(Entry(Reverse((at, self.order)), due));
    }

    pub fn after(&mut self, time: Time, due: Due) {
        self.at(self.now + time, due);
    }

    pub fn next_fault(&mut self) {
        let wait = self.menu.pause(&mut self.rng);
        self.after(wait, Due::Fault);
    }

    /// Lets `time` pass.
    ///
    /// # Errors
    /// If an answer claims what is not so.
    pub fn pass(&mut self, time: Time) -> Result<(), String> {
        let until = self.now + time;
        while self.due.peek().is_some_and(|Entry(Reverse((at, _)), _)| *at <= until) {
            let Entry(Reverse((at, _)), due) = self.due.pop().expect("just seen");
            self.now = at;
            self.happen(due)?;
        }
        self.now = until;
        Ok(())
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Ask { e } => self.ask(e),
            Due::Step { e } => self.step(e),
            Due::EngineUp { e } => self.engine_up(e),
            Due::NodeUp { n } => self.node_up(n),
            Due::Dial { e, n, epoch } => self.dial(e, n, epoch),
            Due::Subscribed { e, n, epoch } => self.subscribed(e, n, epoch),
            Due::Live { e, n, epoch, batch } => self.live(e, n, epoch, &batch),
            Due::Replay { e, n, boot, ask, from } => self.replay(e, n, boot, ask, from),
            Due::Answer { e, n, epoch, boot, ask, answer } => self.answer(e, n, epoch, boot, ask, answer),
            Due::Turn { e, n, boot } => self.turn(e, n, boot)?,
            Due::Keep { n } => {
                if self.faulty {
                    self.begin_cut(n, Target::Disk);
                    let wait = self.rng.between(SECOND / 2, 4 * SECOND);
                    self.after(wait, Due::Keep { n });
                }
            }
            Due::Cut { n, boot } => self.cut_next(n, boot),
            Due::Snapshot { n, boot, bytes } => self.snapshot(n, boot, bytes)?,
            Due::Begin { n, boot } => self.begin(n, boot)?,
            Due::Fault => {
                if self.faulty {
                    let fault = self.menu.choose(&mut self.rng);
                    self.tally.faults += 1;
                    self.befall(fault);
                    self.next_fault();
                }
            }
        }
        Ok(())
    }

    /// Adds up what a node's lanes counted.
    pub fn count(&mut self, node: &Node) {
        for lane in &node.lanes {
            self.tally.gaps += lane.counters.gaps.get();
            self.tally.restarts += lane.counters.restarts.get();
            self.tally.deaths += lane.counters.deaths.get();
            self.tally.replays += lane.counters.replays.get();
            self.tally.losses += lane.counters.losses.get();
            self.tally.dropped += lane.counters.dropped.get();
        }
    }

    /// Gives a lane a turn in `time`, unless it has an earlier one.
    pub fn wake(&mut self, e: usize, n: usize, time: Time) {
        let place = &mut self.places[n];
        let at = (self.now + time).max(place.busy_until);
        let Some(node) = &mut place.node else { return };
        let lane = &mut node.lanes[e];
        if lane.turn_at.is_none_or(|t| t > at) {
            lane.turn_at = Some(at);
            let boot = place.boot;
            self.at(at, Due::Turn { e, n, boot });
        }
    }

    fn turn(&mut self, e: usize, n: usize, boot: u32) -> Result<(), String> {
        let now = self.instant();
        let place = &mut self.places[n];
        let (true, Some(node)) = (place.boot == boot, &mut place.node) else { return Ok(()) };
        let lane = &mut node.lanes[e];
        if lane.turn_at != Some(self.now) {
            // Woken earlier meanwhile.
            return Ok(());
        }
        lane.turn_at = None;
        let before = (lane.follower.state(), lane.follower.last_seq(), lane.follower.sink().told);
        let requests = lane.turn(now);
        let after = (lane.follower.state(), lane.follower.last_seq(), lane.follower.sink().told);
        let (more, deadline) = (!lane.queue.is_empty(), lane.follower.deadline());
        if before != after {
            let (held, _) = lane.follower.held();
            let (applied, cleared) = (after.2.batches - before.2.batches, after.2.clears - before.2.clears);
            say!(
                self.trace,
                self.now,
                "node{n} engine{e}: {:?}, last {:?}, {held} held; {applied} applied, {cleared} clears",
                after.0,
                after.1
            );
        }
        for request in requests {
            self.carry_out(e, n, boot, request);
        }
        if more {
            self.wake(e, n, MS);
        }
        if let Some(deadline) = deadline {
            let wait = deadline.saturating_duration_since(now).as_micros() as Time;
            self.wake(e, n, wait.max(1));
        }
        if before != after && self.rng.one_in(3) {
            self.check(e, n)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, e: usize, n: usize, boot: u32, request: Request) {
        let lane = &mut self.places[n].node.as_mut().expect("it just had a turn").lanes[e];
        match request {
            Request::Ask { ask, from } => {
                say!(self.trace, self.now, "node{n} asks engine{e} for {from} and on ({ask})");
                lane.open = Some(ask);
                let wait = self.rng.between(MS, 30 * MS);
                self.after(wait, Due::Replay { e, n, boot, ask, from });
            }
            Request::Close => lane.open = None,
        }
    }

    /// Carries out a fault.
    fn befall(&mut self, fault: Fault) {
        let e = self.rng.below(self.engines.len() as u64) as usize;
        let n = self.rng.below(self.places.len() as u64) as usize;
        let time = self.rng.between(MS, 3 * SECOND);
        say!(self.trace, self.now, "fault {fault:?} (engine{e}, node{n}, {} ms)", time / MS);
        match fault {
            Fault::Restart => self.engine_down(e, time),
            Fault::Reset if self.engines[e].up => self.engines[e].reset(),
            Fault::Reset => {}
            Fault::Cut => self.cut(e, n, time),
            Fault::Partition => (0..self.engines.len()).for_each(|e| self.cut(e, n, time)),
            Fault::Stall => self.links[e][n].stall_until = self.now + time,
            Fault::Lose => self.links[e][n].lose += 1 + self.rng.below(4) as u32,
            Fault::Repeat => self.links[e][n].repeat += 1,
            Fault::Kill => self.node_down(n, time),
            Fault::Damage => {
                let resum = self.flaw == Some(Flaw::ForgetsChecksum);
                self.places[n].disk.damage(&mut self.rng, resum);
            }
            Fault::Full => self.places[n].disk.full ^= true,
            Fault::Busy => self.places[n].busy_until = self.now + time,
        }
    }
}
