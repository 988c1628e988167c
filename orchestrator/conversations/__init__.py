"""Conversations: sessions that several runs share. What one run leaves, the next one finds."""
