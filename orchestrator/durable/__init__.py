"""What makes runs outlive a process: who drives which, and the engine that remembers steps."""
