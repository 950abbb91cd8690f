#!/bin/bash
# The lab's usual job: the whole-system tests on Firecracker, then a benchmark of ten sandboxes. A step that
# fails does not keep the next from running; the first failure is the exit status.
status=0
failed() { status=$((status ? status : $1)); }

./system --test-threads=1 || failed $?

exec 4< <(exec manta server 2> out/server.log)
server=$!
if read -r -t 120 line <&4; then
  manta bench --endpoint "${line#manta: listening on }" --iterations 10 --warmup 1 --timeout 120s > out/bench.json || failed $?
  kill -TERM $server
else
  failed 1
fi
wait $server || failed $?
[ $status = 0 ] || tail -n 40 out/server.log >&2
exit $status
