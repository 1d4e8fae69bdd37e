#!/bin/sh
# Makes and measures the CUDA recipes of every kind on this machine's GPU: in one command, and again from where it stopped.
#   scripts/gpu_suite.sh [--work FOLDER] [--seconds 520] [--only PIECE,PIECE] ...    see: python scripts/gpu_suite.py --help
set -eu
cd "$(dirname "$0")/.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python # what `make setup TARGET=cuda` made
exec "${PYTHON:-$python}" scripts/gpu_suite.py "$@"
