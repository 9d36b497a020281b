"""The app of pool_app as one of several workers that share a queue by prefix affinity."""

from tests.support.apps.pool_app import app
from workers.runtime import prefix_affinity

prefix_affinity.PATIENCE = 3.0  # a busy machine may hold a live worker up for longer than usual
app.conf.broker_transport_options |= {"affinity": prefix_affinity.unique_name(), "fetch_limit": 1}
