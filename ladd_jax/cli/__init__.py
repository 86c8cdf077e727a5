"""The command line: flags, what is checked before a job starts, and how a command runs."""
