#!/usr/bin/env bash
# Generates the messages and stubs of kvpb from kv.v1. Debian 12: protobuf-compiler, protoc-gen-go 1.28,
# protoc-gen-go-grpc (of grpc 1.33).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
module=github.com/kvd-project/kvd/scorer-client/go
options=(module=$module Mkv/v1/kv.proto=$module/kvpb)
protoc -I ../../kvproto/proto "${options[@]/#/--go_opt=}" "${options[@]/#/--go-grpc_opt=}" --go_out=. --go-grpc_out=. kv/v1/kv.proto
