"""The egress guard: what may leave for a provider, by tenant, and what is done about secrets."""
