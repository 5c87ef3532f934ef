//! Runs every conversation in `tests/scripts/` against the index and the reference model.
//!
//! Lines above a `---` act and ask; those below it, up to an empty line, are the answers. Then
//! the conversation goes on. `UPDATE_SCRIPTS=1 cargo test -p kvindex --test scripts` writes the
//! answers, to be reviewed as a diff.
//!
//! A label (`7`) stands for four tokens. Each pod cuts a run of labels into blocks of its own
//! size and hashes each with its whole prefix; pods of one `seed` give the same hashes.
//!
//! ```text
//! limits blocks=9 speculative=9         an index with less room; before the first pod
//! pod w1 block=4 [seed= salt= lora= chunk= attention_chunk= hash=ALGO:SEED]
//! w1: store 3 4 after 1 2; remove 3 after 1 2        events of one batch, with options:
//!     tier T, group G, lora A, lora_path P (in the hash alone), salt S, sglang_salt S,
//!     mm IMG@AT+LENGTH, mm_bare IMG@AT+LENGTH, canonical (its hashes are ours),
//!     keep N (only the last N hashes), every N (one hash per N blocks), size N (the group's
//!     blocks are N tokens); a store also: kind K [WINDOW], described (tokens, but not all
//!     that names them), bare (hashes alone), based (says the first block's depth)
//! w1: clear [TIER]                      also an event
//! w1: restart [block= seed=]            w1: gone
//! score 1 2 [tail TOKENS] [lora A] [salt S] [mm IMG@AT+LENGTH] [block N] [deployment SALT]
//!           [only POD] [max_blocks N] [speculative] [hashes_of POD | canonical]
//! locate 1 2                            who has each block, with the options of `score`
//! names w1 1 2                          whose names are known, w1's in brackets, with those options
//! route R 1 2 to w1 to w2 until TIME    forget R            expire TIME
//! dump w1                               stats [w1]
//! ```
//!
//! A score reads `w1=BLOCKS cached_tokens=N`; where a lower tier has a part in it, the tiers
//! that have one follow as `cpu=ALONE/CUMULATIVE`. Of several scores each repeats its question.
//! An event line is answered only by what is odd about it.

#[path = "scripts/args.rs"]
mod args;
#[path = "scripts/pod.rs"]
mod pod;
#[path = "support/replant.rs"]
mod replant;
#[path = "scripts/replay.rs"]
mod replay;
#[path = "support/shadow.rs"]
mod shadow;
#[path = "scripts/world.rs"]
mod world;

use replay::{difference, replay_with, scripts};
use shadow::{Alone, Shadow};
use world::World;

/// The script with its answers as they are now, and how many scores the reference confirmed.
fn replay(name: &str, text: &str) -> Result<(String, u32), String> {
    replay_with(name, text, World::new(Box::new(Alone)), |_| {})
}

#[test]
fn every_conversation_goes_on_the_same_in_an_index_put_back_from_a_snapshot() {
    let (mut wrong, mut replanted) = (Vec::new(), 0);
    for file in scripts() {
        let name = file.file_name().expect("a name").display().to_string();
        // A node's tiers are not taken from snapshots, they tell their own log again: put back, their bare
        // names would be in a hash domain of their own.
        if name.starts_with("tiers_") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a script");
        let each = replay_with(&name, &text, World::new(Box::new(Alone)), |world| {
            replanted += u32::from(world.replant())
        });
        match each {
            Err(e) => wrong.push(e),
            Ok((got, _)) => wrong.extend(difference(&name, &text, &got)),
        }
    }
    assert!(wrong.is_empty(), "{} scripts:\n{}", wrong.len(), wrong.join("\n"));
    assert!(replanted > 300, "{replanted} snapshots");
}

#[test]
fn every_conversation_goes_as_written() {
    let files = scripts();
    let (mut wrong, mut confirmed) = (Vec::new(), 0);
    for file in &files {
        let name = file.file_name().expect("a name").display().to_string();
        let text = std::fs::read_to_string(file).expect("a script");
        match replay(&name, &text) {
            Err(e) => wrong.push(e),
            Ok((got, n)) => {
                confirmed += n;
                if std::env::var_os("UPDATE_SCRIPTS").is_some() {
                    std::fs::write(file, got).expect("write a script");
                } else {
                    wrong.extend(difference(&name, &text, &got));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} scripts:\n{}", wrong.len(), files.len(), wrong.join("\n"));
    // Scripts that nobody reads and scores that nothing confirms must not pass for success.
    assert!(files.len() >= 55 && confirmed >= 200, "{} scripts, {confirmed} scores confirmed", files.len());
}

#[test]
fn a_bad_line_is_an_error_that_names_file_and_line() {
    for (script, error) in [
        ("pod w1\n", "bad.txt:1: a pod needs a name and a block size"),
        ("pod w1 blocks=4\n", "bad.txt:1: no option `blocks` here"),
        ("pod w1 block=4\n# as\nw2: store 1\n", "bad.txt:3: no pod `w2`"),
        ("pod w1 block=4\nw1: stor 1\n", "bad.txt:2: no event `stor`"),
        ("pod w1 block=4\nw1: store 1 teir cpu\n", "bad.txt:2: `teir` means nothing here"),
        ("pod w1 block=4\nw1: store 1 tier tape\n", "bad.txt:2: no tier `tape`"),
        ("pod w1 block=4\nw1: store 1 tier\n", "bad.txt:2: `tier` needs a value"),
        ("pod w1 block=8\nw1: store 1\n", "bad.txt:2: these labels are not whole blocks of 8 tokens"),
        ("pod w1 block=4\n---\n", "bad.txt:2: nothing was asked"),
        ("pod w1 block=4\nscore 1\n", "bad.txt: the last questions have no `---` after them"),
        ("explode\n", "bad.txt:1: no command `explode`"),
    ] {
        assert_eq!(replay("bad.txt", script).map(|_| ()), Err(error.to_owned()), "{script}");
    }
}
