#!/bin/sh
# What a job needs to speak to this cluster, also under `sbatch --export=NONE`.
[ -n "$SLURM_CONF" ] || echo "export SLURM_CONF=@ROOT@/etc/slurm.conf"
case ":$PATH:" in
*:@ROOT@/bin:*) ;;
*) echo "export PATH=@ROOT@/bin:${PATH:-/usr/local/bin:/usr/bin:/bin}" ;;
esac
