"""Networks of other libraries as denoisers; see docs/priors.md."""
