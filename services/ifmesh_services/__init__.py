"""The heavy half of ifmesh: the only place that imports torch."""
