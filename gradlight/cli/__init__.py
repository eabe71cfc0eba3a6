"""The command line: `app` holds the commands; each command's work is a file of its own, imported when it runs."""
