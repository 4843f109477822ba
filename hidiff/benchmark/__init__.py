"""Speed: what is measured in which variants, and its table."""
