#!/bin/bash
# Plain `apptainer exec IMAGE …`, whoever calls. Root in a virtual machine that withholds a capability cannot run a
# container the privileged way ("Requesting capability set …"); in a user namespace it works. Not so for `build`: told
# the same, it maps root alone, and then no file can be given to another user; `build --fakeroot` needs no help.
set -euo pipefail

withheld() {
  local key value permitted=0
  while read -r key value; do
    [[ $key != CapPrm: ]] || permitted=$value
  done </proc/self/status
  ((16#$permitted != (1 << ($(</proc/sys/kernel/cap_last_cap) + 1)) - 1))
}

subcommand() {
  while (($#)); do
    case $1 in
    -c | --config) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
  done
  printf '%s' "${1:-}"
}

if ((EUID == 0)) && [[ $(subcommand "$@") != build ]] && withheld; then
  export APPTAINER_USERNS="${APPTAINER_USERNS:-1}"
fi
exec @APPTAINER@ "$@"
