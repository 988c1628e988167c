"""The cache of answers: what was asked in the same words is answered with the same answer."""
