//! How long does a request keep its room in a pod's cache?
//!
//! Whoever asks says how much of each pod's room is taken, and is told where its prompt goes. What was
//! taken, and came, and is not taken any more has left; what lay there meanwhile, over what left, is how
//! long a token stayed. Nobody reports when a request ends, and nobody has to.

use super::book::PodId;
use super::table::Table;
use crate::transfer::types::Load;

/// How long what was seen counts, seconds: longer than most requests stay.
const OVER: f64 = 60.0;
/// What was known before counts as if this part of the room had left by it.
const PRIOR: f64 = 0.1;
/// Nobody is taken to stay longer, seconds.
const LONGEST: f64 = 3600.0;

/// What was seen of pods' room.
#[derive(Clone, Debug)]
pub struct Stays {
    starting_s: f64,
    pods: Table<PodId, Seen>,
    /// Over all pods, for those of which little is known.
    all: Faded,
}

/// Token-seconds that lay there, and tokens that left, fading with [`OVER`].
#[derive(Clone, Copy, Debug, Default)]
struct Faded {
    lay: f64,
    left: f64,
    at: f64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    faded: Faded,
    room: u64,
    /// Taken when it was looked at last, and tokens sent there since.
    committed: u64,
    came: u64,
}

impl Faded {
    fn add(&mut self, now: f64, lay: f64, left: f64) {
        // Looks may come out of order; what was seen does not fade backwards.
        let fade = (-(now - self.at).max(0.0) / OVER).exp();
        self.lay = self.lay * fade + lay;
        self.left = self.left * fade + left;
        self.at = self.at.max(now);
    }

    /// Seconds, where `prior_s` counts as so many tokens that left.
    fn stay_s(&self, prior_s: f64, prior: f64) -> f64 {
        ((self.lay + prior_s * prior) / (self.left + prior)).min(LONGEST)
    }
}

impl Stays {
    /// Nothing seen yet but that a stay is about `starting_s` seconds; remembers at most so many pods.
    pub fn new(starting_s: f64, pods: usize) -> Stays {
        Stays { starting_s, pods: Table::new(pods), all: Faded::default() }
    }

    /// A pod's room was looked at.
    pub fn seen(&mut self, pod: PodId, load: &Load, now: f64) {
        if load.cache_tokens == 0 {
            return;
        }
        let unseen = Faded { at: now, ..Faded::default() };
        let first =
            Seen { faded: unseen, room: load.cache_tokens, committed: load.committed_tokens, came: 0 };
        let seen = self.pods.entry(&pod, || first);
        let passed = (now - seen.faded.at).max(0.0);
        // Who waits for room does not stay yet.
        let lay = seen.committed.min(seen.room) as f64 * passed;
        let left = (seen.committed + seen.came).saturating_sub(load.committed_tokens) as f64;
        seen.faded.add(now, lay, left);
        (seen.room, seen.committed, seen.came) = (load.cache_tokens, load.committed_tokens, 0);
        self.all.add(now, lay, left);
    }

    /// A prompt of so many tokens is sent to a pod to be decoded.
    pub fn sent(&mut self, pod: PodId, tokens: u32) {
        if self.pods.get(&pod).is_some() {
            self.pods.entry(&pod, || unreachable!("it is there")).came += u64::from(tokens);
        }
    }

    /// Seconds that a request keeps its room on `pod`, about.
    pub fn of(&self, pod: PodId) -> f64 {
        let Some(seen) = self.pods.get(&pod) else { return self.starting_s };
        let prior = PRIOR * seen.room as f64;
        let others_s = self.all.stay_s(self.starting_s, prior);
        seen.faded.stay_s(others_s, prior)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::types::Endpoint;

    const ROOM: u64 = 100_000;

    fn pod(n: u32) -> PodId {
        PodId::of(&Endpoint { instance: "pod".into(), rank: n })
    }

    fn load(committed_tokens: u64) -> Load {
        Load { cache_tokens: ROOM, committed_tokens, ..Load::default() }
    }

    /// A pod whose room fits `slots` requests of 1,000 tokens, each of which stays for `stay` seconds; one comes
    /// every `every` seconds for `seconds`, and waits where there is no room.
    fn watch(stays: &mut Stays, n: u32, slots: u64, stay: f64, every: f64, seconds: f64) {
        let (mut running, mut waiting, mut now) = (std::collections::VecDeque::new(), 0u64, 0.0);
        while now < seconds {
            while running.front().is_some_and(|end| *end <= now) {
                let end: f64 = running.pop_front().expect("seen");
                if waiting > 0 {
                    waiting -= 1;
                    running.push_back(end + stay);
                }
            }
            let committed = (running.len() as u64 + waiting) * 1000;
            stays.seen(pod(n), &Load { cache_tokens: slots * 1000, ..load(committed) }, now);
            stays.sent(pod(n), 1000);
            if (running.len() as u64) < slots {
                running.push_back(now + stay);
            } else {
                waiting += 1;
            }
            now += every;
        }
    }

    #[test]
    fn a_stay_is_learnt_whether_or_not_requests_wait() {
        for (stay, every) in [(30.0, 1.0), (30.0, 0.2), (2.0, 0.1), (120.0, 3.0)] {
            let mut stays = Stays::new(10.0, 100);
            watch(&mut stays, 1, 100, stay, every, 600.0);
            let got = stays.of(pod(1));
            assert!((got / stay - 1.0).abs() < 0.25, "{got} for {stay}, one every {every}");
        }
    }

    #[test]
    fn little_is_made_of_little_and_pods_of_which_nothing_is_known_are_like_the_others() {
        let mut stays = Stays::new(10.0, 100);
        assert_eq!(stays.of(pod(1)), 10.0);
        stays.seen(pod(1), &load(50_000), 0.0);
        stays.seen(pod(1), &load(49_000), 0.1);
        assert!((8.0..14.0).contains(&stays.of(pod(1))), "{}", stays.of(pod(1)));
        watch(&mut stays, 1, 100, 60.0, 1.0, 600.0);
        stays.seen(pod(2), &load(0), 600.0);
        assert!(stays.of(pod(2)) > 40.0, "{}", stays.of(pod(2)));
    }

    #[test]
    fn what_makes_no_sense_harms_nothing() {
        let mut stays = Stays::new(10.0, 2);
        stays.seen(pod(1), &Load::default(), 5.0);
        stays.sent(pod(1), 7);
        assert_eq!(stays.of(pod(1)), 10.0);
        for (committed, now) in [(u64::MAX, 1.0), (0, 0.0), (u64::MAX, 2.0), (1, 1e9)] {
            stays.seen(pod(1), &load(committed), now);
            stays.sent(pod(1), u32::MAX);
            assert!((0.0..=LONGEST).contains(&stays.of(pod(1))));
        }
    }
}
