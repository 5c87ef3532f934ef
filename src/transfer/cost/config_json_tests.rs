use super::*;

/// (kind, layers, bytes per token, bytes of state, window) of each group.
fn groups(text: &str) -> Vec<(GroupKind, u32, u64, u64, Option<u32>)> {
    let g = Geometry::from_config_json(text, None).unwrap_or_else(|e| panic!("{e} in {text}"));
    g.groups.iter().map(|g| (g.kind, g.layers, g.token_bytes, g.state_bytes, g.window)).collect()
}

#[test]
fn llama_3_8b_takes_128_kib_per_token() {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}"#;
    assert_eq!(groups(text), [(GroupKind::Full, 32, 128 << 10, 0, None)]);
    let g = Geometry::from_config_json(text, Some(1)).expect("the same with fp8");
    assert_eq!(
        (g.token_bytes(), g.token_bytes_per_rank(8), g.token_bytes_per_rank(16)),
        (64 << 10, 8 << 10, 8 << 10)
    );
    assert!((26_000.0..27_500.0).contains(&g.attention_parity), "{}", g.attention_parity);
}

#[test]
fn llama_3_70b_takes_320_kib() {
    let text = r#"{"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_hidden_layers": 80, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}"#;
    assert_eq!(groups(text), [(GroupKind::Full, 80, 320 << 10, 0, None)]);
}

#[test]
fn deepseek_v3_keeps_one_latent_on_every_rank() {
    let text = r#"{"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "intermediate_size": 18432,
        "kv_lora_rank": 512, "moe_intermediate_size": 2048, "n_shared_experts": 1, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "torch_dtype": "bfloat16"}"#;
    assert_eq!(groups(text), [(GroupKind::Full, 61, 61 * 576 * 2, 0, None)]);
    let g = Geometry::from_config_json(text, None).expect("as above");
    assert_eq!(g.token_bytes_per_rank(8), g.token_bytes(), "MLA is not split");
}

#[test]
fn deepseek_v3_2_has_an_indexer_beside_it() {
    let text = r#"{"hidden_size": 7168, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128,
        "num_attention_heads": 128, "num_hidden_layers": 61, "torch_dtype": "bfloat16"}"#;
    assert_eq!(groups(text)[0].2, 61 * (576 * 2 + 128 + 4));
}

#[test]
fn gemma_3_has_a_window_in_five_layers_of_six() {
    let text = r#"{"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"head_dim": 256,
        "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8, "num_hidden_layers": 34,
        "num_key_value_heads": 4, "sliding_window": 1024, "sliding_window_pattern": 6}, "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}}"#;
    let per_layer = 4 * 256 * 2 * 2;
    assert_eq!(
        groups(text),
        [
            (GroupKind::Full, 5, 5 * per_layer, 0, None),
            (GroupKind::SlidingWindow, 29, 29 * per_layer, 0, Some(1024))
        ]
    );
    let g = Geometry::from_config_json(text, None).expect("as above");
    assert_eq!(g.bytes(0, 10_000), (5 * 10_000 + 29 * 1024) * per_layer);
}

#[test]
fn layer_types_say_it_outright() {
    let text = r#"{"head_dim": 64, "hidden_size": 2880, "layer_types": ["sliding_attention", "full_attention",
        "sliding_attention", "full_attention"], "num_attention_heads": 64, "num_hidden_layers": 4,
        "num_key_value_heads": 8, "sliding_window": 128, "torch_dtype": "bfloat16"}"#;
    assert_eq!(
        groups(text),
        [(GroupKind::Full, 2, 4096, 0, None), (GroupKind::SlidingWindow, 2, 4096, 0, Some(128))]
    );
}

#[test]
fn mistral_7b_had_a_window_throughout_and_later_has_none() {
    let with = |window: &str| {
        format!(
            r#"{{"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "sliding_window": {window}, "torch_dtype": "bfloat16"}}"#
        )
    };
    assert_eq!(groups(&with("4096")), [(GroupKind::SlidingWindow, 32, 128 << 10, 0, Some(4096))]);
    assert_eq!(groups(&with("null")), [(GroupKind::Full, 32, 128 << 10, 0, None)]);
}

#[test]
fn qwen_2_5_names_a_window_that_it_does_not_use() {
    let text = r#"{"hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28, "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 131072, "torch_dtype": "bfloat16",
        "use_sliding_window": false}"#;
    assert_eq!(groups(text), [(GroupKind::Full, 28, 28 * 4 * 128 * 2 * 2, 0, None)]);
}

#[test]
fn qwen_3_next_attends_in_every_fourth_layer() {
    let text = r#"{"full_attention_interval": 4, "head_dim": 256, "hidden_size": 2048, "intermediate_size": 5120,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_value_head_dim": 128, "moe_intermediate_size": 512, "num_attention_heads": 16, "num_experts_per_tok": 10,
        "num_hidden_layers": 48, "num_key_value_heads": 2, "torch_dtype": "bfloat16"}"#;
    let state = ((2 * 16 * 128 + 32 * 128) * 3 + 32 * 128 * 128) * 2;
    assert_eq!(
        groups(text),
        [(GroupKind::Full, 12, 12 * 2 * 256 * 2 * 2, 0, None), (GroupKind::Mamba, 36, 0, 36 * state, None)]
    );
}

#[test]
fn nemotron_h_has_a_letter_per_layer() {
    let text = r#"{"attention_head_dim": 128, "conv_kernel": 4, "hidden_size": 4096, "hybrid_override_pattern": "M-M*-M",
        "intermediate_size": 21504, "mamba_head_dim": 64, "mamba_num_heads": 128, "n_groups": 8, "num_attention_heads": 32,
        "num_hidden_layers": 6, "num_key_value_heads": 8, "ssm_state_size": 128, "torch_dtype": "bfloat16"}"#;
    let state = ((128 * 64 + 2 * 8 * 128) * 3 + 128 * 64 * 128) * 2;
    assert_eq!(
        groups(text),
        [(GroupKind::Full, 1, 8 * 128 * 2 * 2, 0, None), (GroupKind::Mamba, 3, 0, 3 * state, None)]
    );
}

#[test]
fn jamba_attends_in_one_layer_of_eight() {
    let text = r#"{"attn_layer_offset": 4, "attn_layer_period": 8, "hidden_size": 4096, "intermediate_size": 14336,
        "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "torch_dtype": "bfloat16"}"#;
    assert_eq!(
        groups(text),
        [
            (GroupKind::Full, 4, 16 << 10, 0, None),
            (GroupKind::Mamba, 28, 0, 28 * (8192 * 3 + 8192 * 16) * 2, None)
        ]
    );
}

#[test]
fn llama_4_looks_at_its_chunk_in_three_layers_of_four() {
    let text = r#"{"text_config": {"attention_chunk_size": 8192, "head_dim": 128, "hidden_size": 5120,
        "layer_types": ["chunked_attention", "chunked_attention", "chunked_attention", "full_attention"],
        "num_attention_heads": 40, "num_hidden_layers": 4, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}}"#;
    assert_eq!(
        groups(text),
        [(GroupKind::Full, 1, 4096, 0, None), (GroupKind::ChunkedLocal, 3, 3 * 4096, 0, Some(8192))]
    );
}

#[test]
fn what_is_not_understood_is_refused_and_named() {
    let error = |text: &str| Geometry::from_config_json(text, None).map(|_| ()).unwrap_err().to_string();
    assert!(error("[]").starts_with("not a JSON object"));
    assert!(error("{").starts_with("not a JSON object"));
    assert_eq!(error(r#"{"hidden_size": 1}"#), "no num_hidden_layers");
    assert_eq!(error(r#"{"num_hidden_layers": 99999}"#), "num_hidden_layers is 99999");
    assert_eq!(error(r#"{"num_hidden_layers": "many"}"#), "num_hidden_layers is \"many\"");
    assert_eq!(
        error(r#"{"layer_types": ["full_attention", "dreaming"]}"#),
        "layer 1 is of unknown type \"dreaming\""
    );
    let huge = r#"{"num_hidden_layers": 4000, "num_attention_heads": 4000000, "head_dim": 4000000}"#;
    assert!(error(huge).starts_with("head_dim is"));
    assert_eq!(
        error(
            r#"{"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8, "torch_dtype": "int3"}"#
        ),
        "torch_dtype is int3"
    );
}
