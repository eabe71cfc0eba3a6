"""Entry point of `python -m gradlight`, which runs the command line."""

from .cli.app import main

main()
