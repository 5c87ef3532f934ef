"""Messages of kv.v1, generated from kvproto/proto/kv/v1/kv.proto; README.md says how."""
