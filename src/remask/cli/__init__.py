"""The command line: parsing only. Nothing heavy is imported before a command needs it."""
