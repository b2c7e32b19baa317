#!/bin/bash
# check_gpu.py on a machine with a GPU, Python 3.12 and PyTorch 2.11 for CUDA, and no network.
#
#     tests/benchmarks/check_gpu_from_wheels.sh FOLDER [ARGUMENTS OF check_gpu.py]
#
# FOLDER has the wheels that the machine lacks, in the versions of envs/local.txt; of sentence-transformers also 6, of
# envs/peers.txt, without which that peer is left out. A machine with the network fills it, a name and version at a
# time:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest FOLDER pylate==1.6.0 ...
#
# Nothing of the machine's own environment changes.
set -euo pipefail
wheels=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv --without-pip --system-site-packages "$environment"
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Where the machine's python is an environment itself, ours sees only the one below it.
"$python" -c 'import sys; print("\n".join(path for path in sys.path if path.endswith("-packages")))' \
  > "$packages/machine.pth"
echo "$PWD/workflow" > "$packages/repository.pth"
install() {
  "$python" -m pip --python "$environment/bin/python" --disable-pip-version-check install --quiet --no-index --no-deps \
    --no-compile --ignore-installed --find-links "$wheels" "$@"
}
own=() peers=()
for wheel in "$wheels"/*.whl; do
  case $(basename "$wheel") in
    sentence_transformers-6*) peers+=("$wheel") ;;
    *) own+=("$wheel") ;;
  esac
done
[ ${#own[@]} = 0 ] || install "${own[@]}"
[ ${#peers[@]} = 0 ] || install --target "$environment/peers" "${peers[@]}"
"$environment/bin/python" tests/benchmarks/check_gpu.py "$@"
