"""Read the request, call the store, answer: one function per route, one module per resource."""
