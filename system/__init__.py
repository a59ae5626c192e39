"""Everything distributed or at rest: configuration, command line, replay, checkpoints, runners."""
