//! How does a client compute the hashes that `Score` accepts?

use kvproto::hash::canonical::{ALGORITHM, Namespace, PromptExtras, Seed, prompt_hashes};
use kvproto::rpc::kv;

use super::convert::{non_empty, or_default_tenant};
use crate::serve::{AskError, Service};

/// The scheme in words; `docs/formats.md` has it at length.
const DESCRIPTION: &str = "\
All integers are little-endian; len(x) is the byte length of x as u64; || joins bytes. \
seed = XXH3-64(\"kvd-xxh3-64/1\" || len(salt) salt || len(model) model || lora, 0), where lora is one byte 0 \
without an adapter, or one byte 1 || len(name) name. \
Only whole blocks count. local[i] = XXH3-64(token ids of block i as u32, seed); with extra keys \
local[i] = XXH3-64(that as u64 || keys, seed). \
seq[0] = local[0]; seq[i] = XXH3-64(seq[i-1] as u64 || local[i] as u64, seed). \
keys of a block: each multimodal item that touches it, in order of offset, as one byte 2 || len(hash) hash || \
(item offset - first token of the block) as i64; then in block 0 the cache salt as one byte 1 || len(salt) salt. \
Engines that name items without their offset (vLLM up to 0.18) have one byte 1 || len(hash) hash instead.";

/// Answers `GetHashSpec`.
pub(super) fn hash_spec(
    service: &Service,
    request: kv::GetHashSpecRequest,
) -> Result<kv::HashSpec, AskError> {
    let kv::GetHashSpecRequest { model, lora_name, tenant_id, additional_salt } = request;
    let tenant = or_default_tenant(tenant_id);
    if model.is_empty() {
        return Err(AskError::invalid("model", "empty"));
    }
    service.check_text("model", &model)?;
    service.check_text("lora_name", &lora_name)?;
    service.check_text("tenant_id", &tenant)?;
    let salt = match additional_salt {
        Some(salt) => {
            service.check_text("additional_salt", &salt)?;
            salt
        }
        None => the_salt(service, &tenant, &model)?,
    };
    let lora = non_empty(lora_name);
    let seed = Namespace { salt: &salt, model: &model, lora: lora.as_deref() }.seed();
    let block_sizes = service.index.block_sizes(&tenant, &model);
    let block_size = block_sizes.first().copied().unwrap_or(16);
    let vectors = vec![vector(seed, block_size, ""), vector(seed, block_size, "salt of one user")];
    Ok(kv::HashSpec {
        algorithm: ALGORITHM.to_owned(),
        seed: seed.0,
        block_sizes,
        description: DESCRIPTION.to_owned(),
        vectors,
        additional_salt: salt,
    })
}

/// The salt that the model's publishers agree on; none registered means none.
fn the_salt(service: &Service, tenant: &str, model: &str) -> Result<String, AskError> {
    let mut salts: Vec<String> =
        service.holders(tenant, model, &[]).into_iter().map(|(_, spec)| spec.salt.clone()).collect();
    salts.sort_unstable();
    salts.dedup();
    if salts.len() > 1 {
        return Err(AskError::invalid(
            "additional_salt",
            format!("this model's publishers use {}, say which", salts.len()),
        ));
    }
    Ok(salts.pop().unwrap_or_default())
}

/// A worked example: two blocks and a tail that does not count.
fn vector(seed: Seed, block_size: u32, cache_salt: &str) -> kv::HashVector {
    // Engines choose their block size; the example stays small whatever it is.
    let block_size = block_size.min(4096);
    let token_ids: Vec<u32> = (1..=2 * block_size + 1).collect();
    let salt = (!cache_salt.is_empty()).then_some(cache_salt);
    let extras = PromptExtras { cache_salt: salt, ..PromptExtras::default() };
    let seq_hashes = prompt_hashes(seed, &token_ids, block_size, extras).map(|h| h.0).collect();
    kv::HashVector { block_size, token_ids, cache_salt: cache_salt.to_owned(), seq_hashes }
}
