# shellcheck shell=bash disable=SC2154 # what is not assigned here, ./run assigns
#
# Which RocksDB does a build link, and where do its headers lie? Sourced by ./run.
#
# The crate (librocksdb-sys in Cargo.lock) carries RocksDB's C++ and compiles it, a quarter of an hour
# on two cores, in every target directory there is. So it is given a library that is there already:
# the distribution's, where that is of a version the crate's bindings fit, otherwise one that is
# compiled once from the crate's own copy into a cache.
#
# The crate reads ROCKSDB_LIB_DIR, ROCKSDB_INCLUDE_DIR and ROCKSDB_STATIC; bindgen, which it generates
# its bindings with, LIBCLANG_PATH and BINDGEN_EXTRA_CLANG_ARGS.

# Major and minor versions that the crate's bindings fit: its own, and the one before.
rocksdb_fits='^7\.[89]$'

# Sets and exports what the crate reads.
need_rocksdb() {
    step "RocksDB and libclang"
    need_libclang
    local how
    if [[ -n ${ROCKSDB_LIB_DIR:-} ]]; then
        compgen -G "$ROCKSDB_LIB_DIR/librocksdb.*" >/dev/null && [[ -n ${ROCKSDB_INCLUDE_DIR:-} ]] ||
            fail "ROCKSDB_LIB_DIR is set, but $ROCKSDB_LIB_DIR has no librocksdb, or ROCKSDB_INCLUDE_DIR is not set" \
                "unset ROCKSDB_LIB_DIR, or set both to where a RocksDB 7.8 or 7.9 lies"
        how="the one in $ROCKSDB_LIB_DIR, as ROCKSDB_LIB_DIR says"
    elif may_take_system && find_system_rocksdb; then
        how="the system's $rocksdb_found"
    elif find_built_rocksdb; then
        how="the one built in $rocksdb_dir"
    elif may_take_system && install_system_rocksdb; then
        how="installed the system's $rocksdb_found"
    else
        build_rocksdb
        how="built in $rocksdb_dir"
    fi
    export ROCKSDB_LIB_DIR ROCKSDB_INCLUDE_DIR
    [[ -z ${ROCKSDB_STATIC:-} ]] || export ROCKSDB_STATIC
    ok "$how"
}

# What a shell must have for cargo to do what ./run does, for eval.
print_rocksdb_env() {
    local name
    for name in ROCKSDB_LIB_DIR ROCKSDB_INCLUDE_DIR ROCKSDB_STATIC LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS; do
        if [[ -n ${!name:-} ]]; then printf 'export %s=%q\n' "$name" "${!name}"; else echo "unset $name"; fi
    done
}

# --- libclang --------------------------------------------------------------------------------

need_libclang() {
    if [[ -z ${LIBCLANG_PATH:-} ]] && ! find_libclang; then
        apt_index
        # The library alone; the default version is the one that libclang-dev would bring much more of.
        local version
        version=$(apt-cache depends libclang-dev 2>/dev/null | sed -n 's/.*Depends: libclang-\([0-9]*\)-dev.*/\1/p' | head -n 1)
        install_packages "libclang1-${version:-14}"
        find_libclang || fail "there is no libclang after installing libclang1-${version:-14}" \
            "install libclang, set LIBCLANG_PATH to its directory, then run this again"
    fi
    # The library comes without the compiler's own headers (stddef.h); any compiler's will do.
    : "${BINDGEN_EXTRA_CLANG_ARGS:=-I$(c++ -print-file-name=include)}"
    export LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS
}

# Sets LIBCLANG_PATH to the newest there is.
find_libclang() {
    local found
    found=$(compgen -G '/usr/lib/llvm-*/lib/libclang[.-]*so*'
        compgen -G '/usr/lib/*/libclang-[0-9]*.so*'
        compgen -G '/usr/lib64/libclang.so*') || true
    LIBCLANG_PATH=$(grep -v -e -cpp <<<"$found" | sort -V | tail -n 1) || true
    [[ -n $LIBCLANG_PATH ]]
}

# --- The distribution's ----------------------------------------------------------------------

may_take_system() { [[ -z ${KVD_ROCKSDB_DIR:-} ]]; }

# Sets rocksdb_found, its version, and where library and headers lie: wherever the compiler sees them.
find_system_rocksdb() {
    local library header
    library=$(c++ -print-file-name=librocksdb.so)
    header=$(echo '#include <rocksdb/version.h>' | c++ -E -x c++ - 2>/dev/null |
        sed -n 's/^# [0-9]* "\(.*\/rocksdb\/version\.h\)".*/\1/p' | sort -u) || return 1
    [[ -e $library && -e $header ]] || return 1
    rocksdb_found=$(sed -n 's/^#define ROCKSDB_MAJOR //p; s/^#define ROCKSDB_MINOR /./p' "$header" | tr -d ' \n')
    [[ $rocksdb_found =~ $rocksdb_fits ]] || return 1
    ROCKSDB_LIB_DIR=$(dirname "$(realpath -s "$library")")
    ROCKSDB_INCLUDE_DIR=${header%/rocksdb/version.h}
    unset ROCKSDB_STATIC
}

# False where the distribution has none that fits.
install_system_rocksdb() {
    local offered
    apt_index
    offered=$(apt-cache policy librocksdb-dev 2>/dev/null | sed -n 's/.*Candidate: \([0-9]*\.[0-9]*\).*/\1/p')
    [[ $offered =~ $rocksdb_fits ]] || return 1
    install_packages librocksdb-dev
    find_system_rocksdb
}

# --- One of our own --------------------------------------------------------------------------

rocksdb_version() { sed -n '/^name = "librocksdb-sys"/{n;s/^version = ".*+\(.*\)"/\1/p;q}' Cargo.lock; }

# Sets rocksdb_dir. What one compiler built another may not be able to link, so both have their own.
rocksdb_cache() {
    rocksdb_dir=${KVD_ROCKSDB_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/kvd}
    rocksdb_dir+=/rocksdb-$(rocksdb_version)-$(c++ -dumpmachine)-$(c++ -dumpversion)
}

find_built_rocksdb() {
    rocksdb_cache
    [[ -s $rocksdb_dir/librocksdb.a && -s $rocksdb_dir/include/rocksdb/c.h ]] || return 1
    ROCKSDB_LIB_DIR=$rocksdb_dir ROCKSDB_INCLUDE_DIR=$rocksdb_dir/include ROCKSDB_STATIC=1
}

# Compiles the copy in the crate. What an interrupted build has compiled is not compiled again; two
# that begin at the same time become one.
build_rocksdb() {
    local jobs=${CARGO_BUILD_JOBS:-$(nproc)} lock
    mkdir -p "$rocksdb_dir/objects" && [[ -w $rocksdb_dir ]] ||
        fail "$rocksdb_dir cannot be written" "make it yours, or set KVD_ROCKSDB_DIR to a directory of your own"
    find_crate
    exec {lock}>"$rocksdb_dir/lock"
    if ! flock -n "$lock"; then
        say "another build is compiling RocksDB; waiting for it"
        flock "$lock"
    fi
    if ! find_built_rocksdb; then
        ! may_take_system || say "the system has no RocksDB 7.8 or 7.9, and offers none"
        say "compiling RocksDB $(rocksdb_version) into $rocksdb_dir, once for all builds:"
        say "15 to 25 minutes on two cores, here $jobs files at a time"
        quietly rocksdb-build compile_rocksdb "$jobs" || fail "RocksDB did not compile" \
            "see $logs/rocksdb-build.log, then run this again: it goes on where it was." \
            "Killed: 1 GB of memory is needed for each of the $jobs jobs; try CARGO_BUILD_JOBS=1." \
            "\"No space left\": 200 MB are needed in $rocksdb_dir."
        find_built_rocksdb || fail "$rocksdb_dir has no RocksDB after building it" "remove it, then run this again"
    fi
    exec {lock}>&-
}

# Sets rocksdb_crate, the crate's directory; downloads it where it is not there.
find_crate() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    quietly rocksdb-crate cargo metadata --locked --filter-platform "$host" --format-version 1 ||
        fail "the crates could not be downloaded" "check the network (https_proxy is heeded), then run this again"
    rocksdb_crate=$(grep -o '"manifest_path":"[^"]*/librocksdb-sys-[^"]*/Cargo.toml"' "$logs/rocksdb-crate.log" |
        sed 's/.*:"\(.*\)\/Cargo.toml"/\1/')
}

# JOBS: compiles what the crate lists. Library and headers appear whole or not at all.
compile_rocksdb() {
    export crate=$rocksdb_crate objects=$rocksdb_dir/objects
    # No tools, nothing for tests; sync_point is named everywhere, also where it does nothing.
    {
        grep -v -e '^tools/' -e '^test_util/transaction' -e '^util/build_version.cc$' "$crate/rocksdb_lib_sources.txt" |
            sed 's/^/rocksdb\//'
        echo build_version.cc
    } >"$objects/list" || return
    # `-include cstdint`: sources of 2022 count on headers of their time to name it.
    # shellcheck disable=SC2016 # for the shells that xargs starts
    nl -w 1 -s ' ' "$objects/list" | xargs -P "$1" -L 1 bash -c '
        object=$objects/${2//\//_}.o
        [[ ! -s $object ]] || exit 0
        echo "compiling RocksDB, file $1 of $(wc -l <"$objects/list"): ${2#rocksdb/}"
        c++ -std=c++17 -O2 -fPIC -ffunction-sections -fdata-sections -w -include cstdint -DNDEBUG -DOS_LINUX \
            -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SUPPORT_THREAD_LOCAL \
            -I"$crate" -I"$crate/rocksdb" -I"$crate/rocksdb/include" \
            -c "$crate/$2" -o "$object.new" && mv "$object.new" "$object" || exit 255' compile || return
    rm -rf "$rocksdb_dir/include" "$rocksdb_dir/new.a" &&
        cp -r "$crate/rocksdb/include" "$rocksdb_dir/include" &&
        sed "s|/|_|g; s|^|$objects/|; s|\$|.o|" "$objects/list" | xargs ar crs "$rocksdb_dir/new.a" &&
        mv "$rocksdb_dir/new.a" "$rocksdb_dir/librocksdb.a" &&
        rm -rf "$objects"
}
