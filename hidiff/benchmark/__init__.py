"""Speed: variants, timing, rooflines."""
