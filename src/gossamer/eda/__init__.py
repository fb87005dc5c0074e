"""Hardware tools behind four functions: lint, simulate, synthesise and prove a `Design`."""
