"""The orchestrator: owns contexts and runs, and drives the loop that answers a question."""
