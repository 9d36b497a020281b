"""pool_app as one of several workers that share a queue by prefix affinity."""

from tests.support.apps.pool_app import app
from workers.runtime.fetching import prefix_affinity

# A busy machine may delay the fetches of a live worker for longer than usual.
prefix_affinity.LIMITS = prefix_affinity.AffinityLimits(patience_seconds=3.0)
app.conf.broker_transport_options |= {"affinity": prefix_affinity.unique_name(), "fetch_limit": 1}
