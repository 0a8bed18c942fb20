"""What imports torch to learn or to score; the map is in alignment/__init__.py."""

from __future__ import annotations

import os


def let_memory_grow() -> None:
    """CUDA's memory in segments that grow, so that batches of many shapes leave no gaps between them. Call it before
    torch is imported; what the user has set stays."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
