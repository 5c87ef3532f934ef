//! Blocks on their way between pods: pulled, handed over, taken in and let go.

use kvd::ctl::simulate::pod::private_blocks;
use kvd::ctl::simulate::workload::BLOCK;

use super::{Event, Notice, Transfer, World};
use crate::transfers::view::DELAY;

impl World<'_> {
    /// Begins to pull what the source still has; whether there is anything.
    pub(super) fn pull(&mut self, i: usize, source: usize, to: usize, blocks: usize) -> bool {
        let chain = &self.jobs[i].chain;
        let on_gpu = self.pods[to].gpu.prefix(chain);
        let had = on_gpu + self.pods[to].cpu.prefix(&chain[on_gpu..]);
        let there = self.pods[source].cpu.prefix(chain).min(blocks);
        if there <= had {
            return false;
        }
        self.pods[source].cpu.take(&chain[had..there], 0);
        let bytes = ((there - had) as u64 * u64::from(BLOCK)) * self.cluster.engine.token_bytes;
        for (pod, out) in [(source, true), (to, false)] {
            let seen = &mut self.view.pods[pod];
            let flow = if out { &mut seen.egress } else { &mut seen.ingress };
            flow.0 += 1;
            flow.1 += bytes;
        }
        self.transfer(i, source, to, bytes, (had, there), false);
        true
    }

    fn transfer(
        &mut self,
        job: usize,
        from: usize,
        to: usize,
        bytes: u64,
        blocks: (usize, usize),
        handover: bool,
    ) {
        let met = *self.met.entry((from, to)).or_insert(self.now + self.cluster.handshake);
        let begins = self.now.max(met) + self.cluster.setup;
        let sharing = self.view.pods[from].egress.0.max(self.view.pods[to].ingress.0).max(1);
        let booked = if handover { self.state(job).booked_bytes } else { bytes };
        let t =
            Transfer { job, from, to, bytes, blocks, handover, began: self.now, took: 0.0, booked, sharing };
        self.transfers.push(t);
        self.out.moved += bytes;
        self.at(begins, Event::Begin(self.transfers.len() - 1));
    }

    pub(super) fn wake_net(&mut self) {
        if let Some(when) = self.net.next() {
            self.at(when.max(self.now), Event::Net(self.net.version));
        }
    }

    /// A transfer is through.
    pub(super) fn arrived(&mut self, id: usize) {
        self.transfers[id].took = self.now - self.transfers[id].began;
        let t = self.transfers[id].clone();
        let chain = &self.jobs[t.job].chain[t.blocks.0..t.blocks.1];
        if t.handover {
            let job = &self.jobs[t.job];
            let to = &mut self.pods[t.to];
            to.gpu.give_back(&[], chain.len());
            to.gpu.take(chain, 0);
            to.cpu.take(chain, 0);
            to.cpu.give_back(chain, 0);
            to.join(t.job, job.tokens, job.output);
            self.release_prefill(t.job);
        } else {
            self.pods[t.from].cpu.give_back(chain, 0);
            let to = &mut self.pods[t.to];
            to.cpu.take(chain, 0);
            to.cpu.give_back(chain, 0);
            to.waiting.iter_mut().filter(|p| p.job == t.job).for_each(|p| p.held_up = false);
        }
        self.announce(t.to);
        self.kick(t.to);
        self.at(self.now + DELAY, Event::Notice(Notice::Moved(id)));
    }

    /// Handed-over requests are taken in as far as there is room, in the order they came.
    pub(super) fn let_in(&mut self, d: usize) {
        while let Some(i) = self.at_the_door[d].front().copied() {
            let job = &self.jobs[i];
            let private = private_blocks(job.tokens, job.output, &job.chain);
            let pod = &mut self.pods[d];
            if !pod.gpu.has_room(job.chain.len() + private) {
                break;
            }
            self.at_the_door[d].pop_front();
            let on_gpu = pod.gpu.prefix(&job.chain);
            let had = on_gpu + pod.cpu.prefix(&job.chain[on_gpu..]);
            pod.gpu.take(&job.chain[..had], private + job.chain.len() - had);
            let lacking = job.tokens - had as u32 * BLOCK;
            let state = self.states[i].as_mut().expect("it was routed");
            state.had = had;
            let from = state.route.compute;
            let bytes = u64::from(lacking) * self.cluster.engine.token_bytes;
            self.transfer(i, from, d, bytes.max(1), (had, job.chain.len()), true);
        }
    }

    /// The prefill pod need not keep a request's blocks any longer.
    pub(super) fn release_prefill(&mut self, i: usize) {
        let (job, state) = (&self.jobs[i], self.state(i).clone());
        let pod = state.route.compute;
        let private = private_blocks(job.tokens, 0, &job.chain);
        self.pods[pod].gpu.give_back(&job.chain, private);
        let bytes = u64::from(job.tokens) * self.cluster.engine.token_bytes;
        self.out.kept += bytes as f64 * (self.now - state.ready);
        self.announce(pod);
        self.kick(pod);
    }
}
