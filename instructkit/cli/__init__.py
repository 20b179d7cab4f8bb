"""The command line: instant help, one clear error, one file per group of commands."""
