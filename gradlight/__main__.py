"""`python -m gradlight` is the command line."""

from .cli.app import main

main()
