"""What the service does, in domain words; one module per noun. A store function never begins or ends a transaction."""
