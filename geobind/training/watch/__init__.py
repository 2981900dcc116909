"""Evaluations on the way: held-out rows, the best weights, early stops, averages of weights."""
