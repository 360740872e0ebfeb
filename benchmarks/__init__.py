"""What the service costs, measured beside what it is made of."""
