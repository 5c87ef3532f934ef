//! What this machine allows, whatever the index: memory latency, table probes, hashing, comparing.

use std::hint::black_box;
use std::time::Instant;

use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};

use crate::hash::{Random, mix, sequence_hashes};
use crate::peers::strand::Table;

/// Blocks of a prompt of 128k tokens.
const BLOCKS: usize = 8192;
/// Tokens per block.
const BLOCK: u32 = 16;
const MIB: usize = 1 << 20;

/// Measures and prints.
pub fn run() {
    println!("nanoseconds: the best of five, and the median\n");
    println!("random dependent reads of a cache line, in");
    for (name, bytes) in [
        ("32 KiB", MIB / 32),
        ("1 MiB", MIB),
        ("16 MiB", 16 * MIB),
        ("128 MiB", 128 * MIB),
        ("1 GiB", 1024 * MIB),
    ] {
        show(name, chase(bytes));
    }
    for keys in [1_000_000, 10_000_000] {
        println!("\nprobes of a table of {keys} keys in 16-byte slots");
        probes(keys);
    }
    println!("\nnaming a prompt of {BLOCKS} blocks of {BLOCK} tokens, per block");
    naming();
    println!("\ncomparing it with blocks not in the cache, per block");
    comparing();
}

fn show(what: &str, (best, median): (f64, f64)) {
    println!("  {what:<44} {best:8.2} {median:8.2}");
}

/// Best and median of five runs of `work`, per unit of the `n` that it does.
fn time(n: usize, mut work: impl FnMut()) -> (f64, f64) {
    let mut once = || {
        let began = Instant::now();
        work();
        began.elapsed().as_nanos() as f64 / n as f64
    };
    let mut nanos = [(); 5].map(|()| once());
    nanos.sort_by(f64::total_cmp);
    (nanos[0], nanos[2])
}

/// Goes round all cache lines of `bytes` in an order by chance.
fn chase(bytes: usize) -> (f64, f64) {
    let lines = bytes / 64;
    let mut order: Vec<u32> = (0..lines as u32).collect();
    let mut random = Random(7);
    for i in (1..lines).rev() {
        order.swap(i, random.below(i + 1));
    }
    let mut next = vec![[0u32; 16]; lines];
    for i in 0..lines {
        next[order[i] as usize][0] = order[(i + 1) % lines];
    }
    let steps = 2_000_000.min(lines * 8);
    let mut at = 0;
    time(steps, || {
        for _ in 0..steps {
            at = next[at as usize][0];
        }
        black_box(at);
    })
}

fn probes(n: usize) {
    const PROBES: usize = 500_000;
    const AT_ONCE: usize = 16;
    let key = |i: u64| mix(i) | 1;
    let mut table = Table::new(n);
    (0..n as u64).for_each(|i| table.put(key(i), i as u32, 0));
    let mut random = Random(3);
    let keys: Vec<u64> = (0..PROBES).map(|_| key(random.below(n) as u64)).collect();
    let found = |k: u64| table.get(k).map_or(0, |(a, _)| u64::from(a));

    let mut i = 1u64;
    let dependent = time(PROBES, || {
        for _ in 0..PROBES {
            i = mix(i.wrapping_add(found(key(i % n as u64))));
        }
        black_box(i);
    });
    show("each key from the last answer", dependent);
    let independent = time(PROBES, || {
        black_box(keys.iter().fold(0, |sum: u64, k| sum.wrapping_add(found(*k))));
    });
    show("keys known beforehand", independent);
    let fetched = time(PROBES, || {
        let mut sum = 0u64;
        for keys in keys.chunks(AT_ONCE) {
            keys.iter().for_each(|k| table.prefetch(*k));
            keys.iter().for_each(|k| sum = sum.wrapping_add(found(*k)));
        }
        black_box(sum);
    });
    show("the same, 16 fetched at once", fetched);
}

fn naming() {
    let tokens: Vec<u32> = (0..BLOCK * BLOCKS as u32).map(|i| mix(u64::from(i)) as u32 % 150_000).collect();
    let locals: Vec<u64> = (0..BLOCKS as u64).map(mix).collect();
    let seed = Namespace { salt: "", model: "model", lora: None }.seed();
    let hash = |block: &[u32]| seed.local(black_box(block), &[]).0;
    let local = time(BLOCKS, || {
        black_box(tokens.chunks_exact(BLOCK as usize).fold(0, |sum, b| sum ^ hash(b)));
    });
    show("local hashes of tokens", local);
    show("chaining local hashes", time(BLOCKS, || drop(black_box(sequence_hashes(black_box(&locals))))));
    let both = time(BLOCKS, || {
        let hashes = prompt_hashes(seed, black_box(&tokens), BLOCK, PromptExtras::default());
        black_box(hashes.fold(0, |sum, h| sum ^ h.0));
    });
    show("kvd's canonical hashes of tokens, both at once", both);
}

fn comparing() {
    const PROMPTS: usize = 2000;
    const COMPARED: usize = 400;
    let prompt: Vec<u64> = (0..BLOCKS as u64).map(mix).collect();
    let stored: Vec<u64> = prompt.iter().copied().cycle().take(PROMPTS * BLOCKS).collect();
    let short: Vec<u32> = prompt.iter().map(|x| *x as u32).collect();
    let stored_short: Vec<u32> = stored.iter().map(|x| *x as u32).collect();
    show("64-bit hashes", compare::<u64, PROMPTS, COMPARED>(&prompt, &stored));
    show("32-bit fingerprints", compare::<u32, PROMPTS, COMPARED>(&short, &stored_short));
}

fn compare<T: PartialEq, const PROMPTS: usize, const COMPARED: usize>(
    prompt: &[T],
    stored: &[T],
) -> (f64, f64) {
    let mut random = Random(5);
    time(COMPARED * prompt.len(), || {
        for _ in 0..COMPARED {
            let at = random.below(PROMPTS) * prompt.len();
            let same = prompt.chunks(64).zip(stored[at..].chunks(64)).take_while(|(a, b)| a == b).count();
            black_box(same);
        }
    })
}
