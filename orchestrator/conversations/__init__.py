"""Conversations: sessions that several runs share. In the contract, not built yet."""
