"""What the benchmarks share: a stop-watch, the scene that both sides build in, and mkosi."""
