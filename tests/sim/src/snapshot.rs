//! Snapshots: cut lane after lane while the others go on, kept on a disk that is not to be trusted or
//! sent to another node, and gone on from as `src/snapshot/load.rs` does.

use std::sync::Arc;

use kvd::ingest::pure::Position;
use kvindex::snapshot::{Cursor, Restore, Writer};

use crate::node::Node;
use crate::trace::say;
use crate::world::{Due, Flaw, MS, Time, World};

/// Bytes cut, and read, at a time.
const STEP: usize = 4 << 10;

/// Where a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the node's own disk.
    Disk,
    /// To another node, that has just started.
    Peer { n: usize, boot: u32 },
}

/// One that is being cut.
pub struct Cutting {
    writer: Writer,
    next: usize,
    bytes: Vec<u8>,
    target: Target,
}

impl Cutting {
    pub fn new(node: &Node, target: Target) -> Cutting {
        Cutting { writer: Writer::new(Arc::clone(&node.index)), next: 0, bytes: Vec::new(), target }
    }

    /// Cuts one lane, which applies nothing meanwhile. False when all are cut.
    fn step(&mut self, node: &mut Node, flaw: Option<Flaw>) -> bool {
        let Some(lane) = node.lanes.get(self.next) else { return false };
        let e = self.next;
        self.next += 1;
        if lane.follower.is_waiting() {
            return true;
        }
        let position = match flaw {
            Some(Flaw::CursorBehind) => lane.before,
            Some(Flaw::ForgetsChecksum) | None => lane.follower.position(),
        };
        let cursor = Cursor { seq: position.seq, ts: position.ts.unwrap_or_default() };
        let label = serde_json::to_vec(&(e, position)).expect("numbers can be written as JSON");
        self.writer
            .begin(lane.holder, &label, cursor)
            .expect("no part is under way, and the holder is attached");
        while self.writer.step(STEP, &mut self.bytes).expect("nothing is applied meanwhile").is_more() {}
        true
    }

    fn finish(mut self) -> Vec<u8> {
        self.writer.begin_ghosts().expect("no part is under way");
        while self.writer.step(STEP, &mut self.bytes).expect("ghosts need nothing").is_more() {}
        self.writer.finish(&mut self.bytes).expect("no part is under way");
        self.bytes
    }
}

/// Puts a snapshot into a node's index, and lets the lanes that wait go on from it. Nothing of a damaged
/// one stays.
///
/// # Errors
/// If it is damaged.
pub fn load(
    node: &mut Node,
    bytes: &[u8],
    now: std::time::Instant,
) -> Result<Vec<(usize, Position)>, String> {
    let mut restore = Restore::new(Arc::clone(&node.index));
    let mut ready: Vec<(usize, Position)> = Vec::new();
    let mut named: Vec<(usize, Position)> = Vec::new();
    let read = bytes.chunks(STEP).try_for_each(|piece| {
        restore.feed(piece, |found| {
            let (e, position): (usize, Position) = serde_json::from_slice(found.label).ok()?;
            let lane = node.lanes.get(e).filter(|l| l.follower.is_waiting())?;
            named.push((e, position));
            Some(lane.holder)
        })?;
        for done in restore.restored() {
            let (e, position) =
                *named.iter().rfind(|(e, _)| node.lanes[*e].holder == done.holder).expect("named");
            if let Ok(kept) = done.outcome {
                let complete = position.complete && kept.blocks == kept.of;
                ready.push((e, Position { complete, ..position }));
            }
        }
        Ok(())
    });
    if let Err(e) = read.and_then(|()| restore.finish().map(drop)) {
        // Also of those that were being put back, or were back just before the damage was seen.
        named.iter().for_each(|(e, _)| node.index.clear(node.lanes[*e].holder));
        return Err(e.to_string());
    }
    for (e, position) in &ready {
        node.lanes[*e].follower.sink().last.set(position.ts);
        node.lanes[*e].follower.resume(position, now);
    }
    Ok(ready)
}

impl World {
    /// Begins to cut a snapshot of a node, unless one is being cut.
    pub fn begin_cut(&mut self, n: usize, target: Target) {
        let place = &mut self.places[n];
        let (Some(node), None) = (&place.node, &place.cutting) else { return };
        place.cutting = Some(Cutting::new(node, target));
        let boot = place.boot;
        self.after(MS, Due::Cut { n, boot });
    }

    /// Cuts the next lane, or ends the snapshot.
    pub fn cut_next(&mut self, n: usize, boot: u32) {
        let flaw = self.flaw;
        let place = &mut self.places[n];
        if place.boot != boot {
            return;
        }
        let (Some(node), Some(mut cutting)) = (&mut place.node, place.cutting.take()) else { return };
        if cutting.step(node, flaw) {
            place.cutting = Some(cutting);
            let wait = self.rng.below(60 * MS);
            return self.after(wait, Due::Cut { n, boot });
        }
        let target = cutting.target;
        let bytes = cutting.finish();
        match target {
            Target::Disk => {
                let len = bytes.len();
                let kept = self.places[n].disk.keep(bytes);
                let how = if kept { "keeps" } else { "has no room for" };
                say!(self.trace, self.now, "node{n} {how} a snapshot of {len} bytes");
                self.tally.snapshots += u64::from(kept);
            }
            Target::Peer { n: to, boot } => {
                say!(self.trace, self.now, "node{n} sends node{to} a snapshot of {} bytes", bytes.len());
                let wait = self.rng.below(200 * MS);
                self.after(wait, Due::Snapshot { n: to, boot, bytes });
            }
        }
    }

    /// A snapshot from a peer arrives, whole or cut off.
    ///
    /// # Errors
    /// If what it puts back is not what was cut.
    pub fn snapshot(&mut self, n: usize, boot: u32, mut bytes: Vec<u8>) -> Result<(), String> {
        let now = self.instant();
        if self.faulty && self.rng.one_in(8) {
            bytes.truncate(self.rng.below(bytes.len() as u64) as usize);
        }
        let place = &mut self.places[n];
        let (true, Some(node)) = (place.boot == boot, &mut place.node) else { return Ok(()) };
        match load(node, &bytes, now) {
            Ok(ready) => {
                self.tally.from_peer += ready.len() as u64;
                say!(self.trace, self.now, "node{n} goes on from a peer's snapshot in {} lanes", ready.len());
                self.check_restored(n, &ready)?;
            }
            Err(e) => say!(self.trace, self.now, "node{n} cannot use a peer's snapshot: {e}"),
        }
        self.wake_all(n);
        Ok(())
    }

    /// What has just been put back must be what the engines had then.
    fn check_restored(&mut self, n: usize, ready: &[(usize, Position)]) -> Result<(), String> {
        if self.flaw.is_some() {
            return Ok(());
        }
        for (e, position) in ready {
            let node = self.places[n].node.as_ref().expect("it has just loaded a snapshot");
            let follower = &node.lanes[*e].follower;
            // What was held back may have gone after it, or said that it is another life's.
            if position.complete && follower.sink().last.get() == position.ts {
                self.compare(*e, n, follower.last_seq() == position.seq)?;
            }
        }
        Ok(())
    }

    /// A node that waited for a snapshot looks on its own disk, and begins with nothing where that has
    /// none either.
    pub fn begin(&mut self, n: usize, boot: u32) -> Result<(), String> {
        let now = self.instant();
        let place = &mut self.places[n];
        let (true, Some(node)) = (place.boot == boot, &mut place.node) else { return Ok(()) };
        let mut restored = Vec::new();
        if node.lanes.iter().any(|l| l.follower.is_waiting()) {
            for bytes in place.disk.newest_first() {
                match load(node, bytes, now) {
                    Ok(ready) => {
                        self.tally.from_disk += ready.len() as u64;
                        say!(self.trace, self.now, "node{n} goes on from its disk in {} lanes", ready.len());
                        restored = ready;
                        break;
                    }
                    Err(e) => {
                        self.tally.damaged += 1;
                        say!(self.trace, self.now, "node{n} cannot use a snapshot: {e}");
                    }
                }
            }
        }
        for (e, lane) in node.lanes.iter_mut().enumerate().filter(|(_, l)| l.follower.is_waiting()) {
            say!(self.trace, self.now, "node{n} begins to follow engine{e} with nothing known");
            lane.follower.begin(now);
        }
        self.wake_all(n);
        self.check_restored(n, &restored)
    }

    fn wake_all(&mut self, n: usize) {
        (0..self.engines.len()).for_each(|e| self.wake(e, n, 0));
    }

    /// Where a node that starts gets what it knew: from a peer if one is up, else from its disk.
    pub fn find_snapshot(&mut self, n: usize) {
        let boot = self.places[n].boot;
        let peer = (0..self.places.len()).find(|&p| p != n && self.places[p].node.is_some());
        // A disk takes a while to be read.
        let mut patience: Time = self.rng.below(600 * MS);
        if let Some(peer) = peer.filter(|_| !self.rng.one_in(3)) {
            self.begin_cut(peer, Target::Peer { n, boot });
            patience = self.rng.between(200 * MS, 800 * MS);
        }
        self.after(patience, Due::Begin { n, boot });
    }
}
