"""Messages are fetched: the transport, the order of tenants, rates and prefixes."""
