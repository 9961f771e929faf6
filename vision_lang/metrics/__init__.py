"""Numbers from arrays and words, in float64; only commands among them know files."""
