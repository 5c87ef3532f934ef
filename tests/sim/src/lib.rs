//! Does kvd stay right when everything else goes wrong?
//!
//! ```text
//! talk ─▶ engine ─▶ link ─▶ node (queue, Follower, Index) ─▶ check: is what it answers so?
//!           │ pool      ▲ faults: restarts, cuts, losses,      ▲
//!           └─ truth ───┼─ kills, full queues, damaged disks ──┘ what the engine really held
//!                       └ snapshot, disk: what a node knows again after a restart
//! ```
//!
//! A run is a fleet of engines with vLLM's block pool, a network and one or two kvd nodes, all made up
//! from a seed. For a while things go wrong, and after a third of the turns that changed anything a
//! node is asked about every prompt: where it vouches for its answer (`live`), that must be exactly
//! what the engine held after the batch that the node says is the last one applied; elsewhere it must
//! never be more. Then the faults stop, and everything must become right: by itself for engines with a
//! history, with the next thing said for the others, and, whatever was lost for good, with the next
//! clear of the engine's cache. What is right is read off the engine's physical blocks (`truth`), not
//! off its events.
//!
//! Nodes run kvd's own code: the follower with everything it rests on, the bounded queue and the
//! turns of a lane (`kvd::ingest::pure`), the decoder, the index and its snapshots. What is modelled
//! is what is around them: sockets, threads, files, time.
//!
//! # Why a plain loop
//!
//! A queue of what is due, in order of time, and one source of randomness. turmoil and madsim put
//! tokio, or all of the system, on a simulated clock; kvd's sockets are libzmq's, in threads of C++ that
//! neither can reach, and what must be shown is in the rules, which take messages and the time as
//! arguments. So a run needs no runtime, takes milliseconds, and is the same every time: nothing in it
//! asks for the time, another thread or an address.
//!
//! # What is modelled
//!
//! - Engines (`engine`, `pool`): physical blocks with their users, taken in the order they became free;
//!   several blocks of one content; a window group that frees what it has passed; an offload tier that
//!   names chunks by their last hash or describes them; resets, which are announced with the next step;
//!   restarts, from number 0 at a later time; a replay buffer of a few batches.
//! - Connections (`link`): in order; what is under way is lost with the connection, and what is sent
//!   before the subscription arrives; a mark above which messages are dropped; single losses and
//!   repeats; replays that lose stretches in their middle and say that they ended, as vLLM 0.32's do.
//! - Nodes (`node`, `snapshot`): killed at any time; busy while queues fill up; snapshots cut lane by
//!   lane while the others go on, kept on a disk that loses ends and flips bits, or sent by a peer to a
//!   node that listens already.
//! - Not modelled: a clock that goes back from one life of an engine to the next, messages that are no
//!   batches (`follow_tests` has those), several engines on one bound socket.
//!
//! # By hand
//!
//! ```text
//! cargo run --release -p kvd-sim -- seeds 10000        # many seeds, and how fast
//! cargo run -p kvd-sim -- trace 4711                   # one seed, with all that happened
//! cargo run --release -p kvd-sim -- rules              # leave out each rule: which seed shows it?
//! cargo run -p kvd-sim -- trace 12 --without Anchor    # what that looks like
//! ```
//!
//! Read [`run()`] for the course of a run, `world` for what happens, `check` for what must be so.

mod check;
mod disk;
mod engine;
mod faults;
mod link;
mod many;
mod node;
mod pool;
mod rng;
mod run;
mod snapshot;
mod talk;
mod trace;
mod truth;
mod wire;
mod world;

pub use many::{Found, many};
pub use run::{Outcome, run};
pub use trace::Trace;
pub use world::{Flaw, LeftOut, Tally};
