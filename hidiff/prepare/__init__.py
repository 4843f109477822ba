"""What is done to data before a run: layouts, patches, databases, checks, synthetic blur."""
