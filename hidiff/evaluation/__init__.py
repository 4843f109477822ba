"""Test runs and scores: restoring and scoring data sets, and the files that scores are kept in."""
