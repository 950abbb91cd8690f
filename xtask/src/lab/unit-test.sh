#!/bin/bash
# Installs Manta as docs/operating.md says and has a real systemd run docs/manta.service, with all its hardening in
# force: started, used, killed and back, stopped. Prints what failed and exits with it.
set -eu
curl() { command curl --silent --show-error --fail-with-body --max-time 120 "$@"; }
api=http://127.0.0.1:8080
fail() { echo "unit: $*" >&2; journal; exit 1; }
journal() { systemctl status --no-pager --lines=0 manta >&2 || true; tail -n 40 out/systemd.log out/unit.log >&2 || true; }
trap 'fail "line $LINENO failed"' ERR
# However this ends, all that systemd runs goes with it; SIGTERM it would ignore.
systemd=
trap '[ -z "$systemd" ] || kill -KILL "$systemd"' EXIT

install -D manta /usr/local/bin/manta
install -D firecracker /usr/local/bin/firecracker
install -D jailer /usr/local/bin/jailer
install -D -m 0644 -t /usr/local/lib/manta guest-artifacts/*
install -D -m 0644 lab/manta.service /etc/systemd/system/manta.service
install -d /etc/manta && cat > /etc/manta/manta.env <<END
MANTA_KERNEL_PATH=/usr/local/lib/manta/vmlinux
MANTA_ROOTFS_PATH=$MANTA_ROOTFS_PATH
MANTA_AGENT_PATH=/usr/local/lib/manta/manta-agent
MANTA_WARM_POOL_SIZE=1
END
# There is no journal here.
install -d /etc/systemd/system/manta.service.d
printf '[Service]\nStandardOutput=append:/srv/manta/out/unit.log\nStandardError=append:/srv/manta/out/unit.log\n' \
  > /etc/systemd/system/manta.service.d/log.conf

# A systemd of its own, which is PID 1 of a namespace, as in a container.
env --ignore-environment PATH="$PATH" container=lab \
  unshare --fork --pid --mount --mount-proc --kill-child \
  /lib/systemd/systemd --unit=basic.target --log-target=console > out/systemd.log 2>&1 &
systemd=$!
# It speaks only to those whom it sees.
systemctl() { nsenter --target "$(pgrep --parent $systemd)" --pid --mount -- systemctl "$@"; }
for _ in {1..100}; do systemctl is-system-running 2> /dev/null | grep -qE 'running|degraded' && break; sleep 0.3; done

version=$(systemctl --version | head -n 1)
systemctl start manta || fail "it did not start"
curl $api/healthz | grep -q '"status":"ok"' || fail "it is not well: $(curl $api/healthz)"
post() { curl --json "$2" "$api$1"; }
id=$(curl --request POST $api/create | sed 's/.*"sandbox_id":"\([^"]*\)".*/\1/')
post /exec "{\"sandbox_id\":\"$id\",\"cmd\":\"echo kept > /root/kept; cat /root/kept\"}" | grep -q '"stdout":"kept' || fail "no command ran"
snapshot=$(post /snapshot/create "{\"sandbox_id\":\"$id\"}" | sed 's/.*"snapshot_id":"\([^"]*\)".*/\1/')
clone=$(post /snapshot/restore "{\"snapshot_id\":\"$snapshot\"}" | sed 's/.*"sandbox_id":"\([^"]*\)".*/\1/')
post /destroy "{\"sandbox_id\":\"$clone\"}" > /dev/null

# Killed, it is back by itself, and so is the sandbox.
before=$(systemctl show --property=MainPID --value manta)
systemctl kill --signal=KILL --kill-whom=main manta
for _ in {1..100}; do
  now=$(systemctl show --property=MainPID --value manta)
  [ "$now" != "$before" ] && [ "$now" != 0 ] && systemctl is-active --quiet manta && break
  sleep 0.3
done
post /exec "{\"sandbox_id\":\"$id\",\"cmd\":\"cat /root/kept\"}" | grep -q '"stdout":"kept' || fail "the sandbox was not taken back"

systemctl stop manta || fail "it did not stop"
! pgrep firecracker > /dev/null || fail "left: $(pgrep --list-full firecracker)"
! nft list tables | grep -q manta || fail "left: $(nft list tables)"
echo "unit: started, used, killed and back with its sandbox, stopped: ${version%% (*}"
