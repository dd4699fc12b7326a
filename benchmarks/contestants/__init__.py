"""Every way to run a model that is measured against the others."""
