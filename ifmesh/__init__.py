"""ifmesh: serve cascaded diffusion models, each stage its own process.  (The map of the layers follows.)"""
