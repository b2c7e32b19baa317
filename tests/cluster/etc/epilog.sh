#!/bin/bash
# Runs on each node when a job ends there. Without cgroups SLURM loses a process whose parent has died; a real cluster
# kills it with the job, and so does this: what carries the job's number on this node, and everything beneath it.
members=()
for proc in /proc/[0-9]*; do
  [[ $proc/ns/uts -ef /proc/self/ns/uts ]] || continue
  if grep -qzxs "SLURM_JOB_ID=$SLURM_JOB_ID" "$proc/environ"; then members+=("${proc#/proc/}"); fi
done
ps -eo pid=,ppid= | awk -v seed="${members[*]}" -v self=$$ '
  { parent[$1] = $2 }
  END {
    split(seed, list, " ")
    for (i in list) member[list[i]] = 1
    for (p = self; p in parent; p = parent[p]) delete member[p]
    do {
      grown = 0
      for (p in parent) if (!(p in member) && p != self && (parent[p] in member)) { member[p] = 1; grown = 1 }
    } while (grown)
    for (p in member) if (p in parent && parent[p] != self) print p
  }' | xargs -r kill -KILL 2>/dev/null
exit 0
