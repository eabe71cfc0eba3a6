"""Command line: `app` declares the commands; the code of each command is in its own module, imported when it runs."""
