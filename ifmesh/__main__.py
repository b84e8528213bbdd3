"""``python -m ifmesh``: the same as the command `ifmesh`."""

from ifmesh.cli import main

if __name__ == "__main__":
    main()
