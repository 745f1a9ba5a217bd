"""repzoo: from a light classifier's training form to a proven INT8 model."""

from __future__ import annotations

__version__ = "0.1.0"
