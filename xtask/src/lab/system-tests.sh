#!/bin/bash
# The lab's usual job: the whole-system tests on Firecracker, then the unit under systemd, then the benchmarks: new
# sandboxes, restored and booted, and restores of a snapshot. A step that fails does not keep the next from running; the
# first of those after the tests that failed is the exit status, else the tests are: 101 means that they alone failed.
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

# Without those that know no VMM (all is slow here, and they run natively), and without those of a machine with one
# processor (xtask/src/lab.rs).
./system --test-threads=1 --skip api:: --skip bad_input:: --skip keys:: --skip tls:: \
  --skip hostile_devices::
tests=$?
timeout 300 lab/unit-test || failed $?
bench bench MANTA_WARM_POOL_SIZE=12 MANTA_MAX_SANDBOXES=16 MANTA_MAX_MEMORY_MIB=65536 -- bench --pool-aware
bench bench-no-pool MANTA_WARM_POOL_SIZE=0 -- bench
bench bench-boot MANTA_ENABLE_SNAPSHOTS=0 -- bench
bench bench-restore MANTA_WARM_POOL_SIZE=0 -- bench-restore
exit $((status ? status : tests))
