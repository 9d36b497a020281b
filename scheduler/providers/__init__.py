"""Who runs batches for us: one module a provider, behind the seam in `base`."""
