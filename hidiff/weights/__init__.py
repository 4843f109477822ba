"""Finding and reading weights: experiments by name, files of the release, checks."""
