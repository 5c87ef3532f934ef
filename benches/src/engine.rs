//! The engines' side: batches as vLLM 0.32 writes them, on real sockets.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvd::ctl::engine_sim::{EngineSim, ReplayFrames, SimConfig};
use kvd::ctl::kvcap::Record;
use kvd::publisher::{EngineType, PublisherSpec};
use rmp::encode as e;

use crate::server::MODEL;
use crate::workload::{BLOCK, Prompt};

/// Blocks in one store event, where a workload does not say otherwise: a prefill step of 512 tokens.
const BLOCKS_PER_EVENT: usize = 32;

/// Consecutive blocks that came onto the device.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// One per block.
    pub hashes: &'a [u64],
    /// The block before the first.
    pub parent: Option<u64>,
    /// The blocks' tokens.
    pub tokens: &'a [u32],
}

/// Blocks `from..to` of a prompt, as store events of at most `per_event` blocks.
pub fn stores(prompt: &Prompt, from: usize, to: usize, per_event: usize) -> impl Iterator<Item = Store<'_>> {
    (from..to).step_by(per_event).map(move |at| {
        let end = to.min(at + per_event);
        Store {
            hashes: &prompt.hashes[at..end],
            parent: at.checked_sub(1).map(|before| prompt.hashes[before]),
            tokens: &prompt.tokens[at * BLOCK as usize..end * BLOCK as usize],
        }
    })
}

/// A batch of these stores, then removals of these blocks, byte for byte as the engine would
/// write it for a model with one full-attention group.
pub fn payload(stores: &[Store<'_>], removed: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, stores, removed).expect("a vector takes every byte");
    out
}

fn write(out: &mut Vec<u8>, stores: &[Store<'_>], removed: &[u64]) -> anyhow::Result<()> {
    e::write_array_len(out, 3)?;
    e::write_f64(out, 1_795_347_163.541)?;
    e::write_array_len(out, (stores.len() + usize::from(!removed.is_empty())) as u32)?;
    for store in stores {
        e::write_map_len(out, 11)?;
        text(out, "type", "BlockStored")?;
        hashes(out, store.hashes)?;
        e::write_str(out, "parent_block_hash")?;
        match store.parent {
            Some(hash) => drop(e::write_uint(out, hash)?),
            None => e::write_nil(out)?,
        }
        e::write_str(out, "token_ids")?;
        e::write_array_len(out, store.tokens.len() as u32)?;
        for token in store.tokens {
            e::write_uint(out, u64::from(*token))?;
        }
        number(out, "block_size", u64::from(BLOCK))?;
        e::write_str(out, "lora_id")?;
        e::write_nil(out)?;
        text(out, "medium", "GPU")?;
        e::write_str(out, "lora_name")?;
        e::write_nil(out)?;
        e::write_str(out, "extra_keys")?;
        e::write_array_len(out, store.hashes.len() as u32)?;
        for _ in store.hashes {
            e::write_nil(out)?;
        }
        number(out, "group_idx", 0)?;
        text(out, "kv_cache_spec_kind", "full_attention")?;
    }
    if !removed.is_empty() {
        e::write_map_len(out, 4)?;
        text(out, "type", "BlockRemoved")?;
        hashes(out, removed)?;
        text(out, "medium", "GPU")?;
        number(out, "group_idx", 0)?;
    }
    e::write_uint(out, 0)?;
    Ok(())
}

fn hashes(out: &mut Vec<u8>, hashes: &[u64]) -> anyhow::Result<()> {
    e::write_str(out, "block_hashes")?;
    e::write_array_len(out, hashes.len() as u32)?;
    for hash in hashes {
        e::write_uint(out, *hash)?;
    }
    Ok(())
}

fn text(out: &mut Vec<u8>, key: &str, value: &str) -> anyhow::Result<()> {
    e::write_str(out, key)?;
    e::write_str(out, value)?;
    Ok(())
}

fn number(out: &mut Vec<u8>, key: &str, value: u64) -> anyhow::Result<()> {
    e::write_str(out, key)?;
    e::write_uint(out, value)?;
    Ok(())
}

/// An engine that publishes.
pub struct Pod {
    /// What it is registered as.
    pub instance: String,
    sim: EngineSim,
    next: u64,
}

impl Pod {
    /// Opens the socket of the pod with this number.
    pub fn open(number: usize) -> anyhow::Result<Pod> {
        Pod::opened(number, 1, None)
    }

    /// The same, of a pod that keeps its last `ring` batches for replay.
    pub fn keeping(number: usize, ring: usize) -> anyhow::Result<Pod> {
        Pod::opened(number, ring, Some("tcp://127.0.0.1:*".into()))
    }

    fn opened(number: usize, ring: usize, replay_endpoint: Option<String>) -> anyhow::Result<Pod> {
        let config = SimConfig {
            endpoint: "tcp://127.0.0.1:*".into(),
            replay_endpoint,
            frames: ReplayFrames::WithTopic,
            ring,
            replay_hwm: 0,
        };
        let instance = format!("10.0.{}.{}:8000", number / 256, number % 256);
        Ok(Pod { instance, sim: EngineSim::open(&config)?, next: 0 })
    }

    /// Where it publishes.
    pub fn endpoint(&self) -> &str {
        self.sim.endpoint()
    }

    /// Where it answers replay requests, if it does.
    pub fn replay_endpoint(&self) -> Option<&str> {
        self.sim.replay_endpoint()
    }

    /// How it is registered with ingest in this process.
    pub fn spec(&self) -> PublisherSpec {
        PublisherSpec {
            endpoint: Some(self.endpoint().to_owned()),
            block_size: Some(BLOCK),
            ..PublisherSpec::new(EngineType::Vllm, MODEL, self.instance.as_str())
        }
    }

    /// Waits until `n` have subscribed, so that they get everything published from then on.
    pub fn wait_for_subscribers(&mut self, n: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.sim.subscribers()? < n {
            ensure!(
                Instant::now() < deadline,
                "{} of {n} subscribed to {}",
                self.sim.subscribers()?,
                self.endpoint()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Publishes one batch.
    pub fn publish(&mut self, payload: Vec<u8>) -> anyhow::Result<()> {
        let record =
            Record { topic: Vec::new(), seq: self.next.to_be_bytes().to_vec(), payload, received_ns: 0 };
        self.next += 1;
        self.sim.publish(&record).context("publish")
    }
}

/// What the pods are registered as.
pub fn instances(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(|p| p.instance.clone()).collect()
}

/// Publishes, for every prompt, what each pod holds of it.
pub fn publish_held(pods: &mut [Pod], prompts: &[Prompt]) -> anyhow::Result<()> {
    for prompt in prompts {
        for (pod, held) in pods.iter_mut().zip(&prompt.held) {
            for store in stores(prompt, 0, *held as usize, BLOCKS_PER_EVENT) {
                pod.publish(payload(&[store], &[]))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kvproto::engine::{Engine, decode};
    use kvproto::{EngineHash, Event};

    use super::*;
    use crate::workload::Random;

    #[test]
    fn a_payload_says_what_it_was_made_of() {
        let prompt = Prompt::random(&mut Random(1), 100);
        let parts: Vec<Store<'_>> = stores(&prompt, 0, 6, 4).collect();
        assert_eq!((parts.len(), parts[0].parent, parts[1].parent), (2, None, Some(prompt.hashes[3])));
        let bytes = payload(&parts, &prompt.hashes[5..6]);
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        assert_eq!(batch.skipped.unknown + batch.skipped.malformed, 0);
        let events: Vec<Event<'_>> = batch.events().collect();
        let Event::Stored(second) = &events[1] else { panic!("a store") };
        assert_eq!((second.hashes.len(), second.tokens), (2, &prompt.tokens[64..96]));
        let Event::Removed(removed) = &events[2] else { panic!("a removal") };
        assert_eq!(removed.hashes, [EngineHash(prompt.hashes[5])]);
    }
}
