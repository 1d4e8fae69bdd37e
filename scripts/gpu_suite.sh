#!/bin/sh
# Makes and measures the CUDA recipes of every kind on this machine's GPU: in one command, and again from where it stopped.
#   scripts/gpu_suite.sh [--work FOLDER] [--seconds 520] [--only PIECE,PIECE] ...    see: python scripts/gpu_suite.py --help
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_suite.py "$@"
