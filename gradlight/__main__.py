"""`python -m gradlight` is the command line."""

from .cli import main

main()
