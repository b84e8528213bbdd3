"""The built-in cascade: small weights in the layout of the hub."""
