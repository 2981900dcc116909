"""What keeps a run whole: one process to a folder, signals, full memory, determinism."""
