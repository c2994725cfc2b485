"""Whether this process runs Triton's kernels in its interpreter, which shows that they are right but takes seconds."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
