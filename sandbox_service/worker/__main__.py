"""Starts a worker, as the supervisor's `worker_process` does."""

from sandbox_service.worker.worker import main

main()
