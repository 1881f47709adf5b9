"""The command line: a command or a group of them a file, and what they share. All import late: `imagen --help` stays quick."""
