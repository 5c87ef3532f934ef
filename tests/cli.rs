//! Transcripts of kvctl: what is typed, what comes back, and with which exit code.
//!
//! `TRYCMD=overwrite cargo test --test cli` writes what comes back into the transcripts, to be
//! reviewed as a diff.

#[test]
fn kvctl_answers_as_its_transcripts_say() {
    trycmd::TestCases::new().env("COLUMNS", "100").case("tests/cli/*.trycmd");
}
