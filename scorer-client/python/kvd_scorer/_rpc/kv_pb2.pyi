from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_GPU: _ClassVar[Tier]
    TIER_CPU: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_SHARED: _ClassVar[Tier]
    TIER_UNKNOWN: _ClassVar[Tier]

class HashKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HASH_KIND_CANONICAL: _ClassVar[HashKind]
    HASH_KIND_ENGINE: _ClassVar[HashKind]
    HASH_KIND_LLMD_CBOR_FNV: _ClassVar[HashKind]
    HASH_KIND_LLMD_XXH64: _ClassVar[HashKind]

class PublisherState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUBLISHER_STATE_UNSPECIFIED: _ClassVar[PublisherState]
    PUBLISHER_STATE_CONNECTING: _ClassVar[PublisherState]
    PUBLISHER_STATE_REPLAYING: _ClassVar[PublisherState]
    PUBLISHER_STATE_LIVE: _ClassVar[PublisherState]
    PUBLISHER_STATE_PARTIAL: _ClassVar[PublisherState]

class OutcomeVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_VERDICT_UNSPECIFIED: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_EXACT: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_CAME_MEANWHILE: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_LEFT_MEANWHILE: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_TOO_LOW: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_TOO_HIGH: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_UNCLEAR: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_UNDER_REVIEW: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_NO_PREDICTION: _ClassVar[OutcomeVerdict]
    OUTCOME_VERDICT_REPEATED: _ClassVar[OutcomeVerdict]

class WarmupStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WARMUP_STAGE_UNSPECIFIED: _ClassVar[WarmupStage]
    WARMUP_STAGE_RESTORING: _ClassVar[WarmupStage]
    WARMUP_STAGE_WARMING: _ClassVar[WarmupStage]
    WARMUP_STAGE_WARM: _ClassVar[WarmupStage]
    WARMUP_STAGE_GIVEN_UP: _ClassVar[WarmupStage]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_NOTE: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
    SEVERITY_ERROR: _ClassVar[Severity]
TIER_UNSPECIFIED: Tier
TIER_GPU: Tier
TIER_CPU: Tier
TIER_DISK: Tier
TIER_SHARED: Tier
TIER_UNKNOWN: Tier
HASH_KIND_CANONICAL: HashKind
HASH_KIND_ENGINE: HashKind
HASH_KIND_LLMD_CBOR_FNV: HashKind
HASH_KIND_LLMD_XXH64: HashKind
PUBLISHER_STATE_UNSPECIFIED: PublisherState
PUBLISHER_STATE_CONNECTING: PublisherState
PUBLISHER_STATE_REPLAYING: PublisherState
PUBLISHER_STATE_LIVE: PublisherState
PUBLISHER_STATE_PARTIAL: PublisherState
OUTCOME_VERDICT_UNSPECIFIED: OutcomeVerdict
OUTCOME_VERDICT_EXACT: OutcomeVerdict
OUTCOME_VERDICT_CAME_MEANWHILE: OutcomeVerdict
OUTCOME_VERDICT_LEFT_MEANWHILE: OutcomeVerdict
OUTCOME_VERDICT_TOO_LOW: OutcomeVerdict
OUTCOME_VERDICT_TOO_HIGH: OutcomeVerdict
OUTCOME_VERDICT_UNCLEAR: OutcomeVerdict
OUTCOME_VERDICT_UNDER_REVIEW: OutcomeVerdict
OUTCOME_VERDICT_NO_PREDICTION: OutcomeVerdict
OUTCOME_VERDICT_REPEATED: OutcomeVerdict
WARMUP_STAGE_UNSPECIFIED: WarmupStage
WARMUP_STAGE_RESTORING: WarmupStage
WARMUP_STAGE_WARMING: WarmupStage
WARMUP_STAGE_WARM: WarmupStage
WARMUP_STAGE_GIVEN_UP: WarmupStage
SEVERITY_UNSPECIFIED: Severity
SEVERITY_NOTE: Severity
SEVERITY_WARNING: Severity
SEVERITY_ERROR: Severity

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockHashes(_message.Message):
    __slots__ = ("kind", "hashes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    kind: HashKind
    hashes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[HashKind, str]] = ..., hashes: _Optional[_Iterable[int]] = ...) -> None: ...

class MmItem(_message.Message):
    __slots__ = ("hash", "offset", "length")
    HASH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    hash: str
    offset: int
    length: int
    def __init__(self, hash: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("tokens", "token_ids_le", "hashes", "score_token", "lora_name", "cache_salt", "mm_items", "continues")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_LE_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    SCORE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LORA_NAME_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    MM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_FIELD_NUMBER: _ClassVar[int]
    tokens: TokenIds
    token_ids_le: bytes
    hashes: BlockHashes
    score_token: str
    lora_name: str
    cache_salt: str
    mm_items: _containers.RepeatedCompositeFieldContainer[MmItem]
    continues: str
    def __init__(self, tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., token_ids_le: _Optional[bytes] = ..., hashes: _Optional[_Union[BlockHashes, _Mapping]] = ..., score_token: _Optional[str] = ..., lora_name: _Optional[str] = ..., cache_salt: _Optional[str] = ..., mm_items: _Optional[_Iterable[_Union[MmItem, _Mapping]]] = ..., continues: _Optional[str] = ...) -> None: ...

class TierWeight(_message.Message):
    __slots__ = ("tier", "weight")
    TIER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    tier: Tier
    weight: float
    def __init__(self, tier: _Optional[_Union[Tier, str]] = ..., weight: _Optional[float] = ...) -> None: ...

class ScoreOptions(_message.Message):
    __slots__ = ("tier_weights", "max_blocks", "include_speculative", "top_k", "want_score_token")
    TIER_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    WANT_SCORE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tier_weights: _containers.RepeatedCompositeFieldContainer[TierWeight]
    max_blocks: int
    include_speculative: bool
    top_k: int
    want_score_token: bool
    def __init__(self, tier_weights: _Optional[_Iterable[_Union[TierWeight, _Mapping]]] = ..., max_blocks: _Optional[int] = ..., include_speculative: bool = ..., top_k: _Optional[int] = ..., want_score_token: bool = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "model", "tenant_id", "prompt", "candidates", "block_size", "options", "seq")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    tenant_id: str
    prompt: Prompt
    candidates: _containers.RepeatedScalarFieldContainer[str]
    block_size: int
    options: ScoreOptions
    seq: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., tenant_id: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., candidates: _Optional[_Iterable[str]] = ..., block_size: _Optional[int] = ..., options: _Optional[_Union[ScoreOptions, _Mapping]] = ..., seq: _Optional[int] = ...) -> None: ...

class TierCount(_message.Message):
    __slots__ = ("tier", "blocks")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    tier: Tier
    blocks: int
    def __init__(self, tier: _Optional[_Union[Tier, str]] = ..., blocks: _Optional[int] = ...) -> None: ...

class EndpointScore(_message.Message):
    __slots__ = ("instance_id", "dp_rank", "block_size_tokens", "cached_blocks", "by_tier", "cumulative_by_tier", "weighted_blocks", "match_blocks", "cached_tokens", "speculative_blocks", "mm_match_blocks", "freshness", "suspect_blocks", "distrusted_blocks")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BY_TIER_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_BY_TIER_FIELD_NUMBER: _ClassVar[int]
    WEIGHTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MATCH_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPECULATIVE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MM_MATCH_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DISTRUSTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    dp_rank: int
    block_size_tokens: int
    cached_blocks: int
    by_tier: _containers.RepeatedCompositeFieldContainer[TierCount]
    cumulative_by_tier: _containers.RepeatedCompositeFieldContainer[TierCount]
    weighted_blocks: float
    match_blocks: int
    cached_tokens: int
    speculative_blocks: int
    mm_match_blocks: int
    freshness: Freshness
    suspect_blocks: int
    distrusted_blocks: int
    def __init__(self, instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., block_size_tokens: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., by_tier: _Optional[_Iterable[_Union[TierCount, _Mapping]]] = ..., cumulative_by_tier: _Optional[_Iterable[_Union[TierCount, _Mapping]]] = ..., weighted_blocks: _Optional[float] = ..., match_blocks: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., speculative_blocks: _Optional[int] = ..., mm_match_blocks: _Optional[int] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ..., suspect_blocks: _Optional[int] = ..., distrusted_blocks: _Optional[int] = ...) -> None: ...

class Freshness(_message.Message):
    __slots__ = ("state", "silent_ms", "staleness_ms", "complete", "last_seq")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_MS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    state: PublisherState
    silent_ms: int
    staleness_ms: int
    complete: bool
    last_seq: int
    def __init__(self, state: _Optional[_Union[PublisherState, str]] = ..., silent_ms: _Optional[int] = ..., staleness_ms: _Optional[int] = ..., complete: bool = ..., last_seq: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("seq", "request_id", "total_blocks", "block_size_tokens", "endpoints", "missing_candidates", "unknown_model", "degraded", "score_token", "coverage", "block_size_mismatch", "error_code", "error_message")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_MODEL_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    SCORE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    request_id: str
    total_blocks: int
    block_size_tokens: int
    endpoints: _containers.RepeatedCompositeFieldContainer[EndpointScore]
    missing_candidates: _containers.RepeatedScalarFieldContainer[str]
    unknown_model: bool
    degraded: bool
    score_token: str
    coverage: float
    block_size_mismatch: _containers.RepeatedScalarFieldContainer[str]
    error_code: int
    error_message: str
    def __init__(self, seq: _Optional[int] = ..., request_id: _Optional[str] = ..., total_blocks: _Optional[int] = ..., block_size_tokens: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[EndpointScore, _Mapping]]] = ..., missing_candidates: _Optional[_Iterable[str]] = ..., unknown_model: bool = ..., degraded: bool = ..., score_token: _Optional[str] = ..., coverage: _Optional[float] = ..., block_size_mismatch: _Optional[_Iterable[str]] = ..., error_code: _Optional[int] = ..., error_message: _Optional[str] = ...) -> None: ...

class LocateBlocksRequest(_message.Message):
    __slots__ = ("model", "tenant_id", "prompt", "candidates", "block_size")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    model: str
    tenant_id: str
    prompt: Prompt
    candidates: _containers.RepeatedScalarFieldContainer[str]
    block_size: int
    def __init__(self, model: _Optional[str] = ..., tenant_id: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., candidates: _Optional[_Iterable[str]] = ..., block_size: _Optional[int] = ...) -> None: ...

class BlockPlacement(_message.Message):
    __slots__ = ("block", "seq_hash", "holders")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SEQ_HASH_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    block: int
    seq_hash: int
    holders: _containers.RepeatedCompositeFieldContainer[BlockHolder]
    def __init__(self, block: _Optional[int] = ..., seq_hash: _Optional[int] = ..., holders: _Optional[_Iterable[_Union[BlockHolder, _Mapping]]] = ...) -> None: ...

class BlockHolder(_message.Message):
    __slots__ = ("instance_id", "dp_rank", "tiers")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    dp_rank: int
    tiers: _containers.RepeatedScalarFieldContainer[Tier]
    def __init__(self, instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[Tier, str]]] = ...) -> None: ...

class RoutedEndpoint(_message.Message):
    __slots__ = ("instance_id", "dp_rank")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    dp_rank: int
    def __init__(self, instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ...) -> None: ...

class RecordRoutingRequest(_message.Message):
    __slots__ = ("request_id", "model", "tenant_id", "prompt", "endpoints", "ttl_ms", "block_size")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    tenant_id: str
    prompt: Prompt
    endpoints: _containers.RepeatedCompositeFieldContainer[RoutedEndpoint]
    ttl_ms: int
    block_size: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., tenant_id: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., endpoints: _Optional[_Iterable[_Union[RoutedEndpoint, _Mapping]]] = ..., ttl_ms: _Optional[int] = ..., block_size: _Optional[int] = ...) -> None: ...

class RecordRoutingResponse(_message.Message):
    __slots__ = ("recorded_blocks", "missing_endpoints")
    RECORDED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MISSING_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    recorded_blocks: int
    missing_endpoints: _containers.RepeatedCompositeFieldContainer[RoutedEndpoint]
    def __init__(self, recorded_blocks: _Optional[int] = ..., missing_endpoints: _Optional[_Iterable[_Union[RoutedEndpoint, _Mapping]]] = ...) -> None: ...

class ForgetRoutingRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ForgetRoutingResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: bool = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("request_id", "model", "tenant_id", "instance_id", "dp_rank", "cached_tokens", "prompt_tokens", "score_token")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    tenant_id: str
    instance_id: str
    dp_rank: int
    cached_tokens: int
    prompt_tokens: int
    score_token: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., tenant_id: _Optional[str] = ..., instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., score_token: _Optional[str] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ("verdict", "predicted_tokens", "tokens_now")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_NOW_FIELD_NUMBER: _ClassVar[int]
    verdict: OutcomeVerdict
    predicted_tokens: int
    tokens_now: int
    def __init__(self, verdict: _Optional[_Union[OutcomeVerdict, str]] = ..., predicted_tokens: _Optional[int] = ..., tokens_now: _Optional[int] = ...) -> None: ...

class ReportOutcomesResponse(_message.Message):
    __slots__ = ("counts", "refused", "first_error")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FIRST_ERROR_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedCompositeFieldContainer[OutcomeCount]
    refused: int
    first_error: str
    def __init__(self, counts: _Optional[_Iterable[_Union[OutcomeCount, _Mapping]]] = ..., refused: _Optional[int] = ..., first_error: _Optional[str] = ...) -> None: ...

class OutcomeCount(_message.Message):
    __slots__ = ("verdict", "reports")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    verdict: OutcomeVerdict
    reports: int
    def __init__(self, verdict: _Optional[_Union[OutcomeVerdict, str]] = ..., reports: _Optional[int] = ...) -> None: ...

class GetHashSpecRequest(_message.Message):
    __slots__ = ("model", "lora_name", "tenant_id", "additional_salt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LORA_NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_SALT_FIELD_NUMBER: _ClassVar[int]
    model: str
    lora_name: str
    tenant_id: str
    additional_salt: str
    def __init__(self, model: _Optional[str] = ..., lora_name: _Optional[str] = ..., tenant_id: _Optional[str] = ..., additional_salt: _Optional[str] = ...) -> None: ...

class HashSpec(_message.Message):
    __slots__ = ("algorithm", "seed", "block_sizes", "description", "vectors", "additional_salt")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_SALT_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    seed: int
    block_sizes: _containers.RepeatedScalarFieldContainer[int]
    description: str
    vectors: _containers.RepeatedCompositeFieldContainer[HashVector]
    additional_salt: str
    def __init__(self, algorithm: _Optional[str] = ..., seed: _Optional[int] = ..., block_sizes: _Optional[_Iterable[int]] = ..., description: _Optional[str] = ..., vectors: _Optional[_Iterable[_Union[HashVector, _Mapping]]] = ..., additional_salt: _Optional[str] = ...) -> None: ...

class HashVector(_message.Message):
    __slots__ = ("block_size", "token_ids", "cache_salt", "seq_hashes")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    SEQ_HASHES_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    seq_hashes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, block_size: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ..., seq_hashes: _Optional[_Iterable[int]] = ...) -> None: ...

class PublisherSpec(_message.Message):
    __slots__ = ("tenant_id", "model", "instance_id", "dp_rank", "type", "endpoint", "replay_endpoint", "block_size", "lora_name", "additional_salt", "bind", "topic", "attention_chunk_size", "hash_algo", "hash_seed", "node")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REPLAY_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    LORA_NAME_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_SALT_FIELD_NUMBER: _ClassVar[int]
    BIND_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    HASH_ALGO_FIELD_NUMBER: _ClassVar[int]
    HASH_SEED_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model: str
    instance_id: str
    dp_rank: int
    type: str
    endpoint: str
    replay_endpoint: str
    block_size: int
    lora_name: str
    additional_salt: str
    bind: str
    topic: str
    attention_chunk_size: int
    hash_algo: str
    hash_seed: str
    node: str
    def __init__(self, tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., type: _Optional[str] = ..., endpoint: _Optional[str] = ..., replay_endpoint: _Optional[str] = ..., block_size: _Optional[int] = ..., lora_name: _Optional[str] = ..., additional_salt: _Optional[str] = ..., bind: _Optional[str] = ..., topic: _Optional[str] = ..., attention_chunk_size: _Optional[int] = ..., hash_algo: _Optional[str] = ..., hash_seed: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class RegisterPublisherRequest(_message.Message):
    __slots__ = ("publisher",)
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    publisher: PublisherSpec
    def __init__(self, publisher: _Optional[_Union[PublisherSpec, _Mapping]] = ...) -> None: ...

class RegisterPublisherResponse(_message.Message):
    __slots__ = ("replaced",)
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    replaced: bool
    def __init__(self, replaced: bool = ...) -> None: ...

class UnregisterPublisherRequest(_message.Message):
    __slots__ = ("tenant_id", "model", "instance_id", "dp_rank")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model: str
    instance_id: str
    dp_rank: int
    def __init__(self, tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ...) -> None: ...

class UnregisterPublisherResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[PublisherSpec]
    def __init__(self, removed: _Optional[_Iterable[_Union[PublisherSpec, _Mapping]]] = ...) -> None: ...

class ListPublishersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPublishersResponse(_message.Message):
    __slots__ = ("publishers",)
    PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    publishers: _containers.RepeatedCompositeFieldContainer[PublisherStatus]
    def __init__(self, publishers: _Optional[_Iterable[_Union[PublisherStatus, _Mapping]]] = ...) -> None: ...

class PublisherStatus(_message.Message):
    __slots__ = ("spec", "freshness", "batches", "events", "blocks", "gaps", "restarts", "replays", "malformed", "dropped", "queued", "last_error", "observed_block_size", "events_skipped", "by_tier", "suspect_blocks", "losses", "misranked", "outcomes", "too_low_tokens", "too_high_tokens", "distrusted_blocks")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    REPLAYS_FIELD_NUMBER: _ClassVar[int]
    MALFORMED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    BY_TIER_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    MISRANKED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    TOO_LOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOO_HIGH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISTRUSTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    spec: PublisherSpec
    freshness: Freshness
    batches: int
    events: int
    blocks: int
    gaps: int
    restarts: int
    replays: int
    malformed: int
    dropped: int
    queued: int
    last_error: str
    observed_block_size: int
    events_skipped: int
    by_tier: _containers.RepeatedCompositeFieldContainer[TierCount]
    suspect_blocks: int
    losses: int
    misranked: int
    outcomes: _containers.RepeatedCompositeFieldContainer[OutcomeCount]
    too_low_tokens: int
    too_high_tokens: int
    distrusted_blocks: int
    def __init__(self, spec: _Optional[_Union[PublisherSpec, _Mapping]] = ..., freshness: _Optional[_Union[Freshness, _Mapping]] = ..., batches: _Optional[int] = ..., events: _Optional[int] = ..., blocks: _Optional[int] = ..., gaps: _Optional[int] = ..., restarts: _Optional[int] = ..., replays: _Optional[int] = ..., malformed: _Optional[int] = ..., dropped: _Optional[int] = ..., queued: _Optional[int] = ..., last_error: _Optional[str] = ..., observed_block_size: _Optional[int] = ..., events_skipped: _Optional[int] = ..., by_tier: _Optional[_Iterable[_Union[TierCount, _Mapping]]] = ..., suspect_blocks: _Optional[int] = ..., losses: _Optional[int] = ..., misranked: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[OutcomeCount, _Mapping]]] = ..., too_low_tokens: _Optional[int] = ..., too_high_tokens: _Optional[int] = ..., distrusted_blocks: _Optional[int] = ...) -> None: ...

class DumpRequest(_message.Message):
    __slots__ = ("tenant_id", "model", "instance_id", "resume_token")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model: str
    instance_id: str
    resume_token: str
    def __init__(self, tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., instance_id: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class DumpChunk(_message.Message):
    __slots__ = ("rows", "resume_token")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[DumpRow]
    resume_token: str
    def __init__(self, rows: _Optional[_Iterable[_Union[DumpRow, _Mapping]]] = ..., resume_token: _Optional[str] = ...) -> None: ...

class DumpRow(_message.Message):
    __slots__ = ("tenant_id", "model", "instance_id", "dp_rank", "tier", "block", "depth", "parent", "block_size_tokens")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    model: str
    instance_id: str
    dp_rank: int
    tier: Tier
    block: int
    depth: int
    parent: int
    block_size_tokens: int
    def __init__(self, tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., tier: _Optional[_Union[Tier, str]] = ..., block: _Optional[int] = ..., depth: _Optional[int] = ..., parent: _Optional[int] = ..., block_size_tokens: _Optional[int] = ...) -> None: ...

class ExplainScoreRequest(_message.Message):
    __slots__ = ("score", "instance_id", "dp_rank")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    score: ScoreRequest
    instance_id: str
    dp_rank: int
    def __init__(self, score: _Optional[_Union[ScoreRequest, _Mapping]] = ..., instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ...) -> None: ...

class ExplainScoreResponse(_message.Message):
    __slots__ = ("score", "blocks", "steps")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    score: EndpointScore
    blocks: _containers.RepeatedCompositeFieldContainer[ExplainedBlock]
    steps: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, score: _Optional[_Union[EndpointScore, _Mapping]] = ..., blocks: _Optional[_Iterable[_Union[ExplainedBlock, _Mapping]]] = ..., steps: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainedBlock(_message.Message):
    __slots__ = ("block", "seq_hash", "tiers", "gpu_groups", "speculative")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SEQ_HASH_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    GPU_GROUPS_FIELD_NUMBER: _ClassVar[int]
    SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    block: int
    seq_hash: int
    tiers: _containers.RepeatedScalarFieldContainer[Tier]
    gpu_groups: _containers.RepeatedScalarFieldContainer[int]
    speculative: bool
    def __init__(self, block: _Optional[int] = ..., seq_hash: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[Tier, str]]] = ..., gpu_groups: _Optional[_Iterable[int]] = ..., speculative: bool = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("publishers", "live_publishers", "blocks", "entries", "queries", "batches", "events", "events_skipped", "messages_dropped", "speculative_entries", "uptime_ms", "version")
    PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    LIVE_PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    SPECULATIVE_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    publishers: int
    live_publishers: int
    blocks: int
    entries: int
    queries: int
    batches: int
    events: int
    events_skipped: int
    messages_dropped: int
    speculative_entries: int
    uptime_ms: int
    version: str
    def __init__(self, publishers: _Optional[int] = ..., live_publishers: _Optional[int] = ..., blocks: _Optional[int] = ..., entries: _Optional[int] = ..., queries: _Optional[int] = ..., batches: _Optional[int] = ..., events: _Optional[int] = ..., events_skipped: _Optional[int] = ..., messages_dropped: _Optional[int] = ..., speculative_entries: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class GetWarmupRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetWarmupResponse(_message.Message):
    __slots__ = ("stage", "ready", "uptime_ms", "limit_ms", "restored_from", "restored_publishers", "restored_blocks", "waiting")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MS_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FROM_FIELD_NUMBER: _ClassVar[int]
    RESTORED_PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    RESTORED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    stage: WarmupStage
    ready: bool
    uptime_ms: int
    limit_ms: int
    restored_from: str
    restored_publishers: int
    restored_blocks: int
    waiting: _containers.RepeatedCompositeFieldContainer[PublisherStatus]
    def __init__(self, stage: _Optional[_Union[WarmupStage, str]] = ..., ready: bool = ..., uptime_ms: _Optional[int] = ..., limit_ms: _Optional[int] = ..., restored_from: _Optional[str] = ..., restored_publishers: _Optional[int] = ..., restored_blocks: _Optional[int] = ..., waiting: _Optional[_Iterable[_Union[PublisherStatus, _Mapping]]] = ...) -> None: ...

class DiagnoseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiagnoseResponse(_message.Message):
    __slots__ = ("findings", "reports", "unmatched_reports", "publishers")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    UNMATCHED_REPORTS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    reports: int
    unmatched_reports: int
    publishers: int
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., reports: _Optional[int] = ..., unmatched_reports: _Optional[int] = ..., publishers: _Optional[int] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("problem", "severity", "tenant_id", "model", "instance_id", "dp_rank", "confidence", "evidence", "remedy")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    problem: str
    severity: Severity
    tenant_id: str
    model: str
    instance_id: str
    dp_rank: int
    confidence: float
    evidence: str
    remedy: str
    def __init__(self, problem: _Optional[str] = ..., severity: _Optional[_Union[Severity, str]] = ..., tenant_id: _Optional[str] = ..., model: _Optional[str] = ..., instance_id: _Optional[str] = ..., dp_rank: _Optional[int] = ..., confidence: _Optional[float] = ..., evidence: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...
