"""How fast a config trains: its step timed, counted, and split into parts by a profile."""
