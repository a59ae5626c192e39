"""The Ray runner: the same actors, shards and learner as in `system.local`, each in a process of its own."""
