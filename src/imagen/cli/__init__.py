"""The command line: one command, one file. Each imports late, so that `imagen --help` stays quick."""
