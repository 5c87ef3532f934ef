#!/usr/bin/env bash
# Compiles and tests the module with Debian's packages of grpc and protobuf (golang-go, golang-google-grpc-dev,
# golang-google-protobuf-dev, golang-google-genproto-dev), for where no module proxy is at hand.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
module=$work/src/github.com/kvd-project/kvd/scorer-client
mkdir -p "$module"
ln -s "$here" "$module/go"
cd "$module/go"
export GO111MODULE=off GOPATH=$work:/usr/share/gocode GOFLAGS=-buildvcs=false GOCACHE=${GOCACHE:-$work/cache}
[[ -z $(gofmt -l ./*.go) ]] || { gofmt -d ./*.go; exit 1; }
packages=(github.com/kvd-project/kvd/scorer-client/go github.com/kvd-project/kvd/scorer-client/go/kvpb)
go vet "${packages[@]}"
go test -count=1 "$@" "${packages[@]}"
