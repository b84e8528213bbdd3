"""Where trained weights lie in the package, as `train folder` writes them: cascade.json and the three repositories.

Where they are, they are the built-in cascade; where they are not, builder.py makes one of random weights.
"""

from pathlib import Path

FOLDER = Path(__file__).with_name("cascade")
