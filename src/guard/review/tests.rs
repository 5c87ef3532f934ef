//! Reviews by example, with a cluster that is a function.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::guard::tokens;

const TTL: Duration = Duration::from_secs(10);

fn subjects(users: &[&str], groups: &[&str]) -> Subjects {
    let owned = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
    Subjects { users: owned(users), groups: owned(groups) }
}

fn config() -> ReviewConfig {
    let grants = Grants {
        read: subjects(&[], &["monitoring"]),
        route: subjects(&["epp"], &[]),
        write: subjects(&["admin"], &[]),
    };
    ReviewConfig { kubeconfig: None, audiences: vec!["kvd".into()], grants, ttl: TTL }
}

/// A reviewer whose cluster takes the middle of a token for its user's name, while it is up.
fn reviewer(up: &Arc<AtomicBool>) -> Arc<Reviewer> {
    let up = Arc::clone(up);
    let ask = move |token: String| {
        let up = Arc::clone(&up);
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            match (up.load(Relaxed), token.split('.').nth(1)) {
                (false, _) => Err("connection refused".to_owned()),
                (true, Some("nobody") | None) => Ok(Reviewed::Nobody),
                (true, Some(name)) => {
                    Ok(Reviewed::User { name: name.to_owned(), groups: vec!["everyone".into()] })
                }
            }
        }
        .boxed()
    };
    Reviewer::asking(&config(), Box::new(ask))
}

fn token(user: &str) -> Vec<u8> {
    format!("head.{user}.signature").into_bytes()
}

fn standing(reviewer: &Arc<Reviewer>, user: &str, now: Instant) -> Standing {
    let token = token(user);
    reviewer.standing(&token, tokens::digest(&token), now)
}

async fn verdict(reviewer: &Arc<Reviewer>, user: &str, now: Instant) -> Outcome {
    match standing(reviewer, user, now) {
        Standing::Now(outcome) => outcome,
        Standing::Later(outcome) => outcome.await,
    }
}

fn asked(reviewer: &Reviewer) -> u64 {
    reviewer.counts.asked.load(Relaxed)
}

#[test]
fn the_highest_right_of_a_user_and_of_its_groups_counts() {
    let grants = config().grants;
    let groups = |all: &[&str]| all.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
    assert_eq!(grants.right_of("epp", &[]), Some(Access::Route));
    assert_eq!(grants.right_of("admin", &groups(&["monitoring"])), Some(Access::Write));
    assert_eq!(grants.right_of("prometheus", &groups(&["a", "monitoring"])), Some(Access::Read));
    assert_eq!(grants.right_of("monitoring", &groups(&["epp"])), None, "a user is no group");
}

#[tokio::test]
async fn one_review_serves_all_calls_of_a_token_for_a_while() {
    let up = Arc::new(AtomicBool::new(true));
    let (reviewer, now) = (reviewer(&up), Instant::now());
    let calls = futures::future::join_all((0..100).map(|_| verdict(&reviewer, "epp", now)));
    assert!(calls.await.iter().all(|v| *v == Ok(Verdict::Known(Some(Access::Route)))));
    assert_eq!(asked(&reviewer), 1);
    assert_eq!(verdict(&reviewer, "guest", now).await, Ok(Verdict::Known(None)), "known, and may nothing");
    assert_eq!(verdict(&reviewer, "nobody", now).await, Ok(Verdict::Unknown));
    assert_eq!(verdict(&reviewer, "nobody", now).await, Ok(Verdict::Unknown));
    assert_eq!(asked(&reviewer), 3, "that it is nobody's is known, too");
}

#[tokio::test]
async fn who_calls_all_the_time_never_waits_and_is_refused_soon_after_it_is_taken_back() {
    let up = Arc::new(AtomicBool::new(true));
    let (reviewer, now) = (reviewer(&up), Instant::now());
    verdict(&reviewer, "epp", now).await.expect("the cluster is up");
    // What was said is younger than the question.
    let later = Instant::now() + TTL / 2;
    assert!(matches!(standing(&reviewer, "epp", later), Standing::Now(Ok(Verdict::Known(_)))));
    assert_eq!(asked(&reviewer), 2, "it is asked for again meanwhile");
    assert!(matches!(standing(&reviewer, "epp", later), Standing::Now(Ok(_))));
    assert_eq!(asked(&reviewer), 2, "once");
    // The cluster says now that it is nobody's.
    let digest = tokens::digest(&token("epp"));
    reviewer.state.lock().verdicts.put(digest, Verdict::Unknown, later);
    assert!(matches!(standing(&reviewer, "epp", later), Standing::Now(Ok(Verdict::Unknown))));
}

#[tokio::test]
async fn a_cluster_that_is_away_is_said_and_not_asked_by_everybody() {
    let up = Arc::new(AtomicBool::new(true));
    let (reviewer, now) = (reviewer(&up), Instant::now());
    verdict(&reviewer, "epp", now).await.expect("the cluster is up");
    up.store(false, Relaxed);
    assert_eq!(verdict(&reviewer, "admin", now).await, Err("connection refused".into()));
    let soon = Instant::now();
    assert_eq!(verdict(&reviewer, "other", soon).await, Err("connection refused".into()));
    assert_eq!(asked(&reviewer), 2, "strangers are refused at once for a second");
    assert_eq!(verdict(&reviewer, "epp", soon).await, Ok(Verdict::Known(Some(Access::Route))), "it holds");
    let over = now + TTL + AWAY;
    assert!(verdict(&reviewer, "epp", over).await.is_err(), "but not for ever");
    up.store(true, Relaxed);
    let after = Instant::now() + TTL + AWAY;
    assert_eq!(verdict(&reviewer, "admin", after).await, Ok(Verdict::Known(Some(Access::Write))));
}

#[tokio::test]
async fn invented_tokens_are_bounded_and_keep_nobody_out_who_is_known() {
    let up = Arc::new(AtomicBool::new(true));
    let (reviewer, now) = (reviewer(&up), Instant::now());
    verdict(&reviewer, "epp", now).await.expect("the cluster is up");
    let flood: Vec<_> = (0..1000).map(|i| standing(&reviewer, &format!("x{i}"), now)).collect();
    let refused = flood.iter().filter(|s| matches!(s, Standing::Now(Err(_)))).count();
    assert_eq!(refused, 1000 - MOST_OF_STRANGERS);
    assert_eq!(
        verdict(&reviewer, "epp", Instant::now() + TTL / 2).await,
        Ok(Verdict::Known(Some(Access::Route)))
    );
    assert_eq!(asked(&reviewer), 2 + MOST_OF_STRANGERS as u64, "and is reviewed beside them");
    for odd in [&b"not-a-jwt-at-all"[..], b"a.b", b"a..c", b"a.b.c.d", b"a.b.c d", &[b'a'; 20_000]] {
        let answer = reviewer.standing(odd, tokens::digest(odd), now);
        assert!(matches!(answer, Standing::Now(Ok(Verdict::Unknown))), "{odd:?}");
    }
    assert_eq!(asked(&reviewer), 2 + MOST_OF_STRANGERS as u64, "what is no such token is not asked for");
}

#[test]
fn what_is_known_of_tokens_is_bounded_and_good_ones_stay() {
    let (mut verdicts, now) = (Verdicts::new(TTL), Instant::now());
    let digest = |i: u32| tokens::digest(&i.to_le_bytes());
    verdicts.put(digest(0), Verdict::Known(None), now);
    (1..20_000).for_each(|i| verdicts.put(digest(i), Verdict::Unknown, now));
    assert_eq!(verdicts.len(), 1 + 8192);
    assert_eq!(verdicts.get(&digest(0), now), Some((Verdict::Known(None), Age::Young)));
    let later = now + TTL;
    assert_eq!(verdicts.get(&digest(0), later), None, "it holds no longer");
    verdicts.put(digest(30_000), Verdict::Unknown, later);
    assert_eq!(verdicts.len(), 2, "those that are over make room");
}
