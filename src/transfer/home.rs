//! Which replica keeps a transfer?
//!
//! Its home is found by rendezvous hashing over the replicas that are configured, so that all
//! agree without talking, and one that is added or gone moves only its own share.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Replicas one cluster may have: a replica's place is a byte of every epoch.
pub const MAX_REPLICAS: usize = 256;

/// All replicas, this one too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Where their gRPC is, in order.
    urls: Vec<String>,
    me: usize,
}

impl Replicas {
    /// The replicas at `urls`, of which this one is at `me`. `None` if that is not among them.
    pub fn new(mut urls: Vec<String>, me: &str) -> Option<Replicas> {
        // All have to agree on the places, whatever order they were configured in.
        urls.sort();
        urls.dedup();
        let me = urls.iter().position(|u| u == me)?;
        (urls.len() <= MAX_REPLICAS).then_some(Replicas { urls, me })
    }

    /// This replica's place.
    pub fn me(&self) -> usize {
        self.me
    }

    /// Where the replica at `place` is asked.
    pub fn url(&self, place: usize) -> Option<&str> {
        self.urls.get(place).map(String::as_str)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.urls.len().max(1)
    }

    /// Whether this replica is the only one.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Places in the order in which they are a request's home: the next one takes over from one
    /// that is gone.
    pub fn homes(&self, request: u64) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.urls.len()).collect();
        places.sort_by_key(|&p| std::cmp::Reverse((xxh3_64_with_seed(self.urls[p].as_bytes(), request), p)));
        places
    }

    /// The epoch after `epoch`, owned by this replica. No two replicas make the same one.
    pub fn next_epoch(&self, epoch: u64) -> u64 {
        ((epoch / MAX_REPLICAS as u64) + 1) * MAX_REPLICAS as u64 + self.me as u64
    }

    /// The place of the replica that made `epoch`.
    pub fn owner(&self, epoch: u64) -> usize {
        (epoch % MAX_REPLICAS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<String> {
        ["http://b:1", "http://a:1", "http://c:1"].map(str::to_owned).to_vec()
    }

    #[test]
    fn all_replicas_agree_on_a_home() {
        let a = Replicas::new(three(), "http://a:1").unwrap();
        let mut other_order = three();
        other_order.reverse();
        let c = Replicas::new(other_order, "http://c:1").unwrap();
        for request in 0..100 {
            assert_eq!(a.homes(request), c.homes(request));
        }
    }

    #[test]
    fn one_that_is_gone_moves_only_its_own_share() {
        let all = Replicas::new(three(), "http://a:1").unwrap();
        let two = Replicas::new(three()[1..].to_vec(), "http://a:1").unwrap();
        let mut share = [0; 3];
        for request in 0..3000 {
            let homes = all.homes(request);
            share[homes[0]] += 1;
            let without_b = homes.iter().map(|h| all.url(*h).unwrap()).find(|u| *u != "http://b:1");
            assert_eq!(without_b, two.url(two.homes(request)[0]));
        }
        assert!(share.iter().all(|s| (800..1200).contains(s)), "{share:?}");
    }

    #[test]
    fn no_two_replicas_make_the_same_epoch() {
        let a = Replicas::new(three(), "http://a:1").unwrap();
        let b = Replicas::new(three(), "http://b:1").unwrap();
        let first = a.next_epoch(0);
        assert_ne!(first, b.next_epoch(0));
        assert!(b.next_epoch(first) > first && a.next_epoch(b.next_epoch(first)) > b.next_epoch(first));
        assert_eq!((a.owner(first), a.owner(b.next_epoch(first))), (0, 1));
    }

    #[test]
    fn a_replica_that_is_not_among_them_is_refused() {
        assert_eq!(Replicas::new(three(), "http://d:1"), None);
    }
}
