"""What was asked, answered and paid, so that it survives and is never paid twice."""
