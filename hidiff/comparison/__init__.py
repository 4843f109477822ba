"""Comparing models on one data set: scores, intervals of their differences, cost, pictures."""
