"""Ray, where these tests need it, stays on this machine; it reads its environment when it is imported."""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Servers listen at 127.0.0.1, as on macOS, and not at the address by which a network knows this machine.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
