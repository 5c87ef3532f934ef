//! The indexes under test, each behind the same trait.

pub mod dynamo;
pub mod flat;
pub mod kvd;
pub mod smg;
pub mod strand;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Effort, run};
    use crate::peer::Peer;
    use crate::stream::Stream;
    use crate::workload::{Eviction, adversarial, mooncake, trace};

    /// Small streams of three kinds, through a file as the benches read them.
    fn streams() -> [Stream; 3] {
        let requests = trace::invent(300, 9);
        [
            ("adversarial", adversarial::stream(3, 4000, 9)),
            ("heads", mooncake::stream(&requests, 512, 70, 320, Eviction::Head, 9)),
            ("tails", mooncake::stream(&requests, 512, 3, 320, Eviction::Tail, 9)),
        ]
        .map(|(name, stream)| {
            let path = std::env::temp_dir().join(format!("peer-bench-{}-{name}", std::process::id()));
            stream.save(&path).unwrap();
            let back = Stream::load(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            back
        })
    }

    fn wrong<P: Peer>(stream: &Stream) -> u64 {
        run::<P>("test", stream, Effort { questions: 200, passes: 1, expected_blocks: 0 }).wrong().0
    }

    #[test]
    fn the_exact_indexes_answer_every_question_of_every_stream_right() {
        let [adversarial, heads, tails] = &streams();
        for stream in [adversarial, heads, tails] {
            assert_eq!(wrong::<kvd::ByLocal>(stream), 0);
            assert_eq!(wrong::<kvd::BySequence>(stream), 0);
            assert_eq!(wrong::<kvd::Canonical>(stream), 0);
            assert_eq!(wrong::<smg::Chain<false>>(stream), 0);
            assert_eq!(wrong::<flat::Flat<false>>(stream), 0);
            assert_eq!(wrong::<flat::Flat<true>>(stream), 0);
            assert_eq!(wrong::<strand::Strand<false>>(stream), 0);
            assert_eq!(wrong::<strand::Strand<true>>(stream), 0);
        }
        assert_eq!(wrong::<kvd::ByTokens<16>>(adversarial), 0);
        assert_eq!(wrong::<kvd::ByTokens<512>>(heads), 0);
        // The count is worth something only if it counts.
        assert_ne!(wrong::<dynamo::Radix>(adversarial), 0);
    }
}
