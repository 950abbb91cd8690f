#!/bin/bash
# system-tests first|rest: the lab's usual jobs, side by side, each on an emulated host of its own. The whole-system tests on
# Firecracker, one half each; then the benchmarks (new sandboxes, restored and booted, and restores of a snapshot), or the
# unit under systemd. A step that fails does not keep the next from running; the first of those after the tests that failed
# is the exit status, else the tests are: 101 means that they alone failed.
status=0
failed() { status=$((status ? status : $1)); }

# bench RESULT SETTING... -- COMMAND...: runs a server with the settings, and against it the command.
bench() {
  local result=out/$1.json log=out/$1.log settings=(MANTA_MEM_MIB=512) server line
  shift
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  exec 4< <(exec env "${settings[@]}" manta server 2> "$log")
  server=$!
  if read -r -t 240 line <&4; then
    manta "$@" --endpoint "${line#manta: listening on }" --iterations 10 --warmup 1 --timeout 120s > "$result" || failed $?
  else
    failed 1
  fi
  kill -TERM $server
  wait $server || failed $?
  [ $status = 0 ] || tail -n 40 "$log" >&2
}

# Without those that know no VMM: all is slow here, and they run natively.
native=(api:: bad_input:: keys:: tls::)
# About half of the time.
first=(snapshot_faults:: snapshots:: failpoints:: golden:: recovery:: exec:: clones::)
skip=()
for name in "${native[@]}" "${first[@]}"; do skip+=(--skip "$name"); done
case $1 in
  first)
    ./system --test-threads=1 "${first[@]}"
    tests=$?
    bench bench MANTA_WARM_POOL_SIZE=12 MANTA_MAX_SANDBOXES=16 MANTA_MAX_MEMORY_MIB=65536 -- bench --pool-aware
    bench bench-no-pool MANTA_WARM_POOL_SIZE=0 -- bench
    bench bench-boot MANTA_ENABLE_SNAPSHOTS=0 -- bench
    bench bench-restore MANTA_WARM_POOL_SIZE=0 -- bench-restore
    ;;
  rest)
    ./system --test-threads=1 "${skip[@]}"
    tests=$?
    timeout 300 lab/unit-test || failed $?
    ;;
esac
exit $((status ? status : tests))
