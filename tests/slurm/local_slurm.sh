#!/usr/bin/env bash
# A real Slurm of two nodes on this one machine, for the tests in this folder. Needs root.
#   local_slurm.sh up      install Debian's slurm-wlm and munge if they are absent, start, wait until both nodes are idle
#   local_slurm.sh down    stop what `up` started
#   local_slurm.sh conf    print the path of its slurm.conf; commands find this Slurm by SLURM_CONF=<path>
# Two slurmd share the host under the names n1 and n2. Everything lies under ${MEDSIS_SLURM_HOME:-$HOME/.medsis-slurm}; a Slurm
# that the machine may have of its own is left alone.
set -euo pipefail
home=${MEDSIS_SLURM_HOME:-$HOME/.medsis-slurm}
host=$(hostname)
export SLURM_CONF=$home/slurm.conf

install_slurm() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "local_slurm: no Slurm here, and no way to install one" >&2; exit 3; }
  { timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
      timeout 600 apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
    { echo "local_slurm: slurm-wlm cannot be installed here" >&2; exit 3; }
}

write_conf() {
  # More CPUs than the host may have: most jobs of the tests only wait. KillWait is shorter than Slurm's 30 s.
  cat >"$SLURM_CONF" <<EOF
ClusterName=medsis
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool.%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.%n.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MpiDefault=none
KillWait=20
MinJobAge=1800
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17011 CPUs=6 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17012 CPUs=6 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

up() {
  install_slurm
  mkdir -p "$home"/{state,spool.n1,spool.n2,log} /run/munge
  chown munge:munge /run/munge
  write_conf
  munge -n >/dev/null 2>&1 || su -s /bin/bash munge -c /usr/sbin/munged
  for _ in $(seq 40); do munge -n >/dev/null 2>&1 && break; sleep 0.25; done
  [ "$(sinfo -h -t idle,mix,alloc -o %D 2>/dev/null)" = 2 ] && return 0 # up already
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && return 0
    sleep 0.5
  done
  echo "local_slurm: the two nodes did not become idle; see $home/log" >&2
  exit 4
}

down() {
  scancel -u root 2>/dev/null || true
  scontrol shutdown 2>/dev/null || true
  for pid in "$home"/slurmctld.pid "$home"/slurmd.n1.pid "$home"/slurmd.n2.pid; do
    [ -s "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
  done
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  conf) echo "$SLURM_CONF" ;;
  *) sed -n '2,7p' "$0"; exit 2 ;;
esac
