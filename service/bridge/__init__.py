"""The bridge: relays the requests of AI clients to their providers, and records them. It knows nothing of the handlers."""
