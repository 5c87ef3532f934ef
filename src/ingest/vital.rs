//! Is the engine still there? Signs of its connection and of its health endpoint, and for how long there
//! was no good one.
//!
//! Without sockets and clocks: the reader and the prober bring signs, the follower acts on what this says.

use std::time::{Duration, Instant};

/// Something that tells whether an engine is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Its live socket answered the handshake of a new connection.
    Greeted,
    /// The connection of its live socket ended.
    Lost,
    /// Its health endpoint says that it is well.
    Well,
    /// Its health endpoint says that it is not, or does not answer.
    Ill,
}

/// What the signs say so far.
#[derive(Clone, Debug)]
pub struct Vital {
    dead_after: Duration,
    /// Whether it is connected; `None` where nothing can tell, as on a shared address.
    connected: Option<bool>,
    /// What its health endpoint said last.
    well: Option<bool>,
    /// Since when there is no good sign.
    fading: Option<Instant>,
    dead: bool,
}

impl Vital {
    /// Of an engine that is `dialled` from now on, or that dials in. It is taken for dead when there was no
    /// good sign for `dead_after`.
    pub fn new(dialled: bool, dead_after: Duration, now: Instant) -> Vital {
        let mut vital =
            Vital { dead_after, connected: dialled.then_some(false), well: None, fading: None, dead: false };
        vital.judge(now);
        vital
    }

    /// Takes a sign. True where it was taken for dead and is not any more.
    pub fn note(&mut self, sign: Sign, now: Instant) -> bool {
        match sign {
            Sign::Greeted => self.connected = Some(true),
            Sign::Lost => self.connected = Some(false),
            Sign::Well => self.well = Some(true),
            Sign::Ill => self.well = Some(false),
        }
        self.judge(now)
    }

    /// It was heard, whatever its health endpoint says. True where it was taken for dead.
    pub fn heard(&mut self, now: Instant) -> bool {
        if self.fading.is_some() {
            self.fading = Some(now);
        }
        std::mem::take(&mut self.dead)
    }

    /// A connection is as good as no news of health; where there is none, only health tells.
    fn judge(&mut self, now: Instant) -> bool {
        let good = match (self.connected, self.well) {
            (Some(true) | None, None) | (_, Some(true)) => true,
            (Some(false), None) | (_, Some(false)) => false,
        };
        if good {
            self.fading = None;
            // What it holds is told over a connection only.
            return self.connected != Some(false) && std::mem::take(&mut self.dead);
        }
        self.fading.get_or_insert(now);
        false
    }

    /// Whether nothing that it publishes arrives here at the moment.
    pub fn is_away(&self) -> bool {
        self.connected == Some(false)
    }

    /// Whether it is taken for dead.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// When it is to be taken for dead, unless a good sign comes.
    pub fn deadline(&self) -> Option<Instant> {
        self.fading.filter(|_| !self.dead).map(|since| since + self.dead_after)
    }

    /// Takes it for dead where that is due.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let over = self.deadline().is_some_and(|at| at <= now);
        self.dead |= over;
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(30);

    fn seconds(from: Instant, n: u64) -> Instant {
        from + Duration::from_secs(n)
    }

    #[test]
    fn a_connection_that_does_not_come_back_is_a_death_and_one_that_does_is_not() {
        let t = Instant::now();
        let mut v = Vital::new(true, AFTER, t);
        assert!(v.is_away() && v.deadline() == Some(seconds(t, 30)), "it was never there");
        assert!(!v.note(Sign::Greeted, seconds(t, 29)));
        assert!(!v.is_away() && v.deadline().is_none());
        v.note(Sign::Lost, seconds(t, 40));
        v.note(Sign::Lost, seconds(t, 60));
        assert!(!v.is_over(seconds(t, 69)));
        assert!(v.is_over(seconds(t, 70)), "counted from when it went");
        assert!(v.is_dead() && !v.is_over(seconds(t, 71)), "once");
        assert!(v.note(Sign::Greeted, seconds(t, 80)), "back from the dead");
        assert!(!v.is_dead() && !v.is_away());
    }

    #[test]
    fn an_engine_that_is_well_is_not_dead_for_being_out_of_reach() {
        let t = Instant::now();
        let mut v = Vital::new(true, AFTER, t);
        v.note(Sign::Well, seconds(t, 5));
        assert!(v.is_away() && v.deadline().is_none());
        v.note(Sign::Ill, seconds(t, 10));
        assert_eq!(v.deadline(), Some(seconds(t, 40)));
        assert!(v.is_over(seconds(t, 40)));
        assert!(!v.note(Sign::Well, seconds(t, 41)), "without a connection nothing can be learnt");
        assert!(v.is_dead());
        assert!(v.note(Sign::Greeted, seconds(t, 42)));
    }

    #[test]
    fn an_engine_that_hangs_is_dead_though_connected() {
        let t = Instant::now();
        let mut v = Vital::new(true, AFTER, t);
        v.note(Sign::Greeted, t);
        v.note(Sign::Ill, t);
        assert!(!v.is_away() && v.is_over(seconds(t, 30)));
        assert!(v.note(Sign::Well, seconds(t, 31)));
    }

    #[test]
    fn whoever_dials_in_is_there_until_its_health_says_otherwise() {
        let t = Instant::now();
        let mut v = Vital::new(false, AFTER, t);
        assert!(!v.is_away() && v.deadline().is_none());
        v.note(Sign::Ill, t);
        assert!(!v.heard(seconds(t, 20)));
        assert!(!v.is_over(seconds(t, 30)), "it was heard meanwhile");
        assert!(v.is_over(seconds(t, 50)));
        assert!(v.heard(seconds(t, 51)), "and again");
        assert!(!v.is_dead() && v.deadline() == Some(seconds(t, 81)));
    }
}
