"""`python -m runner` is the command `recipe`."""

from runner.cli import main

main()
