"""The crash tests share the end-to-end tests' server, client and images."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
