"""What one would take instead of a mesh, for the same four stages that do nothing: each in the style that its own documents show.

Each module has `start() -> Drive` and is run by `python -m ifmesh.bench.peers NAME`, in a process of its own (`__main__`), which is asked
by lines of JSON.  Nothing else of ifmesh imports them.
"""
