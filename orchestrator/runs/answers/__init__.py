"""What a reply of the root model says, and whether it is the answer that was asked for."""
