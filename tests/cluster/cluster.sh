#!/usr/bin/env bash
# A real SLURM (three nodes, accounting) and a real Apptainer on one Debian machine, for tests. The nodes live in a
# network namespace of their own: a job reaches the controller and the other nodes, and nothing else.
#
#   cluster.sh start        install what is missing, start what is not running, wait until all nodes are idle
#   cluster.sh stop         end everything that start has started, and forget the cluster's state
#   cluster.sh down NODE    kill the node at once, with its slurmd, steps and jobs
#   cluster.sh up NODE      start the node again
#   cluster.sh env          print the shell lines for using the cluster: eval "$(cluster.sh env)"
set -euo pipefail

readonly ROOT=/opt/colbert-zero-cluster
readonly NETNS=colbert-zero # network namespace of all nodes; ip(8) reads /etc/netns/$NETNS/ for them
readonly NET=10.213.77      # .1 is the controller on this machine, .11 to .13 the nodes
readonly CTLD_PORT=16817 DBD_PORT=16819 # on this machine; the nodes' ports are in their namespace
readonly NODES=(n1 n2 n3)
readonly READER=reader # an ordinary user of the cluster
readonly PACKAGES=(
  slurm-wlm slurmdbd munge mariadb-server iproute2 uidmap squashfs-tools squashfuse fuse-overlayfs debootstrap
  ca-certificates procps
)
readonly UNITS=(munge mariadb slurmctld slurmd slurmdbd)

TEMPLATES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/etc
readonly TEMPLATES
readonly APPTAINER=$ROOT/apptainer
readonly OWN_APPTAINER=$APPTAINER/usr/bin/apptainer

export SLURM_CONF=$ROOT/etc/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }

die() {
  printf 'cluster.sh: %s\n' "$*" >&2
  exit 1
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}

# ----------------------------------------------------------------------------------------- processes of this cluster

# Processes called NAME that run with this cluster's folder; another munged or slurmctld of the machine is not ours.
daemon_pids() {
  local pid
  for pid in $(pgrep -x "$1"); do
    if cat "/proc/$pid/cmdline" "/proc/$pid/environ" 2>/dev/null | grep -qaF "$ROOT/"; then
      echo "$pid"
    fi
  done
}

runs() { [[ -n $(daemon_pids "$1") ]]; }

# Processes in the namespace (net, uts) that FILE keeps, and everything beneath them: a container may have its own.
namespace_pids() {
  local kind=$1 file=$2 proc
  local -a inside=()
  for proc in /proc/[0-9]*; do
    [[ $proc/ns/$kind -ef $file ]] && inside+=("${proc#/proc/}")
  done
  ((${#inside[@]})) || return 0
  ps -eo pid=,ppid= | awk -v seed="${inside[*]}" '
    { parent[$1] = $2 }
    END {
      split(seed, list, " ")
      for (i in list) member[list[i]] = 1
      do {
        grown = 0
        for (p in parent) if (!(p in member) && (parent[p] in member)) { member[p] = 1; grown = 1 }
      } while (grown)
      for (p in member) print p
    }'
}

node_pids() { namespace_pids uts "$ROOT/run/uts-$1"; }

slurmd_runs() {
  local pid
  for pid in $(pgrep -x slurmd); do
    if [[ /proc/$pid/ns/uts -ef $ROOT/run/uts-$1 ]]; then return 0; fi
  done
  return 1
}

# kill_all COMMAND…: SIGKILL to the processes that the command lists, until it lists none; some may just be forking.
kill_all() {
  local deadline=$((SECONDS + 20))
  local -a pids
  while mapfile -t pids < <("$@") && ((${#pids[@]})); do
    kill -KILL "${pids[@]}" 2>/dev/null || true
    ((SECONDS < deadline)) || die "processes ${pids[*]} do not end; look at them with ps, then call this again"
    sleep 0.05
  done
}

# ------------------------------------------------------------------------------------------------------ conditions

need_root() {
  ((EUID == 0)) || die "needs root (daemons, namespaces, packages); call it as root"
}

need_debian() {
  local ID='' VERSION_ID=''
  # shellcheck disable=SC1091
  [[ ! -r /etc/os-release ]] || . /etc/os-release
  [[ $ID == debian && ${VERSION_ID%%.*} =~ ^[0-9]+$ && ${VERSION_ID%%.*} -ge 12 ]] ||
    die "needs Debian 12 or later, this is ${ID:-unknown} ${VERSION_ID:-}; run it in a Debian 12 virtual machine"
}

need_node() {
  [[ " ${NODES[*]} " == *" ${1:-} "* ]] || die "no node '${1:-}'; name one of: ${NODES[*]}"
  mountpoint -q "$ROOT/run/uts-$1" 2>/dev/null || die "the cluster is not running; call: $0 start"
}

# need_port DAEMON PORT: free, or held by our own daemon.
need_port() {
  local holder
  holder=$(ss -Hltnp "sport = :$2")
  [[ -z $holder ]] || runs "$1" ||
    die "port $2 ($1) is taken by another process: $(grep -o 'users:.*' <<<"$holder" || true); end it, or change the port in $0"
}

need_network() {
  local found
  found=$(ip -brief address show | awk -v net="$NET." 'index($0, " " net) && $1 !~ /^czhost/ { print $1 }')
  [[ -z $found ]] || die "$found already has an address in $NET.0/24; change NET in $0"
}

# Only one start, stop, down or up at a time. The daemons must not inherit the lock: see `detached`.
lock() {
  mkdir -p "$ROOT"
  chmod 755 "$ROOT"
  exec 9>"$ROOT/lock"
  flock -w 300 9 || die "another cluster.sh has held $ROOT/lock for 5 minutes; wait for it or end it"
}

# ---------------------------------------------------------------------------------------------------- installation

install_packages() {
  local package
  local -a missing=() wanted=("${PACKAGES[@]}")
  [[ -n $(foreign_apptainer) || -x $OWN_APPTAINER ]] || wanted+=(patchelf)
  for package in "${wanted[@]}"; do
    [[ $(dpkg-query -Wf '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0

  say "installing ${missing[*]}"
  local -a units=()
  local unit
  for unit in "${UNITS[@]}"; do # a service that was there before stays as it was
    [[ -e /lib/systemd/system/$unit.service ]] || units+=("$unit")
  done
  mkdir -p "$ROOT/log"
  (
    forbid_services
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}"
  ) 9>&- >"$ROOT/log/apt.log" 2>&1 || die "apt-get failed, see $ROOT/log/apt.log; then call this again"
  if command -v systemctl >/dev/null; then
    for unit in "${units[@]}"; do systemctl -q disable "$unit" 2>/dev/null || true; done
  fi
}

# Keep the packages from starting their own daemons. Call it in a subshell: the end of the subshell restores the
# machine's own policy. If the subshell is killed, the end of the next one restores it.
forbid_services() {
  local policy=/usr/sbin/policy-rc.d
  if [[ -e $policy ]] && ! grep -q "$ROOT" "$policy"; then mv -f "$policy" "$policy.before-colbert-zero"; fi
  printf '#!/bin/sh\n# For a moment, by the test cluster in %s.\nexit 101\n' "$ROOT" >"$policy"
  chmod 755 "$policy"
  trap 'rm /usr/sbin/policy-rc.d
    [[ ! -e /usr/sbin/policy-rc.d.before-colbert-zero ]] ||
      mv /usr/sbin/policy-rc.d.before-colbert-zero /usr/sbin/policy-rc.d' EXIT
}

# The machine's own Apptainer, if it is 1.1 or later.
foreign_apptainer() {
  local found version
  found=$(PATH=${PATH//"$ROOT/bin:"/} command -v apptainer) || return 0
  version=$("$found" --version 2>/dev/null | awk '{ print $NF }') || return 0
  if [[ $(printf '%s\n' 1.1 "$version" | sort -V | head -n 1) == 1.1 ]]; then echo "$found"; fi
}

# Debian's unstable has Apptainer. Its binary wants a newer libc: it gets that one in a folder of its own, and both
# stay beneath our folder. The machine's own package sources and libraries are not touched.
install_apptainer() {
  if [[ -n $(foreign_apptainer) || -x $OWN_APPTAINER ]]; then return 0; fi
  say "installing apptainer into $APPTAINER"
  local work=$ROOT/apptainer.new log=$ROOT/log/apptainer.log
  rm -rf "$work" "$APPTAINER"
  (set -e && fetch_apptainer "$work") 9>&- >"$log" 2>&1 || die "cannot install apptainer, see $log; then call this again"
  mv "$work/tree" "$APPTAINER"
  rm -rf "$work"
  "$OWN_APPTAINER" --version >/dev/null || die "the installed apptainer does not run: $OWN_APPTAINER --version"
}

fetch_apptainer() {
  local work=$1 tree=$1/tree site package binary
  # shellcheck disable=SC2016
  site=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk '$2 !~ /security/ { print $1; exit }')
  [[ -n $site ]] || return 1
  mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs,libs} "$tree/libc"
  say "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site unstable main" >"$work/sources.list"
  local -a own=(
    -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=-
    -o "Dir::State=$work/state" -o Dir::State::status=/dev/null -o "Dir::Cache=$work/cache"
    -o APT::Sandbox::User=root -o Acquire::Languages=none
  )
  apt-get "${own[@]}" update
  (cd "$work/debs" && apt-get "${own[@]}" download apptainer libc6 libseccomp2 libsqlite3-0)

  dpkg -x "$work"/debs/apptainer_*.deb "$tree"
  for package in "$work"/debs/lib*.deb; do dpkg -x "$package" "$work/libs"; done
  find "$work/libs" -path '*-linux-gnu/*.so*' ! -path '*/gconv/*' -exec cp -L {} "$tree/libc/" \;
  # RPATH, not RUNPATH: the libraries themselves must find each other there too.
  for binary in "$tree/usr/bin/apptainer" "$tree"/usr/lib/*/apptainer/bin/starter; do
    patchelf --set-interpreter "$APPTAINER/libc/$(basename "$(patchelf --print-interpreter "$binary")")" \
      --force-rpath --set-rpath "$APPTAINER/libc" "$binary"
  done
  # Apptainer finds its files relative to the binary that looks: `apptainer` in usr/, `starter` in usr/lib/.
  mv "$tree/etc" "$tree/usr/etc"
  mkdir -p "$tree/usr/var/lib/apptainer/mnt/session"
  ln -s ../etc ../var "$tree/usr/lib/"
  ln -s . "$tree/usr/lib/lib"
}

ensure_users() {
  id "$READER" >/dev/null 2>&1 || useradd --create-home --home-dir "$ROOT/home/$READER" --shell /bin/bash "$READER"
  chmod 755 "$ROOT/home/$READER" 2>/dev/null || true
  local file user
  for file in /etc/subuid /etc/subgid; do
    for user in root "$READER"; do
      grep -qs "^$user:" "$file" ||
        awk -F: -v user="$user" -v free=100000 '$2 + $3 > free { free = $2 + $3 } END { print user ":" free ":65536" }' \
          <(cat "$file" 2>/dev/null || true) >>"$file.colbert-zero"
      if [[ -e $file.colbert-zero ]]; then
        cat "$file.colbert-zero" >>"$file"
        rm "$file.colbert-zero"
      fi
    done
  done
  # An ordinary user mounts images through /dev/fuse.
  [[ ! -e /dev/fuse ]] || chmod 666 /dev/fuse
}

# ---------------------------------------------------------------------------------------------------------- set up

# render TEMPLATE TARGET MODE: write TARGET only if it differs, and then set CONFIGURED.
render() {
  local text apptainer
  apptainer=$(foreign_apptainer)
  text=$(sed -e "s|@ROOT@|$ROOT|g" -e "s|@NET@|$NET|g" -e "s|@HOSTNAME@|$(hostname -s)|g" \
    -e "s|@CTLD_PORT@|$CTLD_PORT|g" -e "s|@DBD_PORT@|$DBD_PORT|g" \
    -e "s|@APPTAINER@|${apptainer:-$OWN_APPTAINER}|g" "$TEMPLATES/$1")
  if [[ ! -e $2 || $(<"$2") != "$text" ]]; then
    install -m "$3" /dev/stdin "$2" <<<"$text"
    CONFIGURED=yes
  fi
}

configure() {
  local index
  mkdir -p "$ROOT"/{bin,dev,etc,log,munge,run,state}
  CONFIGURED=''
  render slurm.conf "$ROOT/etc/slurm.conf" 644
  render gres.conf "$ROOT/etc/gres.conf" 644
  render cgroup.conf "$ROOT/etc/cgroup.conf" 644
  render slurmdbd.conf "$ROOT/etc/slurmdbd.conf" 600
  render mariadb.cnf "$ROOT/etc/mariadb.cnf" 644
  render task-prolog.sh "$ROOT/etc/task-prolog.sh" 755
  render epilog.sh "$ROOT/etc/epilog.sh" 755
  render apptainer.sh "$ROOT/bin/apptainer" 755
  if [[ -n $CONFIGURED ]] && runs slurmctld; then
    say "the configuration has changed since the cluster was started; for it to count: $0 stop, then $0 start"
  fi
  for index in 0 1 2 3; do
    [[ -c $ROOT/dev/gpu$index ]] || mknod -m 666 "$ROOT/dev/gpu$index" c 1 3
  done
}

ensure_network() {
  local node index=11
  # ip-netns(8) binds these over /etc/… for whatever it starts in the namespace. No name server: names fail at once.
  if [[ ! -e /etc/netns/$NETNS/hosts ]]; then
    mkdir -p "/etc/netns/$NETNS"
    : >"/etc/netns/$NETNS/resolv.conf"
    {
      say "127.0.0.1 localhost"
      say "$NET.1 $(hostname -s)"
      for node in "${NODES[@]}"; do say "$NET.$((index++)) $node"; done
    } >"/etc/netns/$NETNS/hosts"
  fi
  # Snakemake's executor removes SLURM_CONF from what a job starts: put the file in its default place on the nodes.
  mkdir -p /etc/slurm "/etc/netns/$NETNS/slurm"
  ln -sfn "$SLURM_CONF" "/etc/netns/$NETNS/slurm/slurm.conf"
  mountpoint -q "/run/netns/$NETNS" 2>/dev/null || {
    rm -f "/run/netns/$NETNS"
    ip netns add "$NETNS"
  }
  if ! ip -n "$NETNS" link show cznode >/dev/null 2>&1; then
    ip link delete czhost 2>/dev/null || true
    ip link add czhost type veth peer name cznode netns "$NETNS"
  fi
  ip address replace "$NET.1/24" dev czhost
  ip link set czhost up
  for index in 11 12 13; do ip -n "$NETNS" address replace "$NET.$index/24" dev cznode; done
  ip -n "$NETNS" link set cznode up
  ip -n "$NETNS" link set lo up
  # Each node has its own host name (UTS namespace), which also identifies the processes of the node.
  for node in "${NODES[@]}"; do
    if ! mountpoint -q "$ROOT/run/uts-$node" 2>/dev/null; then
      : >"$ROOT/run/uts-$node"
      unshare --uts="$ROOT/run/uts-$node" hostname "$node"
    fi
  done
}

# ---------------------------------------------------------------------------------------------------------- daemons

# Hide the caller's environment, terminal and lock from a daemon, and so from its jobs.
detached() {
  env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 SLURM_CONF="$SLURM_CONF" \
    MYSQL_UNIX_PORT="$ROOT/state/mariadb.sock/socket" setsid --fork "$@" 9>&- </dev/null
}

start_munged() {
  runs munged && return 0
  rm -f "$ROOT/munge/socket"*
  [[ -s $ROOT/munge/key ]] || (umask 077 && head -c 128 /dev/urandom >"$ROOT/munge/key")
  detached munged --key-file="$ROOT/munge/key" --socket="$ROOT/munge/socket" --pid-file="$ROOT/munge/pid" \
    --seed-file="$ROOT/munge/seed" --log-file="$ROOT/log/munged.log" >>"$ROOT/log/munged.log" 2>&1 || true
  wait_for 10 munge --socket="$ROOT/munge/socket" -n || die "munged does not answer, see $ROOT/log/munged.log"
}

database_answers() { mariadb-admin --no-defaults --socket="$ROOT/state/mariadb.sock/socket" ping; }

start_mariadb() {
  if ! runs mariadbd; then
    if [[ ! -e $ROOT/state/mariadb.made ]]; then
      rm -rf "$ROOT/state/mariadb"
      install -d -o mysql -g mysql "$ROOT/state/mariadb"
      mariadb-install-db --defaults-file="$ROOT/etc/mariadb.cnf" --user=mysql --skip-test-db \
        --auth-root-authentication-method=socket 9>&- >"$ROOT/log/mariadb-install.log" 2>&1 ||
        die "the database cannot be made, see $ROOT/log/mariadb-install.log"
      : >"$ROOT/state/mariadb.made"
    fi
    install -d -o mysql -g mysql "$ROOT/state/mariadb.sock"
    install -o mysql -g mysql -m 640 /dev/null "$ROOT/log/mariadb.log"
    detached mariadbd --defaults-file="$ROOT/etc/mariadb.cnf" >>"$ROOT/log/mariadb-install.log" 2>&1
  fi
  wait_for 60 database_answers || die "the database does not answer, see $ROOT/log/mariadb.log; or: $0 stop, then $0 start"
}

start_slurmdbd() {
  runs slurmdbd || detached slurmdbd >>"$ROOT/log/slurmdbd.log" 2>&1
  [[ ! -e $ROOT/state/accounts.made ]] || return 0
  wait_for 60 sacctmgr -n show cluster || die "slurmdbd does not answer, see $ROOT/log/slurmdbd.log"
  make_accounts >"$ROOT/log/accounts.log" 2>&1 || die "the accounts cannot be made, see $ROOT/log/accounts.log"
  : >"$ROOT/state/accounts.made"
}

# sacctmgr also fails when there is nothing to change, so each thing is looked for first.
make_accounts() {
  local user
  [[ -n $(sacctmgr -nP show qos high) ]] || sacctmgr -i add qos high Priority=100
  [[ -n $(sacctmgr -nP show cluster test) ]] || sacctmgr -i add cluster test
  [[ -n $(sacctmgr -nP show account research) ]] ||
    sacctmgr -i add account research cluster=test QOS=normal,high DefaultQOS=normal
  for user in root "$READER"; do
    [[ -n $(sacctmgr -nP show assoc user="$user" account=research) ]] ||
      sacctmgr -i add user "$user" account=research DefaultAccount=research
  done
  sacctmgr -i modify user root set DefaultAccount=research || true
}

start_slurmctld() {
  runs slurmctld || detached slurmctld -f "$SLURM_CONF" >>"$ROOT/log/slurmctld.log" 2>&1
  wait_for 30 scontrol ping || die "slurmctld does not answer, see $ROOT/log/slurmctld.log"
}

start_node() {
  slurmd_runs "$1" && return 0
  # Kill what a slurmd left behind when it alone died. A real machine would have rebooted, and the controller would see
  # that from the boot time. Tell it here: it would otherwise count the node's jobs as running until their time limit.
  kill_all node_pids "$1"
  if [[ -n $(squeue -h -w "$1" 2>/dev/null) ]]; then
    scontrol update NodeName="$1" State=DOWN Reason="its machine died"
  fi
  detached nsenter --uts="$ROOT/run/uts-$1" ip netns exec "$NETNS" slurmd -N "$1" -f "$SLURM_CONF" \
    >>"$ROOT/log/slurmd-$1.log" 2>&1
}

# in_service NODE…: up and answering (no * behind the state); a node that was down or drained is taken back.
in_service() {
  local node state good=0
  for node in "$@"; do slurmd_runs "$node" || return 1; done
  while read -r node state; do
    case $state in
    idle | mixed | allocated | completing | planned | reserved) good=$((good + 1)) ;;
    down* | drain* | fail*) scontrol update NodeName="$node" State=RESUME 2>/dev/null || true ;;
    esac
  done < <(sinfo -hN -o '%N %T' -n "$(IFS=, && echo "$*")" | sort -u)
  ((good == $#))
}

# --------------------------------------------------------------------------------------------------------- commands

start() {
  local node
  need_root
  need_debian
  lock
  install_packages
  need_port slurmctld "$CTLD_PORT"
  need_port slurmdbd "$DBD_PORT"
  need_network
  install_apptainer
  ensure_users
  configure
  ensure_network
  start_munged
  start_mariadb
  start_slurmdbd
  start_slurmctld
  for node in "${NODES[@]}"; do start_node "$node"; done
  wait_for 60 in_service "${NODES[@]}" ||
    die "not all nodes are in service after a minute; see sinfo -R and $ROOT/log/slurmd-*.log"
  sinfo -o '%10P %8a %11l %6D %12T %G'
  "$ROOT/bin/apptainer" --version
  say "the cluster runs; to use it: eval \"\$($0 env)\""
}

stop() {
  local node daemon
  need_root
  [[ -d $ROOT ]] || return 0
  lock
  # End the controller first, so that it does not requeue the jobs that die now. Its state is deleted, so kill it.
  kill_all daemon_pids slurmctld
  for node in "${NODES[@]}"; do
    kill_all node_pids "$node"
    umount "$ROOT/run/uts-$node" 2>/dev/null || true
  done
  kill_all namespace_pids net "/run/netns/$NETNS"
  for daemon in slurmdbd mariadbd munged; do kill_all daemon_pids "$daemon"; done
  ip link delete czhost 2>/dev/null || true
  ip netns delete "$NETNS" 2>/dev/null || true
  rm -rf "/etc/netns/$NETNS" "$ROOT/run" "$ROOT/state" "$ROOT/munge"
  rmdir /etc/netns 2>/dev/null || true
}

down() {
  need_root
  need_node "${1:-}"
  lock
  kill_all node_pids "$1"
}

up() {
  need_root
  need_node "${1:-}"
  lock
  start_node "$1"
  wait_for 60 in_service "$1" || die "$1 is not in service after a minute; see sinfo -R and $ROOT/log/slurmd-$1.log"
}

# shellcheck disable=SC2016
print_env() {
  say "export SLURM_CONF=$ROOT/etc/slurm.conf"
  say "export PATH=$ROOT/bin:\$PATH"
}

case "${1:-} $#" in
'start 1' | 'stop 1') "$1" ;;
'down 2' | 'up 2') "$1" "$2" ;;
'env 1') print_env ;;
*) die "usage: $0 start | stop | down NODE | up NODE | env" ;;
esac
