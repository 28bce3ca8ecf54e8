"""What a user may say on the command line, by what it is about."""
