"""The bridge: requests of AI clients on their way to a provider, relayed and recorded. It knows the store, not the handlers."""
