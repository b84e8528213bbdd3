"""Where the built-in cascade lies in the package, as `train folder` writes it: cascade.json and the three repositories."""

from pathlib import Path

FOLDER = Path(__file__).with_name("cascade")
